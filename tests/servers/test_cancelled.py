"""Calls that are given up, by the client or by an approver."""

import anyio
import pytest
from mcp_guard import ToolRules
from support.clients import connected, each_sdk_and_mode, serving
from support.guards import cancelled
from support.servers import Log, shop

from agent_mcp_governance import ApprovalStatus


@each_sdk_and_mode
async def test_an_approver_given_up_denies_and_the_connection_stays(sdk: str, mode: str) -> None:
    async with connected(sdk, shop(sdk, approver=cancelled), mode) as call:
        for _ in range(2):
            refused = await call("refund", order="A-17", amount=40)
            assert refused[:2] == (True, "Refused (approval): The approver failed.")
            assert (await call("search", query="tea")).text


@each_sdk_and_mode
@pytest.mark.parametrize("tool", ["delete", "slow"])
async def test_a_server_survives_a_call_that_its_client_gives_up(
    sdk: str, mode: str, tool: str
) -> None:
    entered, left = anyio.Event(), anyio.Event()
    ran, log = [], Log()

    async def approver(*_: object) -> ApprovalStatus:
        entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            left.set()
        return ApprovalStatus.APPROVED

    def delete() -> None:
        ran.append("delete")

    async def slow() -> None:
        await approver()
        ran.append("slow")

    def look() -> str:
        return "looked"

    rules = {"delete": ToolRules(needs_approval=True)}
    options = {"tools": rules, "approver": approver, "audit_sink": log, "max_tool_calls": 3}
    async with serving(sdk, delete, slow, look, mode=mode, **options) as call:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, tool)
            await entered.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(30):
            await left.wait()
        for _ in range(2):
            assert (await call("look"))[:2] == (False, "looked")
        assert (await call("look")).text.startswith("Refused (budget)")
    assert ran == []
    assert log.stages()[0] == ("cancelled" if tool == "delete" else "allowed")
