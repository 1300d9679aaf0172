"""Whatever a check is given: a decision comes back, one entry is written, both forms agree."""

import json
from collections import Counter
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcp_guard import Decision, Guard, Limits, ToolRules
from support.guards import SECRET, Async, Entries, Sync, make_guard

from agent_mcp_governance import ApprovalStatus, PatternType

LETTERS = st.sampled_from("aAbx09 _-.=:/\\\"'<>[]{}()*?\n\t\0é\u0301\ufdfa\uff0f\U0001f600")
SHORT = ["../", "..\\/", '["', '"]', '{"a": ', "}", "\\u0067", "AKIA", "eyJ", "password", SECRET]
LONG = ["x" * 50, "1" * 50, "[" * 30, "]" * 30, "\ufdfa" * 30, "-----BEGIN"]
TEXT = st.lists(st.sampled_from(SHORT + LONG) | LETTERS, max_size=8).map("".join)
NUMBERS = st.integers() | st.floats(-1e9, 1e9) | st.sampled_from([10**300, -0.0])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | TEXT.map(json.dumps)
JSON: Any = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXT, inner, max_size=3)
        | inner.map(json.dumps)
        | inner.map(lambda value: [value, value])
    ),
    max_leaves=8,
)
ODD = st.sampled_from([b"x", {1}, (1,), object(), {1: 2}, "\ud800", 1e999, "x" * 300, 2**1_024])
ANYTHING = JSON | ODD | st.lists(JSON | ODD, max_size=2)
PARAMS = st.dictionaries(TEXT, JSON, min_size=1, max_size=2)
CALLERS = st.sampled_from(["alice", "bob", "Ünal", "a b", "c", "d", "e", "\n"])
TOOLS = st.sampled_from(["search", "refund"] * 3 + ["drop"])
LIMITS = Limits(max_params_chars=200, max_response_chars=300, max_depth=6, max_items=30)


def guard() -> tuple[Guard, Entries]:
    return make_guard(
        blocked_patterns=["../", ("*.env", PatternType.GLOB), (r"\d{20}", PatternType.REGEX)],
        tools={"refund": ToolRules(needs_approval=True, refuse_secrets=True, callers=str.isascii)},
        approver=lambda _, __, params: list(ApprovalStatus)[len(params) % 3],
        detectors=[lambda _, content: ["long"] if len(str(content)) > 100 else []],
        limits=LIMITS,
    )


SEEN: Counter[tuple[str, str]] = Counter()


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(CALLERS, TOOLS, st.sampled_from([PARAMS, PARAMS, ANYTHING]).flatmap(lambda it: it), JSON)
@example("alice", "refund", {"q": SECRET}, None)
def check_anything(caller: Any, tool: Any, params: Any, extra: Any) -> None:
    found = []
    for form in (Sync, Async):
        one, log = guard()
        call = form.call(one, caller, tool, params, extra={"state": extra} if params else None)
        response = form.response(one, caller, tool, params)
        assert [entry["stage"] for entry in log] == [call.stage, response.stage]
        assert len(json.dumps(log)) < 40_000
        for decision in (call, response):
            assert type(decision) is Decision
            assert decision.allowed is (decision.stage == "allowed")
            assert decision.stage not in ("error", "audit", "cancelled")
            assert decision.allowed or (decision.params, decision.content) == ({}, None)
        if call.allowed:
            assert json.dumps(call.params) == json.dumps(params)
        if response.allowed and not log[1]["findings"]:
            assert json.dumps(response.content) == json.dumps(params)
        found.append((call, response, [{**entry, "timestamp": 0} for entry in log]))
    assert found[0] == found[1]
    SEEN.update([("call", call.stage), ("response", response.stage)])


def test_a_decision_comes_back_and_one_entry_is_written_in_both_forms_alike() -> None:
    check_anything()
    calls = {"caller", "allow_list", "params", "pattern", "secret", "approval", "allowed"}
    assert {stage for direction, stage in SEEN if direction == "call"} >= calls
    responses = {"caller", "allow_list", "response", "detector", "allowed"}
    assert {stage for direction, stage in SEEN if direction == "response"} == responses
