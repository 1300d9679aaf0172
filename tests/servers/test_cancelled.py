"""Calls that are given up, by the client or by an approver."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp_guard import ToolRules
from support.clients import Answer, connected, each_mode, each_sdk, over_stdio
from support.servers import Log, govern, guard_of, plain_server

from agent_mcp_governance import ApprovalStatus

pytestmark = pytest.mark.anyio


@each_mode
@each_sdk
async def test_over_stdio_an_approver_that_is_given_up_denies_and_the_connection_stays(
    sdk: str, mode: str, tmp_path: Path
) -> None:
    async with over_stdio(sdk, mode, tmp_path, "give_up") as call:
        for _ in range(2):
            refused = await call("refund", order="A-17", amount=40)
            assert refused[:2] == (True, "Refused (approval): The approver failed.")
            assert (await call("search", query="tea")).text


class Waiting:
    """What a tool or an approver waits for, in vain."""

    def __init__(self) -> None:
        self.entered, self.left = anyio.Event(), anyio.Event()

    async def __call__(self, *_: object) -> ApprovalStatus:
        self.entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.left.set()
        return ApprovalStatus.APPROVED


def waiting_server(sdk: str, waiting: Waiting, ran: list[str], log: Log) -> Any:
    server = plain_server(sdk)

    @server.tool()
    def delete(path: str) -> str:
        """Delete a note."""
        ran.append(path)
        return f"deleted {path}"

    @server.tool()
    async def slow() -> str:
        """Wait."""
        await waiting()
        ran.append("slow")
        return "done"

    @server.tool()
    def look() -> str:
        """Look."""
        return "looked"

    rules = {"delete": ToolRules(needs_approval=True)}
    guard = guard_of(
        "delete", "slow", "look", tools=rules, approver=waiting, audit_sink=log, max_tool_calls=3
    )
    return govern(server, guard)


@each_mode
@each_sdk
@pytest.mark.parametrize("tool", ["delete", "slow"])
async def test_a_server_survives_a_call_that_its_client_gives_up(
    sdk: str, mode: str, tool: str
) -> None:
    waiting, ran, log = Waiting(), [], Log()
    async with connected(sdk, waiting_server(sdk, waiting, ran, log), mode) as call:

        async def give_up() -> Answer:
            return await call(tool, **({"path": "a"} if tool == "delete" else {}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(give_up)
            await waiting.entered.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(30):
            await waiting.left.wait()
        for _ in range(2):
            assert (await call("look"))[:2] == (False, "looked")
        assert (await call("look")).text.startswith("Refused (budget)")
    assert ran == []
    assert log.stages()[0] == ("cancelled" if tool == "delete" else "allowed")
