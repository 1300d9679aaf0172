"""What a tool asks its client, what the client answers, and the state between the two."""

from typing import Any

import fastmcp
import pytest
from mcp import MCPError, types
from mcp.server.mcpserver import Context
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp_guard import ToolRules
from pydantic import create_model
from support.clients import connected, each_sdk
from support.servers import TOKEN, Approver, Log, govern, guard_of, low_level_server, plain_server

STATE = f"../{TOKEN}"  # the server's own
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}


def question(message: str, state: str = "started") -> types.InputRequiredResult:
    params = types.ElicitRequestFormParams(message=message, requested_schema=SCHEMA)
    return types.InputRequiredResult(
        input_requests={"pick": types.ElicitRequest(params=params)}, request_state=state
    )


@each_sdk
async def test_what_a_tool_asks_and_what_the_client_answers_are_checked(sdk: str) -> None:
    async def ask(ctx: Any, note: str = "") -> str | types.InputRequiredResult:
        if ctx.input_responses is None:
            return question(f"Which note of {TOKEN}?", STATE)
        same = ctx.request_state == STATE
        return f"read {ctx.input_responses['pick'].content['path']} {note}{same}"

    ask.__annotations__["ctx"] = Context if sdk == "mcp" else fastmcp.Context
    approver, log, rules = Approver(), Log(), {"ask": ToolRules(needs_approval=True)}
    guard = guard_of("ask", tools=rules, approver=approver, audit_sink=log)
    server = govern(plain_server(sdk, ask), guard)
    async with connected(sdk, server, says={"path": "todo.txt"}) as call:
        assert (await call("ask", note="!"))[:2] == (False, "read todo.txt !True")
        assert ["Which note of [REDACTED]?" in question for question in call.asked] == [True]
    answers = {"pick": {"action": "accept", "content": {"path": "todo.txt"}}}
    answered = {"note": "!", "inputResponses": answers}
    assert approver.seen == [{"note": "!"}, answered]
    assert log[2]["parameters"] == answered

    async with connected(sdk, server, says={"path": "../secrets"}) as call:
        assert (await call("ask")).text.startswith("Refused (pattern)")
    assert "secrets" not in str(approver.seen[2:])


@each_sdk
async def test_with_the_older_protocol_an_answer_reaches_the_tool_unchecked(sdk: str) -> None:
    async def ask(ctx: Any) -> str:
        answer: Any = await ctx.elicit("Which note?", create_model("Note", path=str))
        return f"read {answer.data.path}"

    ask.__annotations__["ctx"] = Context if sdk == "mcp" else fastmcp.Context
    server = govern(plain_server(sdk, ask), guard_of("ask"))
    async with connected(sdk, server, "legacy", says={"path": "../secrets"}) as call:
        assert (await call("ask"))[:2] == (False, "read ../secrets")


# The SDK leaves it to such a server: without the guard a client writes it as it likes.
async def test_the_state_of_a_low_level_server_is_its_own() -> None:
    states: list[str | None] = []

    def run(params: Any) -> str | types.InputRequiredResult:
        states.append(params.request_state)
        return params.request_state or question("Which?", "may refund 10")

    server = govern(low_level_server(run), guard_of("run"))
    async with connected("mcp", server, says={"path": "a"}) as call:
        assert (await call("run"))[:2] == (False, "may refund 10")
        with pytest.raises(MCPError, match="Invalid or expired requestState"):
            await call.client.session.call_tool("run", {}, request_state="may refund 9999")
    assert states == [None, "may refund 10"]


def test_a_server_with_a_key_of_its_own_keeps_it() -> None:
    def boundaries(server: Any) -> list[Any]:
        return [part for part in server.middleware if isinstance(part, RequestStateBoundary)]

    security = RequestStateSecurity(keys=["k" * 32])
    high_level = plain_server("mcp", request_state_security=security)
    low_level = low_level_server(print)
    low_level.middleware.append(RequestStateBoundary(security, default_audience="shop"))
    high_level.tool("run")(lambda: "")
    for server in (high_level, low_level):
        own = boundaries(server)
        assert len(own) == 1
        assert boundaries(govern(server, guard_of("run"))) == own
