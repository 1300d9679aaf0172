"""What a gateway and its policy decide on calls and responses."""

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support.documents import KERNEL, section
from support.parts import SECRET, Down, Meter, gateway

import agent_mcp_governance as g

SENSITIVE: dict[str, Any] = {"sensitive_tools": ["tool"]}
APPROVER = SENSITIVE | {"approval_callback": lambda *_: g.ApprovalStatus.APPROVED}
DENIER = SENSITIVE | {"approval_callback": lambda *_: g.ApprovalStatus.DENIED}
BROKEN = SENSITIVE | {"approval_callback": Down()}
LISTED_TWICE = {"denied_tools": ["tool"], "allowed_tools": ["tool"]}
EVIL, BLOCKED = {"blocked_patterns": ["evil"]}, "Parameters matched blocked pattern(s): ['evil']"
BUILT_IN = r"Parameters matched dangerous pattern: \$\(.*\)"
CLOSED = "access denied (fail closed)"
# Every stage at which the gateway decides, with options and params that end a call there.
STAGES: dict[str, tuple[dict[str, Any], dict[Any, Any], str]] = {
    "allowed": ({"allowed_tools": ["tool"]}, {}, "Allowed by policy"),
    "approval_granted": (APPROVER, {}, "Approved by human reviewer"),
    "deny_list": (LISTED_TWICE, {}, "Tool 'tool' is on the deny list"),
    "allow_list": ({"allowed_tools": ["other"]}, {}, "Tool 'tool' is not on the allow list"),
    "policy_pattern": (EVIL, {"q": "evil"}, BLOCKED),
    "builtin_pattern": ({}, {"q": "$(id)"}, BUILT_IN),
    "rate_limit": ({"max_tool_calls": 0}, {}, "Agent 'a' exceeded call budget (0)"),
    "approval_denied": (DENIER, {}, "Human approval denied"),
    "approval_pending": (SENSITIVE, {}, "Awaiting human approval"),
    "approval_error": (BROKEN, {}, f"Approval callback error — {CLOSED}"),
    "error": ({}, {("not", "json"): 1}, f"Internal gateway error — {CLOSED}"),
}
REGEX, GLOB = g.PatternType.REGEX, g.PatternType.GLOB
PATTERNS = ["rm -rf", (r"rm\s+-r", REGEX), ("*rm -*", GLOB)]
DANGEROUS = ["; rm x", "; mkfs x", "$(id)", "`id`", "123-45-6789", "4111 1111 1111 1111"]


def call(governed: g.MCPGateway, tool: str = "read_file", **params: object) -> tuple[bool, str]:
    return governed.intercept_tool_call("agent", tool, params)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_decides_says_why_and_is_counted_without_the_params(stage: str) -> None:
    options, params, why = STAGES[stage]
    meter = Meter()
    governed = gateway(metrics=meter.metrics, **options)
    allowed = stage in ("allowed", "approval_granted")
    decided = governed.intercept_tool_call("a", "tool", params | {"canary": "canary"})
    assert decided == (allowed, why)
    where, decision = {"agent_id": "a", "tool_name": "tool"}, "allow" if allowed else "deny"
    counted = meter.counted()
    assert counted.pop("mcp_decisions") == [(where | {"decision": decision, "stage": stage}, 1)]
    assert counted == ({"mcp_rate_limit_hits": [(where, 1)]} if stage == "rate_limit" else {})
    assert "canary" not in meter.exported()


def test_the_gateway_has_no_other_stage_and_the_document_names_them_all() -> None:
    source = ast.parse(textwrap.dedent(inspect.getsource(g.MCPGateway._evaluate)))
    returned = [node.value for node in ast.walk(source) if isinstance(node, ast.Return)]
    assert {value.elts[3].value for value in returned} | {"error"} == set(STAGES)
    assert [stage for stage in STAGES if f"`{stage}`" not in section(KERNEL, "Metrics")] == []


def test_an_ordinary_call_is_allowed_and_leaves_an_audit_entry() -> None:
    governed = gateway(clock=lambda: 12.5)
    assert call(governed, path="notes.txt") == (True, "Allowed by policy")
    (entry,) = governed.audit_log
    assert entry == g.AuditEntry(
        12.5, "agent", "read_file", {"path": "notes.txt"}, True, "Allowed by policy"
    )
    assert entry.to_dict() == {**vars(entry), "approval_status": None}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_policy_pattern_refuses_a_parameter_that_it_matches_and_no_other(pattern: Any) -> None:
    governed = gateway(blocked_patterns=[pattern])
    assert "matched blocked pattern" in call(governed, command="RM -RF /")[1]
    assert call(governed, command="ls /")[0]


@pytest.mark.parametrize("value", DANGEROUS)
def test_a_built_in_pattern_refuses_a_parameter_unless_it_is_switched_off(value: str) -> None:
    assert "matched dangerous pattern" in call(gateway(), value=value)[1]
    assert call(gateway(enable_builtin_sanitization=False), value=value)[0]


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


@pytest.mark.parametrize("status", g.ApprovalStatus)
def test_a_reviewer_is_asked_of_sensitive_calls_and_the_answer_is_audited(status: Any) -> None:
    review = Mock(return_value=status)
    governed = gateway(sensitive_tools=["pay"], approval_callback=review)
    assert call(governed, "read_file")[0]
    assert call(governed, "pay", amount=5)[0] == (status is g.ApprovalStatus.APPROVED)
    review.assert_called_once_with("agent", "pay", {"amount": 5})
    assert [entry.approval_status for entry in governed.audit_log] == [None, status]


def test_wrapping_a_server_describes_its_governance() -> None:
    policy = g.GovernancePolicy(name="strict", allowed_tools=["read"], max_tool_calls=3)
    config = g.MCPGateway.wrap_mcp_server({"command": "serve"}, policy, denied_tools=["drop"])
    described = g.GatewayConfig({"command": "serve"}, "strict", ["read"], ["drop"], [], 3, True)
    assert config == described


def test_a_policy_reports_matches_conflicts_differences_and_survives_a_file(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("policy", "text", "action", "content"),
    [
        (g.ResponsePolicy.BLOCK, "all well", "allowed", "all well"),
        (g.ResponsePolicy.BLOCK, "<system>hello", "blocked", None),
        (g.ResponsePolicy.SANITIZE, "<system>hello", "sanitized", "hello"),
        (g.ResponsePolicy.SANITIZE, f"key {SECRET}", "blocked", None),
        (g.ResponsePolicy.LOG, "<system>hello", "logged", "<system>hello"),
    ],
)
def test_the_response_policy_decides_what_happens_to_a_threat(
    policy: g.ResponsePolicy, text: str, action: str, content: str | None
) -> None:
    governed = gateway(response_policy=policy)
    decision = governed.intercept_tool_response("agent", "read", text)
    assert isinstance(decision, g.MCPResponseDecision)
    assert (decision.action, decision.content) == (action, content)
    assert (decision.reason == "Response clean") == (action == "allowed")
    assert len(decision.threats) == (action != "allowed")
    allowed = [entry.allowed for entry in governed.audit_log]
    assert allowed == [decision.allowed] == [action != "blocked"]
