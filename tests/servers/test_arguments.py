"""What reaches a tool, an approver and the budget."""

import socket
from typing import Annotated, Any, Literal, Union

import pytest
from fastmcp.server.middleware import Middleware
from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, Field
from support.clients import connected, each_mode, each_sdk
from support.servers import (
    TOKEN,
    Log,
    add_shop,
    govern,
    guard_of,
    low_level_server,
    plain_server,
    shop_guard,
)

from agent_mcp_governance import ApprovalStatus

pytestmark = pytest.mark.anyio


class Approver:
    """Approves everything, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, _caller: str, _tool: str, params: dict[str, Any]) -> ApprovalStatus:
        self.seen.append(params)
        return ApprovalStatus.APPROVED


INVALID = {
    "too small": ({"order": "A-17", "amount": -500}, "amount: it is less than the minimum of 1"),
    "a string": ({"order": "A-17", "amount": "40"}, 'amount: it is not of type "integer"'),
    "a list": ({"order": ["hunter22"], "amount": 40}, 'order: it is not of type "string"'),
    "missing": ({"order": "A-17"}, '"amount" is a required property'),
}


@each_sdk
@pytest.mark.parametrize("case", INVALID)
async def test_invalid_arguments_reach_no_approver_and_cost_no_budget(sdk: str, case: str) -> None:
    arguments, reason = INVALID[case]
    approver, log = Approver(), Log()
    guard = shop_guard(approver=approver, audit_sink=log, max_tool_calls=1)
    async with connected(sdk, govern(add_shop(plain_server(sdk)), guard)) as call:
        refused = await call("refund", **arguments)
        assert refused[:2] == (True, f"Refused (params): The arguments are not valid: {reason}.")
        assert not (await call("refund", order="A-17", amount=40)).is_error
        assert (await call("refund", order="A-17", amount=40)).text.startswith("Refused (budget)")
    assert approver.seen == [{"order": "A-17", "amount": 40}]
    assert log.stages() == ["params", "allowed", "budget"]
    assert "hunter22" not in log.entries[0]["reason"]


@each_mode
async def test_json_in_a_string_is_opened_before_anybody_sees_it(mode: str) -> None:
    approver, log = Approver(), Log()
    server = govern(add_shop(plain_server("mcp")), shop_guard(approver=approver, audit_sink=log))
    async with connected("mcp", server, mode) as call:
        told = await call("refund", order="A-17", amount=40, notes='["late", "\\u0062roken"]')
        assert told[:2] == (False, "refunded 40 of A-17 ['late', 'broken']")
        escaped = await call("refund", order="A-17", amount=40, notes='["..\\/..\\/x"]')
        assert escaped.text.startswith("Refused (pattern)")
        for wrong in ('{"a": 1}', "[1]", "[" * 900 + "]" * 900):
            refused = await call("refund", order="A-17", amount=40, notes=wrong)
            assert refused.text.startswith("Refused (params)")
    assert [params["notes"] for params in approver.seen] == [["late", "broken"]]


async def test_json_in_a_string_opens_to_nothing_that_json_itself_cannot_say() -> None:
    server, log = plain_server("mcp"), Log()

    @server.tool()
    def echo(numbers: list[float], more: Any = None) -> str:
        """Return them."""
        return f"{numbers} {more}"

    async with connected("mcp", govern(server, guard_of("echo", audit_sink=log))) as call:
        assert (
            await call("echo", numbers="[1.5]", more='["\\ud83d\\ude00"]')
        ).text == "[1.5] ['😀']"
        for numbers, more in [("[NaN]", ""), ("[1e999]", ""), ("[]", "[-Infinity]")]:
            assert (await call("echo", numbers=numbers, more=more)).is_error
        refused = await call("echo", numbers=[], more='["\\ud83d"]')
        assert refused.text.endswith("no plain JSON, for half of a surrogate pair in it.")
    assert log.stages() == ["allowed"] + ["params"] * 4


@each_sdk
async def test_json_for_a_parameter_that_is_a_string_stays_a_string(sdk: str) -> None:
    server = plain_server(sdk)

    @server.tool()
    def echo(text: str, maybe: str | None = None) -> str:
        """Return it."""
        return f"{text} {maybe}"

    async with connected(sdk, govern(server, guard_of("echo"))) as call:
        for text in ('{"a": 1}', "[1, 2]", "null", '"quoted"', "12", "[no json"):
            assert (await call("echo", text=text, maybe="[no json")).text == f"{text} [no json"


async def test_no_half_of_a_secret_is_said_of_arguments_that_are_not_valid() -> None:
    log = Log()
    schema = {"properties": {"a": {"additionalProperties": False}}}
    server = low_level_server(keeping([]), **schema)
    govern(server, guard_of("run", audit_sink=log))
    async with connected("mcp", server) as call:
        for shift in range(100, 200, 12):
            assert "not valid" in (await call("run", a={f"{'x' * shift} {TOKEN}": 1})).text
    assert log.stages() == ["params"] * 9
    assert TOKEN[:8] not in str([entry["reason"] for entry in log.entries])


@each_sdk
async def test_a_tool_runs_with_what_was_checked_not_with_what_it_became(sdk: str) -> None:
    requests: list[Any] = []

    class Outer(Middleware):
        """Other code in the server, that keeps a request and changes it."""

        async def __call__(self, context: Any, call_next: Any) -> Any:
            requests.append(context)
            return await call_next(context)

    async def approver(*_: object) -> ApprovalStatus:
        sent = requests[-1]
        arguments = sent.params["arguments"] if sdk == "mcp" else sent.message.arguments
        arguments["order"] = "../secrets"
        return ApprovalStatus.APPROVED

    server = add_shop(plain_server(sdk))
    server.middleware.append(Outer())
    async with connected(sdk, govern(server, shop_guard(approver=approver))) as call:
        assert (await call("refund", order="A-17", amount=40)).text == "refunded 40 of A-17"


@each_sdk
async def test_an_expression_of_the_standard_that_python_does_not_know_is_checked(sdk: str) -> None:
    server = plain_server(sdk)

    @server.tool()
    def greet(name: Annotated[str, Field(pattern=r"^\p{L}+$")], times: int = 1) -> str:
        """Greet."""
        return name * times

    async with connected(sdk, govern(server, guard_of("greet"))) as call:
        assert (await call("greet", name="Núñez"))[:2] == (False, "Núñez")
        assert (await call("greet", name="1")).text.endswith('name: it does not match "^\\p{L}+$".')
        told = (await call("greet", name="A", times="2")).text
        assert told.endswith('times: it is not of type "integer".')


@each_sdk
async def test_a_tool_that_changes_at_run_time_is_checked_by_what_it_is_now(sdk: str) -> None:
    server = plain_server(sdk)

    def add_tool(kind: type) -> None:
        def double(value: Any) -> str:
            """Double it."""
            return str(value * 2)

        double.__annotations__["value"] = kind
        server.tool()(double)

    add_tool(int)
    async with connected(sdk, govern(server, guard_of("double"))) as call:
        assert (await call("double", value=2)).text == "4"
        for kind, value, doubled in [(str, "ab", "abab"), (int, 3, "6")]:
            (server if sdk == "mcp" else server.local_provider).remove_tool("double")
            assert (await call("double", value=value)).is_error
            add_tool(kind)
            if kind is int:  # the client lists the tools, as a notification tells it to
                assert await call.tools() == ["double"]
            assert (await call("double", value=value)).text == doubled


async def test_each_version_of_a_fastmcp_tool_has_its_own_schema() -> None:
    server = plain_server("fastmcp")
    server.tool(lambda value: value + 1, name="next", version="1", output_schema=None)

    @server.tool(name="next", version="2", output_schema=None)
    def following(value: str) -> str:
        return value + "+"

    async with connected("fastmcp", govern(server, guard_of("next"))) as call:
        assert (await call("next", value="a")).text == "a+"
        old = await call.client.call_tool("next", {"value": 1}, version="1")
        assert old.content[0].text == "2"


def keeping(ran: list[Any]) -> Any:
    async def call_tool(_ctx: Any, params: Any) -> CallToolResult:
        ran.append(params.arguments)
        return CallToolResult(content=[TextContent(text="ran")])

    return call_tool


@each_mode
async def test_a_low_level_server_gets_valid_arguments_only_and_json_as_it_was_sent(
    mode: str,
) -> None:
    ran: list[Any] = []
    properties = {"a": {"type": ["integer", "string"]}}
    server = low_level_server(keeping(ran), properties=properties)
    govern(server, guard_of("run", "hidden"))
    async with connected("mcp", server, mode) as call:
        assert (await call("run", a="[1]"))[:2] == (False, "ran")
        assert (await call("run", a=[1])).text.startswith("Refused (params)")
        hidden = await call("hidden")
        assert hidden.text == "Refused (params): The server has no such tool now."
    assert ran == [{"a": "[1]"}]


async def test_a_schema_elsewhere_is_never_fetched() -> None:
    ran: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        reference = {"$ref": f"http://127.0.0.1:{elsewhere.getsockname()[1]}/schema.json"}
        server = govern(low_level_server(keeping(ran), **reference), guard_of("run"))
        async with connected("mcp", server) as call:
            assert (await call("run")).text.startswith("Refused (params): The tool's input schema")
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert ran == []


class Leaf(BaseModel):
    kind: Literal["leaf"]


class Branch(BaseModel):
    kind: Literal["branch"]
    below: Annotated[Union[Leaf, "Branch", "Twig"], Field(discriminator="kind")] | None = None


class Twig(BaseModel):
    kind: Literal["twig"]
    below: Annotated[Union[Leaf, Branch, "Twig"], Field(discriminator="kind")] | None = None


def branches(levels: int, last: str = "leaf") -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": last}
    for _ in range(levels):
        tree = {"kind": "branch", "below": tree}
    return tree


DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"  # what pydantic 2.12 gives every Decimal


@each_sdk
async def test_what_a_schema_costs_does_not_outgrow_the_arguments(sdk: str) -> None:
    server = plain_server(sdk)

    @server.tool()
    def sort(
        amount: Annotated[str, Field(json_schema_extra={"pattern": DECIMAL})] = "1.50",
        words: Annotated[str, Field(pattern=r"^(\w+\s?)*$")] = "two words",
        numbers: set[int | float | str] | None = None,
        rows: list[int | str | None] | None = None,
        tree: Twig | Branch | None = None,
        counts: dict[Annotated[str, Field(pattern=r"^(\w+\s?)*$")], int] | None = None,
    ) -> str:
        """Sort them."""
        return f"{amount} {words} {len(numbers or ())} {len(rows or ())} {tree or counts}"

    mixed = ["a", *range(12_000)]
    async with connected(sdk, govern(server, guard_of("sort"))) as call:
        for arguments, text in [
            ({"amount": "007.50", "words": "in order"}, "007.50 in order 0 0 None"),
            ({"numbers": mixed}, "1.50 two words 12001 0 None"),
            ({"rows": [1, "a"] * 5_000}, "1.50 two words 0 10000 None"),
            ({"counts": {"two words": 2}}, "1.50 two words 0 0 {'two words': 2}"),
        ]:
            assert (await call("sort", **arguments)).text == text
        assert not (await call("sort", tree=branches(60))).is_error
        for wrong in [
            {"amount": "0" * 90_000 + "x"},
            {"words": "a" * 90_000 + "!"},
            {"numbers": [*mixed, 7]},
            {"counts": {"two words": "2"}},
            {"tree": branches(60, "bush")},
        ]:
            told = (await call("sort", **wrong)).text
            assert told.startswith("Refused (params): The arguments are not valid")
        assert (await call("sort", counts={"a" * 90_000 + "!": 1})).is_error  # by the tool
        assert (await call("sort", rows=[""] * 49_000)).text.endswith(" 49000 None")


@pytest.mark.parametrize("more", [{}, {"minimum": 0}])
async def test_each_item_of_a_list_is_checked(more: dict[str, Any]) -> None:
    ran: list[Any] = []
    schema = {"type": "array", "items": {"type": "integer", "title": "N", **more}}
    server = govern(low_level_server(keeping(ran), properties={"a": schema}), guard_of("run"))
    async with connected("mcp", server) as call:
        assert (await call("run", a=[0, 1])).text == (await call("run", a=[])).text == "ran"
        for wrong in ([1, "a"], [True], [[1]], [None, 1]):
            told = (await call("run", a=wrong)).text
            assert told.endswith(': it is not of type "integer".')
    assert ran == [{"a": [0, 1]}, {"a": []}]


@each_sdk
async def test_a_price_in_cents_is_a_multiple_of_a_cent(sdk: str) -> None:
    server = plain_server(sdk)

    @server.tool()
    def pay(amount: Annotated[float, Field(multiple_of=0.01)]) -> str:
        """Pay."""
        return str(amount)

    async with connected(sdk, govern(server, guard_of("pay"))) as call:
        for amount in (0.07, 19.99, 1.1, 3, 1e15, -4.35):
            assert (await call("pay", amount=amount)).text == str(float(amount))
        for amount in (0.075, 19.999, 1e-9):
            told = await call("pay", amount=amount)
            assert told.text.endswith("amount: it is not a multiple of 0.01.")


async def test_names_that_match_no_pattern_of_a_schema_are_additional() -> None:
    schema = {
        "properties": {"id": {"type": "string"}},
        "patternProperties": {"^x-": {"type": "integer"}, r"^\p{L}$": {"type": "integer"}},
    }
    for others, refused in [
        (False, {"a-b": 1}),
        ({"type": "null"}, {"a-b": 1}),
        (True, {"x-": ""}),
    ]:
        schema = {**schema, "additionalProperties": others}
        server = govern(low_level_server(keeping([]), **schema), guard_of("run"))
        async with connected("mcp", server) as call:
            assert (await call("run", id="a", é=1, **{"x-a": 1})).text == "ran"
            told = (await call("run", **refused)).text
            assert told.startswith("Refused (params): The arguments are not valid: ")
            assert "None" not in told


async def test_a_dollar_in_a_schema_is_the_very_end_as_in_the_standard() -> None:
    to = {"type": "string", "pattern": r"@shop\.example$"}
    server = govern(low_level_server(keeping([]), properties={"to": to}), guard_of("run"))
    async with connected("mcp", server) as call:
        assert (await call("run", to="ana@shop.example")).text == "ran"
        assert (await call("run", to="ana@shop.example\n")).text.startswith("Refused (params)")
