"""What a client gets of a tool's result."""

from typing import Any

import pytest
from fastmcp.server.extensions import ServerExtension
from fastmcp.tools.base import ToolResult
from mcp import types
from mcp_guard import Limits
from mcp_guard.adapters import governed
from support.clients import connected, each_sdk_and_mode, serving
from support.servers import TOKEN, Log, govern, guard_of, plain_server, result


def result_with(place: str, text: str) -> types.CallToolResult:
    fine, note = types.TextContent(text="fine"), {"note": text}
    resource = types.TextResourceContents(uri="file:///n", text=text)
    content = {
        "text": types.TextContent(text=text),
        "link": types.ResourceLink(name="n", uri=f"file:///{text}"),
        "resource": types.EmbeddedResource(resource=resource),
        "audio type": types.AudioContent(data="AAAA", mime_type=text),
        "block meta": types.TextContent(text="fine", _meta=note),
    }
    image = {"type": "image", "data": text, "mimeType": "image/png"}
    structured = {
        "structured": {"a": [{"b": text}]},
        "structured key": {text: 1},
        "structured image": {"content": [image]},  # which is looked into, unlike a block
    }
    return types.CallToolResult(
        content=[content.get(place, fine), fine],
        structured_content=structured.get(place),
        is_error=place == "text",
        _meta={"note": text if place == "meta" else "fine", "pair": (1, 2)},
    )


BLOCKS = ["text", "link", "resource", "audio type", "block meta"]
STRUCTURED = ["structured", "structured key", "structured image"]


@each_sdk_and_mode
@pytest.mark.parametrize("place", [*BLOCKS, *STRUCTURED, "meta"])
async def test_a_secret_is_cut_out_wherever_a_result_has_it_and_the_rest_is_sent(
    sdk: str, mode: str, place: str
) -> None:
    log = Log()

    def give(text: str) -> types.CallToolResult:
        return result_with(place, text)

    async with serving(sdk, give, mode=mode, audit_sink=log) as call:
        for text in (f"a {TOKEN} b", "harmless"):
            sent = (await call("give", text=text)).result
            expected = result_with(place, text.replace(TOKEN, "[REDACTED]"))
            assert sent.is_error == expected.is_error
            assert sent.content == expected.content
            assert sent.structured_content == expected.structured_content
            assert sent.meta["note"] == expected.meta["note"]
    assert [entry["findings"] for entry in log[1::2]] == [["secret"], []]


@each_sdk_and_mode
async def test_blobs_are_measured_and_sent_as_they_are(sdk: str, mode: str) -> None:
    def give(count: int) -> types.CallToolResult:
        blob = TOKEN + "A" * count
        resource = types.BlobResourceContents(uri="file:///n", blob=blob)
        return types.CallToolResult(
            content=[
                types.TextContent(text=f"here: {TOKEN}"),
                types.ImageContent(data=blob, mime_type="image/png"),
                types.EmbeddedResource(resource=resource),
                types.AudioContent(data=blob, mime_type="audio/wav"),
            ]
        )

    limits = Limits(max_response_chars=5_000, max_blob_chars=300_000)
    async with serving(sdk, give, mode=mode, limits=limits) as call:
        text, image, file, audio = (await call("give", count=99_000)).result.content
        assert text.text == "here: [REDACTED]"
        assert {image.data, file.resource.blob, audio.data} == {TOKEN + "A" * 99_000}
        assert (await call("give", count=100_001)).text.startswith("Refused (response): ")
        assert not (await call("give", count=99_000)).is_error


async def test_a_result_of_an_extensions_own_type_is_looked_into() -> None:
    async def run(_arguments: dict[str, Any]) -> Any:
        return {"resultType": "com.example/task", "content": [{"type": "image", "data": TOKEN}]}

    sent = await governed(guard_of("a"), "stdio", "a", {}, {}, None, run)
    assert sent["content"][0]["data"] == "[REDACTED]"


class More(types.CallToolResult):
    more: str = TOKEN


async def test_the_result_that_fastmcp_sends_is_the_one_that_is_checked() -> None:
    def hide() -> ToolResult:
        return ToolResult.from_mcp_result(More(content=[]))  # it keeps this, and sends it

    log = Log()
    async with serving("fastmcp", hide, audit_sink=log) as call:
        assert not (await call("hide")).is_error
    assert log[1]["findings"] == ["secret"]


class Shortcut(ServerExtension):
    """Answers every call itself, with a result that is none of fastmcp's own."""

    identifier = "com.example/shortcut"

    async def intercept_tool_call(self, *_: Any, **__: Any) -> types.CallToolResult:
        return result(f"a {TOKEN} b")


async def test_what_a_fastmcp_extension_answers_is_checked() -> None:
    server = plain_server("fastmcp")
    server.tool(lambda: "", name="give", output_schema=None)
    server.add_extension(Shortcut())
    async with connected("fastmcp", govern(server, guard_of("give"))) as call:
        assert (await call("give"))[:2] == (False, "a [REDACTED] b")
