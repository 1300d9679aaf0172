"""Parts that wait, and where each of them runs."""

import asyncio
import contextvars
import gc
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp_guard import Guard, JsonLinesAuditSink, Limits, flow
from mcp_guard.windows import Window
from support.guards import Sync, in_both_forms, make_guard, run

from agent_mcp_governance import ApprovalStatus

ONE_THREAD = Limits(max_threads=1, max_approvals=1)


class Slow:
    """Every part of a guard. Each says that it was called, and waits until it may go on."""

    def __init__(self, answer: Any = True) -> None:
        self.answer = answer
        self.called, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> Any:
        self.called.set()
        assert self.go_on.wait(60)
        return self.answer

    record = try_acquire = __call__


@pytest.mark.parametrize(
    ("option", "stage"),
    [
        *[("limiter", "rate_limit"), ("budget", "budget"), ("approver", "approval")],
        *[("detectors", "detector"), ("audit_sink", "audit")],
    ],
)
def test_the_event_loop_goes_on_while_a_part_waits_and_a_full_pool_refuses(
    option: str, stage: str
) -> None:
    slow = Slow({"approver": ApprovalStatus.APPROVED, "detectors": []}.get(option, True))
    options = {option: [slow] if option == "detectors" else slow, "limits": ONE_THREAD}
    guard, _ = make_guard(require_human_approval=option == "approver", **options)

    def check() -> Any:
        if option == "detectors":
            return guard.acheck_response("alice", "search", "text")
        return guard.acheck_call("alice", "search", {})

    async def main() -> list[Any]:
        first = asyncio.create_task(check())
        await asyncio.to_thread(slow.called.wait, 60)
        second = await check()  # it would wait for ever in a queue
        slow.go_on.set()
        return [await first, second, await check()]

    first, second, third = asyncio.run(main())
    assert (first.allowed, second.stage, third.allowed) == (True, stage, True)
    assert guard.audit.failures == (option == "audit_sink")


def test_people_who_are_slow_hold_up_nobody_elses_call() -> None:
    slow, counter = Slow(ApprovalStatus.APPROVED), SimpleNamespace(try_acquire=lambda _: True)
    options: dict[str, Any] = {"limiter": counter, "approver": slow, "limits": ONE_THREAD}
    guard, log = make_guard(require_human_approval=True, **options)

    async def main() -> bool:
        first = asyncio.create_task(guard.acheck_call("alice", "search", {}))
        await asyncio.to_thread(slow.called.wait, 60)
        await guard.acheck_call("bob", "search", {})  # the limiter has a thread for it
        slow.go_on.set()
        return (await first).allowed

    assert asyncio.run(main())
    assert [(entry["stage"], entry["detail"]) for entry in log] == [
        *[("approval", "RuntimeError"), ("allowed", "")]
    ]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_part_runs_in_a_thread_unless_it_says_that_it_never_blocks(blocking: bool) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    class Part:
        def __call__(self, *_: object) -> Any:
            name = threading.current_thread().name
            seen.append((name.startswith("mcp_guard"), variable.get()))
            return True

        record = try_acquire = __call__

    part: Any = Part()
    part.blocking = blocking
    guard, _ = make_guard(limiter=part, budget=part, audit_sink=part, detectors=[part])

    async def main() -> None:
        variable.set("mine")
        await guard.acheck_call("alice", "search", {})
        await guard.acheck_response("alice", "search", "text")

    asyncio.run(main())
    assert seen == [(blocking, "mine")] * 5


async def cancelled(*_: object) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    return await future


@in_both_forms
@pytest.mark.parametrize("error", [ValueError, StopIteration, asyncio.CancelledError, None])
@pytest.mark.parametrize(
    ("option", "refusal"),
    [
        ("limiter", "rate_limit): Calls cannot be counted now: try again later."),
        ("budget", "budget): Calls cannot be counted now: try again later."),
        ("approver", "approval): The approver failed."),
        ("detectors", "detector): The response was withheld: a detector found something in it."),
        ("audit_sink", "audit): It could not be written to the audit log."),
    ],
)
def test_a_part_that_fails_denies_and_only_the_type_of_its_error_is_told(
    check: Any, error: Any, option: str, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise error("private")

    part, name = (fail, error.__name__) if error else (cancelled, "CancelledError")
    if not error and check is Sync:  # which closes the coroutine
        name = "TypeError"
    counter = SimpleNamespace(try_acquire=part, record=part)
    given = {"approver": part, "detectors": [part]}.get(option, counter)
    guard, log = make_guard(require_human_approval=option == "approver", **{option: given})
    decide = check.response if option == "detectors" else check.call
    assert decide(guard, "alice", "search", {}).refusal == f"Refused ({refusal}"
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
        counter = SimpleNamespace(try_acquire=lambda _: True)
        guard, log = make_guard(**{option: counter}, clock=clock)
        assert guard.check_call("alice", "search", {}).allowed
        assert (inner, log[0]["detail"]) == (["", stage], "TimeoutError")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("option", ["limiter", "budget"])
def test_a_child_forked_while_locks_are_held_decides(tmp_path: Path, option: str) -> None:
    parent, reached, go_on = os.getpid(), threading.Event(), threading.Event()

    def clock() -> float:  # it is read within the lock of the window, or of the budget
        if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
            reached.set()
            go_on.wait(60)
        return 0.0

    sink = JsonLinesAuditSink(tmp_path / "audit.jsonl")
    counter = SimpleNamespace(try_acquire=lambda _: True)
    guard, _ = make_guard(**{option: counter}, clock=clock, audit_sink=sink)
    run(guard.acheck_call("alice", "search", {}))  # so that its pool has a thread
    holder = threading.Thread(target=Guard.check_call, args=(guard, "alice", "search", {}))
    holder.start()
    assert reached.wait(60)
    window = Window(1, 60.0, clock, 10)
    with sink._lock, guard.audit._lock, window._lock, window._limiter._state_lock:
        child = os.fork()
        if not child:
            decisions = [guard.check_call("bob", "search", {})]
            decisions.append(run(guard.acheck_call("bob", "search", {})))
            allowed = all(decision.allowed for decision in decisions)
            os._exit(0 if allowed and window.try_acquire("bob") else 1)
    go_on.set()
    holder.join(60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "audit.jsonl").read_text().count('"bob"') == 2
    sink.close()
