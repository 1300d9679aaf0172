"""The shop of the README on either SDK, and the guard in front of it.

``python -m support.servers mcp|fastmcp`` serves it over stdio, and audits to ``audit.jsonl``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastmcp import FastMCP
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool
from mcp_guard import Guard, JsonLinesAuditSink, ToolRules, fastmcp_sdk, mcp_sdk
from pydantic import Field

from agent_mcp_governance import ApprovalStatus
from support.guards import Entries, make_guard

SHOP_TOOLS = ["search", "refund", "run_sql", "send_email"]
TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"  # of no account


class Log(Entries):
    def stages(self, direction: str = "call") -> list[str]:
        return [entry["stage"] for entry in self if entry["direction"] == direction]


class Approver:
    """Approves everything, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, _caller: str, _tool: str, params: dict[str, Any]) -> ApprovalStatus:
        self.seen.append(params)
        return ApprovalStatus.APPROVED


def plain_server(sdk: str, *tools: Callable[..., Any], **options: Any) -> Any:
    """Return a server of *sdk* with *tools*; *options* are those of its constructor."""
    quiet = {"log_level": "CRITICAL"} if sdk == "mcp" else {}
    server = (MCPServer if sdk == "mcp" else FastMCP)("shop", **quiet, **options)
    for tool in tools:
        server.tool()(tool)
    return server


def govern(server: Any, guard: Guard, **options: Any) -> Any:
    """Govern *server*, whichever SDK it is of; return it."""
    sdk = fastmcp_sdk if isinstance(server, FastMCP) else mcp_sdk
    sdk.govern(server, guard, **options)
    return server


def guard_of(*tools: str, **options: Any) -> Guard:
    return make_guard(allowed_tools=list(tools), blocked_patterns=["../"], **options)[0]


def search(query: str, limit: Annotated[int, Field(ge=1, le=100)] = 10) -> list[str]:
    """Find products."""
    return [f"{query} {number}" for number in range(min(limit, 3))]


def refund(order: str, amount: Annotated[int, Field(ge=1)], notes: list[str] | None = None) -> str:
    """Pay back an order, in cents."""
    return f"refunded {amount} of {order} {notes or ''}".strip()


def run_sql(query: str) -> list[dict[str, Any]]:
    """Query the orders, as a database user that may only read."""
    return [{"id": "A-17", "city": "Oslo", "query": query}]


def send_email(to: str, subject: str, body: str) -> str:
    """Send an e-mail."""
    return f"sent to {to}: {subject} ({len(body)} characters)"


def delete_orders() -> str:
    """Delete every order."""
    Path("deleted").touch()
    return "deleted"


# Four ordinary tools, and one that must never run.
SHOP = [search, refund, run_sql, send_email, delete_orders]


def low_level_server(
    run: Callable[[Any], Any], schema: Callable[[], dict[str, Any]] = dict
) -> Server[Any]:
    """Return a server that lists "run" on its second page; *run* answers every request."""

    async def list_tools(_ctx: Any, params: Any) -> ListToolsResult:
        if params.cursor is None:
            return ListToolsResult(tools=[], next_cursor="2")
        given = {"type": "object", **schema()}
        return ListToolsResult(tools=[Tool(name="run", input_schema=given)])

    async def call_tool(_ctx: Any, params: Any) -> Any:
        answer = run(params)
        return result(answer) if isinstance(answer, str) else answer

    return Server("shop", on_list_tools=list_tools, on_call_tool=call_tool)


def result(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)])


def approve_small(_caller: str, _tool: str, params: dict[str, Any]) -> ApprovalStatus:
    """Approve refunds up to 5,000 cents."""
    return ApprovalStatus.APPROVED if params["amount"] <= 5_000 else ApprovalStatus.DENIED


def shop_guard(*more: str, **options: Any) -> Guard:
    """Return the guard of the README's shop, which may allow *more* tools."""
    rules = {"refund": ToolRules(needs_approval=True), "send_email": ToolRules(refuse_secrets=True)}
    return guard_of(*SHOP_TOOLS, *more, **{"tools": rules, "approver": approve_small, **options})


def shop(sdk: str, *, allow_anonymous: bool = False, **options: Any) -> Any:
    """Return that shop, governed by that guard, of which *options* are."""
    guard = shop_guard(**options)
    return govern(plain_server(sdk, *SHOP), guard, allow_anonymous=allow_anonymous)


def main(sdk: str) -> None:
    server = shop(sdk, audit_sink=JsonLinesAuditSink("audit.jsonl"))
    server.run("stdio", **({"show_banner": False} if sdk == "fastmcp" else {}))


if __name__ == "__main__":
    main(sys.argv[1])
