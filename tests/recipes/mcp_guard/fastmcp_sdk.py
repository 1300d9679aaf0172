"""Govern a ``fastmcp`` server, 4.1 or later, below 5.

The last line before ``server.run()``::

    govern(server, guard)

Governed are tool calls (arguments, the client's answers, results, errors) and ``tools/list``, which
shows what the caller may call. Tools of a mounted server have the names that this server lists,
tools behind a search their own. A tool that calls another through ``Context.fastmcp`` is charged
for both. Not governed are resources and prompts, which the application or the user picks; ``_meta``
and headers; the server's own ``request_state``, which is sealed; what other middleware answers, as
from a cache; what a tool sends or asks while it runs, and what is answered then; the results of
background tasks; and what a mounted server's tools call there, through their own
``Context.fastmcp``: govern that server too, with a guard of its own, and calls from here pass both.
Clients may choose any version of a tool, and none through a proxy. The interface of a
``FastMCPApp`` calls tools by hashed names, which cannot be allowed. Valid values are still
pydantic's to convert, unless the server has ``strict_input_validation=True``.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.context import reset_transport, set_transport
from fastmcp.server.dependencies import extract_version_spec, get_access_token
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import InputRequiredToolResult, Tool, ToolResult
from fastmcp.utilities.versions import VersionSpec
from mcp.types import CallToolResult, InputRequiredResult
from mcp.types import Tool as MCPTool
from pydantic import BaseModel

from .adapters import ToolFailure, governed, no_such_tool, prepare, validator
from .callers import verified_caller
from .guard import Guard

_Context = MiddlewareContext[Any]


def govern(server: FastMCP[Any], guard: Guard, *, allow_anonymous: bool = False) -> None:
    """Put *guard* around every tool call of *server*, inside its other middleware.

    Args:
        server: The server, with its tools. A tool that is added later is refused unless allowed.
        guard: It decides; one guard may serve several servers.
        allow_anonymous: Whether callers over HTTP without a token may call, all of them as one.

    Raises:
        ValueError: The policy allows a tool that the server does not have or has disabled, the
            server is governed already, or an argument is of the wrong type.
    """
    prepare(server, (FastMCP,), Governance, guard, lambda: _tools(server, guard.tools))
    server.add_middleware(Governance(guard, allow_anonymous=allow_anonymous))


async def definitions(server: FastMCP[Any], names: Iterable[str] = ()) -> list[MCPTool]:
    """Return the definitions of the tools of *server*, for ``refuse_poisoned_tools``.

    The server may be a proxy of one that is not yours. Returned is each version of what it lists,
    whoever asks, and of *names*: what it has and may not list, such as tools behind a search.
    """
    return [
        tool.to_mcp_tool(name=f"{tool.name}@{tool.version}" if tool.version else tool.name)
        for tool in await _tools(server, names)
    ]


async def _tools(server: FastMCP[Any], names: Iterable[str]) -> list[Tool]:
    token = set_transport("stdio")  # where a tool that needs a token is listed without one
    try:
        listed = await server.list_tools(run_middleware=False)
        found = [await server.get_tool(name) for name in names]
    finally:
        reset_transport(token)
    return list({tool.key: tool for tool in (*listed, *found) if tool}.values())


class Governance(Middleware):
    """The middleware that ``govern`` adds. It has to be the last one, and checks no names."""

    def __init__(self, guard: Guard, *, allow_anonymous: bool = False) -> None:
        """Take *guard* and *allow_anonymous*, as ``govern`` does."""
        self._guard, self._allow_anonymous = guard, allow_anonymous

    async def on_list_tools(self, context: _Context, call_next: CallNext[Any, Any]) -> list[Tool]:
        """Return the tools that the caller may call."""
        caller, tools = self._caller(context), await call_next(context)
        return [tool for tool in tools if self._guard.may_call(caller, tool.name)]

    async def on_call_tool(self, context: _Context, call_next: CallNext[Any, Any]) -> Any:
        """Check the call, run the tool, check what it returns or raises."""
        message, caller = context.message, self._caller(context)
        tool, arguments = message.name, message.arguments or {}
        extra = _dump(message, include={"input_responses"})
        validate = no_such_tool
        if self._guard.may_call(caller, tool):
            server: Any = context.fastmcp_context
            version = extract_version_spec(message.meta)
            if version:  # the client's choice, which a proxy passes on
                extra["fastmcp.version"] = version
            spec = VersionSpec(eq=version) if version else None
            with suppress(Exception):  # a provider's, whose text may hold a secret
                found = await server.fastmcp.get_tool(tool, spec)
                if found and (found.version or not version):
                    validate = validator(found.parameters)
        results: list[Any] = []

        async def run(checked: dict[str, Any]) -> Any:
            copy = message.model_copy(update={"arguments": checked})
            results.append(await call_next(context.copy(message=copy)))
            results.append(_on_the_wire(results[0]))
            return results[1]

        try:
            sent = await governed(self._guard, caller, tool, arguments, extra, validate, run)
        except ToolFailure as failure:
            raise ToolError(failure.args[0]) from None
        return results[0] if sent is results[1] else _rebuilt(results[0], sent)

    def _caller(self, context: _Context) -> str:
        server: Any = context.fastmcp_context
        # None when the server's own code calls the tool.
        remote = getattr(server.request_context, "request", None) is not None
        anonymous = self._allow_anonymous
        return verified_caller(get_access_token(), remote=remote, allow_anonymous=anonymous)


def _dump(model: BaseModel, **options: Any) -> dict[str, Any]:
    """Return *model* as it is sent."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True, **options)


def _on_the_wire(result: ToolResult | BaseModel) -> dict[str, Any]:
    """Return what is sent of *result*, which can hold another one than its fields say."""
    if isinstance(result, InputRequiredToolResult):
        return _dump(result.input_required)
    sent: Any = result.to_mcp_result() if isinstance(result, ToolResult) else result
    if not isinstance(sent, BaseModel):
        content, structured = sent if isinstance(sent, tuple) else (sent, None)
        sent = CallToolResult(content=content, structured_content=structured)
    return _dump(sent)


def _rebuilt(result: ToolResult | BaseModel, content: Any) -> Any:
    """Return a result of the kind of *result* that sends *content*."""
    if isinstance(result, InputRequiredToolResult):
        return InputRequiredToolResult(InputRequiredResult.model_validate(content))
    if not isinstance(result, ToolResult):  # an extension's own kind
        return type(result).model_validate(content)
    sent = CallToolResult.model_validate(content)
    return type(result)(sent.content, sent.structured_content, sent.meta, sent.is_error)
