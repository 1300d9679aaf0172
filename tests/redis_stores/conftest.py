"""The servers and clients of this room."""

from collections.abc import Iterator

import pytest
import redis
from mcp_guard.redis_stores import make_client
from support.redis_server import Server, _shared_server, durable_server, redis_binary, redis_server

__all__ = ["_shared_server", "durable_server", "redis_binary", "redis_server"]  # fixtures


@pytest.fixture
def client(redis_server: Server) -> Iterator[redis.Redis]:
    with make_client(redis_server.url, timeout=10.0) as client:
        yield client
