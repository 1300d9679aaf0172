"""Responses: their caps, secrets that are cut out of them, and detectors."""

import json
from typing import Any

import pytest
from mcp_guard import ToolRules
from support.guards import SECRET, in_both_forms, make_guard, run

from agent_mcp_governance import ResponsePolicy


@in_both_forms
def test_an_ordinary_response_comes_back_equal(check: Any) -> None:
    guard, log = make_guard()
    for content in (
        *(None, True, 0, "", "text\n世界", [], {"text": ["a", {"b": None}]}),
        *([list(range(30_000))], "x" * 250_000, '{"rows": [[1, "\\u00fc"], ["\\n"]]}'),
        *("[" * 100 + "]" * 100, "[" * 90_000, json.dumps(["ü"] * 5_000 + [0] * 55_000)),
    ):
        decision = check.response(guard, "alice", "search", content)
        assert (decision.stage, decision.content) == ("allowed", content)
        assert (log[-1]["findings"], log[-1]["parameters"]) == ([], None)


@in_both_forms
def test_a_response_that_is_no_plain_json_within_the_caps_is_refused(check: Any) -> None:
    guard, _ = make_guard()
    for content, why in (
        ("x" * 250_001, "over 250000 characters"),
        ([0] * 50_001, "over 50000 keys and elements"),
        (json.loads("[" * 65 + "]" * 65), "over 64 levels"),
        (float("nan"), "no plain JSON, for a float in it"),
        (object(), "no plain JSON, for a object in it"),
    ):
        decision = check.response(guard, "alice", "search", content)
        assert decision.refusal == f"Refused (response): The response is refused: {why}."
        assert decision.content is None


def test_images_have_a_cap_of_their_own_and_are_not_looked_into() -> None:
    guard, log = make_guard()
    blobs = [SECRET + "A" * (5_000_000 - len(SECRET))] * 2
    assert guard.check_response("alice", "search", "text", blobs=blobs).allowed
    decision = guard.check_response("alice", "search", "text", blobs=[*blobs, "A"])
    why = "over 10000000 characters of images, audio and files"
    assert decision.refusal == f"Refused (response): The response is refused: {why}."
    found = [(entry["findings"], entry["detail"]) for entry in log]
    assert found == [([], ""), ([], "10000001 of them")]


@in_both_forms
def test_secrets_are_cut_out_of_a_response_and_the_rest_is_returned(check: Any) -> None:
    guard, log = make_guard()
    for content, returned in (
        (f"key {SECRET}.", "key [REDACTED]."),
        (["a", {"b": [SECRET]}], ["a", {"b": ["[REDACTED]"]}]),
        ({SECRET: [1, None, True, 2.5]}, {"[REDACTED]": [1, None, True, 2.5]}),
        (f"line\n{SECRET}\n", "line\n[REDACTED]\n"),
        ({"SecretAccessKey": "aB3dE5gH/+" * 4, "a": 0}, {"SecretAccessKey": "[REDACTED]", "a": 0}),
        (f'{{"a": "\\u0067{SECRET[1:]}"}}', '{"a": "[REDACTED]"}'),
    ):
        before = json.dumps(content)
        decision = check.response(guard, "alice", "search", content)
        assert (decision.stage, decision.content) == ("allowed", returned)
        assert (log[-1]["findings"], json.dumps(content)) == (["secret"], before)


def test_a_redact_of_ones_own_takes_the_place_of_ours() -> None:
    guard, log = make_guard(redact=lambda text: text.replace(r"bob\u0040example.com", "[MAIL]"))
    content = guard.check_response("alice", "search", rf"bob\u0040example.com {SECRET}").content
    assert content == f"[MAIL] {SECRET}"
    guard.check_call("alice", "search", {"to": r"bob\u0040example.com"})
    assert log[1]["parameters"] == {"to": "[MAIL]"}


def test_a_redact_of_ones_own_may_know_numbers_that_no_params_may_hold() -> None:
    rules = {"search": ToolRules(refuse_secrets=True)}
    guard, log = make_guard(tools=rules, redact=lambda text: text.replace("41110000", "[CARD]"))
    assert guard.check_call("alice", "search", {"card": [1, 41110000]}).stage == "secret"
    assert log[0]["detail"] == "at card[1]"
    assert guard.check_call("alice", "search", {"card": [1, 41110001]}).allowed


@in_both_forms
def test_a_redact_that_fails_returns_nothing_and_tells_nobody_its_text(
    check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(text: str) -> str:
        raise ValueError(text)

    guard, log = make_guard(redact=redact)
    for decision in (
        check.response(guard, f"alice {SECRET}", "search", "private"),
        check.call(guard, f"alice {SECRET}", "search", {"q": "private"}),
    ):
        assert decision.refusal == "Refused (error): The guard failed."
        assert (decision.allowed, decision.content, decision.params) == (False, None, {})
    found = [(entry["agent_id"], entry["tool_name"], entry["detail"]) for entry in log]
    assert found == [("alice [REDACTED]", "search", "redact failed")] * 2
    assert "private" not in json.dumps(log) + caplog.text
    assert caplog.messages[-1] == "redact failed: ValueError"


def test_detectors_see_what_is_left_and_all_of_them_are_asked() -> None:
    seen = []

    def first(tool: str, content: Any) -> list[str]:
        seen.append((tool, content))
        return ["one", "two"]

    async def second(tool: str, content: Any) -> tuple[str, ...]:
        return (*first(tool, content), "three")

    guard, log = make_guard(detectors=[first, second])
    decision = run(guard.acheck_response("alice", "search", [SECRET]))
    assert seen == [("search", ["[REDACTED]"])] * 2
    words = "The response was withheld: a detector found something in it."
    assert decision.refusal == f"Refused (detector): {words}"
    assert log[0]["findings"] == ["secret", "one", "two", "one", "two", "three"]
    assert log[0]["detail"] == ", ".join(log[0]["findings"])


def fail(*_: object) -> Any:
    raise ValueError("private")


ANSWERS: list[tuple[Any, list[str]]] = [
    *(([], []), ((), []), (["injection"], ["injection"]), ("injection", ["injection"])),
    *(([None], ["None"]), (["x" * 1_000] * 1_000, ["x" * 100] * 20)),
    *[(it, [f"a detector returned a {type(it).__name__}, no list"]) for it in (None, {}, True)],
    (fail, ["a detector failed: ValueError"]),
]
BLOCK, LOG = ResponsePolicy.BLOCK, ResponsePolicy.LOG


@in_both_forms
@pytest.mark.parametrize("per_tool", [False, True])
@pytest.mark.parametrize(("policy", "other"), [(BLOCK, LOG), (LOG, BLOCK)])
def test_what_a_detector_finds_or_that_it_fails_is_blocked_or_only_logged(
    check: Any, per_tool: bool, policy: Any, other: Any
) -> None:
    rules = {"search": ToolRules(on_finding=policy)} if per_tool else {}
    for answer, found in ANSWERS:
        guard, log = make_guard(
            detectors=[fail if answer is fail else lambda *_, it=answer: it],
            on_finding=other if per_tool else policy,
            tools=rules,
        )
        decision = check.response(guard, "alice", "search", "text")
        blocked = bool(found) and policy is BLOCK
        assert decision.stage == ("detector" if blocked else "allowed")
        assert decision.content == (None if blocked else "text")
        assert log[0]["findings"] == found
        assert check.call(guard, "alice", "search", {"q": "text"}).allowed  # not looked at
