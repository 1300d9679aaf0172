"""Checks that are cancelled or interrupted: audited once, and raised."""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import anyio
import pytest
from mcp_guard import Guard, flow
from mcp_guard.audit import Check
from support.guards import Entries, in_both_forms, make_guard, make_guard_with
from support.parts import Meter

from agent_mcp_governance import ApprovalStatus


class Sink:
    """Keeps entries once it may, in a thread or, as *kind* says, in the event loop."""

    def __init__(self, kind: str) -> None:
        self.entries, self.go_on = Entries(), threading.Event()
        self.go_on.set()
        self.blocking = kind != "loop"
        # A hidden one is no coroutine function, though what it returns has to be awaited.
        kinds = {"async": self.later, "hidden": lambda entry: self.later(entry)}
        self.record: Any = kinds.get(kind, self.at_once)

    def at_once(self, entry: dict[str, Any]) -> None:
        assert self.go_on.wait(60)
        self.entries.append(entry)

    async def later(self, entry: dict[str, Any]) -> None:
        await asyncio.to_thread(self.at_once, entry)


each_kind_of_sink = pytest.mark.parametrize("kind", ["loop", "thread", "hidden", "async"])


async def forever(*_: object) -> Any:
    await asyncio.Event().wait()


async def settle() -> None:
    """Let what nobody waits for come to its end."""
    while flow._kept:
        await asyncio.wait(set(flow._kept))


async def cancel(check: Coroutine[Any, Any, Any], turns: int = 1) -> None:
    """Cancel *check* after so many turns of the event loop."""
    task = asyncio.create_task(check)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@each_kind_of_sink
@pytest.mark.parametrize("in_scope", [False, True])
def test_a_call_that_is_cancelled_is_audited_and_counted_once_and_raises(
    kind: str, in_scope: bool
) -> None:
    meter, options = Meter(), {"require_human_approval": True, "approver": forever}
    guard, sink = make_guard(audit_sink=Sink(kind), metrics=meter.metrics, **options)

    async def main() -> None:
        call = guard.acheck_call("alice", "search", {"q": 1})
        if in_scope:  # where asyncio.shield would write nothing
            with anyio.CancelScope() as scope:
                asyncio.get_running_loop().call_soon(scope.cancel)
                await call
            assert scope.cancelled_caught
        else:
            await cancel(call)
        await settle()

    asyncio.run(main())
    found = [(entry["stage"], entry["allowed"], entry["parameters"]) for entry in sink.entries]
    assert found == [("cancelled", False, {"q": 1})]
    assert guard.audit.failures == 0
    [(labels, count)] = meter.counted()["mcp_decisions"]
    assert (labels["stage"], count) == ("cancelled", 1)


def test_a_call_that_is_cancelled_is_let_go_of_at_once() -> None:
    guard, _ = make_guard(require_human_approval=True, approver=forever)
    gc.collect()
    gc.disable()
    try:
        asyncio.run(cancel(guard.acheck_call("alice", "search", {})))
        assert not any(isinstance(kept, Check) for kept in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["thread", "hidden", "async"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_call_that_is_cancelled_while_it_is_written_down_is_written_once(
    kind: str, fails: bool
) -> None:
    guard, sink = make_guard(audit_sink=Sink(kind))

    async def main() -> None:
        sink.go_on.clear()
        await cancel(guard.acheck_call("alice", "search", {}), turns=9)
        if fails:
            sink.entries.append = None
        sink.go_on.set()
        await settle()

    asyncio.run(main())
    entries = guard.audit.unrecorded if fails else sink.entries
    assert [entry["stage"] for entry in entries] == ["allowed"]
    assert guard.audit.failures == fails


@each_kind_of_sink
@pytest.mark.parametrize("loop_is_closed", [False, True])
def test_after_the_coroutine_is_closed_nothing_is_yielded(kind: str, loop_is_closed: bool) -> None:
    guard, sink = make_guard(require_human_approval=True, approver=forever, audit_sink=Sink(kind))
    call = guard.acheck_call("alice", "search", {})

    async def main() -> None:
        call.send(None)
        if not loop_is_closed:
            call.close()
            await settle()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()  # which, other than asyncio.run, cancels nothing
    call.close()
    flow._kept.clear()
    entries = [*sink.entries, *guard.audit.unrecorded]
    assert [entry["stage"] for entry in entries] == ["cancelled"]
    gc.collect()


@pytest.mark.parametrize("option", ["limiter", "approver", "detectors", "redact", "audit_sink"])
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@in_both_forms
def test_an_interrupt_in_a_part_is_audited_once_and_raised(
    check: Any, option: str, blocking: bool, error: type[BaseException]
) -> None:
    errors = [error]

    def stop(*_: object) -> Any:
        if errors:
            raise errors.pop()
        return "text"

    stop.blocking = blocking  # type: ignore[attr-defined]
    guard, log, name = make_guard_with(option, stop)
    with pytest.raises(error):
        getattr(check, name)(guard, "alice", "search", {"q": "text"})
    in_sink = option == "audit_sink"
    entries = guard.audit.unrecorded if in_sink else log
    assert [entry["stage"] for entry in entries] == ["allowed" if in_sink else "cancelled"]


def is_interrupted(check: Callable[[], object], at: int) -> bool:
    """Interrupt *check* before line *at* of what it runs of the guard; return whether it did."""
    left, began = at, False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left, began
        if "mcp_guard" not in frame.f_code.co_filename:
            return None
        began = began or frame.f_code.co_name in ("call", "response")
        left -= event == "line" and began
        if not left:
            raise KeyboardInterrupt  # which ends the tracing
        return trace

    sys.settrace(trace)
    with suppress(KeyboardInterrupt):
        check()
    sys.settrace(None)
    return not left


@pytest.mark.parametrize("check", [Guard.check_call, Guard.check_response])
def test_an_interrupt_anywhere_leaves_its_entry_and_a_guard_that_answers(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "LOCK_TIMEOUT", 0.01)  # seconds
    interrupted, at = True, 0
    while interrupted:
        at += 1
        guard, log, _ = make_guard_with("approver", lambda *_: ApprovalStatus.APPROVED)
        interrupted = is_interrupted(partial(check, guard, "alice", "search", {"q": [1]}), at)
        # It may be that the sink has it, and that this was not known any more.
        entries = {str(entry) for entry in [*log, *guard.audit.unrecorded]}
        assert len(entries) == 1, at
        assert guard.check_response("bob", "search", "text").allowed
        guard.check_call("bob", "search", {})
        assert len(log) >= 2
    assert at > 80
