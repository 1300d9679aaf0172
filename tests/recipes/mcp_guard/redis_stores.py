"""Rate windows, budgets and nonces that all processes on one Redis share.

It needs ``redis>=5``, ``limits>=5`` and Redis 6.2 or later; ``redis_sessions`` adds sessions::

    client = make_client("rediss://user:password@192.0.2.7:6379/0")
    check_server(client)  # once, at start-up
    limiter = RedisRateLimiter(client, max_calls_per_window=60, window_size=60)
    budget = RedisBudget(client, max_calls=policy.max_tool_calls, period=86_400)
    guard = Guard(policy, audit_sink=sink, limiter=limiter, budget=budget)
    channel = SignedChannel(..., nonce_store=RedisNonceStore(client))

Each answer is one atomic step on the server, so it is exact over all processes. A call waits for
the client's timeout at most, whatever Redis does and however many wait. Then it raises
``redis.RedisError``, as it does when Redis is down or full: the guard and the channel deny. Nothing
is sent twice, so a claim whose answer came too late counts although its call was denied. (The
kernel's signer and authenticator hold a lock while they wait: their threads wait in line.)

What the server has to be, and ``check_server`` checks as far as a client can see it:

- ``maxmemory-policy noeviction``: an evicted nonce can be replayed, an evicted count starts again.
- ``appendonly yes``: without it a restart forgets everything. ``appendfsync always`` loses nothing
  that was answered, ``everysec`` up to two seconds of it.
- One primary, no Redis Cluster. Replication is asynchronous: a failover forgets the last writes.
- Reachable by these processes only, with TLS and a password: a writer can reset what it counts.

Clocks of the hosts must agree: to ``clock_skew`` for nonces, and a rate window is shortened by as
much as one host's clock is ahead of the others'. Keys hold no caller, nonce or token, only its
SHA-256 or HMAC: ids are exact, and none reaches the key of another. Give each use a prefix.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import hashlib
import math
import os
from collections.abc import Callable
from concurrent import futures
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

import redis
from limits import RateLimitItemPerSecond
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_mcp_governance import MCPNonceStore

__all__ = ["RedisBudget", "RedisNonceStore", "RedisRateLimiter", "check_server", "make_client"]

Answer = TypeVar("Answer")
_THREADS = 64  # of one store


def make_client(url: str, *, timeout: float = 0.5) -> redis.Redis:
    """Return a client for the stores, which threads may share. It connects at its first command.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as ``redis.Redis.from_url`` takes it.
        timeout: Most seconds that any call of a store waits.

    Raises:
        ValueError: *timeout* is not a positive number, or *url* is malformed or overrides it.
    """
    if type(timeout) not in (int, float) or not 0 < timeout < math.inf:
        raise ValueError("timeout must be a positive number of seconds")
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # Sent again, a claim whose answer was lost would be refused as a duplicate or count twice.
        "retry": Retry(NoBackoff(), 0),
        # Over RESP 3 a server can ask redis-py 7 and later for longer timeouts.
        "protocol": 2,
    }
    # redis-py 8 refuses more than 100 connections, which two stores can need.
    client = redis.Redis.from_url(url, **{"max_connections": 16 * _THREADS, **options})
    used = client.get_connection_kwargs()
    if changed := [name for name, value in options.items() if used.get(name) != value]:
        raise ValueError(f"the URL must not set {', '.join(changed)}: make_client does")
    return client


def check_server(client: redis.Redis, *, require_persistence: bool = True) -> None:
    """Refuse a server on which the stores would not hold what they promise.

    Args:
        client: From ``make_client``.
        require_persistence: Whether a server without an append-only file is refused. False accepts
            that a restart of Redis forgets all nonces, counts and sessions.

    Raises:
        RuntimeError: Names everything that is wrong.
        redis.RedisError: The server cannot be asked.
    """
    info = RedisStore(client).wait(client.info)
    problems = {
        "maxmemory-policy is not noeviction": info.get("maxmemory_policy") != "noeviction",
        "appendonly is off": require_persistence and not info.get("aof_enabled"),
        "the server is a replica": info.get("role") != "master",
        "the server is part of a cluster": bool(info.get("cluster_enabled")),
    }
    if found := [problem for problem, there in problems.items() if there]:
        raise RuntimeError("; ".join(found))


class RedisStore:
    """Waits for an answer in all as long as the client waits for each part of it.

    A socket's timeout starts again with every byte and address, and the look-up of a name has none.
    So a thread sends the command, and the caller gives up on the thread. That adds some 50
    microseconds to a call, and up to 64 threads to a store.
    """

    def __init__(self, client: redis.Redis) -> None:
        """Wait for *client*, which is from ``make_client``."""
        timeout = client.get_connection_kwargs().get("socket_timeout")
        if type(timeout) not in (int, float):
            raise ValueError("the client needs a socket_timeout: use make_client")
        self._client = client
        self._timeout = timeout
        self._process = 0
        self._threads: futures.ThreadPoolExecutor

    def wait(self, command: Callable[[], Answer]) -> Answer:
        """Return what *command* returns, or raise ``redis.TimeoutError``."""
        if self._process != os.getpid():  # a fork copies no threads
            self._threads = futures.ThreadPoolExecutor(_THREADS)
            self._process = os.getpid()
        answer = self._threads.submit(command)
        try:
            return answer.result(self._timeout)
        except futures.TimeoutError:
            answer.cancel()  # if no thread has begun it, it is not sent any more
            raise redis.TimeoutError(f"no answer within {self._timeout} seconds") from None


class RedisRateLimiter(RedisStore):
    """A sliding window for each caller; give it to the guard as ``limiter``."""

    blocking = True

    def __init__(
        self,
        client: redis.Redis,
        *,
        max_calls_per_window: int,
        window_size: int,
        prefix: str = "mcp:rate",
    ) -> None:
        """Keep windows below *prefix*.

        Args:
            client: From ``make_client``.
            max_calls_per_window: Calls of one caller within any window.
            window_size: Length of the window, in whole seconds.
            prefix: What every key has after the ``LIMITS:`` of the library. Other limits and
                windows have other keys.

        Raises:
            ValueError: A number is not an integer from 1 to 10**9.
        """
        super().__init__(client)
        self._window = RateLimitItemPerSecond(
            positive("max_calls_per_window", max_calls_per_window),
            positive("window_size", window_size),
            namespace=prefix,
        )
        self._limiter = MovingWindowRateLimiter(_limits_storage(client))
        self.allowance = f"{max_calls_per_window} calls in {window_size} seconds"

    def try_acquire(self, caller: str) -> bool:
        """Take one call from *caller*'s window.

        Args:
            caller: A verified identity.

        Returns:
            Whether there was one left. Calls that were refused are not counted.

        Raises:
            ValueError: *caller* is empty.
            redis.RedisError: Redis did not answer in time, or has no room.
        """
        key = digest(caller)
        return self.wait(lambda: self._limiter.hit(self._window, key))


class RedisBudget(RedisStore):
    """A number of calls for each caller, that renews; give it to the guard as ``budget``."""

    blocking = True

    def __init__(
        self, client: redis.Redis, *, max_calls: int, period: int, prefix: str = "mcp:budget"
    ) -> None:
        """Keep counts below *prefix*.

        Args:
            client: From ``make_client``.
            max_calls: Calls of one caller within a period.
            period: Whole seconds from a caller's first call until the budget is whole again.
            prefix: What every key has after the ``LIMITS:`` of the library.

        Raises:
            ValueError: A number is not an integer from 1 to 10**9.
        """
        super().__init__(client)
        self._storage = _limits_storage(client)
        self._max_calls = positive("max_calls", max_calls)
        self._period = positive("period", period)
        self._prefix = prefix
        self.allowance = f"{max_calls} calls in {period} seconds"

    def try_acquire(self, caller: str) -> bool:
        """Take one call from *caller*'s budget.

        Args:
            caller: A verified identity.

        Returns:
            Whether there was one left.

        Raises:
            ValueError: *caller* is empty, or the stored count is negative.
            redis.RedisError: Redis did not answer in time, or has no room.
        """
        key = f"{self._prefix}:{digest(caller)}"
        count = self.wait(lambda: self._storage.incr(key, self._period))
        if count < 1:
            raise ValueError("the stored count is negative")
        return count <= self._max_calls


class RedisNonceStore(RedisStore, MCPNonceStore):
    """Nonces for ``SignedChannel`` or MCPMessageSigner: each is accepted once, by whoever is first.

    The signer asks ``has`` before it checks the signature, so ``has`` only looks: a forged message
    burns no nonce. ``add`` comes after it, claims in one command and raises for all but the first
    (replay protection: section 7 of the OWASP MCP Security Cheat Sheet).
    """

    def __init__(
        self, client: redis.Redis, *, prefix: str = "mcp:nonce", clock_skew: float = 60.0
    ) -> None:
        """Keep nonces below *prefix*.

        Args:
            client: From ``make_client``.
            prefix: What every key begins with.
            clock_skew: Seconds by which the clocks of two hosts may differ. A nonce is kept so much
                longer, because a host that is behind accepts its message longer.
        """
        super().__init__(client)
        self._prefix = prefix
        self._clock_skew = timedelta(seconds=clock_skew)

    def has(self, nonce: str) -> bool:
        """Return whether *nonce* was claimed and has not expired."""
        return bool(self.wait(lambda: self._client.exists(self._key(nonce))))

    def add(self, nonce: str, expires_at: datetime) -> None:
        """Claim *nonce* until *expires_at*.

        Args:
            nonce: Any text; only its SHA-256 is sent.
            expires_at: When the message becomes too old, with a time zone.

        Raises:
            ValueError: It was claimed before. The signer refuses the message.
            redis.RedisError: Redis did not answer in time, or has no room.
        """
        keep = expires_at - datetime.now(timezone.utc) + self._clock_skew
        if not self.wait(lambda: self._client.set(self._key(nonce), b"1", nx=True, px=keep)):
            raise ValueError("nonce was used before")

    def cleanup(self) -> int:
        """Return 0: Redis removes what has expired."""
        return 0

    def _key(self, nonce: str) -> str:
        return f"{self._prefix}:{digest(nonce)}"


def digest(text: str) -> str:
    """Return the SHA-256 of *text* as hexadecimal digits; raise ValueError if it is empty."""
    if not text:
        raise ValueError("an id must not be empty")
    return hashlib.sha256(text.encode()).hexdigest()


def positive(name: str, value: int) -> int:
    """Return *value* if it is an integer from 1 to 10**9; raise ValueError if it is not."""
    if type(value) is not int or not 1 <= value <= 10**9:
        raise ValueError(f"{name} must be an integer from 1 to 10**9, not {value!r}")
    return value


def _limits_storage(client: redis.Redis) -> RedisStorage:
    # The URL only says which client library it is; the pool brings address and timeouts.
    return RedisStorage("redis://", connection_pool=client.connection_pool)
