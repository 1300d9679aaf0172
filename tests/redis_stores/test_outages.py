"""A Redis that is down, hung, full, busy, a replica, or killed under load; what set-up refuses."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import pytest
import redis
from mcp_guard.redis_stores import RedisNonceStore, RedisStore, check_server, make_client
from mcp_guard.signed_messages import RefusedMessageError
from support import signing
from support.processes import PATIENCE, soon
from support.redis_server import Make, Server, authenticator, both, budget, session_store, window

from agent_mcp_governance import MCPMessageSigner


def all_parts(client: redis.Redis, token: str) -> dict[str, Callable[[], Any]]:
    """Return a call of each part that grants something as long as Redis works."""
    limiter, calls, sessions = window(client), budget(client), authenticator(client)
    nonces = RedisNonceStore(client)
    here, there = signing.client(), signing.server(nonce_store=nonces)
    signer = MCPMessageSigner(b"k" * 32, nonce_store=nonces)
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


def all_grant(parts: dict[str, Callable[[], Any]]) -> bool:
    return all(soon(partial(granted, part)) for part in parts.values())


@pytest.mark.parametrize("how", ["down", "hung", "busy", "full", "replica"])
def test_trouble_grants_nothing_new_and_ends(server: Server, client: redis.Redis, how: str) -> None:
    token = authenticator(client).create_session("first")
    timeout = 0.5 if how == "hung" else PATIENCE
    with make_client(server.url, timeout=timeout) as asking:
        parts = all_parts(asking, token)
        assert all_grant(parts)
        with getattr(server, how)():
            answers = {name for name, part in parts.items() if granted(part)}
        # The last two answer reads.
        assert answers == ({"session"} if how in ("full", "replica") else set())
        assert all_grant(parts)


def test_a_session_can_be_revoked_on_a_full_server(server: Server, client: redis.Redis) -> None:
    sessions = authenticator(client)
    token = sessions.create_session("agent")
    with server.full():
        assert session_store(client).revoke_agent("agent") == 1
        assert sessions.validate_session("agent", token) is None


def test_a_claim_whose_answer_is_lost_is_counted_once(server: Server, client: redis.Redis) -> None:
    assert budget(client, 3).try_acquire("agent")
    with make_client(server.url, timeout=2.0) as impatient:
        assert soon(lambda: granted(impatient.ping))  # it has a connection
        with server.hung(), pytest.raises(redis.TimeoutError):
            budget(impatient, 3).try_acquire("agent")
    assert [budget(client, 3).try_acquire("agent") for _ in range(2)] == [True, False]


def test_what_was_answered_outlives_a_killed_server(server: Server, client: redis.Redis) -> None:
    here, sessions = signing.client(), authenticator(client)
    there = signing.server(nonce_store=RedisNonceStore(client))
    used, unused = here.sign("used"), here.sign("unused")
    kept, revoked = sessions.create_session("agent"), sessions.create_session("agent")
    assert there.verify(used) == "used"
    assert sessions.revoke_session(revoked)
    with server.down():
        pass
    assert [signing.accepts(there, message) for message in (used, unused)] == [False, True]
    assert sessions.validate_session("agent", kept) is not None
    assert sessions.validate_session("agent", revoked) is None


@both
def test_killing_redis_under_load_lets_no_call_through_that_should_not_be(
    server: Server, client: redis.Redis, make: Make
) -> None:
    begun = threading.Barrier(5, timeout=PATIENCE)

    def count_granted(_: int) -> int:
        granted = 0
        with make_client(server.url, timeout=PATIENCE) as client:
            part = make(client, 200)
            begun.wait()
            for _ in range(1_000_000):
                with suppress(redis.RedisError):  # it is down
                    if not part.try_acquire("agent"):
                        break
                    granted += 1
        return granted

    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(count_granted, range(4))
        begun.wait()
        with server.down():
            pass
        # Each thread can lose the answer to the one claim that was on its way.
        assert 196 <= sum(answers) <= 200
    assert not make(client, 200).try_acquire("agent")


@pytest.mark.parametrize(
    ("shared_server", "require_persistence", "reason"),
    [
        ("", True, ""),
        ("--appendonly no", False, ""),
        ("--appendonly no", True, "appendonly is off"),
        ("--maxmemory-policy allkeys-lru", True, "maxmemory-policy is not noeviction"),
        ("--replicaof 127.0.0.1 1", True, "the server is a replica"),
        ("--cluster-enabled yes", True, "the server is part of a cluster"),
    ],
    indirect=["shared_server"],
)
def test_the_check_names_what_is_wrong_with_a_server_and_passes_others(
    shared_server: Server, require_persistence: bool, reason: str
) -> None:
    refusal = pytest.raises(RuntimeError, match=f"^{reason}$") if reason else nullcontext()
    with make_client(shared_server.url, timeout=PATIENCE) as client, refusal:
        check_server(client, require_persistence=require_persistence)


def test_a_client_that_waits_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a socket_timeout: use make_client"):
        RedisStore(redis.Redis(socket_timeout=None))


def test_waits_have_the_timeout_and_nothing_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr(Future, "result", lambda _, timeout=None: waits.append(timeout))
    with make_client("redis://127.0.0.1", timeout=0.25) as client:
        RedisStore(client).wait(lambda: None)
        options = client.get_connection_kwargs()
        assert waits == [options["socket_timeout"]] == [options["socket_connect_timeout"]] == [0.25]
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
