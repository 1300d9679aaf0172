"""Window and budget: exact over processes and threads, exact ids, no wait over the timeout."""

import asyncio
import socket
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis
from mcp_guard.redis_stores import RedisBudget, RedisRateLimiter, RedisStore, make_client
from support import ROOT, processes
from support.guards import make_guard
from support.isolated import run_isolated
from support.processes import PATIENCE, PROCESSES, in_processes
from support.redis_server import Server, slowly

THREADS = 8
CROWD = 64
MAKE = {
    "window": lambda client, calls: RedisRateLimiter(
        client, max_calls_per_window=calls, window_size=3_600
    ),
    "budget": lambda client, calls: RedisBudget(client, max_calls=calls, period=3_600),
}
both = pytest.mark.parametrize("kind", MAKE)


def outcomes(calls: int, call: Callable[[], bool]) -> Counter[object]:
    """Make so many calls at once, each in a thread; count the answers and the errors' types."""
    start = threading.Barrier(calls)

    def attempt(_: int) -> object:
        start.wait(PATIENCE)
        try:
            return call()
        except redis.RedisError as error:
            return type(error)

    with ThreadPoolExecutor(calls) as threads:
        return Counter(threads.map(attempt, range(calls)))


def contend(kind: str, url: str) -> int:
    with make_client(url, timeout=PATIENCE) as client:
        part = MAKE[kind](client, 100)
        processes.together.wait()
        return outcomes(THREADS, lambda: [part.try_acquire("agent") for _ in range(10)].count(True))


@both
def test_four_processes_of_eight_threads_get_100_of_320(redis_server: Server, kind: str) -> None:
    answers = sum(in_processes(contend, kind, redis_server.url), Counter[Any]())

    assert sum(answers.values()) == PROCESSES * THREADS
    assert sum(granted * threads for granted, threads in answers.items()) == 100


@both
def test_a_child_that_was_forked_after_a_call_shares_the_count(
    redis_server: Server, kind: str
) -> None:
    script = f"""
        import os, sys, warnings
        sys.path.insert(0, {str(ROOT / "tests" / "recipes")!r})
        from mcp_guard.redis_stores import RedisBudget, RedisRateLimiter, make_client
        client = make_client({redis_server.url!r}, timeout=10.0)
        window = RedisRateLimiter(client, max_calls_per_window=2, window_size=60)
        part = {{"window": window, "budget": RedisBudget(client, max_calls=2, period=60)}}[{kind!r}]
        assert part.try_acquire("agent")
        warnings.simplefilter("ignore", DeprecationWarning)  # the fork of a process with threads
        child = os.fork()
        if not child:
            try:
                os._exit(40 + part.try_acquire("agent"))
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), part.try_acquire("agent"))
    """
    assert run_isolated(textwrap.dedent(script)).split() == ["41", "False"]


@both
def test_ids_that_differ_in_one_character_are_different_callers(
    client: redis.Redis, kind: str
) -> None:
    part = MAKE[kind](client, 1)
    ids = [
        "a",
        "A",
        "a ",
        "a:b",
        "a/1/3600/second",
        "a*",
        "b",
        "{a}",
        "ä",
        "a\u0308",
        "\0",
        "\uff41",
    ]

    assert [part.try_acquire(caller) for caller in ids] == [True] * 12
    assert [part.try_acquire(caller) for caller in ids] == [False] * 12
    with pytest.raises(ValueError, match="empty"):
        part.try_acquire("")


@both
def test_a_key_shows_no_id_and_expires(client: redis.Redis, kind: str) -> None:
    assert MAKE[kind](client, 1).try_acquire("somebody")

    (key,) = client.keys()
    assert b"somebody" not in key
    assert 3_500 < client.ttl(key) <= 3_600


def test_each_prefix_is_a_use_of_its_own(client: redis.Redis) -> None:
    for prefix in ("team", "team:a"):
        options = {"max_calls_per_window": 1, "window_size": 60, "prefix": prefix}
        assert RedisRateLimiter(client, **options).try_acquire("a:b")
        assert RedisBudget(client, max_calls=1, period=60, prefix=prefix).try_acquire("a:b")
    assert len(client.keys()) == 4


