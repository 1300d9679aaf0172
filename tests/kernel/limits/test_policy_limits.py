"""Limits of GovernancePolicy."""

import dataclasses
from collections.abc import Callable
from typing import Any

from support.limits import limit, refused
from support.parts import gateway, refuses

from agent_mcp_governance import GovernancePolicy, MCPGateway, PatternType

SENSELESS: list[dict[str, Any]] = [
    {"max_tool_calls": True},
    {"name": 5},
    {"require_human_approval": "no"},
    {"allowed_tools": [""]},
    {"blocked_patterns": [""]},
    {"backpressure_threshold": 99},
]


@limit("fields that make no sense", {"max_tool_calls": -1}, SENSELESS)
def test_a_field_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> bool:
    return refused(lambda: GovernancePolicy(**fields))


@limit("empty pattern", "evil", [""])
def test_an_empty_pattern_blocks_nothing(pattern: str) -> bool:
    return not refuses(gateway(blocked_patterns=[pattern]))


@limit(
    "later assignments",
    lambda: GovernancePolicy(max_tool_calls=-5),
    [lambda: setattr(GovernancePolicy(), "max_tool_calls", -5)],
)
def test_a_later_assignment_is_validated(assign: Callable[[], object]) -> bool:
    return refused(assign)


@limit("shared policy", dataclasses.replace, [lambda policy: policy])
def test_a_policy_cannot_be_loosened_from_outside(give: Callable[..., GovernancePolicy]) -> bool:
    policy = GovernancePolicy(max_tool_calls=0)
    governed = MCPGateway(give(policy))
    policy.max_tool_calls = 5
    return refuses(governed)


@limit("plain strings", (r"rm\s+-rf", PatternType.REGEX), [r"rm\s+-rf"])
def test_a_regular_expression_matches(pattern: Any) -> bool:
    return GovernancePolicy(blocked_patterns=[pattern]).matches_pattern("rm -rf") != []


@limit("name in YAML", "version", ["name"])
def test_a_field_survives_yaml(field: str) -> bool:
    policy = GovernancePolicy(**{field: "mine"})
    return getattr(GovernancePolicy.from_yaml(policy.to_yaml()), field) == "mine"


@limit(
    "misspelled keys",
    lambda: GovernancePolicy(max_toolcalls=1),  # type: ignore[call-arg]
    [
        lambda: GovernancePolicy.from_yaml("max_toolcalls: 1"),
        lambda: GovernancePolicy.from_dict({"max_toolcalls": 1}),
    ],
)
def test_a_misspelled_key_is_refused(make: Callable[[], object]) -> bool:
    return refused(make)


@limit("is_stricter_than", ["read", "delete"], [["delete"], []])
def test_a_policy_that_allows_another_tool_is_not_stricter(allowed: list[str]) -> bool:
    base = GovernancePolicy(max_tool_calls=5, allowed_tools=["read"])
    mine = GovernancePolicy(max_tool_calls=3, allowed_tools=allowed)
    return not mine.is_stricter_than(base)
