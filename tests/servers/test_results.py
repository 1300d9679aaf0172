"""What a client gets of a tool's result."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from fastmcp.server.extensions import ServerExtension
from fastmcp.tools.base import ToolResult
from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from mcp_guard import Limits
from mcp_guard.adapters import governed
from support.clients import Client, connected, each_mode, each_sdk, serving
from support.servers import TOKEN, Log, govern, guard_of, plain_server, result


def giving(
    sdk: str, make: Callable[[], CallToolResult], **options: Any
) -> AbstractAsyncContextManager[Client]:
    """Connect to a governed server whose only tool gives what *make* makes."""

    def give() -> CallToolResult:
        return make()

    return serving(sdk, give, **options)


def result_with(place: str, text: str) -> CallToolResult:
    content = {
        "text": TextContent(text=text),
        "link": ResourceLink(name="n", uri=f"file:///{text}"),
        "resource": EmbeddedResource(resource=TextResourceContents(uri="file:///n", text=text)),
        "audio type": AudioContent(data="AAAA", mime_type=text),
        "block meta": TextContent(text="fine", _meta={"note": text}),
    }
    image = {"type": "image", "data": text, "mimeType": "image/png"}
    structured = {
        "structured": {"a": [{"b": text}]},
        "structured key": {text: 1},
        "structured image": {"content": [image]},  # which is looked into, unlike a block
    }
    return CallToolResult(
        content=[content.get(place, TextContent(text="fine")), TextContent(text="fine")],
        structured_content=structured.get(place),
        is_error=place == "text",
        _meta={"note": text if place == "meta" else "fine"},
    )


BLOCKS = ["text", "link", "resource", "audio type", "block meta"]
STRUCTURED = ["structured", "structured key", "structured image"]


@each_mode
@each_sdk
@pytest.mark.parametrize("place", [*BLOCKS, *STRUCTURED, "meta"])
async def test_a_secret_is_cut_out_wherever_a_result_has_it_and_the_rest_is_sent(
    sdk: str, mode: str, place: str
) -> None:
    log = Log()
    given = [result_with(place, f"a {TOKEN} b"), result_with(place, "harmless")]
    async with giving(sdk, lambda: given.pop(0), mode=mode, audit_sink=log) as call:
        for text in ("a [REDACTED] b", "harmless"):
            sent = (await call("give")).result
            expected = result_with(place, text)
            assert sent.is_error == expected.is_error
            assert sent.content == expected.content
            assert sent.structured_content == expected.structured_content
            assert sent.meta["note"] == expected.meta["note"]
    assert [entry["findings"] for entry in log.entries[1::2]] == [["secret"], []]


def with_blobs(blob: str) -> CallToolResult:
    resource = BlobResourceContents(uri="file:///n", blob=blob)
    return CallToolResult(
        content=[
            TextContent(text=f"here: {TOKEN}"),
            ImageContent(data=blob, mime_type="image/png"),
            EmbeddedResource(resource=resource),
            AudioContent(data=blob, mime_type="audio/wav"),
        ]
    )


@each_mode
@each_sdk
async def test_images_audio_and_files_are_measured_and_sent_as_they_are(
    sdk: str, mode: str
) -> None:
    limits = Limits(max_response_chars=5_000, max_blob_chars=300_000)
    given = [TOKEN + "A" * 99_000, "A" * 100_001]
    async with giving(sdk, lambda: with_blobs(given[0]), mode=mode, limits=limits) as call:
        text, image, file, audio = (await call("give")).result.content
        assert text.text == "here: [REDACTED]"
        assert {image.data, file.resource.blob, audio.data} == {given.pop(0)}
        assert (await call("give")).text.startswith("Refused (response): ")
        given[0] = "A" * 99_000
        assert not (await call("give")).is_error


async def test_a_result_of_an_extensions_own_type_is_looked_into() -> None:
    async def run(_arguments: dict[str, Any]) -> Any:
        block = {"type": "image", "data": TOKEN, "mimeType": "image/png"}
        return {"resultType": "com.example/task", "content": [block]}

    sent = await governed(guard_of("a"), "stdio", "a", {}, {}, None, run)
    assert sent["content"][0]["data"] == "[REDACTED]"


@each_sdk
async def test_a_response_over_its_cap_is_refused_and_the_next_one_is_not(sdk: str) -> None:
    def rows(count: int) -> str:
        return "2026-01-31 | 1,250.00 | paid\n" * count

    async with serving(sdk, rows) as call:
        # Twice 116,000 characters: as text and as structured content.
        assert not (await call("rows", count=4_000)).is_error
        refused = await call("rows", count=5_000)
        cap = "Refused (response): The response is refused: over 250000 characters."
        assert refused[:2] == (True, cap)
        assert not (await call("rows", count=1)).is_error


# What only fastmcp has.


async def test_the_result_that_fastmcp_sends_is_the_one_that_is_checked() -> None:
    def hide() -> ToolResult:
        """Keep a protocol result, which fastmcp 4.1 sends, under other fields."""
        kept = ToolResult.from_mcp_result(result(TOKEN))
        kept.content = [TextContent(text="fine")]
        return kept

    async with serving("fastmcp", hide) as call:
        assert (await call("hide"))[:2] in [(False, "[REDACTED]"), (False, "fine")]


class Shortcut(ServerExtension):
    """Answers every call itself, with a result that is none of fastmcp's own."""

    identifier = "com.example/shortcut"

    async def intercept_tool_call(self, *_: Any, **__: Any) -> CallToolResult:
        return result(f"a {TOKEN} b")


async def test_what_a_fastmcp_extension_answers_is_checked() -> None:
    server = plain_server("fastmcp")
    server.tool(lambda: "", name="give", output_schema=None)
    server.add_extension(Shortcut())
    async with connected("fastmcp", govern(server, guard_of("give"))) as call:
        assert (await call("give"))[:2] == (False, "a [REDACTED] b")
