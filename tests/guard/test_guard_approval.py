"""Approval: only APPROVED approves, and the approver sees what the tool will get."""

from typing import Any
from unittest.mock import Mock

from mcp_guard import ToolRules
from support.guards import Sync, in_both_forms, make_guard

from agent_mcp_governance import ApprovalStatus

REFUND = {"refund": ToolRules(needs_approval=True)}


@in_both_forms
def test_only_approved_approves(check: Any) -> None:
    def approve(*_: object) -> Any:
        return answer

    async def approve_later(*_: object) -> Any:
        return answer

    liar = type("Liar", (), {"__class__": ApprovalStatus, "value": "approved"})()
    odd = [True, 1, "approved", None, False, {}, "APPROVED", liar, ApprovalStatus]
    for answer in [*odd, *ApprovalStatus]:
        guard, log = make_guard(tools=REFUND, approver=approve if check is Sync else approve_later)
        decision = check.call(guard, "alice", "refund", {"amount": 5})
        if type(answer) is not ApprovalStatus:
            assert decision.refusal == "Refused (approval): The approver gave no answer."
            detail = f"a {type(answer).__name__}, no ApprovalStatus"
            assert (log[0]["approval_status"], log[0]["detail"]) == (None, detail)
        elif answer is ApprovalStatus.APPROVED:
            assert decision.params == {"amount": 5}
        else:
            words = f"Refused (approval): A person has to approve this: {answer.value}."
            assert (decision.refusal, log[0]["approval_status"]) == (words, answer.value)


def test_only_the_tools_that_need_it_are_asked_about() -> None:
    approve = Mock(return_value=ApprovalStatus.APPROVED)
    for options in ({"tools": REFUND}, {"require_human_approval": True}):
        guard, _ = make_guard(approver=approve, **options)
        assert guard.check_call("alice", "search", {}).allowed
        assert guard.check_call("alice", "refund", {}).allowed
    asked = [tool for (_, tool, _), _ in approve.call_args_list]
    assert asked == ["refund", "search", "refund"]


@in_both_forms
def test_the_approver_sees_the_checked_copy_and_can_change_nothing(check: Any) -> None:
    seen = []

    def approve(caller: str, tool: str, params: dict[str, Any]) -> ApprovalStatus:
        seen.append((caller, tool, {**params, "items": [*params["items"]]}))
        params["items"].append("more")
        params["amount"] = 500
        return ApprovalStatus.APPROVED

    guard, log = make_guard(tools=REFUND, approver=approve)
    params = {"amount": "5", "items": [1]}
    options: dict[str, Any] = {"validate": lambda arguments: {**arguments, "amount": 5}}
    decision = check.call(guard, "alice", "refund", params, extra={"requestState": "s"}, **options)
    assert seen == [("alice", "refund", {"amount": 5, "items": [1], "requestState": "s"})]
    assert decision.params == {"amount": 5, "items": [1]}
    assert params == {"amount": "5", "items": [1]}
    assert log[0]["parameters"] == {"amount": "5", "items": [1], "requestState": "s"}
