"""Limits of GovernancePolicy."""

import dataclasses

from support.limits import limit, refused
from support.parts import gateway, refuses

from agent_mcp_governance import GovernancePolicy, MCPGateway, PatternType

SENSELESS = [
    lambda: GovernancePolicy(max_tool_calls=True),
    lambda: GovernancePolicy(name=5),
    lambda: GovernancePolicy(require_human_approval="no"),
    lambda: GovernancePolicy(allowed_tools=[""]),
    lambda: GovernancePolicy(blocked_patterns=[""]),
    lambda: GovernancePolicy(backpressure_threshold=99),
]
MISSPELLED = [
    lambda: GovernancePolicy.from_yaml("max_toolcalls: 1"),
    lambda: GovernancePolicy.from_dict({"max_toolcalls": 1}),
]
ASSIGNED = [lambda: setattr(GovernancePolicy(), "max_tool_calls", -5)]


@limit("fields that make no sense", lambda: GovernancePolicy(max_tool_calls=-1), SENSELESS)
@limit("misspelled keys", lambda: GovernancePolicy(max_toolcalls=1), MISSPELLED)
@limit("later assignments", lambda: GovernancePolicy(max_tool_calls=-5), ASSIGNED)
def test_what_makes_no_sense_is_refused(make):
    return refused(make)


@limit("empty pattern", "evil", [""])
def test_an_empty_pattern_blocks_nothing(pattern):
    return not refuses(gateway(blocked_patterns=[pattern]))


@limit("shared policy", dataclasses.replace, [lambda policy: policy])
def test_a_policy_cannot_be_loosened_from_outside(give):
    policy = GovernancePolicy(max_tool_calls=0)
    governed = MCPGateway(give(policy))
    policy.max_tool_calls = 5
    return refuses(governed)


@limit("plain strings", [(r"rm\s+-rf", PatternType.REGEX)], [[r"rm\s+-rf"]])
def test_a_regular_expression_matches(patterns):
    return GovernancePolicy(blocked_patterns=patterns).matches_pattern("rm -rf") != []


@limit("name in YAML", "version", ["name"])
def test_a_field_survives_yaml(field):
    policy = GovernancePolicy(**{field: "mine"})
    return getattr(GovernancePolicy.from_yaml(policy.to_yaml()), field) == "mine"


@limit("is_stricter_than", ["read", "delete"], [["delete"], []])
def test_a_policy_that_allows_another_tool_is_not_stricter(allowed):
    base = GovernancePolicy(max_tool_calls=5, allowed_tools=["read"])
    mine = GovernancePolicy(max_tool_calls=3, allowed_tools=allowed)
    return not mine.is_stricter_than(base)
