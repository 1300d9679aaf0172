"""The clients of both SDKs, joined in memory, over stdio and over HTTP."""

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import fastmcp
import httpx2
import mcp
import pytest
import uvicorn
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from mcp import MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitResult, TextContent

from support import ROOT
from support.servers import govern, guard_of, ordinary_call, plain_server

MODES = ["auto", "legacy"]  # protocol 2026-07-28, and the handshake before it

each_sdk = pytest.mark.parametrize("sdk", ["mcp", "fastmcp"])
each_mode = pytest.mark.parametrize("mode", MODES)


class Answer(NamedTuple):
    is_error: bool
    text: str
    result: Any = None


class Client:
    """What the tests ask of a client of either SDK."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.client, self._options = client, options

    async def __call__(self, tool: str, /, *, meta: Any = None, **arguments: Any) -> Answer:
        """Call a tool."""
        try:
            result = await self.client.call_tool(tool, arguments, meta=meta, **self._options)
        except MCPError as error:
            return Answer(True, f"protocol error {error.error.code}: {error}", error)
        texts = [block.text for block in result.content if isinstance(block, TextContent)]
        return Answer(result.is_error, "".join(texts), result)

    async def tools(self) -> list[str]:
        listed = await self.client.list_tools()
        return [tool.name for tool in getattr(listed, "tools", listed)]


@asynccontextmanager
async def connected(
    sdk: str,
    target: Any,
    mode: str = "auto",
    *,
    says: dict[str, Any] | None = None,
    asked: list[str] | None = None,
) -> AsyncIterator[Client]:
    """Connect the client of *sdk* to a server or transport.

    *says* answers the questions of its tools, and *asked* gets them.
    """

    async def elicited(*question: Any) -> ElicitResult:
        if asked is not None:
            asked.append(str(question))
        return ElicitResult(action="accept", content=says)

    if sdk == "mcp":
        async with mcp.Client(target, mode=mode, elicitation_callback=elicited) as client:
            yield Client(client)
    else:
        async with fastmcp.Client(target, mode=mode, elicitation_handler=elicited) as client:
            yield Client(client, raise_on_error=False)


@asynccontextmanager
async def serving(
    sdk: str, *tools: Callable[..., Any], mode: str = "auto", **options: Any
) -> AsyncIterator[Client]:
    """Govern a server of *tools*, all of them allowed, and connect to it.

    *options* are the guard's.
    """
    guard = guard_of(*(tool.__name__ for tool in tools), **options)
    async with connected(sdk, govern(plain_server(sdk, *tools), guard), mode) as call:
        yield call


@asynccontextmanager
async def over_stdio(sdk: str, mode: str, folder: Path) -> AsyncIterator[Client]:
    """Serve the shop in another process that works in *folder*, and connect to it."""
    arguments = ["-m", "support.servers", sdk]
    paths = f"{ROOT / 'tests'}:{ROOT / 'tests' / 'recipes'}"
    with (folder / "stderr.txt").open("w") as errors:
        options: dict[str, Any] = {"env": {"PYTHONPATH": paths}, "cwd": str(folder)}
        transport: Any
        if sdk == "mcp":
            parameters = StdioServerParameters(command=sys.executable, args=arguments, **options)
            transport = stdio_client(parameters, errlog=errors)
        else:
            transport = StdioTransport(
                sys.executable, arguments, keep_alive=False, log_file=errors, **options
            )
        async with connected(sdk, transport, mode) as client:
            yield client


@asynccontextmanager
async def served_over_http(server: Callable[[str], Any]) -> AsyncIterator[str]:
    """Serve what *server* makes of its address; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # clients wait in its queue
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        made = server(address)
        is_fastmcp = isinstance(made, fastmcp.FastMCP)
        app = made.http_app(path="/mcp") if is_fastmcp else made.streamable_http_app()
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.serve, [listener])
            yield f"{address}/mcp"
            running.should_exit = True


@asynccontextmanager
async def over_http(
    sdk: str, url: str, mode: str = "auto", token: str | None = None
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with AsyncExitStack() as stack:
        transport: Any = StreamableHttpTransport(url, headers)
        if sdk == "mcp":
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers))
            transport = streamable_http_client(url, http_client=http)
        yield await stack.enter_async_context(connected(sdk, transport, mode))


async def run_ordinary_calls(call: Client, count: int) -> None:
    for number in range(count):
        tool, arguments = ordinary_call(number)
        answer = await call(tool, **arguments)
        assert not answer.is_error, (tool, arguments, answer.text)
        if tool == "search":  # as it was sent
            assert answer.result.structured_content["result"][0] == f"{arguments['query']} 0"
