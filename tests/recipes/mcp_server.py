"""Govern the tool calls of a server of the official ``mcp`` SDK (2.3 or later, below 3).

Copy this file and ``guard.py``. This governs a server::

    import anyio
    from guard import Guard, JsonLinesAuditSink
    from mcp.server.mcpserver import MCPServer
    from mcp_server import Governance, refuse_poisoned
    from agent_mcp_governance import GovernancePolicy
    policy = GovernancePolicy(name="notes", allowed_tools=["read_note"], max_tool_calls=1_000)
    guard = Guard(policy, audit_sink=JsonLinesAuditSink("audit.jsonl"))
    server = MCPServer("notes", extensions=[Governance(guard)])  # first, if there are others
    anyio.run(refuse_poisoned, server)  # after your @server.tool() functions, before server.run()

A low-level ``Server`` takes ``compose_tool_call_handler([Governance(guard)], handler)`` as its
``on_call_tool``, and its definitions go to ``refuse_poisoned_tools``.

Only ``tools/call`` is governed: its arguments, the client's answers that come with it, its result
and its errors. Not governed are ``_meta`` and headers of a request, resources, prompts and
``tools/list`` (a refused tool is still listed), and what a tool sends or asks while it runs: log
messages, progress, elicitation over the handshake protocols. A tool that calls
``server.call_tool`` goes around the guard.
"""

from typing import Any

from guard import AsyncGuard, Guard, refuse_poisoned_tools, verified_caller
from mcp import MCPError
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolRequestParams, CallToolResult, TextContent
from pydantic import BaseModel

from agent_mcp_governance import MCPSecurityScanner


class Governance(Extension):
    """Puts a ``Guard`` around every tool call of a server."""

    identifier = "com.example/governance"  # clients see it: take a domain of yours

    def __init__(self, guard: Guard, *, in_thread: bool = False) -> None:
        """Wrap *guard*.

        Args:
            guard: It decides; one guard may serve several servers.
            in_thread: Whether it does so in a worker thread, as ``AsyncGuard`` says.
        """
        self._guard = AsyncGuard(guard, in_thread=in_thread)

    async def intercept_tool_call(
        self,
        params: CallToolRequestParams,
        ctx: ServerRequestContext[Any, Any],
        call_next: CallNext,
    ) -> HandlerResult:
        """Check the call, run the tool, check what it returns or raises.

        Args:
            params: The tool's name and arguments.
            ctx: The request.
            call_next: Runs the tool.

        Returns:
            The tool's result, or a tool error (``isError``) with the reason of the refusal, as the
            MCP specification asks for errors that a model may correct.

        Raises:
            Exception: What the tool raised, if its text is clean.
        """
        caller = verified_caller(get_access_token(), remote=ctx.request is not None)
        answers = {name: _dump(item) for name, item in (params.input_responses or {}).items()}
        decision = await self._guard.check_call(
            caller, params.name, params.arguments or {}, answers
        )
        if not decision.allowed:
            return _tool_error(decision.refusal)
        params.arguments = decision.params  # the tool reads this object, not *ctx*
        try:
            result = await call_next(ctx)
            sent = _dump(result)
        except Exception as error:
            data = error.data if isinstance(error, MCPError) else None
            instead = await self._guard.check_error(caller, params.name, error, data)
            if instead is None:
                raise
            return _tool_error(instead)
        decision = await self._guard.check_response(caller, params.name, sent)
        if not decision.allowed:
            return _tool_error(decision.refusal)
        return result if decision.content == sent else _sanitized(result, decision.content)


def _dump(value: Any) -> Any:
    """Return *value* as the SDK puts it on the wire."""
    if not isinstance(value, BaseModel):
        return value
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)


def _tool_error(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


def _sanitized(result: HandlerResult, content: Any) -> Any:
    return type(result).model_validate(content) if isinstance(result, BaseModel) else content


async def refuse_poisoned(
    server: MCPServer[Any], scanner: MCPSecurityScanner | None = None
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
    tools = [_dump(tool) for tool in await server.list_tools()]
    return refuse_poisoned_tools(tools, server_name=server.name, scanner=scanner)
