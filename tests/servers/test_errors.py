"""What a client gets of an exception that a tool raises."""

from typing import Any

import pytest
from fastmcp.exceptions import ToolError as FastMCPToolError
from fastmcp.server.transforms import Transform
from mcp import MCPError
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult
from support.clients import connected, each_sdk_and_mode, serving
from support.servers import TOKEN, Log, govern, guard_of, low_level_server, plain_server

MISSING_CAPABILITY = -32021  # the only protocol error that fastmcp lets through


def crash(text: str = "") -> str:
    raise RuntimeError(text)


@each_sdk_and_mode
async def test_the_text_of_an_error_is_checked_like_a_response(sdk: str, mode: str) -> None:
    def fail(text: str) -> str:
        raise (ToolError if sdk == "mcp" else FastMCPToolError)(text)

    log = Log()
    async with serving(sdk, fail, crash, mode=mode, audit_sink=log) as call:
        for text in ("no such note", f"cannot use {TOKEN}", "x" * 99_000):
            told = await call("fail", text=text)
            assert told.is_error
            assert told.text.endswith(text.replace(TOKEN, "[REDACTED]"))
        # The official SDK says only that the tool failed; fastmcp tells the exception's text.
        crashed = await call("crash", text=f"cannot use {TOKEN}")
        assert crashed.is_error
        assert crashed.text.endswith("tool crash" if sdk == "mcp" else "cannot use [REDACTED]")
    assert log.stages("response") == ["allowed"] * 4


class QuietError(MCPError):
    message = data = "what is sent is another"

    def __bool__(self) -> bool:
        return False


@each_sdk_and_mode
async def test_a_protocol_error_keeps_its_code_and_loses_its_secrets(sdk: str, mode: str) -> None:
    def refuse(text: str, data: str | None = None) -> str:
        raise QuietError(MISSING_CAPABILITY, text, {"requiredCapabilities": {}, "hint": data})

    async with serving(sdk, refuse, mode=mode) as call:
        for text, data in [("no sampling", None), (TOKEN, "fine"), ("no sampling", TOKEN)]:
            error = (await call("refuse", text=text, data=data)).result.error
            assert error.code == MISSING_CAPABILITY
            assert error.message == text.replace(TOKEN, "[REDACTED]")
            assert error.data["hint"] == (data and data.replace(TOKEN, "[REDACTED]"))


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError(f"no text, but {TOKEN}")


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (RuntimeError(f"cannot use {TOKEN}"), "cannot use [REDACTED]"),
        (UnspeakableError(), "Refused (response): The response is refused: no plain JSON, for a"),
        (RuntimeError("the disk is full"), "protocol error 0: the disk is full"),
        (CallToolResult(content=[], structured_content={"a": object()}), "protocol error 0: "),
    ],
    ids=["a secret", "no text", "its own words", "no JSON"],
)
# Over the handshake protocols the SDK sends the text of any exception of a low-level server.
async def test_what_a_low_level_handler_raises_is_checked(outcome: Any, text: str) -> None:
    def run(_params: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    server = govern(low_level_server(run), guard_of("run"))
    async with connected("mcp", server, "legacy") as call:
        told = await call("run")
    assert told.is_error
    assert told.text.startswith(text)


def cannot_use(*_: Any, **__: Any) -> Any:
    raise RuntimeError(f"cannot use {TOKEN}")


class Broken(Transform):
    get_tool = cannot_use


@each_sdk_and_mode
async def test_a_server_that_cannot_find_its_tools_runs_none_and_tells_no_secret(
    sdk: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    if sdk == "mcp":
        server = govern(low_level_server(cannot_use, cannot_use), guard_of("run"))
    else:
        server = govern(plain_server(sdk, crash), guard_of("crash"))
        server.add_transform(Broken())
    async with connected(sdk, server, mode) as call:
        told = await call("run" if sdk == "mcp" else "crash")
    assert told[:2] == (True, "Refused (params): The server has no such tool now.")
    assert sdk != "mcp" or "the tools cannot be listed: RuntimeError" in caplog.messages
