"""What a client gets of an exception that a tool raises."""

from collections.abc import Callable
from typing import Any

import pytest
from fastmcp.server.transforms import Transform
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.types import CallToolResult, ListToolsResult
from support.clients import connected, each_mode, each_sdk
from support.servers import TOKEN, Log, govern, guard_of, low_level_server, plain_server

pytestmark = pytest.mark.anyio

MISSING_CAPABILITY = -32021  # the only protocol error that fastmcp lets through


def tool_error(sdk: str, text: str) -> Exception:
    if sdk == "mcp":
        from mcp.server.mcpserver.exceptions import ToolError as SDKToolError

        return SDKToolError(text)
    from fastmcp.exceptions import ToolError

    return ToolError(text)


def raising(sdk: str, log: Log | None = None) -> Any:
    server = plain_server(sdk)

    @server.tool()
    def fail(text: str) -> str:
        """Raise the SDK's own error."""
        raise tool_error(sdk, text)

    @server.tool()
    def crash(text: str) -> str:
        """Raise what nobody expected."""
        raise RuntimeError(text)

    @server.tool()
    def refuse(text: str, data: str | None = None) -> str:
        """Raise a protocol error."""
        raise MCPError(MISSING_CAPABILITY, text, {"requiredCapabilities": {}, "hint": data})

    return govern(server, guard_of("fail", "crash", "refuse", audit_sink=log or Log()))


@each_mode
@each_sdk
async def test_the_text_of_an_error_is_checked_like_a_response(sdk: str, mode: str) -> None:
    log = Log()
    async with connected(sdk, raising(sdk, log), mode) as call:
        assert (await call("fail", text="no such note")).text.endswith("no such note")
        told = await call("fail", text=f"cannot use {TOKEN}")
        assert told.is_error
        assert told.text.endswith("cannot use [REDACTED]")
        crashed = await call("crash", text=f"cannot use {TOKEN}")
        assert crashed.is_error
        # The official SDK says only that the tool failed; fastmcp tells the exception's text.
        assert crashed.text.endswith(
            "Error executing tool crash" if sdk == "mcp" else "cannot use [REDACTED]"
        )
        assert (await call("fail", text="x" * 99_000)).text.endswith("xxx")
    assert log.stages("response") == ["allowed"] * 4


@each_mode
@each_sdk
async def test_a_protocol_error_keeps_its_code_and_loses_its_secrets(sdk: str, mode: str) -> None:
    async with connected(sdk, raising(sdk), mode) as call:
        for text, data in [("no sampling", None), (TOKEN, "fine"), ("no sampling", TOKEN)]:
            told = await call("refuse", text=text, data=data)
            error = told.result.error
            assert error.code == MISSING_CAPABILITY
            assert error.message == text.replace(TOKEN, "[REDACTED]")
            assert error.data["hint"] == (data and data.replace(TOKEN, "[REDACTED]"))


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError(f"no text, but {TOKEN}")


async def unserialisable(_ctx: Any, _params: Any) -> Any:
    return CallToolResult(content=[], structured_content={"a": object()})


async def unspeakable(_ctx: Any, _params: Any) -> Any:
    raise UnspeakableError


async def crashing(_ctx: Any, _params: Any) -> Any:
    raise RuntimeError(f"cannot use {TOKEN}")


async def full(_ctx: Any, _params: Any) -> Any:
    raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (crashing, "cannot use [REDACTED]"),
        (unspeakable, "Refused (response): The response is refused: no plain JSON, for a"),
        (unserialisable, "protocol error 0: "),
        (full, "protocol error 0: the disk is full"),
    ],
)
async def test_what_a_low_level_handler_raises_is_checked(
    handler: Callable[..., Any], text: str
) -> None:
    """Over the handshake protocols the SDK sends the text of any exception of such a server."""
    async with connected(
        "mcp", govern(low_level_server(handler), guard_of("run")), "legacy"
    ) as call:
        told = await call("run")
    assert told.is_error
    assert told.text.startswith(text)


@each_mode
async def test_a_low_level_server_that_cannot_list_its_tools_runs_none(mode: str) -> None:
    ran = []

    async def run(_ctx: Any, params: Any) -> CallToolResult:
        ran.append(params.name)
        return CallToolResult(content=[])

    async def list_tools(_ctx: Any, _params: Any) -> ListToolsResult:
        raise RuntimeError(f"cannot use {TOKEN}")

    server = Server("shop", on_list_tools=list_tools, on_call_tool=run)
    async with connected("mcp", govern(server, guard_of("run")), mode) as call:
        told = await call("run")
    assert told[:2] == (True, "Refused (params): The server has no such tool now.")
    assert ran == []


async def test_a_fastmcp_server_that_cannot_find_its_tool_tells_no_secret() -> None:
    failures: list[Exception] = []

    class Broken(Transform):
        async def get_tool(self, name: str, call_next: Any, *, version: Any = None) -> Any:
            for failure in failures:
                raise failure
            return await call_next(name, version=version)

    server = raising("fastmcp")
    server.add_transform(Broken())
    failures.append(RuntimeError(f"cannot use {TOKEN}"))
    async with connected("fastmcp", server) as call:
        told = await call("crash", text="")
    assert told[:2] == (True, "Refused (params): The server has no such tool now.")
