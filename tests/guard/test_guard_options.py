"""Options: every wrong configuration gets a sentence, at the start."""

from asyncio import sleep
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from mcp_guard import Decision, Guard, KernelDetector, Limits, ToolRules
from support.guards import Entries, make_guard

from agent_mcp_governance import GovernancePolicy, InMemoryAuditSink, PatternType, ResponsePolicy

COUNTER = type("Counter", (), {"try_acquire": lambda *_: True})()
ODD = type("Odd", (), {"try_acquire": 5})()
REGEX, SANITIZE = PatternType.REGEX, ResponsePolicy.SANITIZE
POSITIVE = "must be a positive"
PLAIN = "must be callable and not async, not"
WRONG: list[tuple[str, str, list[Any]]] = [
    ("audit_sink", "an object with a method record(), not", ["a.jsonl", None, InMemoryAuditSink]),
    ("limiter", "must be an object with a method try_acquire(), not", [60, type(COUNTER), ODD]),
    ("budget", "must be an object with a method try_acquire(), not", [60, type(COUNTER)]),
    ("metrics", "must be an object with a method record_decision(), not", [True, "any"]),
    ("window_size", f"{POSITIVE} number, not", ["60", 0, -1, None, True, 10**400]),
    ("window_size", f"{POSITIVE} number, not", [float("nan"), float("inf")]),
    ("max_calls_per_window", f"{POSITIVE} integer, not", [0, 0.5, "9", True, None]),
    ("budget_period", f"{POSITIVE} number, not", [0, -1, "day", True, float("inf")]),
    ("limits", "must be a Limits, not", [{"max_depth": 3}, None]),
    *[(name, PLAIN, ["any", 0.0, sleep]) for name in ("caller_label", "clock", "redact")],
    ("approver", "must be callable and no class, not", ["any", 0.0, KernelDetector]),
    ("observe", "must be a bool, not", ["no", 0]),
    ("on_finding", "must be ResponsePolicy.BLOCK or LOG, not", ["log", None, SANITIZE]),
    ("detectors", "must be a Sequence, not", [print, None]),
    ("detectors", "must be callable and no class, not", [[print, 7], [KernelDetector]]),
    ("allowed_tools", "is empty, which would allow every tool: name them", [[]]),
    ("allowed_tools", ": tools are named, not matched", [["mail*"], ["a", "mail?"], ["[ab]"]]),
    ("allowed_tools", ", which is no tool's name", [[""], ["a", " b"], ["a\nb"], ["a" * 129]]),
    ("require_human_approval", "must be a bool, not", ["no", None, 1]),
    ("require_human_approval", "a tool needs approval, and there is no approver to ask", [True]),
    ("blocked_patterns", "an empty blocked pattern matches every call", [["x", ""]]),
    *[("blocked_patterns", "an empty blocked pattern", [[("", kind)]]) for kind in PatternType],
    ("tools", "must be a Mapping, not", [[ToolRules()], 7]),
    ("tools", "tools['search'] must be a ToolRules, not", [{"search": {}}, {"search": None}]),
    ("tools", "is not on the allow list: did you mean 'search'?", [{"serch": ToolRules()}]),
    ("tools", "which is not on the allow list", [{"mail": ToolRules()}, {7: ToolRules()}]),
    ("tools", "a tool needs approval, and there", [{"search": ToolRules(needs_approval=True)}]),
    ("ToolRules.needs_approval", "must be a bool, not", [1, None]),
    ("ToolRules.refuse_secrets", "must be a bool, not", [1, None]),
    ("ToolRules.max_params_chars", f"{POSITIVE} integer, not", [0, 1.5, True, "9"]),
    ("ToolRules.max_response_chars", f"{POSITIVE} integer, not", [0, 1.5, True, "9"]),
    ("ToolRules.blocked_patterns", "must be a list, not", ["../", None, iter(["../"])]),
    ("ToolRules.blocked_patterns", "blocked_patterns[0] has invalid regex", [[("(", REGEX)]]),
    ("ToolRules.blocked_patterns", "an empty blocked pattern matches every call", [[""]]),
    ("ToolRules.on_finding", "must be ResponsePolicy.BLOCK or LOG, not", ["log", True, SANITIZE]),
    ("ToolRules.callers", PLAIN, ["alice", sleep]),
    *[
        (f"Limits.{name}", f"{POSITIVE} integer, not", [0, -1, 1.5, True, "9", None])
        for name in vars(Limits())
    ],
    ("Limits.max_depth", "must be at most 100: some steps recurse", [101]),
]


@pytest.mark.parametrize(("name", "sentence", "values"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_option_is_named_in_a_sentence(name: str, sentence: str, values: Any) -> None:
    kind, _, option = name.rpartition(".")
    make: Any = {"ToolRules": ToolRules, "Limits": Limits}.get(kind, make_guard)
    for value in values:
        with pytest.raises(ValueError, match=r".") as caught:
            make(**{option: value})
        assert sentence in str(caught.value)
        assert name in str(caught.value) or "approval" in sentence or "pattern" in sentence


WINDOW = "give either max_calls_per_window and window_size, in seconds, or a limiter"
PERIOD = "give either budget_period, in seconds, or a budget"
BOTH_OR_NEITHER = {
    WINDOW: [
        *({"window_size": ...}, {"max_calls_per_window": ...}),
        *({"limiter": COUNTER, "window_size": 1}, {"limiter": COUNTER, "max_calls_per_window": 1}),
    ],
    PERIOD: [
        *({"budget": COUNTER, "budget_period": period} for period in (1, None)),
        {"budget_period": ...},
    ],
}


@pytest.mark.parametrize("sentence", BOTH_OR_NEITHER)
def test_window_and_budget_are_given_once_as_numbers_or_as_a_counter(sentence: str) -> None:
    for options in BOTH_OR_NEITHER[sentence]:
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            make_guard(**options)


def test_what_is_no_policy_or_was_changed_for_the_worse_is_refused() -> None:
    given: Any = {"audit_sink": Entries(), "max_calls_per_window": 1, "window_size": 1.0}
    policies: list[Any] = [{"allowed_tools": ["a"]}, None, GovernancePolicy]
    for name, value in (
        *[("allowed_tools", value) for value in ("search", ("search",), [7])],
        *[("blocked_patterns", "../"), ("blocked_patterns", [("(", REGEX)])],
        ("max_tool_calls", -1),
    ):
        policies.append(GovernancePolicy(allowed_tools=["search"]))
        setattr(policies[-1], name, value)
    for policy in policies:
        with pytest.raises(ValueError, match=r"policy must be a Gov|allowed_to|blocked_p|max_tool"):
            Guard(policy, budget_period=None, **given)
    with pytest.raises(ValueError, match=PERIOD):
        Guard(GovernancePolicy(allowed_tools=["search"]), **given)


def test_the_caps_are_these_unless_others_are_given_and_levels_at_most_100() -> None:
    caps = (100_000, 250_000, 10_000_000, 64, 50_000, 16_000, 10_000, 64, 64)
    assert tuple(vars(Limits()).values()) == caps
    for name in vars(Limits()):
        assert getattr(Limits(**{name: 1}), name) == 1
    assert Limits(max_depth=100).max_depth == 100


@pytest.mark.parametrize("frozen", [Limits(), ToolRules(), Decision(True, "allowed", "Allowed.")])
def test_limits_rules_and_decisions_cannot_be_changed(frozen: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(frozen, next(iter(vars(frozen))), 1)
