"""The order of the checks, and what a refusal at each stage does not do any more."""

from types import SimpleNamespace
from typing import Any

import pytest
from mcp_guard import Decision, Limits, ToolRules
from support.guards import SECRET, in_both_forms, make_guard
from support.parts import Down

from agent_mcp_governance import ApprovalStatus

Name = type("Name", (str,), {})  # a str that another class could say anything about
ASKED = ["limiter", "callers", "validate", "budget", "approver"]


@in_both_forms
@pytest.mark.parametrize(
    ("refuses", "stage", "count"),  # count: how many of the parts above have been asked then
    [
        *[("caller", "caller", 0), ("limiter", "rate_limit", 1), ("tool", "allow_list", 1)],
        *[("callers", "allow_list", 2), ("params", "params", 2), ("pattern", "pattern", 2)],
        *[("secret", "secret", 2), ("validate", "params", 3), ("budget", "budget", 4)],
        *[("approver", "approval", 5), ("nothing", "allowed", 5)],
    ],
)
def test_a_call_meets_the_checks_in_order_and_none_after_a_refusal(
    check: Any, refuses: str, stage: str, count: int
) -> None:
    asked: list[str] = []

    def part(name: str, yes: object = True, no: object = False) -> Any:
        return lambda *_: [asked.append(name), no if name == refuses else yes][1]

    def validate(arguments: dict[str, Any]) -> dict[str, Any]:
        if not part("validate")():
            raise ValueError("amount is no number.")
        return arguments

    guard, log = make_guard(
        tools={"refund": ToolRules(True, ["rm -rf"], True, callers=part("callers"))},
        limiter=SimpleNamespace(blocking=False, try_acquire=part("limiter")),
        budget=SimpleNamespace(blocking=False, try_acquire=part("budget")),
        approver=part("approver", ApprovalStatus.APPROVED, ApprovalStatus.DENIED),
    )
    # What an earlier check refuses is wrong in every way that a later one looks at.
    params: Any = {"q": f"rm -rf / {SECRET}", "w": float("nan")}
    if count > 2 or refuses in ("pattern", "secret"):
        wrong = {"pattern": params["q"], "secret": SECRET}
        params = {"q": wrong.get(refuses, r"\u0067")}  # an escape that hides no secret
    tool = "drop" if refuses in ("caller", "limiter", "tool") else "refund"
    caller = "" if refuses == "caller" else "alice"
    decision: Decision = check.call(guard, caller, tool, params, validate=validate)
    assert asked == ASKED[:count]
    assert (decision.stage, decision.allowed) == (stage, refuses == "nothing")
    found = [(entry["tool_name"], entry["stage"], entry["allowed"]) for entry in log]
    assert found == [(tool, stage, decision.allowed)]
    # A refusal costs no more than it has to: only what a check needs is copied.
    copied = count > 1 and tool != "drop" and "w" not in params
    assert (log[0]["parameters"] is not None) is copied


@in_both_forms
@pytest.mark.parametrize(
    ("refuses", "stage", "asked"),
    [
        *[("caller", "caller", []), ("tool", "allow_list", []), ("blobs", "response", ["callers"])],
        *[("callers", "allow_list", ["callers"]), ("size", "response", ["callers"])],
        *[("detector", "detector", ["callers", "detector"])],
        ("nothing", "allowed", ["callers", "detector"]),
    ],
)
def test_a_response_meets_the_checks_in_order_and_none_after_a_refusal(
    check: Any, refuses: str, stage: str, asked: list[str]
) -> None:
    found: list[str] = []

    def part(name: str, answer: object) -> Any:
        return lambda *_: [found.append(name), answer][1]

    guard, log = make_guard(
        tools={"search": ToolRules(callers=part("callers", refuses != "callers"))},
        detectors=[part("detector", ["it"] if refuses == "detector" else [])],
        limits=Limits(max_blob_chars=3, max_response_chars=9),
    )
    caller = "" if refuses == "caller" else "alice"
    tool = "drop" if refuses in ("caller", "tool") else "search"
    content = "hello" if refuses in ("detector", "nothing") else "hello hello"
    blobs = ["1", "23"] if content == "hello" or refuses == "size" else ["1", "234"]
    decision = check.response(guard, caller, tool, content, blobs=blobs)
    assert found == asked
    assert (decision.stage, decision.allowed) == (stage, refuses == "nothing")
    assert decision.content == ("hello" if decision.allowed else None)
    assert [entry["stage"] for entry in log] == [stage]


