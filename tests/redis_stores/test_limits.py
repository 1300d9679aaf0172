"""Window and budget: exact over processes and threads, exact ids, no wait over the timeout."""

import asyncio
import os
import socket
import threading
from functools import partial
from typing import Any

import pytest
import redis
from mcp_guard.redis_stores import RedisBudget, RedisRateLimiter, RedisStore, make_client
from support import processes
from support.guards import make_guard
from support.limits import raises
from support.processes import PATIENCE, in_processes, soon
from support.redis_server import Make, Server, both, budget, window
from support.threads import together

THREADS = 8
CROWD = 64


def contend(make: Make, url: str) -> list[int]:
    with make_client(url, timeout=PATIENCE) as client:
        part = make(client, 100)
        processes.together.wait()
        return together(lambda _: [part.try_acquire("a") for _ in range(10)].count(True), THREADS)


@both
def test_four_processes_of_eight_threads_get_100_of_320(server: Server, make: Make) -> None:
    assert sum(map(sum, in_processes(contend, make, server.url))) == 100


@both
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a process with threads
def test_a_child_forked_after_a_call_shares_the_count(client: redis.Redis, make: Make) -> None:
    part = make(client, 2)
    assert part.try_acquire("agent")
    child = os.fork()
    if not child:
        try:
            os._exit(40 + part.try_acquire("agent"))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 41
    assert not part.try_acquire("agent")


@both
def test_ids_that_differ_in_one_character_count_apart(client: redis.Redis, make: Make) -> None:
    part = make(client, 1)
    ids = [*"aAbä\0\uff41", "a ", "a:b", "a/1/3600/second", "a*", "{a}", "a\u0308"]
    assert [part.try_acquire(caller) for caller in ids] == [True] * 12
    assert [part.try_acquire(caller) for caller in ids] == [False] * 12
    with pytest.raises(ValueError, match="empty"):
        part.try_acquire("")


@both
def test_a_key_shows_no_id_and_expires(client: redis.Redis, make: Make) -> None:
    assert make(client).try_acquire("somebody")
    (key,) = client.keys()
    assert b"somebody" not in key
    assert 3_000 < client.ttl(key) <= 3_600


def test_each_prefix_is_a_use_of_its_own(client: redis.Redis) -> None:
    for prefix in ("team", "team:a"):
        options = {"max_calls_per_window": 1, "window_size": 60, "prefix": prefix}
        assert RedisRateLimiter(client, **options).try_acquire("a:b")
        assert RedisBudget(client, max_calls=1, period=60, prefix=prefix).try_acquire("a:b")


@both
def test_it_says_that_it_blocks_and_what_it_allows(client: redis.Redis, make: Make) -> None:
    part = make(client, 60)
    assert (part.blocking, part.allowance) == (True, "60 calls in 3600 seconds")


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "60", None, 10**9 + 1])
def test_a_limit_is_an_integer_from_1_on(client: redis.Redis, number: Any) -> None:
    for part, options in (
        (RedisRateLimiter, {"max_calls_per_window": 1, "window_size": 1}),
        (RedisBudget, {"max_calls": 1, "period": 1}),
    ):
        for name in options:
            with pytest.raises(ValueError, match=f"{name} must be an integer from 1"):
                part(client, **{**options, name: number})


@both
@pytest.mark.parametrize("stored", [b"many", b"1.5", b"\0", b"-1", b"-5", None])
def test_a_tampered_record_grants_nothing(client: redis.Redis, make: Make, stored: Any) -> None:
    part = make(client)
    assert part.try_acquire("agent")
    (key,) = client.keys()
    client.delete(key)
    client.sadd(key, "member") if stored is None else client.set(key, stored)
    with pytest.raises((redis.ResponseError, ValueError)):
        part.try_acquire("agent")


@pytest.mark.parametrize("callers", [1, CROWD, 100])
def test_a_hung_server_refuses_all_calls_and_soon_allows_them(server: Server, callers: int) -> None:
    async def check(calls: int) -> list[str]:
        decisions = (guard.acheck_call("agent", "refund", {}) for _ in range(calls))
        return [decision.stage for decision in await asyncio.gather(*decisions)]

    with make_client(server.url, timeout=0.5) as client:
        guard, _ = make_guard(limiter=window(client), budget=budget(client))
        with server.hung():
            assert asyncio.run(check(callers)) == ["rate_limit"] * callers
        assert soon(lambda: asyncio.run(check(1)) == ["allowed"])


@both
@pytest.mark.parametrize(
    ("owner", "step"), [(socket, "getaddrinfo"), (redis.Connection, "read_response")]
)
def test_a_step_without_end_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, owner: object, step: str, make: Make
) -> None:
    """No timeout of a socket ends a slow look-up, or an answer that comes byte by byte."""
    over = threading.Event()
    monkeypatch.setattr(owner, step, lambda *_, **__: over.wait(PATIENCE) and [])
    with make_client(server.url, timeout=0.1) as client:
        call = partial(make(client).try_acquire, "agent")
        timed_out = together(lambda _: raises(redis.TimeoutError, call), CROWD)
    over.set()
    assert timed_out == [True] * CROWD


def test_a_command_that_waited_for_a_thread_in_vain_is_never_sent() -> None:
    begun: list[str] = []
    gate = threading.Event()

    def command(name: str) -> bool:
        begun.append(name)
        return gate.wait(PATIENCE)

    with make_client("redis://127.0.0.1", timeout=0.02) as client:
        store = RedisStore(client)

    def answered(name: str) -> bool:
        return not raises(redis.TimeoutError, lambda: store.wait(lambda: command(name)))

    assert soon(lambda: answered("stuck") or len(begun) == CROWD)
    assert not answered("in line behind them")
    gate.set()
    assert soon(lambda: answered("after them"))
    assert set(begun) == {"stuck", "after them"}
