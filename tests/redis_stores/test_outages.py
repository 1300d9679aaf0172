"""A Redis that is down, hung, full, busy, a replica, or killed under load; what set-up refuses."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from mcp_guard.redis_sessions import RedisSessionStore
from mcp_guard.redis_stores import (
    RedisBudget,
    RedisNonceStore,
    RedisRateLimiter,
    RedisStore,
    check_server,
    make_client,
)
from mcp_guard.signed_messages import RefusedMessageError, SignedChannel
from support.processes import PATIENCE
from support.redis_server import DURABLE, Server

from agent_mcp_governance import MCPMessageSigner, MCPSessionAuthenticator

KEYS = {"client": b"c" * 32, "server": b"s" * 32}
SECRET = b"x" * 32


def window(client: redis.Redis, calls: int = 1_000) -> RedisRateLimiter:
    return RedisRateLimiter(client, max_calls_per_window=calls, window_size=3_600)


def budget(client: redis.Redis, calls: int = 1_000) -> RedisBudget:
    return RedisBudget(client, max_calls=calls, period=3_600)


def channel(me: str, peer: str, store: RedisNonceStore | None = None) -> SignedChannel:
    return SignedChannel(
        me=me, peer=peer, send_key=KEYS[me], receive_key=KEYS[peer], nonce_store=store
    )


def authenticator(client: redis.Redis) -> MCPSessionAuthenticator:
    store = RedisSessionStore(client, secret=SECRET, max_sessions=1_000)
    return MCPSessionAuthenticator(session_store=store, max_concurrent_sessions=1_000)


def all_parts(client: redis.Redis) -> dict[str, Callable[[], Any]]:
    """Return a call of each part that grants something as long as Redis works."""
    limiter, calls, sessions = window(client), budget(client), authenticator(client)
    here, there = channel("client", "server"), channel("server", "client", RedisNonceStore(client))
    signer = MCPMessageSigner(b"k" * 32, nonce_store=RedisNonceStore(client))
    token = sessions.create_session("first")
    return {
        "window": lambda: limiter.try_acquire("agent"),
        "budget": lambda: calls.try_acquire("agent"),
        "channel": lambda: there.verify(here.sign("body")),
        "signer": lambda: signer.verify_message(signer.sign_message("payload")).is_valid,
        "new session": lambda: sessions.create_session("agent"),
        "session": lambda: sessions.validate_session("first", token),
    }


def granted(part: Callable[[], Any]) -> bool:
    """Return whether *part* granted something; these two errors are documented denials."""
    try:
        return bool(part())
    except (redis.RedisError, RefusedMessageError):
        return False


def ask(parts: dict[str, Callable[[], Any]]) -> set[str]:
    """Return which parts granted something."""
    with ThreadPoolExecutor(len(parts)) as threads:
        answers = threads.map(granted, parts.values(), timeout=PATIENCE)
        return {name for name, answer in zip(parts, answers, strict=True) if answer}


@pytest.mark.parametrize("trouble", ["down", "hung", "busy", "full", "replica"])
def test_trouble_grants_nothing_new_and_ends(durable_server: Server, trouble: str) -> None:
    with make_client(durable_server.url, timeout=2.0) as client:
        parts = all_parts(client)
        assert ask(parts) == set(parts)
        with getattr(durable_server, trouble)():
            # The last two answer reads.
            assert ask(parts) == ({"session"} if trouble in ("full", "replica") else set())
        assert ask(parts) == set(parts)


def test_a_session_can_be_revoked_on_a_full_server(
    redis_server: Server, client: redis.Redis
) -> None:
    sessions = authenticator(client)
    token = sessions.create_session("agent")
    with redis_server.full():
        assert RedisSessionStore(client, secret=SECRET).revoke_agent("agent") == 1
        assert sessions.validate_session("agent", token) is None


def test_a_claim_whose_answer_is_lost_is_counted_and_not_sent_again(redis_server: Server) -> None:
    with make_client(redis_server.url, timeout=1.0) as client:
        calls = budget(client, 3)
        assert calls.try_acquire("agent")
        with redis_server.hung(), pytest.raises(redis.TimeoutError):
            calls.try_acquire("agent")

        assert [calls.try_acquire("agent") for _ in range(2)] == [True, False]


def test_what_was_answered_outlives_a_killed_server(durable_server: Server) -> None:
    with make_client(durable_server.url, timeout=10.0) as client:
        here, sessions = channel("client", "server"), authenticator(client)
        there = channel("server", "client", RedisNonceStore(client))
        used, unused = here.sign("used"), here.sign("unused")
        kept, revoked = sessions.create_session("agent"), sessions.create_session("agent")
        assert there.verify(used) == "used"
        assert window(client, 1).try_acquire("agent")
        assert budget(client, 1).try_acquire("agent")
        assert sessions.revoke_session(revoked)

        with durable_server.down():
            pass
        with pytest.raises(RefusedMessageError):
            there.verify(used)
        assert there.verify(unused) == "unused"
        assert not window(client, 1).try_acquire("agent")
        assert not budget(client, 1).try_acquire("agent")
        assert sessions.validate_session("agent", kept) is not None
        assert sessions.validate_session("agent", revoked) is None


@pytest.mark.parametrize("make", [window, budget])
def test_killing_redis_under_load_lets_no_call_through_that_should_not_be(
    durable_server: Server, make: Callable[[redis.Redis, int], RedisRateLimiter | RedisBudget]
) -> None:
    begun, restarted = threading.Barrier(5, timeout=PATIENCE), threading.Event()

    def load(_: int) -> Counter[str]:
        outcomes = Counter[str]()
        with make_client(durable_server.url, timeout=PATIENCE) as client:
            part = make(client, 200)

            def attempt() -> None:
                try:
                    outcomes["granted" if part.try_acquire("agent") else "refused"] += 1
                except redis.RedisError:
                    outcomes["no Redis"] += 1

            attempt()
            begun.wait()
            # A client that was busy elsewhere may not notice that Redis was away.
            while not (outcomes["no Redis"] or restarted.is_set()):
                attempt()
            restarted.wait(PATIENCE)
            for _ in range(60):
                attempt()
        return outcomes

    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(load, range(4))
        begun.wait()
        with durable_server.down():
            pass
        restarted.set()
        outcomes = sum(answers, Counter[str]())

    # Each thread can lose the answer to the one claim that was on its way.
    assert 196 <= outcomes["granted"] <= 200


def test_a_durable_server_passes_the_check_and_another_if_it_may(
    durable_server: Server, client: redis.Redis
) -> None:
    with make_client(durable_server.url) as durable:
        check_server(durable)
    check_server(client, require_persistence=False)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("appendonly", "no", "appendonly is off"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is not noeviction"),
        ("replicaof", "127.0.0.1 1", "the server is a replica"),
        ("cluster-enabled", "yes", "the server is part of a cluster"),
    ],
)
def test_the_check_names_what_is_wrong_with_a_server(
    redis_binary: str, tmp_path: Path, option: str, value: str, reason: str
) -> None:
    server = Server(redis_binary, tmp_path, *DURABLE, f"--{option}", *value.split())
    try:
        with make_client(server.url) as client, pytest.raises(RuntimeError) as caught:
            check_server(client)
    finally:
        server.kill()
    assert str(caught.value) == reason


def test_a_client_that_waits_for_ever_is_refused() -> None:
    with (
        redis.Redis(socket_timeout=None) as client,
        pytest.raises(ValueError, match="needs a socket_timeout: use make_client"),
    ):
        RedisStore(client)


def test_every_wait_of_a_client_has_its_timeout_and_nothing_is_sent_again() -> None:
    with make_client("redis://127.0.0.1", timeout=0.25) as client:
        options = client.get_connection_kwargs()
        assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.25
        assert options["protocol"] == 2
        assert client.connection_pool.max_connections >= 5 * 64  # all threads of five stores
        assert client.get_retry()._retries == 0


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan"), "1", None, True])
def test_a_client_has_a_timeout(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        make_client("redis://127.0.0.1", timeout=timeout)


@pytest.mark.parametrize(
    "option", ["socket_timeout=3600", "socket_connect_timeout=9", "protocol=3", "retry=5"]
)
@pytest.mark.parametrize("address", ["redis://127.0.0.1", "rediss://127.0.0.1", "unix:///socket"])
def test_a_url_does_not_override_the_client(address: str, option: str) -> None:
    name = option.split("=")[0]
    with pytest.raises(ValueError, match=f"^the URL must not set {name}: make_client does$"):
        make_client(f"{address}?{option}")


@pytest.mark.parametrize("option", ["db=1", "client_name=guard", "health_check_interval=30"])
def test_a_url_may_say_everything_else(option: str) -> None:
    name, value = option.split("=")
    with make_client(f"redis://127.0.0.1?{option}") as client:
        assert str(client.get_connection_kwargs()[name]) == value
