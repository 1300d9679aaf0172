"""Parts that wait, and where each of them runs."""

import asyncio
import contextvars
import gc
import os
import signal
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from mcp_guard import Decision, JsonLinesAuditSink, Limits, flow
from mcp_guard.windows import Window
from support.guards import Async, Sync, cancelled, in_both_forms, make_guard, make_guard_with, run
from support.parts import Down

from agent_mcp_governance import ApprovalStatus

ONE_THREAD = Limits(max_threads=1, max_approvals=1)
ALWAYS = SimpleNamespace(try_acquire=lambda _: True)
ANSWERS = {"approver": ApprovalStatus.APPROVED, "detectors": []}  # of the others, True
REFUSALS = {
    "limiter": "Refused (rate_limit): Calls cannot be counted now: try again later.",
    "budget": "Refused (budget): Calls cannot be counted now: try again later.",
    "approver": "Refused (approval): The approver failed.",
    "detectors": (
        "Refused (detector): The response was withheld: a detector found something in it."
    ),
    "audit_sink": "Refused (audit): It could not be written to the audit log.",
}
each_part = pytest.mark.parametrize("option", REFUSALS)


class Slow:
    """A part. It says that it was called, and waits until it may go on."""

    def __init__(self, option: str) -> None:
        self.answer = ANSWERS.get(option, True)
        self.called, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> Any:
        self.called.set()
        assert self.go_on.wait(60)
        return self.answer

    async def hold_up(self, first: Any, second: Any) -> list[Decision]:
        """Return the decisions of *first*, which waits here, and *second*, which is over before."""
        waiting = asyncio.create_task(first)
        assert await asyncio.to_thread(self.called.wait, 60)
        decision = await second  # it would wait for ever in a queue
        self.go_on.set()
        return [await waiting, decision]


@each_part
def test_the_event_loop_goes_on_while_a_part_waits_and_a_full_pool_refuses(option: str) -> None:
    slow = Slow(option)
    guard, _, name = make_guard_with(option, slow, limits=ONE_THREAD)
    check = partial(getattr(guard, f"acheck_{name}"), "alice", "search", {})
    first, second = run(slow.hold_up(check(), check()))
    assert (first.allowed, second.refusal) == (True, REFUSALS[option])
    assert run(check()).allowed
    assert guard.audit.failures == (option == "audit_sink")


def test_people_who_are_slow_hold_up_nobody_elses_call() -> None:
    slow = Slow("approver")
    guard, log, _ = make_guard_with("approver", slow, limiter=ALWAYS, limits=ONE_THREAD)
    calls = [guard.acheck_call(caller, "search", {}) for caller in ("alice", "bob")]
    assert run(slow.hold_up(*calls))[0].allowed
    # The limiter had a thread for bob's.
    found = [(entry["stage"], entry["detail"]) for entry in log]
    assert found == [("approval", "RuntimeError"), ("allowed", "")]


def test_a_thread_that_cannot_be_started_refuses_and_leaves_its_place_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard, _ = make_guard(limiter=ALWAYS, limits=ONE_THREAD)
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", Down())
        assert run(guard.acheck_call("alice", "search", {})).stage == "rate_limit"
        needs_none, _ = make_guard(limiter=Mock(try_acquire=AsyncMock(return_value=True)))
        assert run(needs_none.acheck_call("alice", "search", {})).allowed
    assert run(guard.acheck_call("alice", "search", {})).allowed


@each_part
@pytest.mark.parametrize("blocking", [True, False])
def test_a_part_runs_in_a_thread_unless_it_says_that_it_never_blocks(
    option: str, blocking: bool
) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    def part(*_: object) -> Any:
        name = threading.current_thread().name
        seen.append((name.startswith("mcp_guard"), variable.get()))
        return ANSWERS.get(option, True)

    part.blocking = blocking  # type: ignore[attr-defined]
    guard, _, name = make_guard_with(option, part)
    variable.set("mine")
    assert getattr(Async, name)(guard, "alice", "search", {}).allowed
    assert seen == [(blocking, "mine")]


@each_part
@pytest.mark.parametrize("error", [ValueError, StopIteration, asyncio.CancelledError, None])
@in_both_forms
def test_a_part_that_fails_denies_and_only_the_type_of_its_error_is_told(
    check: Any, error: Any, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise error("private")

    fail.blocking = error is StopIteration  # type: ignore[attr-defined]
    part, name = (fail, error.__name__) if error else (cancelled, "CancelledError")
    if not error and check is Sync:  # which closes the coroutine
        name = "TypeError"
    guard, log, decide = make_guard_with(option, part)
    decision = getattr(check, decide)(guard, "alice", "search", {})
    assert decision.refusal == REFUSALS[option]
    gc.collect()  # asyncio logs the errors of futures that nobody asked
    told = caplog.messages if option == "audit_sink" else [log[0]["detail"]]
    assert [text.rpartition(": ")[2] for text in told] == [name]
    assert "private" not in caplog.text


def test_a_lock_that_is_never_released_refuses_and_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow, "LOCK_TIMEOUT", 0.01)  # seconds
    inner: list[str] = []

    def clock() -> float:  # it is read within the lock of the window, or of the budget
        if not inner:
            inner.append("")
            inner.append(guard.check_call("bob", "search", {}).stage)
        return 0.0

    for option, stage in (("budget", "rate_limit"), ("limiter", "budget")):
        inner.clear()
        guard, log = make_guard(**{option: ALWAYS}, clock=clock)
        assert guard.check_call("alice", "search", {}).allowed
        assert (inner, log[0]["detail"]) == (["", stage], "TimeoutError")


def test_a_future_of_another_loop_is_a_part_that_failed() -> None:
    other = asyncio.new_event_loop()
    other.close()
    limiter = Mock(try_acquire=lambda _: other.create_future(), blocking=False)
    guard, log = make_guard(limiter=limiter)
    assert run(guard.acheck_call("alice", "search", {})).stage == "rate_limit"
    assert log[0]["detail"] == "ValueError"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("option", ["limiter", "budget"])
def test_a_child_forked_while_locks_are_held_decides(tmp_path: Path, option: str) -> None:
    children: list[int] = []

    def clock() -> float:  # it is read within the lock of the window, or of the budget
        if not children:
            with sink._lock, window._lock:
                children.append(os.fork())
                if children == [0]:
                    signal.alarm(30)  # ends a child that hangs
                    decisions = [guard.check_call("bob", "search", {})]
                    decisions.append(run(guard.acheck_call("bob", "search", {})))
                    allowed = all(decision.allowed for decision in decisions)
                    os._exit(0 if allowed and window.try_acquire("bob") else 1)
        return 0.0

    sink, window = JsonLinesAuditSink(tmp_path / "audit.jsonl"), Window(1, 60.0, lambda: 0.0, 10)
    guard, _ = make_guard(
        **{option: ALWAYS}, clock=clock, audit_sink=sink, detectors=[lambda *_: []]
    )
    run(guard.acheck_response("alice", "search", ""))  # so that its pool has a thread
    assert guard.check_call("alice", "search", {}).allowed
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert (tmp_path / "audit.jsonl").read_text().count('"bob"') == 2
    sink.close()
