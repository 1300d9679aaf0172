"""The audit log: one entry for each decision, with what an operator needs and no secret."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from mcp_guard import Limits, ToolRules
from support.guards import SECRET, in_both_forms, make_guard

from agent_mcp_governance import ApprovalStatus


@in_both_forms
def test_an_entry_says_who_called_what_with_which_params_and_what_was_decided(check: Any) -> None:
    rules = {"refund": ToolRules(needs_approval=True)}
    guard, log = make_guard(tools=rules, approver=lambda *_: ApprovalStatus.APPROVED)
    params = {"order": "4929384756102938", "to": "bob@example.com"}
    before = time.time()
    check.call(guard, "alice", "refund", params)
    check.response(guard, "alice", "refund", "refunded 123-45-6789")
    assert before <= log[0].pop("timestamp") <= log[1].pop("timestamp") <= time.time()
    common: dict[str, Any] = {"agent_id": "alice", "tool_name": "refund", "stage": "allowed"}
    common |= {"allowed": True, "detail": "", "findings": [], "would_refuse": []}
    call = {"direction": "call", "reason": "Allowed.", "parameters": params}
    response = {"direction": "response", "reason": "Returned.", "parameters": None}
    assert log == [
        {**common, **call, "approval_status": "approved"},
        {**common, **response, "approval_status": None},
    ]


@in_both_forms
@pytest.mark.parametrize("observe", [False, True])
def test_secrets_are_cut_out_of_every_part_of_an_entry(check: Any, observe: bool) -> None:
    def validate(_: object) -> Any:
        raise ValueError(f"no {SECRET}")

    options = {"blocked_patterns": ["blocked"], "detectors": [lambda *_: [SECRET]]}
    guard, log = make_guard(observe=observe, **options)
    check.call(guard, SECRET, "search", {"q": SECRET, "password": "hunter22", "a": {"secret": 7}})
    check.call(guard, "alice", f"tool {SECRET}", {})
    check.call(guard, "alice", "search", {SECRET: "blocked"})
    check.call(guard, "alice", "search", {}, validate=validate)
    check.response(guard, "alice", "search", "text")
    cut = "[REDACTED]"
    assert log[0]["parameters"] == {"q": cut, "password": cut, "a": {"secret": cut}}
    stages = ["allow_list", "pattern", "params", "detector"]
    assert [entry["stage"] for entry in log] == [
        "allowed" if observe and stage != "params" else stage for stage in ("allowed", *stages)
    ]
    assert SECRET not in json.dumps(log)


@pytest.mark.parametrize("text", ["x", '"', "\\", "世", "\U0001f600", "\n"])
@pytest.mark.parametrize("cap", [16_000, 1_000])
def test_what_is_over_the_cap_is_cut_off_the_params(text: str, cap: int) -> None:
    guard, log = make_guard(limits=Limits(max_audit_chars=cap))
    params = {"q": text * 30_000}
    assert guard.check_call("alice", "search", params).params == params
    assert cap // 2 < len(json.dumps(log[0])) <= cap
    assert json.dumps(params).startswith(log[0]["parameters"]["cut_short"])


def test_an_entry_that_fits_is_not_cut() -> None:
    guard, log = make_guard(limits=Limits(max_audit_chars=1_000))
    guard.check_call("alice", "search", {"q": "x"})
    room = 1_000 - len(json.dumps(log[0]))
    for more in range(-9, 12):  # digits of the time come and go
        guard.check_call("alice", "search", {"q": "x" * (room + more)})
        assert len(json.dumps(log[-1])) <= 1_000
    assert [list(log[at]["parameters"]) for at in (1, -1)] == [["q"], ["cut_short"]]


def test_whatever_else_is_long_is_cut_too() -> None:
    smiles = "\U0001f600" * 1_000  # twelve characters each in JSON

    def validate(_: object) -> Any:
        raise ValueError(smiles)

    options: dict[str, Any] = {"blocked_patterns": [smiles], "detectors": [lambda *_: [smiles] * 9]}
    for observe in (False, True):
        guard, log = make_guard(observe=observe, **options)
        guard.check_call(smiles, smiles, {"q": smiles})
        guard.check_call(smiles, "search", {"q": smiles})
        guard.check_call(smiles, "search", {"q": "x"}, validate=validate)
        guard.check_response(smiles, "search", smiles)
        assert [entry["agent_id"] for entry in log] == [smiles] * 4
        assert max(len(json.dumps(entry)) for entry in log) <= 16_000


@in_both_forms
@pytest.mark.parametrize("kind", ["loop", "thread", "async", "hidden"])
def test_a_sink_that_fails_denies_and_the_guard_keeps_the_last_hundred_entries(
    check: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise OSError(SECRET)

    async def later(entry: object) -> None:
        fail(entry)

    record = {"async": later, "hidden": lambda entry: later(entry)}.get(kind, fail)
    guard, _ = make_guard(audit_sink=SimpleNamespace(record=record, blocking=kind == "thread"))
    decision = check.call(guard, "alice", "search", {"q": 1})
    assert decision.refusal == "Refused (audit): It could not be written to the audit log."
    assert decision.params == {}
    assert check.response(guard, "alice", "search", "text").content is None
    assert check.call(guard, "alice", "none", {}).stage == "allow_list"
    for number in range(127 if kind == "loop" else 0):
        check.call(guard, f"caller {number}", "search", {})
    assert guard.audit.failures == (130 if kind == "loop" else 3)
    callers = [entry["agent_id"] for entry in guard.audit.unrecorded]
    last = [f"caller {number}" for number in range(27, 127)]
    assert callers == (last if kind == "loop" else ["alice"] * 3)
    assert caplog.messages[0].startswith("the audit sink failed: ")
    assert SECRET not in caplog.text


def test_a_sink_that_works_again_is_used_again_and_may_call_the_guard_itself() -> None:
    entries: list[dict[str, Any]] = []

    def record(entry: dict[str, Any]) -> None:
        entries.append(entry)
        if len(entries) == 1:
            raise OSError
        if entry["tool_name"] == "refund":
            assert guard.check_call("sink", "search", {}).allowed

    guard, _ = make_guard(audit_sink=SimpleNamespace(record=record))
    assert not guard.check_call("alice", "refund", {}).allowed
    assert guard.check_call("alice", "refund", {}).allowed
    assert [entry["agent_id"] for entry in entries] == ["alice", "alice", "sink"]
