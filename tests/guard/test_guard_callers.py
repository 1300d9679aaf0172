"""Who calls which tool: ids and names are exact, and what is none is refused."""

from typing import Any

import pytest
from mcp_guard import ToolRules
from support.guards import in_both_forms, make_guard


class Name(str):
    """A str that another class could say anything about."""


@in_both_forms
def test_what_is_no_usable_caller_id_is_refused(check: Any) -> None:
    guard, log = make_guard()
    for caller in (
        *(None, 7, b"alice", ["alice"], Name("alice"), "", "x" * 1_025),
        *("a\nb", "a\x00", "\x1b[1m", "a\x7f", "a\x85b", "\ud800"),
    ):
        decision = check.call(guard, caller, "search", {})
        assert decision.refusal == "Refused (caller): The caller is not known."
        assert check.response(guard, caller, "search", "text").stage == "caller"
        assert (log[-1]["agent_id"], log[-1]["detail"]) == (None, f"a {type(caller).__name__}")
    assert len(log) == 26


def test_any_other_text_is_a_caller_id_and_is_audited_as_it_is() -> None:
    guard, log = make_guard()
    for caller in (
        "x" * 1_024,
        "al@example.com",
        "iss|00u1AbCdEf",
        "Алиса 世界",
        "\U0001f600",
        " ",
    ):
        assert guard.check_call(caller, "search", {}).allowed
        assert log[-1]["agent_id"] == caller


@pytest.mark.parametrize("other", ["00u1aBcDeF", " 00u1AbCdEf", "00u1AbCdE\uff26", "00u1AbCdEf:a"])
@pytest.mark.parametrize("option", ["max_calls_per_window", "max_tool_calls"])
def test_two_spellings_are_two_callers_with_a_window_and_a_budget_each(
    other: str, option: str
) -> None:
    guard, _ = make_guard(**{option: 1})
    callers = ["00u1AbCdEf", other] * 2
    allowed = [guard.check_call(caller, "search", {}).allowed for caller in callers]
    assert allowed == [True, True, False, False]


@in_both_forms
def test_a_tools_rules_say_who_may_call_it_and_read_its_responses(check: Any) -> None:
    guard, log = make_guard(tools={"refund": ToolRules(callers={"alice"}.__contains__)})
    assert check.call(guard, "alice", "refund", {}).allowed
    assert check.response(guard, "alice", "refund", "text").allowed
    assert check.call(guard, "bob", "search", {}).allowed
    assert check.call(guard, "bob", "refund", {}).stage == "allow_list"
    assert check.response(guard, "bob", "refund", "text").stage == "allow_list"
    assert [entry["detail"] for entry in log[-2:]] == ["not for this caller"] * 2
    assert [guard.may_call(caller, "refund") for caller in ("alice", "bob")] == [True, False]


def test_only_true_lets_a_caller_call_and_a_predicate_that_fails_lets_nobody() -> None:
    for answer in (1, "yes", None, 0):
        guard, log = make_guard(
            tools={"refund": ToolRules(callers=lambda _, it=answer: it or 1 / it)}
        )
        assert guard.check_call("alice", "refund", {}).stage == "allow_list"
        assert not guard.may_call("alice", "refund")
    assert log[0]["detail"] == "callers failed: ZeroDivisionError"


@in_both_forms
def test_only_the_exact_name_of_a_tool_is_allowed(check: Any) -> None:
    guard, log = make_guard(allowed_tools=["search", "a" * 128, "search"])
    for tool in (
        *("Search", "search ", "sear", "searchs", "", "search\n", "\uff53earch", "*", "a" * 129),
        *(None, 7, ["search"], b"search", Name("search"), "\ud800", "tool\x1b[2J"),
    ):
        decision = check.call(guard, "alice", tool, {})
        assert decision.refusal == "Refused (allow_list): This tool is not allowed."
        assert check.response(guard, "alice", tool, "text").stage == "allow_list"
        assert not guard.may_call("alice", tool)
        assert len(log[-1]["tool_name"]) <= 128
        assert log[-1]["tool_name"].isprintable()
    assert guard.tools == {"search", "a" * 128}
    assert all(check.call(guard, "alice", tool, {}).allowed for tool in guard.tools)
    assert all(guard.may_call("alice", tool) for tool in guard.tools)