@in_both_forms
def test_the_caller_is_told_a_short_sentence_and_nothing_that_a_part_raised(
    check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    guard, log = make_guard(blocked_patterns=["drop table"])
    told = check.call(guard, "alice", "search", {"sql": "DROP TABLE users"})
    assert told.refusal == "Refused (pattern): The arguments are not allowed."
    told = check.call(guard, "alice", "search", {}, validate=Down())
    assert (told.allowed, told.refusal) == (False, "Refused (error): The guard failed.")
    assert [entry["detail"] for entry in log] == ["sql matches 'drop table'", "OSError"]
    assert caplog.messages == ["the guard failed: OSError"]


def test_a_decision_shows_neither_params_nor_content() -> None:
    decision = Decision(True, "allowed", "Allowed.", {"q": "private"}, "private")
    assert "private" not in repr(decision)


@in_both_forms
def test_caller_ids_are_exact_and_what_is_no_usable_one_is_refused(check: Any) -> None:
    guard, log = make_guard()
    for caller in (
        *(None, 7, b"alice", ["alice"], Name("alice"), "", "x" * 1_025),
        *("a\nb", "a\x00", "\x1b[1m", "a\x7f", "a\x85b", "\ud800"),
    ):
        decision = check.call(guard, caller, "search", {})
        assert decision.refusal == "Refused (caller): The caller is not known."
        assert check.response(guard, caller, "search", "text").stage == "caller"
        assert (log[-1]["agent_id"], log[-1]["detail"]) == (None, f"a {type(caller).__name__}")
    usable = ["x" * 1_024, "al@example.com", "iss|00u1AbCdEf", "Алиса 世界", "\U0001f600", " "]
    for option in ("max_calls_per_window", "max_tool_calls"):  # each spelling has its own
        guard, log = make_guard(**{option: 1})
        for caller in [*usable, *("00u1AbCdEf", "00u1aBcDeF", " 00u1AbCdEf", "00u1AbCdE\uff26")]:
            assert check.call(guard, caller, "search", {}).allowed
            assert not check.call(guard, caller, "search", {}).allowed
            assert log[-1]["agent_id"] == caller


@in_both_forms
def test_only_the_exact_name_of_a_tool_is_allowed(check: Any) -> None:
    guard, log = make_guard(allowed_tools=["search", "a" * 128, "search"])
    for tool in (
        *("Search", "search ", "sear", "searchs", "", "search\n", "\uff53earch", "*", "a" * 129),
        *("x" * 110 + SECRET, "\ud800", "tool\x1b[2J"),
        *(None, 7, ["search"], b"search", Name("search")),
    ):
        decision = check.call(guard, "alice", tool, {})
        assert decision.refusal == "Refused (allow_list): This tool is not allowed."
        assert check.response(guard, "alice", tool, "text").stage == "allow_list"
        assert not guard.may_call("alice", tool)
        assert len(log[-1]["tool_name"]) <= 128
        assert log[-1]["tool_name"].isprintable()
        assert SECRET[:20] not in log[-1]["tool_name"]
    assert guard.tools == {"search", "a" * 128}
    assert all(check.call(guard, "alice", tool, {}).allowed for tool in guard.tools)
    assert {entry["tool_name"] for entry in log[-2:]} == guard.tools
    assert all(guard.may_call("alice", tool) for tool in guard.tools)


@in_both_forms
def test_a_tools_rules_say_who_may_call_it_and_read_its_responses(check: Any) -> None:
    answers = {"alice": True, "bob": False, "carl": 1, "dora": None}  # and of others, KeyError
    guard, log = make_guard(tools={"refund": ToolRules(callers=answers.__getitem__)})
    for caller in (*answers, "eve"):
        allowed = caller == "alice"
        assert check.call(guard, caller, "refund", {}).allowed is allowed
        assert check.response(guard, caller, "refund", "text").allowed is allowed
        assert guard.may_call(caller, "refund") is allowed
        assert check.call(guard, caller, "search", {}).allowed
    details = [log[at]["detail"] for at in (4, -2)]
    assert details == ["not for this caller", "callers failed: KeyError"]
    assert {entry["stage"] for entry in log[3:] if not entry["allowed"]} == {"allow_list"}
