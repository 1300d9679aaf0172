"""What is governed, what is not, and what a wrong set-up says."""

import logging
from typing import Any

import fastmcp
import pytest
from fastmcp.server.dependencies import get_context
from fastmcp.server.middleware.caching import ResponseCachingMiddleware
from fastmcp.server.transforms.search import RegexSearchTransform
from mcp.types import Notification
from mcp_guard import ToolRules, fastmcp_sdk, mcp_sdk
from support.clients import connected, each_sdk, each_sdk_and_mode
from support.servers import SHOP, TOKEN, Log, govern, guard_of, plain_server, shop, shop_guard


def server_with(sdk: str, *names: str) -> Any:
    server = plain_server(sdk)
    for name in names:
        server.tool(name)(lambda: "done")
    return server


@each_sdk
def test_one_line_says_what_is_governed(sdk: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mcp_guard"):
        govern(server_with(sdk, "b", "a", "c"), guard_of("b", "a"))
    assert [record.getMessage() for record in caplog.records if record.name == "mcp_guard"] == [
        "'shop' is governed by mcp_guard, which allows ['a', 'b']"
    ]


@pytest.mark.parametrize("module", [mcp_sdk, fastmcp_sdk])
def test_a_wrong_set_up_says_so(module: Any) -> None:
    own = server_with("mcp" if module is mcp_sdk else "fastmcp", "a")
    other = server_with("fastmcp" if module is mcp_sdk else "mcp", "a")
    with pytest.raises(ValueError, match=r"server must be a .*, not a (FastMCP|MCPServer)"):
        module.govern(other, guard_of("a"))
    with pytest.raises(ValueError, match="guard must be a Guard"):
        module.govern(own, {"allowed_tools": ["a"]})
    with pytest.raises(ValueError, match=r"allows \['b', 'c'\]; 'shop' has \['a'\]"):
        module.govern(own, guard_of("c", "a", "b"))
    module.govern(own, guard_of("a"))
    with pytest.raises(ValueError, match="'shop' is governed already"):
        module.govern(own, guard_of("a"))


@each_sdk_and_mode
async def test_the_tools_listed_are_those_that_the_caller_may_call(sdk: str, mode: str) -> None:
    rules = {"b": ToolRules(callers=lambda caller: caller != "stdio")}
    server = govern(server_with(sdk, "a", "b", "c"), guard_of("a", "b", tools=rules))
    async with connected(sdk, server, mode) as call:
        server.tool("late")(lambda: "done")
        assert await call.tools() == ["a"]
        assert (await call("a"))[:2] == (False, "done")
        for tool in ("b", "c", "late"):
            assert (await call(tool)).text.startswith("Refused (allow_list)")


@each_sdk
async def test_observing_shows_and_runs_what_the_policy_would_refuse(sdk: str) -> None:
    log = Log()
    server = govern(server_with(sdk, "a", "b"), guard_of("a", observe=True, audit_sink=log))
    async with connected(sdk, server) as call:
        assert await call.tools() == ["a", "b"]
        assert not (await call("b")).is_error
        assert (await call("b", wrong=1)).is_error == (sdk == "fastmcp")  # its schema forbids it
    assert log[0]["would_refuse"] == ["allow_list: not on the allow list"]


@each_sdk
async def test_resources_and_prompts_are_not_governed(sdk: str) -> None:
    server, log = server_with(sdk, "a"), Log()

    def terms() -> str:
        return TOKEN

    server.resource("shop://terms")(terms)
    server.prompt("greet")(terms)
    async with connected(sdk, govern(server, guard_of("a", audit_sink=log))) as call:
        assert TOKEN in str(await call.client.read_resource("shop://terms"))
        assert TOKEN in str(await call.client.get_prompt("greet"))
    assert log == []


def nested_server(sdk: str) -> Any:
    server = plain_server(sdk)
    server.tool("inner")(lambda: f"inner ran {TOKEN}")

    @server.tool()
    async def outer() -> str:
        caller = get_context().fastmcp if sdk == "fastmcp" else server
        return str(await caller.call_tool("inner", {}))

    return server


async def test_fastmcp_governs_and_charges_calls_from_tool_to_tool() -> None:
    guard = guard_of("outer", "inner", max_tool_calls=3)
    async with connected("fastmcp", govern(nested_server("fastmcp"), guard)) as call:
        assert "inner ran" in (await call("outer")).text
        assert "Refused (budget)" in (await call("outer")).text
    async with connected("fastmcp", govern(nested_server("fastmcp"), guard_of("outer"))) as call:
        assert "Refused (allow_list)" in (await call("outer")).text
    own = govern(nested_server("fastmcp"), guard_of("inner"))
    assert "inner ran" in str(await own.call_tool("inner"))  # which is part of no request


# If this fails, the SDK lets the guard see them: then govern them.
async def test_the_official_sdk_shows_calls_from_tool_to_tool_to_nobody() -> None:
    log = Log()
    server = govern(nested_server("mcp"), guard_of("outer", audit_sink=log))
    async with connected("mcp", server, "legacy") as call:
        notification = Notification[Any, str](method="tools/call", params={"name": "inner"})
        await call.client.session.send_notification(notification)  # which runs no tool
        assert "inner ran" in (await call("outer")).text
    assert {entry["tool_name"] for entry in log} == {"outer"}


async def test_mounted_tools_are_governed_by_their_listed_names() -> None:
    server = plain_server("fastmcp")
    server.mount(nested_server("fastmcp"), namespace="files")
    async with connected("fastmcp", govern(server, guard_of("files_inner"))) as call:
        assert await call.tools() == ["files_inner"]
        assert (await call("files_inner"))[:2] == (False, "inner ran [REDACTED]")
        for refused in ("inner", "outer", "files_outer"):
            assert (await call(refused)).text.startswith("Refused (allow_list)")


async def test_what_a_mounted_server_calls_itself_needs_a_guard_there() -> None:
    child, server = nested_server("fastmcp"), plain_server("fastmcp")
    server.mount(child, namespace="files")
    async with connected("fastmcp", govern(server, guard_of("files_outer"))) as call:
        assert "inner ran" in (await call("files_outer")).text  # the hole, as the module says
        govern(child, guard_of("outer"))
        assert "Refused (allow_list)" in (await call("files_outer")).text


async def test_a_tool_behind_a_search_can_be_allowed_and_is_governed_by_its_name() -> None:
    server = plain_server("fastmcp", *SHOP)
    server.add_transform(RegexSearchTransform())
    govern(server, shop_guard("search_tools", "call_tool"))
    async with connected("fastmcp", server) as call:
        assert await call.tools() == ["search_tools", "call_tool"]
        found = await call("search_tools", pattern="refund|delete")
        assert "Pay back an order" in found.text
        assert "delete_orders" not in found.text
        paid = await call("call_tool", name="refund", arguments={"order": "A-17", "amount": 40})
        assert "refunded 40 of A-17" in paid.text
        for tool, arguments, why in [
            ("delete_orders", {}, "Unknown tool"),
            ("refund", {"order": "A-17", "amount": -500}, "Refused (params)"),
            ("refund", {"order": "A-17", "amount": 9_000}, "Refused (approval)"),
        ]:
            assert why in (await call("call_tool", name=tool, arguments=arguments)).text


async def test_a_proxy_of_another_server_is_governed_before_the_call_leaves() -> None:
    log = Log()
    proxy = fastmcp.server.create_proxy(fastmcp.Client(shop("mcp", audit_sink=log)))
    async with connected("fastmcp", govern(proxy, guard_of("search", "refund"))) as call:
        assert await call.tools() == ["search", "refund"]
        assert (await call("search", query="tea"))[1].startswith("tea 0")
        assert (await call("refund", order="A-17", amount=-5)).text.startswith("Refused (params)")
        assert (await call("run_sql", query="x")).text.startswith("Refused (allow_list)")
        assert (await call("refund", order="A-17", amount=9_000)).text.endswith("denied.")
    assert log.stages() == ["allowed", "approval"]


async def test_what_a_cache_of_fastmcp_answers_is_not_governed() -> None:
    log, server = Log(), plain_server("fastmcp", *SHOP)
    server.add_middleware(ResponseCachingMiddleware())
    async with connected("fastmcp", govern(server, shop_guard(audit_sink=log))) as call:
        for _ in range(2):
            assert (await call("refund", order="A-17", amount=40)).text == "refunded 40 of A-17"
    assert log.stages() == ["allowed"]
