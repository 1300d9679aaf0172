"""Govern the tool calls of a ``fastmcp`` server (4.1 or later, below 5).

Copy this file and ``guard.py``. This governs a server::

    import anyio
    from fastmcp import FastMCP
    from fastmcp_server import Governance, refuse_poisoned
    from guard import Guard, JsonLinesAuditSink
    from agent_mcp_governance import GovernancePolicy
    policy = GovernancePolicy(name="notes", allowed_tools=["read_note"], max_tool_calls=1_000)
    guard = Guard(policy, audit_sink=JsonLinesAuditSink("audit.jsonl"))
    server = FastMCP("notes", middleware=[Governance(guard)])  # first, if there are others
    anyio.run(refuse_poisoned, server)  # after your @server.tool() functions, before server.run()

The tools of a mounted server are governed under the names that this server lists.

Only ``tools/call`` is governed: its arguments, the client's answers that come with it, its result
and its errors. Not governed are ``_meta`` and headers of a request, resources, prompts and
``tools/list`` (a refused tool is still listed), the results of background tasks, and what a tool
sends or asks while it runs: log messages, progress, elicitation over the handshake protocols. A
tool that calls another through ``Context.fastmcp`` is charged for both.
"""

from typing import Any

from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.context import reset_transport, set_transport
from fastmcp.server.dependencies import get_access_token
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import InputRequiredToolResult, ToolResult
from guard import AsyncGuard, Guard, refuse_poisoned_tools, verified_caller
from mcp import MCPError
from mcp.types import CallToolRequestParams, CallToolResult, InputRequiredResult
from pydantic import BaseModel

from agent_mcp_governance import MCPSecurityScanner


class Governance(Middleware):
    """Puts a ``Guard`` around every tool call of a server."""

    def __init__(self, guard: Guard, *, in_thread: bool = False) -> None:
        """Wrap *guard*.

        Args:
            guard: It decides; one guard may serve several servers.
            in_thread: Whether it does so in a worker thread, as ``AsyncGuard`` says.
        """
        self._guard = AsyncGuard(guard, in_thread=in_thread)

    async def on_call_tool(
        self,
        context: MiddlewareContext[CallToolRequestParams],
        call_next: CallNext[CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """Check the call, run the tool, check what it returns or raises.

        Args:
            context: The request.
            call_next: Runs the tool.

        Returns:
            The tool's result.

        Raises:
            ToolError: The call, the result or the error is refused. It reaches the client as a tool
                error (``isError``), as the MCP specification asks for errors that a model may
                correct.
            Exception: What the tool raised, if its text is clean.
        """
        params = context.message
        caller = verified_caller(get_access_token(), remote=_is_remote(context))
        answers = {name: _dump(item) for name, item in (params.input_responses or {}).items()}
        decision = await self._guard.check_call(
            caller, params.name, params.arguments or {}, answers
        )
        if not decision.allowed:
            raise ToolError(decision.refusal)
        checked = params.model_copy(update={"arguments": decision.params})
        try:
            result = await call_next(context.copy(message=checked))
            sent = _dump(_on_the_wire(result))
        except Exception as error:
            data = error.data if isinstance(error, MCPError) else None
            instead = await self._guard.check_error(caller, params.name, error, data)
            if instead is None:
                raise
            raise ToolError(instead) from None
        decision = await self._guard.check_response(caller, params.name, sent)
        if not decision.allowed:
            raise ToolError(decision.refusal)
        return result if decision.content == sent else _sanitized(result, decision.content)


def _is_remote(context: MiddlewareContext[Any]) -> bool:
    server_context = context.fastmcp_context
    request = server_context.request_context if server_context else None
    return request is not None and request.request is not None


def _dump(model: BaseModel) -> dict[str, Any]:
    """Return *model* as the SDK puts it on the wire."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _on_the_wire(result: ToolResult | BaseModel) -> BaseModel:
    """Return the model that is sent: a ``ToolResult`` can hold another one than its fields say."""
    if isinstance(result, InputRequiredToolResult):
        return result.input_required
    if not isinstance(result, ToolResult):  # an extension's own kind
        return result
    sent = result.to_mcp_result()
    if isinstance(sent, CallToolResult):
        return sent
    content, structured = sent if isinstance(sent, tuple) else (sent, None)
    return CallToolResult(content=content, structured_content=structured)


def _sanitized(result: ToolResult | BaseModel, content: Any) -> Any:
    if isinstance(result, InputRequiredToolResult):
        return InputRequiredToolResult(InputRequiredResult.model_validate(content))
    if isinstance(result, ToolResult):
        return ToolResult.from_mcp_result(CallToolResult.model_validate(content))
    return type(result).model_validate(content)


async def refuse_poisoned(
    server: FastMCP[Any], scanner: MCPSecurityScanner | None = None
) -> MCPSecurityScanner:
    """Scan and pin every tool that *server* offers.

    Call it before the server runs, and again with the scanner whenever tools were added or changed.

    Args:
        server: The server, with its tools registered.
        scanner: What an earlier call returned: then a tool that has changed is refused too.

    Returns:
        The scanner, with every tool registered.

    Raises:
        PoisonedToolError: Names each tool that is refused, and why.
    """
    # As over stdio, where a tool that needs a token is listed without one.
    token = set_transport("stdio")
    try:
        listed = await server.list_tools()
    finally:
        reset_transport(token)
    tools = [
        # A client may ask for any version of a tool, so each is pinned.
        {**_dump(tool.to_mcp_tool()), "name": f"{tool.name}@{tool.version or ''}".rstrip("@")}
        for tool in listed
    ]
    return refuse_poisoned_tools(tools, server_name=server.name, scanner=scanner)
