"""Window and budget: exact under threads, bounded in memory, and other counters in their place."""

import asyncio
import gc
import itertools
import threading
import types
from collections import Counter
from typing import Any

import pytest
from mcp_guard import Guard, Limits
from support.guards import in_both_forms, make_guard
from support.threads import together

from agent_mcp_governance import MCPSlidingRateLimiter

THREADS = 64


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def stages(guard: Guard, *callers: str) -> list[str]:
    return [guard.check_call(caller, "search", {}).stage for caller in callers]


@pytest.mark.usefixtures("threads_take_turns_often")
@pytest.mark.parametrize("turn", range(3))
def test_no_window_ever_has_too_many_calls_by_the_times_the_clock_returned(turn: int) -> None:
    ticks, read = itertools.count(turn), threading.local()

    def clock() -> float:
        read.tick = next(ticks)
        return float(read.tick)

    guard, _ = make_guard(max_calls_per_window=50, window_size=100, clock=clock, budget=Counting())

    def call(_: int) -> list[int]:
        return [read.tick for _ in range(20) if guard.check_call("alice", "search", {}).allowed]

    granted = [tick for ticks in together(call, THREADS) for tick in ticks]
    ticks = itertools.count(turn)  # what the kernel's limiter grants one thread at these times
    kernel = MCPSlidingRateLimiter(max_calls_per_window=50, window_size=100, clock=clock)
    exact = [read.tick for _ in range(THREADS * 20) if kernel.try_acquire("alice")]
    assert sorted(granted) == exact
    assert len(exact) > 600


@pytest.mark.usefixtures("threads_take_turns_often")
@pytest.mark.parametrize(
    ("option", "stage"), [("max_calls_per_window", "rate_limit"), ("max_tool_calls", "budget")]
)
def test_each_callers_count_is_exact_with_64_threads_and_with_tasks(
    option: str, stage: str
) -> None:
    guard, log = make_guard(**{option: 33}, clock=float)  # a class is callable: this is always 0.0
    together(lambda number: stages(guard, *[f"caller {number % 4}"] * 5), THREADS)

    async def tasks() -> None:
        await asyncio.gather(*(guard.acheck_call("tasks", "search", {}) for _ in range(80)))

    asyncio.run(tasks())
    assert Counter((entry["agent_id"], entry["stage"]) for entry in log) == {
        (caller, name): count
        for caller in ("tasks", *(f"caller {number}" for number in range(4)))
        for name, count in (("allowed", 33), (stage, 47))
    }


def test_a_window_slides_and_counts_calls_that_a_later_check_refuses() -> None:
    clock = Clock()
    guard, _ = make_guard(max_calls_per_window=2, window_size=10.0, clock=clock)
    assert guard.check_call("alice", "none", {}).stage == "allow_list"
    for passes in (9.0, 1.0, 9.0):  # then the first of two calls is as old as the window
        clock.now += passes
        assert stages(guard, "alice", "alice") == ["allowed", "rate_limit"]


@pytest.mark.parametrize("period", [60.0, None])
def test_a_budget_is_whole_again_after_its_period_and_only_calls_that_would_run_spend_it(
    period: float | None,
) -> None:
    clock, options = Clock(), {"max_tool_calls": 2, "blocked_patterns": ["x"]}
    guard, _ = make_guard(budget_period=period, clock=clock, **options)
    assert guard.check_call("alice", "none", {}).stage == "allow_list"
    assert guard.check_call("alice", "search", {"x": 1}).stage == "pattern"
    assert guard.check_response("alice", "search", "text").allowed
    assert stages(guard, *["alice"] * 3) == ["allowed", "allowed", "budget"]
    clock.now += 59.0
    assert stages(guard, "alice", "bob") == ["budget", "allowed"]
    clock.now += 1.0 if period else 1e9
    whole = ["allowed", "allowed", "budget"]
    assert stages(guard, *["alice"] * 3) == (whole if period else ["budget"] * 3)


