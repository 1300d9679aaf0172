"""The operator's patterns: on each value as it was sent, and as JSON parsing opens it."""

import json
import unicodedata
from functools import reduce
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcp_guard import ToolRules
from support.guards import in_both_forms, make_guard

from agent_mcp_governance import GovernancePolicy, PatternType

GLOB, REGEX, SUBSTRING = PatternType.GLOB, PatternType.REGEX, PatternType.SUBSTRING


@in_both_forms
@pytest.mark.parametrize(
    ("pattern", "params", "where"),
    [
        ("../", {"path": "a/../b"}, "path"),
        ("../", {"path": "..\uff0fb"}, "path"),
        ("DROP table", {"q": [0, {"sql": "x\ndrop TABLE y"}]}, "q[1].sql"),
        ("../", {"a": {"../x": 1}}, "a.../x"),
        ("../", {"q": '["..\\/x"]'}, "q.(JSON)[0]"),
        ("../", {"q": ' {"..\\/x": 0}\n'}, "q.(JSON).../x"),
        ("../", {"q": '"..\\u002fx"'}, "q.(JSON)"),
        ("../", {"q": json.dumps(['["..\\/x"]'])}, "q.(JSON)[0].(JSON)[0]"),
        ("../", {"q": '{"a": "..\\/x", "a": 0}'}, "q.(JSON)[0].a"),
        ("../", {'["..\\/x"]': 0}, '["..\\/x"].(JSON)[0]'),
        ("4111", {"card": 4111111111111111}, "card"),
        ("4111111111111111.0", {"card": 4111111111111111.0}, "card"),
        ("-0.5", {"n": '{"n": -0.5}'}, "n"),
        ("true", {"yes": True}, "yes"),
        ("null", {"no": [None]}, "no[0]"),
        ("null", {"q": "{x}"}, None),
        ("../", {"": {"": "../"}}, "the whole"),
        ("\ufb01", {"q": "\ufb01le"}, "q"),
        ("file", {"q": "\ufb01le"}, "q"),
        ("пароль", {"q": "ПАРОЛЬ"}, "q"),
        (("*.env", GLOB), {"path": "a/b.ENV"}, "path"),
        (("*.env", GLOB), {"path": "a/b.env.txt"}, None),
        (("*.env", GLOB), {"q": ["x", "line\n.env"]}, "q[1]"),
        (("/etc/*", GLOB), {"q": "cat /etc/passwd\nand more"}, "q"),
        ((r"^rm\s", REGEX), {"q": ["x", "rm -r"]}, "q[1]"),
        ((r"^rm\s", REGEX), {"q": "a rm -r"}, None),
        ((r"x.y", REGEX), {"q": "x\ny"}, None),
        ((r"^$", REGEX), {"q": ""}, "q"),
        (("a.c", SUBSTRING), {"q": "A.C"}, "q"),
        (("a.c", SUBSTRING), {"q": "abc"}, None),
        ("a?c", {"q": "abc"}, None),
        ("one\0two", {"a": "one", "b": "two"}, None),
        ("onetwo", {"one": "two"}, None),
        ('{"q"', {"q": 1}, None),  # the values are looked at, not their JSON
        ("../", {"q": '["..\\/x"] []'}, None),  # JSON in a string is the whole string
        ("../", {"q": "%2e%2e%2f ..\\/ &#46;./"}, None),  # what nothing here decodes is not decoded
    ],
)
def test_a_pattern_matches_each_key_and_value(
    check: Any, pattern: Any, params: Any, where: str | None
) -> None:
    of_the_tool = {"search": ToolRules(blocked_patterns=("unlikely", pattern))}
    for options in ({"blocked_patterns": ["unlikely", pattern]}, {"tools": of_the_tool}):
        guard, log = make_guard(**options)
        for tool in ("search", "refund"):  # the policy's patterns are for both
            matches = where and (tool == "search" or "tools" not in options)
            stage = "pattern" if matches else "allowed"
            assert check.call(guard, "alice", tool, params).stage == stage
        text = pattern if isinstance(pattern, str) else pattern[0]
        assert log[0]["detail"] == (f"{where} matches {text!r}" if where else "")
        assert log[0]["parameters"] == params


def test_only_text_whose_normal_form_costs_too_much_is_refused() -> None:
    guard, _ = make_guard(blocked_patterns=["x"])
    for text, why in (
        ("\ufdfa" * 50, "with characters that stand for many others"),
        ("a" + "\u0316\u0301" * 51, "over 100 combining marks in a row"),
        ("a" + "\uff9e" * 101 + "\ufb01", "over 100 combining marks in a row"),
    ):
        decision = guard.check_call("alice", "search", {"q": text})
        assert decision.refusal == f"Refused (params): The arguments are refused: {why}."
    for text in (
        *("\ufdfa \ufdfb", "محمد \ufdfa " * 200, "ﬁ" * 1_000, "ｶﾞｷﾞ" * 100, "\u1e9b\u0323" * 200),
        *("a" + "\u0316\u0301" * 50, "नमस्ते दुनिया" * 100, "z\u0351\u036b\u0343\u036a\u0302" * 50),
    ):
        assert guard.check_call("alice", "search", {"q": text}).allowed


def test_the_path_of_a_finding_is_short() -> None:
    guard, log = make_guard(blocked_patterns=["../"])
    for value in ("../", ["../"], '"..\\/"'):
        deep = reduce(lambda inner, _: {"k" * 1_000: inner}, range(50), value)
        guard.check_call("alice", "search", deep)
        where, _, pattern = log[-1]["detail"].partition(" matches ")
        assert (where, pattern) == ((".".join(["k" * 60] * 4))[:199], "'../'")


PARTS = st.sampled_from([*"ab*?[]!-.\\/^$(|", "\n", "é", "ß", "K", "\u212a", "\u017f"])
TEXTS = st.text(PARTS, max_size=12)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(pattern=TEXTS.filter(bool), text=TEXTS)
@example("*.env", "a.env")
@example("a*b", "xxaxxb")
@example("[!a]", "\n")
def test_a_glob_matches_what_it_matches_in_the_kernel(pattern: str, text: str) -> None:
    kernel = GovernancePolicy(blocked_patterns=[(pattern, GLOB)])
    guard, _ = make_guard(blocked_patterns=[(pattern, GLOB)], allowed_tools=["search"])
    decision = guard.check_call("alice", "search", {"": text})
    forms = ("", text, unicodedata.normalize("NFKC", text))
    assert decision.allowed is not any(map(kernel.matches_pattern, forms))


@pytest.mark.parametrize("kind", [SUBSTRING, GLOB])
def test_an_accent_that_a_pattern_has_as_a_character_of_its_own_is_found(kind: PatternType) -> None:
    guard, _ = make_guard(blocked_patterns=[("re\u0301sume\u0301", kind), ("\u2026", kind)])
    for text in ("r\u00e9sum\u00e9", "re\u0301sume\u0301", "wait\u2026"):
        assert guard.check_call("alice", "search", {"q": text}).stage == "pattern"
    for text in ("resume", "wait...", "r\u00e9sume"):
        assert guard.check_call("alice", "search", {"q": text}).allowed
