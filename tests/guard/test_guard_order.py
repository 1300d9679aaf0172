"""The order of the checks, and what a refusal at each stage does not do any more."""

from types import SimpleNamespace
from typing import Any

import pytest
from mcp_guard import Decision, Limits, ToolRules
from support.guards import SECRET, in_both_forms, make_guard

from agent_mcp_governance import ApprovalStatus

ALL = ["limiter", "callers", "validate", "budget", "approver", "sink"]
REFUSALS = [  # what refuses, at which stage, and how many of the parts above have been asked then
    *[("caller", "caller", 0), ("limiter", "rate_limit", 1), ("tool", "allow_list", 1)],
    *[("callers", "allow_list", 2), ("params", "params", 2), ("pattern", "pattern", 2)],
    *[("secret", "secret", 2), ("validate", "params", 3), ("budget", "budget", 4)],
    *[("approver", "approval", 5), ("nothing", "allowed", 5)],
]


@in_both_forms
@pytest.mark.parametrize(("refuses", "stage", "count"), REFUSALS)
def test_a_call_meets_the_checks_in_order_and_none_after_a_refusal(
    check: Any, refuses: str, stage: str, count: int
) -> None:
    asked: list[str] = []
    log: list[dict[str, Any]] = []

    def part(name: str, yes: object = True, no: object = False) -> Any:
        return lambda *_: [asked.append(name), no if name == refuses else yes][1]

    def counter(name: str) -> Any:
        return SimpleNamespace(blocking=False, try_acquire=part(name))

    def validate(arguments: dict[str, Any]) -> dict[str, Any]:
        if not part("validate")():
            raise ValueError("amount is no number.")
        return arguments

    rules = ToolRules(True, ["rm -rf"], True, callers=part("callers"))
    guard, _ = make_guard(
        tools={"refund": rules},
        limiter=counter("limiter"),
        budget=counter("budget"),
        approver=part("approver", ApprovalStatus.APPROVED, ApprovalStatus.DENIED),
        audit_sink=SimpleNamespace(record=lambda entry: [log.append(entry), part("sink")()]),
    )
    # What an earlier check refuses is wrong in every way that a later one looks at.
    params: Any = {"q": f"rm -rf / {SECRET}", "w": float("nan")}
    if count > 2 or refuses in ("pattern", "secret"):
        params = {"pattern": {"q": params["q"]}, "secret": {"q": SECRET}}.get(refuses, {})
    tool = "drop" if refuses in ("caller", "limiter", "tool") else "refund"
    caller = "" if refuses == "caller" else "alice"
    decision: Decision = check.call(guard, caller, tool, params, validate=validate)
    assert asked == [*ALL[:count], "sink"]
    assert (decision.stage, decision.allowed) == (stage, refuses == "nothing")
    assert [entry["tool_name"] for entry in log] == [tool]
    assert (log[0]["stage"], log[0]["allowed"]) == (stage, decision.allowed)
    # A refusal costs no more than it has to.
    assert (log[0]["parameters"] is not None) is (
        count > 1 and tool != "drop" and "w" not in params
    )


@in_both_forms
@pytest.mark.parametrize(
    ("refuses", "stage", "asked"),
    [
        ("caller", "caller", []),
        ("tool", "allow_list", []),
        ("callers", "allow_list", ["callers"]),
        ("blobs", "response", ["callers"]),
        ("size", "response", ["callers"]),
        ("detector", "detector", ["callers", "redact", "detector"]),
        ("nothing", "allowed", ["callers", "redact", "detector"]),
    ],
)
def test_a_response_meets_the_checks_in_order_and_none_after_a_refusal(
    check: Any, refuses: str, stage: str, asked: list[str]
) -> None:
    found: list[str] = []

    def redact(text: str) -> str:
        found.extend(["redact"] * text.count("hello"))
        return text

    def detector(_: str, content: str) -> list[str]:
        found.append("detector")
        return [content] if refuses == "detector" else []

    callers = ToolRules(callers=lambda _: [found.append("callers"), refuses != "callers"][1])
    limits = Limits(max_blob_chars=3, max_response_chars=9)
    options = {"redact": redact, "detectors": [detector], "limits": limits}
    guard, log = make_guard(tools={"search": callers}, **options)
    caller = "" if refuses == "caller" else "alice"
    tool = "drop" if refuses in ("caller", "tool") else "search"
    content = "hello" if refuses in ("detector", "nothing") else "hello hello"
    blobs = ["1", "23"] if content == "hello" or refuses == "size" else ["1", "234"]
    decision = check.response(guard, caller, tool, content, blobs=blobs)
    assert found[: len(asked)] == asked
    assert ("detector" in found) is ("detector" in asked)
    assert (decision.stage, decision.allowed) == (stage, refuses == "nothing")
    assert decision.content == ("hello" if decision.allowed else None)
    assert [entry["stage"] for entry in log] == [stage]


def test_the_caller_is_told_a_short_sentence_and_never_the_pattern() -> None:
    guard, log = make_guard(blocked_patterns=["drop table"])
    decision = guard.check_call("alice", "search", {"sql": "DROP TABLE users"})
    assert decision.refusal == "Refused (pattern): The arguments are not allowed."
    assert "drop table" not in repr(decision).lower()
    assert log[0]["detail"] == "sql matches 'drop table'"


def test_a_decision_shows_neither_params_nor_content_and_cannot_be_changed() -> None:
    decision = Decision(True, "allowed", "Allowed.", {"q": "private"}, "private")
    assert "private" not in repr(decision)
    with pytest.raises(AttributeError):
        decision.allowed = False  # type: ignore[misc]


@in_both_forms
def test_a_guard_that_breaks_refuses_and_says_only_how(
    check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def validate(_: object) -> Any:
        raise LookupError(SECRET)

    guard, log = make_guard()
    decision = check.call(guard, "alice", "search", {}, validate=validate)
    assert decision.refusal == "Refused (error): The guard failed."
    assert log[0]["detail"] == "LookupError"
    assert caplog.messages == ["the guard failed: LookupError"]


def test_what_a_policy_does_later_changes_nothing() -> None:
    patterns, detectors = ["one"], [lambda *_: []]
    guard, _ = make_guard(blocked_patterns=patterns, detectors=detectors)
    patterns += ["two"]
    detectors += [lambda *_: ["found"]]
    assert guard.check_call("alice", "search", {"q": "two"}).allowed
    assert guard.check_response("alice", "search", "two").allowed


def test_ordinary_calls_and_responses_pass_and_come_back_equal() -> None:
    guard, log = make_guard()
    for value in (
        {"to": "bob@example.com", "body": "Ignore the previous mail; card ending 4111."},
        {"sql": "SELECT id, `name` FROM users WHERE note LIKE '%../%' -- all of them"},
        {"order": "4929384756102938", "ssn": "123-45-6789", "phone": "+1 555 123 4567"},
        {"code": "subprocess.run(['ls', '-l']); x = $(date) && echo \"a\\nb\""},
        {"json": '{"a": [1, 2.5, null, "\\u00fc\\n"]}', "text": "密钥 ﷺ ½ ①", "n": [1e300, -0.0]},
        {"id": "task-0123456789abcdef0123456789abcdef", "url": "https://example.com/?token=a"},
    ):
        assert guard.check_call("alice", "search", value).params == value
        assert guard.check_response("alice", "search", [value]).content == [value]
    assert [entry["findings"] for entry in log] == [[]] * 12
