"""What a gateway and its policy decide on calls and responses."""

from pathlib import Path
from typing import Any

import pytest
from support.parts import SECRET, Own, gateway

import agent_mcp_governance as g


def call(governed: g.MCPGateway, tool: str = "read_file", **params: object) -> tuple[bool, str]:
    return governed.intercept_tool_call("agent", tool, params)


def test_an_ordinary_call_is_allowed_and_leaves_an_audit_entry() -> None:
    governed = gateway(clock=lambda: 12.5)
    assert call(governed, path="notes.txt") == (True, "Allowed by policy")
    (entry,) = governed.audit_log
    assert entry == g.AuditEntry(
        12.5, "agent", "read_file", {"path": "notes.txt"}, True, "Allowed by policy"
    )
    assert entry.to_dict() == {**vars(entry), "approval_status": None}


def test_a_tool_on_the_deny_list_is_refused_even_if_it_is_on_the_allow_list() -> None:
    policy = g.GovernancePolicy(allowed_tools=["delete_file"])
    governed = g.MCPGateway(policy, denied_tools=["delete_file"])
    assert call(governed, "delete_file") == (False, "Tool 'delete_file' is on the deny list")


def test_only_tools_on_the_allow_list_are_allowed() -> None:
    governed = gateway(allowed_tools=["read_file"])
    assert call(governed, "read_file")[0]
    assert call(governed, "write_file") == (False, "Tool 'write_file' is not on the allow list")


@pytest.mark.parametrize(
    "pattern", ["rm -rf", (r"rm\s+-r", g.PatternType.REGEX), ("*rm -*", g.PatternType.GLOB)]
)
def test_a_parameter_that_matches_a_policy_pattern_is_refused(pattern: Any) -> None:
    governed = gateway(blocked_patterns=[pattern])
    allowed, reason = call(governed, command="RM -RF /")
    assert not allowed
    assert reason.startswith("Parameters matched blocked pattern(s): ")
    assert call(governed, command="ls /")[0]


@pytest.mark.parametrize(
    "value", ["; rm x", "; mkfs x", "$(id)", "`id`", "123-45-6789", "4111 1111 1111 1111"]
)
def test_a_parameter_that_matches_a_built_in_pattern_is_refused(value: str) -> None:
    allowed, reason = call(gateway(), value=value)
    assert not allowed
    assert reason.startswith("Parameters matched dangerous pattern: ")
    without = gateway(enable_builtin_sanitization=False)
    assert call(without, value=value)[0]


def test_the_call_budget_is_per_agent_counts_allowed_calls_and_can_be_reset() -> None:
    governed = gateway(max_tool_calls=2, denied_tools=["drop"])
    assert not call(governed, "drop")[0]
    assert [call(governed)[0] for _ in range(3)] == [True, True, False]
    assert call(governed)[1] == "Agent 'agent' exceeded call budget (2)"
    assert governed.intercept_tool_call("other", "read_file", {})[0]
    assert governed.get_agent_call_count("agent") == 2
    governed.reset_agent_budget("agent")
    assert call(governed)[0]
    governed.reset_all_budgets()
    assert governed.get_agent_call_count("agent") == governed.get_agent_call_count("other") == 0


@pytest.mark.parametrize(
    ("status", "decision"),
    [
        (g.ApprovalStatus.APPROVED, (True, "Approved by human reviewer")),
        (g.ApprovalStatus.DENIED, (False, "Human approval denied")),
        (g.ApprovalStatus.PENDING, (False, "Awaiting human approval")),
    ],
)
def test_the_reviewers_answer_decides_a_sensitive_call(
    status: g.ApprovalStatus, decision: tuple[bool, str]
) -> None:
    asked: list[object] = []

    def review(*question: object) -> g.ApprovalStatus:
        asked.append(question)
        return status

    governed = gateway(sensitive_tools=["pay"], approval_callback=review)
    assert call(governed, "read_file")[0]
    assert call(governed, "pay", amount=5) == decision
    assert asked == [("agent", "pay", {"amount": 5})]
    assert [entry.approval_status for entry in governed.audit_log] == [None, status]


def test_audit_entries_reach_the_sink_redacted() -> None:
    sink = g.InMemoryAuditSink()
    call(gateway(audit_sink=sink), note=f"use {SECRET} here")
    assert [entry["parameters"] for entry in sink.entries()] == [{"note": "use [REDACTED] here"}]


def test_a_sink_and_a_store_of_ones_own_are_used() -> None:
    own = Own()
    assert call(gateway(audit_sink=own, rate_limit_store=own))[0]
    assert own.used == ["get_bucket", "get_bucket", "set_bucket", "record"]


def test_wrapping_a_server_describes_its_governance() -> None:
    policy = g.GovernancePolicy(name="strict", allowed_tools=["read"], max_tool_calls=3)
    config = g.MCPGateway.wrap_mcp_server({"command": "serve"}, policy, denied_tools=["drop"])
    described = g.GatewayConfig({"command": "serve"}, "strict", ["read"], ["drop"], [], 3, True)
    assert config == described


def test_a_policy_reports_matches_conflicts_and_differences_and_survives_a_file(
    tmp_path: Path,
) -> None:
    policy = g.GovernancePolicy(
        max_tool_calls=0,
        allowed_tools=["read"],
        blocked_patterns=["secret", (r"^\d+$", g.PatternType.REGEX)],
    )
    assert policy.matches_pattern("My Secret") == ["secret"]
    assert policy.matches_pattern("123") == [r"^\d+$"]
    assert len(policy.detect_conflicts()) == 1
    assert policy.is_stricter_than(g.GovernancePolicy())
    assert policy.diff(g.GovernancePolicy())["max_tool_calls"] == (0, 10)
    path = str(tmp_path / "policy.yaml")
    policy.save(path)
    assert g.GovernancePolicy.load(path) == policy


def test_a_clean_response_passes() -> None:
    decision = gateway().intercept_tool_response("agent", "read", "all well")
    assert decision == g.MCPResponseDecision(
        allowed=True, reason="Response clean", content="all well", threats=[], action="allowed"
    )


@pytest.mark.parametrize(
    ("policy", "text", "allowed", "action", "content"),
    [
        (g.ResponsePolicy.BLOCK, "<system>hello", False, "blocked", None),
        (g.ResponsePolicy.SANITIZE, "<system>hello", True, "sanitized", "hello"),
        (g.ResponsePolicy.SANITIZE, f"key {SECRET}", False, "blocked", None),
        (g.ResponsePolicy.LOG, "<system>hello", True, "logged", "<system>hello"),
    ],
)
def test_the_response_policy_decides_what_happens_to_a_threat(
    policy: g.ResponsePolicy, text: str, allowed: bool, action: str, content: str | None
) -> None:
    governed = gateway(response_policy=policy)
    decision = governed.intercept_tool_response("agent", "read", text)
    assert (decision.allowed, decision.action, decision.content) == (allowed, action, content)
    assert len(decision.threats) == 1
    assert [entry.allowed for entry in governed.audit_log] == [allowed]
