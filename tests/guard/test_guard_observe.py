"""Observing: what the policy would refuse passes and is noted; what protects the guard does not."""

from types import SimpleNamespace
from typing import Any

import pytest
from mcp_guard import ToolRules
from support.guards import SECRET, in_both_forms, make_guard

from agent_mcp_governance import ApprovalStatus


def broken(*_: object) -> Any:
    raise OSError("private")


NEVER, BROKEN = SimpleNamespace(try_acquire=lambda _: False), SimpleNamespace(try_acquire=broken)


@in_both_forms
@pytest.mark.parametrize(
    ("options", "would_refuse"),
    [
        ({}, []),
        ({"limiter": NEVER}, ["rate_limit: Too many calls: try again later."]),
        ({"limiter": BROKEN}, ["rate_limit: OSError"]),
        ({"allowed_tools": ["refund"]}, ["allow_list: not on the allow list"]),
        ({"blocked_patterns": ["ghp"]}, ["pattern: q matches 'ghp'"]),
        ({"tools": {"search": ToolRules(refuse_secrets=True)}}, ["secret: at q"]),
        ({"budget": NEVER}, ["budget: The call budget is spent: try again later."]),
        ({"require_human_approval": True, "approver": broken}, ["approval: nobody was asked"]),
        (
            {"limiter": NEVER, "tools": {"search": ToolRules(callers=lambda _: False)}},
            ["rate_limit: Too many calls: try again later.", "allow_list: not for this caller"],
        ),
    ],
)
def test_what_the_policy_would_refuse_passes_and_the_audit_says_why(
    check: Any, options: dict[str, Any], would_refuse: list[str]
) -> None:
    guard, log = make_guard(observe=True, **options)
    assert guard.may_call("alice", "search")
    decision = check.call(guard, "alice", "search", {"q": SECRET})
    assert (decision.allowed, decision.params) == (True, {"q": SECRET})
    assert (log[0]["allowed"], log[0]["stage"]) == (True, "allowed")
    assert log[0]["would_refuse"] == would_refuse
    assert log[0]["parameters"] == {"q": "[REDACTED]"}


@in_both_forms
def test_what_protects_the_guard_itself_is_refused_all_the_same(check: Any) -> None:
    guard, log = make_guard(observe=True, approver=lambda *_: ApprovalStatus.APPROVED)
    for caller, params, extra in (
        ("", {}, None),
        ("alice", {"q": "x" * 100_000}, None),
        ("alice", {"q": b"x"}, None),
        ("alice", [], None),
        ("alice", {"q": "[" * 70 + "]" * 70}, None),
        ("alice", {"q": 1}, {"q": 2}),
    ):
        assert not check.call(guard, caller, "search", params, extra=extra).allowed
    assert not check.response(guard, "alice", "search", "x" * 250_001).allowed
    assert [entry["stage"] for entry in log] == ["caller", *["params"] * 5, "response"]
    unwritten, _ = make_guard(observe=True, audit_sink=SimpleNamespace(record=broken))
    assert check.call(unwritten, "alice", "search", {}).stage == "audit"


@in_both_forms
def test_a_response_passes_with_its_secrets_cut_out_and_its_findings_noted(check: Any) -> None:
    guard, log = make_guard(observe=True, detectors=[lambda *_: ["injection"]])
    assert check.response(guard, "alice", "none", f"key {SECRET}").content == "key [REDACTED]"
    notes = ["allow_list: not on the allow list", "detector: secret, injection"]
    assert log[0]["would_refuse"] == notes
