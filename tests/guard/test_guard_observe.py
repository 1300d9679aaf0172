"""What operators see first: observing before anything is refused, and metrics."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from mcp_guard import ToolRules
from support.guards import SECRET, in_both_forms, make_guard
from support.parts import Down, Meter

from agent_mcp_governance import ApprovalStatus

NEVER = SimpleNamespace(try_acquire=lambda _: False)
TOO_MANY = "rate_limit: Too many calls: try again later."
FOR_OTHERS = {"search": ToolRules(callers=lambda _: False)}


@in_both_forms
@pytest.mark.parametrize(
    ("options", "would_refuse"),
    [
        ({}, []),
        ({"limiter": NEVER}, [TOO_MANY]),
        ({"limiter": Down()}, ["rate_limit: OSError"]),
        ({"allowed_tools": ["refund"]}, ["allow_list: not on the allow list"]),
        ({"blocked_patterns": ["ghp"]}, ["pattern: q matches 'ghp'"]),
        ({"tools": {"search": ToolRules(refuse_secrets=True)}}, ["secret: at q"]),
        ({"budget": NEVER}, ["budget: The call budget is spent: try again later."]),
        ({"require_human_approval": True, "approver": Down()}, ["approval: nobody was asked"]),
        ({"limiter": NEVER, "tools": FOR_OTHERS}, [TOO_MANY, "allow_list: not for this caller"]),
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
        *[("", {}, None), ("alice", {"q": "x" * 100_000}, None), ("alice", {"q": b"x"}, None)],
        *[("alice", [], None), ("alice", {"q": "[" * 70 + "]" * 70}, None)],
        ("alice", {"q": 1}, {"q": 2}),
    ):
        assert not check.call(guard, caller, "search", params, extra=extra).allowed
    assert not check.response(guard, "alice", "search", "x" * 250_001).allowed
    assert [entry["stage"] for entry in log] == ["caller", *["params"] * 5, "response"]
    assert not any(guard.may_call(*names) for names in (("", "search"), ("alice", None)))
    unwritten, _ = make_guard(observe=True, audit_sink=Down())
    assert check.call(unwritten, "alice", "search", {}).stage == "audit"


@in_both_forms
def test_a_response_passes_with_its_secrets_cut_out_and_its_findings_noted(check: Any) -> None:
    guard, log = make_guard(observe=True, detectors=[lambda *_: ["injection"]])
    assert check.response(guard, "alice", "none", f"key {SECRET}").content == "key [REDACTED]"
    notes = ["allow_list: not on the allow list", "detector: secret, injection"]
    assert log[0]["would_refuse"] == notes


def counted(meter: Meter, name: str, *labels: str) -> list[tuple[Any, ...]]:
    """Return the counts of *name*, each after the values of its *labels*."""
    series = meter.counted()[name]
    return sorted((*(attributes[label] for label in labels), value) for attributes, value in series)


@in_both_forms
def test_decisions_count_once_under_the_operators_labels_and_responses_as_scans(
    check: Any,
) -> None:
    meter = Meter()
    options: dict[str, Any] = {"blocked_patterns": ["x"], "metrics": meter.metrics}
    options |= {"max_calls_per_window": 2, "max_tool_calls": 1}
    detectors = [lambda *_: ["one", "two"]]
    guard, _ = make_guard(caller_label=lambda caller: caller[:1], detectors=detectors, **options)
    for caller, tool, params in (
        *[("alice", "search", {}), ("alice", "drop", {}), ("alice", "search", {})],
        *[("adam", "mail", {}), ("", "search", {})],
        *[("bob", "search", {"q": "x"}), ("carl", "refund", {}), ("carl", "refund", {})],
    ):
        check.call(guard, caller, tool, params)
    check.response(guard, "alice", "search", "text")
    unwritten, _ = make_guard(audit_sink=Down(), **options)
    check.call(unwritten, "alice", "search", {})
    assert counted(meter, "mcp_decisions", "stage", "decision", "tool_name", "agent_id") == [
        ("allow_list", "deny", "other", "a", 2),
        ("allowed", "allow", "refund", "c", 1),
        ("allowed", "allow", "search", "a", 1),
        ("audit", "deny", "search", "any", 1),
        ("budget", "deny", "refund", "c", 1),
        ("caller", "deny", "search", "", 1),
        ("detector", "deny", "search", "a", 1),
        ("pattern", "deny", "search", "b", 1),
        ("rate_limit", "deny", "search", "a", 1),
    ]
    hits = [("a", "search", 1), ("c", "refund", 1)]
    assert counted(meter, "mcp_rate_limit_hits", "agent_id", "tool_name") == hits
    scans = [("scan_response", "desk", "search", 1)]
    assert counted(meter, "mcp_scans", "operation", "server_name", "tool_name") == scans
    threats = [("desk", "search", 2)]
    assert counted(meter, "mcp_threats_detected", "server_name", "tool_name") == threats


@in_both_forms
def test_a_recorder_or_a_label_that_fails_decides_nothing_and_is_counted(
    check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for options in ({"metrics": Down()}, {"metrics": Meter().metrics, "caller_label": Down()}):
        guard, log = make_guard(**options)
        assert check.call(guard, "alice", "search", {"q": 1}).params == {"q": 1}
        assert (guard.metrics.failures, len(log)) == (1, 1)
    told = ("mcp_guard", logging.ERROR, "the metrics recorder failed: OSError")
    assert caplog.record_tuples == [told] * 2