def test_a_refusal_says_what_is_allowed_in_which_time() -> None:
    day: dict[str, Any] = {"max_tool_calls": 1, "budget_period": 86_400.0}
    for options, words in (
        ({"max_calls_per_window": 1}, "Too many calls (1 calls in 60 seconds are allowed)"),
        ({"max_tool_calls": 1}, "The call budget is spent (1 calls in all are allowed)"),
        (day, "The call budget is spent (1 calls in 86400 seconds are allowed)"),
    ):
        guard, _ = make_guard(**options)
        guard.check_call("alice", "search", {})
        assert guard.check_call("alice", "search", {}).reason == f"{words}: try again later."


def reachable(root: object) -> int:
    """Return how many objects *root* keeps alive, code left out."""
    todo, seen, code = [root], set(), (type, types.ModuleType, types.FunctionType)
    while todo:
        thing = todo.pop()
        if id(thing) not in seen and not isinstance(thing, code):
            seen.add(id(thing))
            todo += gc.get_referents(thing)
    return len(seen)


def test_callers_are_forgotten_once_window_and_period_are_over() -> None:
    clock = Clock()
    guard, log = make_guard(window_size=10.0, budget_period=20.0, clock=clock)
    sizes = []
    for turn in range(3):
        for number in range(500):
            assert guard.check_call(f"{turn} {number}", "search", {}).allowed
        clock.now += 20.0
        log.clear()
        sizes.append(reachable(guard))
    # The second turn's callers take the places of the first's.
    assert sizes[0] > 500
    assert sizes[2] <= sizes[1] <= sizes[0] + 20


@pytest.mark.parametrize(("window", "period"), [(10.0, 20.0), (20.0, 10.0), (20.0, None)])
def test_with_as_many_callers_as_may_be_a_new_one_waits_until_one_is_over(
    window: float, period: float | None
) -> None:
    clock, limits = Clock(), Limits(max_callers=100)
    options = {"window_size": window, "budget_period": period}
    guard, log = make_guard(**options, clock=clock, limits=limits)
    assert set(stages(guard, *[f"caller {number}" for number in range(100)])) == {"allowed"}
    clock.now += 19.0
    assert stages(guard, "new") == [("budget" if window == 10.0 else "rate_limit")]
    assert log[-1]["reason"] == "Calls cannot be counted now: try again later."
    assert log[-1]["detail"] == "TooManyCallersError"
    assert stages(guard, "caller 5") == ["allowed"]
    clock.now += 1.0
    found = set(stages(guard, *[f"new {number}" for number in range(98)]))
    assert found == {"allowed" if period else "budget"}


def test_a_caller_is_forgotten_a_window_after_the_last_granted_call_and_not_before() -> None:
    clock, limits = Clock(), Limits(max_callers=3)
    options = {"max_calls_per_window": 2, "window_size": 10.0, "budget_period": 10.0}
    guard, _ = make_guard(**options, clock=clock, limits=limits)
    granted, refused = ["allowed"] * 2, ["rate_limit"] * 2
    assert stages(guard, "alice", "bob", "carol", "carol") == granted * 2
    clock.now += 5.0
    assert stages(guard, "alice", "bob", "carol", "new") == granted + refused
    clock.now += 5.0  # carol is over, and not those who came before her
    assert stages(guard, "new", "alice", "alice", "newer") == granted + refused


class Counting(Counter[str]):
    """A counter that is false when it is empty."""

    answer: Any = True
    allowance = "5 calls in a day"

    def try_acquire(self, caller: str) -> Any:
        self[caller] += 1
        return self.answer


@in_both_forms
@pytest.mark.parametrize(("option", "stage"), [("limiter", "rate_limit"), ("budget", "budget")])
def test_a_counter_of_ones_own_is_asked_once_with_the_exact_caller_and_only_true_grants(
    check: Any, option: str, stage: str
) -> None:
    for answer in (True, False, 1, None, "yes"):
        counter = Counting()
        counter.answer = answer
        guard, _ = make_guard(**{option: counter})
        decision = check.call(guard, "Alice ", "search", {})
        assert decision.stage == ("allowed" if answer is True else stage)
        assert decision.allowed or "(5 calls in a day are allowed)" in decision.reason
        assert counter == {"Alice ": 1}