def test_the_guard_is_told_that_they_block_and_what_they_allow(client: redis.Redis) -> None:
    window = RedisRateLimiter(client, max_calls_per_window=60, window_size=90)
    budget = RedisBudget(client, max_calls=1_000, period=86_400)

    assert window.blocking is budget.blocking is True
    assert window.allowance == "60 calls in 90 seconds"
    assert budget.allowance == "1000 calls in 86400 seconds"


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "60", None, 10**9 + 1])
def test_a_limit_is_an_integer_from_1_on(client: redis.Redis, number: Any) -> None:
    for name in ("max_calls_per_window", "window_size"):
        options = {"max_calls_per_window": 1, "window_size": 1, name: number}
        with pytest.raises(ValueError, match=f"{name} must be an integer from 1"):
            RedisRateLimiter(client, **options)
    for name in ("max_calls", "period"):
        with pytest.raises(ValueError, match=f"{name} must be an integer from 1"):
            RedisBudget(client, **{"max_calls": 1, "period": 1, name: number})


@both
@pytest.mark.parametrize("stored", [b"many", b"1.5", b"\0", b"-1", b"-5", None])
def test_a_tampered_record_grants_nothing(
    client: redis.Redis, kind: str, stored: bytes | None
) -> None:
    part = MAKE[kind](client, 5)
    assert part.try_acquire("agent")
    (key,) = client.keys()
    client.delete(key)
    client.sadd(key, "member") if stored is None else client.set(key, stored)

    with pytest.raises((redis.ResponseError, ValueError)):
        part.try_acquire("agent")


# No wait over the timeout


def test_a_call_waits_for_the_clients_timeout_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr(Future, "result", lambda _, timeout=None: waits.append(timeout))
    with make_client("redis://127.0.0.1", timeout=0.25) as client:
        RedisStore(client).wait(lambda: None)
    assert waits == [0.25]


@pytest.mark.parametrize("callers", [1, CROWD, 100])
def test_a_hung_server_refuses_every_call_and_soon_allows_them_again(
    redis_server: Server, callers: int
) -> None:
    async def check(calls: int) -> list[str]:
        decisions = (guard.acheck_call("agent", "refund", {}) for _ in range(calls))
        return [decision.stage for decision in await asyncio.gather(*decisions)]

    with make_client(redis_server.url, timeout=0.5) as client:
        counts = {"limiter": MAKE["window"](client, 1_000), "budget": MAKE["budget"](client, 1_000)}
        guard, _ = make_guard(**counts)
        with redis_server.hung():
            assert asyncio.run(check(callers)) == ["rate_limit"] * callers
        # Threads that are stuck and a machine that is slow may refuse a few more.
        assert any(asyncio.run(check(1)) == ["allowed"] for _ in range(100))


@both
@pytest.mark.parametrize("callers", [1, CROWD])
def test_a_server_that_is_slow_with_every_byte_is_not_waited_for(
    redis_server: Server, kind: str, callers: int
) -> None:
    """Each byte comes in time, the answer, which has at least four, does not."""
    with slowly(redis_server, 0.2) as url, make_client(url, timeout=0.5) as client:
        part = MAKE[kind](client, 1_000)
        answers = outcomes(callers, lambda: part.try_acquire("agent"))
    assert answers == {redis.TimeoutError: callers}


@both
def test_a_name_that_is_looked_up_slowly_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    found = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found.wait(PATIENCE) and [])
    with make_client("redis://redis.internal", timeout=0.1) as client:
        part = MAKE[kind](client, 1)
        answers = outcomes(CROWD, lambda: part.try_acquire("agent"))
    assert not found.is_set()
    found.set()
    assert answers == {redis.TimeoutError: CROWD}


def test_a_command_that_waited_for_a_thread_in_vain_is_never_sent() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def command() -> bool:
        begun.append(1)
        return gate.wait(PATIENCE)

    with make_client("redis://127.0.0.1", timeout=0.2) as client:
        store = RedisStore(client)
        assert outcomes(CROWD + 10, lambda: store.wait(command)) == {redis.TimeoutError: CROWD + 10}
    gate.set()

    assert store.wait(lambda: "in line behind them") == "in line behind them"
    assert len(begun) == CROWD
