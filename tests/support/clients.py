"""The client of each SDK: in memory, over stdio and over HTTP."""

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
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
from support.servers import govern, guard_of, plain_server

SDKS = ["mcp", "fastmcp"]
MODES = ["auto", "legacy"]  # protocol 2026-07-28, and the handshake before it

each_sdk = pytest.mark.parametrize("sdk", SDKS)
each_mode = pytest.mark.parametrize("mode", MODES)
each_sdk_and_mode = pytest.mark.parametrize(("sdk", "mode"), [*product(SDKS, MODES)])


class Answer(NamedTuple):
    is_error: bool
    text: str
    result: Any = None


class Client:
    """What the tests ask of a client of either SDK."""

    def __init__(self, client: Any, asked: list[str], **options: Any) -> None:
        self.client, self.asked, self._options = client, asked, options

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
    sdk: str, target: Any, mode: str = "auto", says: dict[str, Any] | None = None
) -> AsyncIterator[Client]:
    """Connect the client of *sdk* to a server or transport; *says* answers what its tools ask."""
    asked: list[str] = []

    async def elicited(*question: Any) -> ElicitResult:
        asked.append(str(question))
        return ElicitResult(action="accept", content=says)

    if sdk == "mcp":
        async with mcp.Client(target, mode=mode, elicitation_callback=elicited) as client:
            yield Client(client, asked)
    else:
        async with fastmcp.Client(target, mode=mode, elicitation_handler=elicited) as client:
            yield Client(client, asked, raise_on_error=False)


@asynccontextmanager
async def serving(
    sdk: str, *tools: Callable[..., Any], mode: str = "auto", **options: Any
) -> AsyncIterator[Client]:
    """Connect to a server of *tools*, governed by a guard of *options* that allows them all."""
    guard = guard_of(*(tool.__name__ for tool in tools), **options)
    async with connected(sdk, govern(plain_server(sdk, *tools), guard), mode) as call:
        yield call


@asynccontextmanager
async def over_stdio(sdk: str, mode: str, folder: Path) -> AsyncIterator[Client]:
    """Serve the shop in another process that works in *folder*, and connect to it."""
    paths = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'tests' / 'recipes'}"}
    arguments = ["-m", "support.servers", sdk]
    options: dict[str, Any] = {"env": paths, "cwd": str(folder)}
    with (folder / "stderr.txt").open("w") as errors:
        quiet = {"keep_alive": False, "log_file": errors}
        transport: Any = StdioTransport(sys.executable, arguments, **options, **quiet)
        if sdk == "mcp":
            process = StdioServerParameters(command=sys.executable, args=arguments, **options)
            transport = stdio_client(process, errors)
        async with connected(sdk, transport, mode) as client:
            yield client


@asynccontextmanager
async def http_url(server: Any) -> AsyncIterator[str]:
    """Serve *server*; yield its URL."""
    is_fastmcp = isinstance(server, fastmcp.FastMCP)
    app = server.http_app(path="/mcp") if is_fastmcp else server.streamable_http_app()
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # clients wait in its queue
        # As asyncio does for sockets of its own: else each answer waits 40 ms for a confirmation.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.serve, [listener])
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
            running.should_exit = True


@asynccontextmanager
async def over_http(
    sdk: str, url: str, mode: str = "auto", token: str = ""
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(headers=headers) as http:
        transport: Any = StreamableHttpTransport(url, headers)
        if sdk == "mcp":
            transport = streamable_http_client(url, http_client=http)
        async with connected(sdk, transport, mode) as client:
            yield client
