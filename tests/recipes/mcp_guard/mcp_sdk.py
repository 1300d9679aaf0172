"""Govern a server of the official ``mcp`` SDK, 2.3 or later, below 3.

The last line before ``server.run()``::

    govern(server, guard)

Governed are tool calls (arguments, the client's answers, results, errors) and ``tools/list``, which
shows what the caller may call. Not governed are resources and prompts, which the application or the
user picks; ``_meta`` and headers; the server's own ``requestState``, which is sealed; what a tool
sends or asks while it runs, and what is answered then, which with protocol 2025-11-25 is every
answer; and a tool that calls ``server.call_tool``, which the SDK shows to nobody. Valid values are
still pydantic's to convert, unless their types are strict; JSON in a parameter without a type is
opened by the SDK. A schema that a low-level server changes counts for a caller once that one lists
the tools.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.types import CallToolResult, TextContent

from .adapters import ToolFailure, governed, no_such_tool, prepare, validator
from .callers import verified_caller
from .checks import Validate
from .guard import Guard, logger

_Context = ServerRequestContext[Any, Any]
_MAX_VALIDATORS = 10_000  # then the oldest is forgotten, and the server asked again


def govern(
    server: MCPServer[Any] | Server[Any], guard: Guard, *, allow_anonymous: bool = False
) -> None:
    """Put *guard* around every tool call of *server*.

    Only a request can ask a low-level server for its tools: at the first one, an allowed tool that
    it does not list is logged as an error, and refused. The state that it gives its clients is
    sealed with a key of this process, unless it has a ``RequestStateBoundary`` already.

    Args:
        server: The server, with its tools. A tool that is added later is refused unless allowed.
        guard: It decides; one guard may serve several servers.
        allow_anonymous: Whether callers over HTTP without a token may call, all of them as one.

    Raises:
        ValueError: The policy allows a tool that the server does not have, the server is governed
            already, or an argument is of the wrong type.
    """
    list_tools = server.list_tools if isinstance(server, MCPServer) else None
    prepare(server, (MCPServer, Server), _Governance, guard, list_tools)
    if not any(isinstance(part, RequestStateBoundary) for part in server.middleware):
        security = RequestStateSecurity.ephemeral()
        server.middleware.append(RequestStateBoundary(security, default_audience=server.name))
    server.middleware.append(_Governance(guard, allow_anonymous, list_tools is not None))


class _Governance:
    """The innermost middleware: what it passes on is what the handler gets."""

    def __init__(self, guard: Guard, allow_anonymous: bool, opens_json: bool) -> None:
        self._guard, self._allow_anonymous, self._opens_json = guard, allow_anonymous, opens_json
        # Of what the server listed, by caller and tool: it may give each caller another schema.
        self._validators: dict[tuple[str, str], Validate] = {}

    async def __call__(self, ctx: _Context, call_next: CallNext) -> Any:
        if ctx.request_id is None or ctx.method not in ("tools/call", "tools/list"):
            return await call_next(ctx)
        remote, anonymous = ctx.request is not None, self._allow_anonymous
        caller = verified_caller(get_access_token(), remote=remote, allow_anonymous=anonymous)
        if ctx.method == "tools/call":
            return await self._call(caller, ctx, call_next)
        result: Any = await call_next(ctx)
        for tool in result["tools"]:
            validate = validator(tool["inputSchema"], opens_json=self._opens_json)
            self._validators[caller, tool["name"]] = validate
        while len(self._validators) > _MAX_VALIDATORS:
            del self._validators[next(iter(self._validators))]
        shown = [tool for tool in result["tools"] if self._guard.may_call(caller, tool["name"])]
        return {**result, "tools": shown}

    async def _call(self, caller: str, ctx: _Context, call_next: CallNext) -> Any:
        sent = {key: value for key, value in (ctx.params or {}).items() if value is not None}
        tool, arguments = sent.get("name", ""), sent.get("arguments", {})
        extra = {key: sent[key] for key in ("inputResponses",) if key in sent}
        validate = no_such_tool
        if self._guard.may_call(caller, tool):
            if (caller, tool) not in self._validators:
                await self._list(ctx, call_next)
            # What was not listed is asked for again once the window let a call through.
            validate = self._validators.setdefault((caller, tool), no_such_tool)

        def run(checked: dict[str, Any]) -> Awaitable[HandlerResult]:
            return call_next(replace(ctx, params={**sent, "arguments": checked}))

        try:
            return await governed(self._guard, caller, tool, arguments, extra, validate, run)
        except ToolFailure as failure:
            text, stage = failure.args
            if stage == "params":  # the tool may have changed: list it anew
                self._validators.pop((caller, tool), None)
            return CallToolResult(content=[TextContent(text=text)], is_error=True)

    async def _list(self, ctx: _Context, call_next: CallNext) -> None:
        """Ask the server for the caller's tools, as part of the request *ctx*."""
        params = {"_meta": (ctx.params or {}).get("_meta", {})}
        try:
            while params.get("cursor", "first"):
                listed = await self(replace(ctx, method="tools/list", params=params), call_next)
                params["cursor"] = listed.get("nextCursor")
        except Exception as error:  # noqa: BLE001 - the server's own, whose text may hold a secret
            logger.error("the tools cannot be listed: %s", type(error).__name__)
        if missing := self._guard.tools - {name for _, name in self._validators}:
            logger.error("the policy allows %s, which the server does not list", sorted(missing))
