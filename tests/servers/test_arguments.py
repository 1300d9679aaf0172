"""What reaches a tool, an approver and the budget."""

import socket
from typing import Annotated, Any, Literal

import pytest
from fastmcp.exceptions import ToolError
from fastmcp.server import create_proxy
from mcp import types
from mcp_guard import ToolRules
from mcp_guard.adapters import validator
from pydantic import BaseModel, Field, TypeAdapter
from support.clients import connected, each_mode, each_sdk, serving
from support.guards import SECRET
from support.servers import Approver, Log, govern, guard_of, low_level_server, plain_server, shop

from agent_mcp_governance import ApprovalStatus


@each_sdk
async def test_invalid_arguments_reach_no_approver_and_cost_no_budget(sdk: str) -> None:
    approver, log, valid = Approver(), Log(), {"order": "A-17", "amount": 40}
    options = {"approver": approver, "audit_sink": log, "max_tool_calls": 1}
    async with connected(sdk, shop(sdk, **options)) as call:
        for wrong, reason in [
            ({"order": "A-17"}, '"amount" is a required property'),
            ({**valid, "amount": -500}, "amount: it is less than the minimum of 1"),
            ({**valid, "amount": "40"}, 'amount: it is not of type "integer"'),
            ({**valid, "order": ["hunter22"]}, 'order: it is not of type "string"'),
        ]:
            words = f"Refused (params): The arguments are not valid: {reason}."
            assert (await call("refund", **wrong))[:2] == (True, words)
        assert not (await call("refund", **valid)).is_error
        assert (await call("refund", **valid)).text.startswith("Refused (budget)")
    assert approver.seen == [valid]
    assert log.stages() == [*["params"] * 4, "allowed", "budget"]
    assert "hunter22" not in str([entry["reason"] for entry in log])


@each_mode  # of the official SDK, which opens such JSON
async def test_json_in_a_string_is_opened_before_anybody_sees_it(mode: str) -> None:
    def echo(numbers: list[float], more: Any = None) -> str:
        return f"{numbers} {more}"

    approver = Approver()
    options = {"approver": approver, "tools": {"echo": ToolRules(needs_approval=True)}}
    async with serving("mcp", echo, mode=mode, **options) as call:
        told = await call("echo", numbers="[1.5]", more='{"a": "\\ud83d\\ude00"}')
        assert told[:2] == (False, "[1.5] {'a': '😀'}")
        assert (await call("echo", numbers="[]", more="null")).text == "[] None"
        escaped = await call("echo", numbers="[]", more='["..\\/..\\/x"]')
        assert escaped.text.startswith("Refused (pattern)")
        for wrong in ('{"a": 1}', '["a"]', "[" * 40_000):
            assert (await call("echo", numbers=wrong)).text.startswith("Refused (params)")
        # What JSON itself cannot say.
        for unsaid in ("[NaN]", "[1e999]", "[-Infinity]", '["\\ud83d"]'):
            assert (await call("echo", numbers=unsaid)).text.startswith("Refused (params)")
            refused = await call("echo", numbers="[]", more=unsaid, unknown="x")
            assert refused.text.startswith("Refused (params)")
    assert approver.seen == [{"numbers": [1.5], "more": {"a": "😀"}}, {"numbers": [], "more": None}]


@each_sdk
async def test_json_for_a_parameter_that_is_a_string_stays_a_string(sdk: str) -> None:
    def echo(text: str, maybe: str | None = None) -> str:
        return f"{text} {maybe}"

    async with serving(sdk, echo) as call:
        opened = () if sdk == "fastmcp" else ('{"a": 1}', "[1, 2]", "null")  # by the SDK
        for text in ('{"a": 1}', "[1, 2]", "null", '"quoted"', "12", "[no json"):
            maybe = "" if text in opened else text
            assert (await call("echo", text=text, maybe=maybe)).text == f"{text} {maybe}"


@each_sdk
async def test_a_tool_runs_with_what_was_checked_not_with_what_it_became(sdk: str) -> None:
    requests: list[Any] = []

    async def outer(context: Any, call_next: Any) -> Any:
        """Other code in the server, that keeps a request and changes it."""
        requests.append(context)
        return await call_next(context)

    async def approver(*_: object) -> ApprovalStatus:
        sent = requests[-1]
        arguments = sent.params["arguments"] if sdk == "mcp" else sent.message.arguments
        arguments["order"] = "../secrets"
        return ApprovalStatus.APPROVED

    server = shop(sdk, approver=approver)
    server.middleware.insert(0, outer)
    async with connected(sdk, server) as call:
        assert (await call("refund", order="A-17", amount=40)).text == "refunded 40 of A-17"


@each_sdk
async def test_a_tool_that_changes_at_run_time_is_checked_by_what_it_is_now(sdk: str) -> None:
    def tool(kind: type) -> Any:
        def double(value: Any) -> str:
            return str(value * 2)

        double.__annotations__["value"] = kind
        return double

    server = plain_server(sdk, tool(int))
    async with connected(sdk, govern(server, guard_of("double"))) as call:
        for kind, value, doubled in [(int, 2, "4"), (str, "ab", "abab"), (int, 3, "6")]:
            (server if sdk == "mcp" else server.local_provider).remove_tool("double")
            assert value == 3 or (await call("double", value=value)).is_error
            server.tool()(tool(kind))
            if value == 3:  # the client lists the tools, as a notification tells it to
                assert await call.tools() == ["double"]
            assert (await call("double", value=value)).text == doubled


async def test_each_version_of_a_fastmcp_tool_has_its_own_schema() -> None:
    server = plain_server("fastmcp")
    server.tool(lambda old: f"old {old}", name="next", version="1", output_schema=None)
    server.tool(lambda new: f"new {new}", name="next", version="2", output_schema=None)
    proxy = govern(create_proxy(server), guard_of("next"))
    async with connected("fastmcp", proxy) as call:  # which knows the version that it lists
        with pytest.raises(ToolError, match="no such tool"):
            await call.client.call_tool("next", {"old": "a"}, version="1")
    guard = guard_of("next", audit_sink=(log := Log()))
    async with connected("fastmcp", govern(server, guard)) as call:
        assert (await call("next", new="a")).text == "new a"
        old = await call.client.call_tool("next", {"old": "a"}, version="1")
        assert old.content[0].text == "old a"
    asked = [entry["parameters"] for entry in log if entry["direction"] == "call"]
    assert asked == [{"new": "a"}, {"old": "a", "fastmcp.version": "1"}]


async def test_a_tool_that_is_not_listed_is_asked_for_within_the_window_only() -> None:
    listed: list[int] = []
    server = low_level_server(lambda _: "ran", lambda: listed.append(1) or {})
    govern(server, guard_of("hidden", max_calls_per_window=2))
    async with connected("mcp", server) as call:
        stages = [(await call("hidden")).text.split()[1] for _ in range(6)]
    assert stages == ["(params):"] * 2 + ["(rate_limit):"] * 4
    assert len(listed) == 3


def matching(pattern: str) -> Any:
    return Annotated[str, Field(json_schema_extra={"pattern": pattern})]


class Branch(BaseModel):
    kind: Literal["branch"]
    below: "Tree | None" = None


class Twig(BaseModel):
    kind: Literal["twig"]
    below: "Tree | None" = None


Tree = Annotated[Branch | Twig, Field(discriminator="kind")]


def branches(last: str) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": last}
    for _ in range(60):
        tree = {"kind": "branch", "below": tree}
    return tree


DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"  # what pydantic 2.12 gives every Decimal
TWICE = r"^(?:(\w+)\s?)*\1!$"  # a back reference takes time in two to the power of the length
CENTS = Annotated[float, Field(multiple_of=0.01)]
WORDS = Annotated[str, Field(pattern=r"^(\w+\s?)*$")]
MIXED = ["a", *range(12_000)]
LONG = [2**80 + n for n in range(3_500)]  # the library compares them in pairs

KINDS = {
    "letters of the standard": (matching(r"^\p{L}+$"), ["Núñez"], ["1"], "it does not match"),
    "the very end": (matching(r"a\.test$"), ["a@a.test"], ["a@a.test\n"], "it does not match"),
    "words": (WORDS, ["in order", "سلام 주문"], ["a" * 90_000 + "!"], "it does not match"),
    "decimal": (matching(DECIMAL), ["007.50"], ["0" * 90_000 + "x"], "it does not match"),
    "a word twice": (matching(TWICE), ["to to!"], ["a" * 90_000 + "?"], "it does not match"),
    "cents": (CENTS, [0.07, 19.99, 1.1, 3, 1e15, -4.35], [0.075, 19.999, 1e-9], "of 0.01."),
    "list": (list[int], [[0, 1], []], [[1, "a"], [True], [[1]], [None, 1]], 'of type "integer".'),
    "long list": (list[int | str], [[1, "a"] * 5_000, [""] * 49_000], [[*MIXED, 0.5]], "any of"),
    "set": (set[Any], [[*MIXED, True], LONG], [[*MIXED, 7.0], [*LONG, 2**80]], "element twice."),
    "large": (matching(r"^[\w.-]{1,255}$"), ["a.b"], ["!"], "it does not match"),
    "keys": (dict[WORDS, int], [{"two words": 2}], [{"a" * 90_000 + "!": 1}], "match pattern"),
    "deep unions": (Tree, [branches("twig")], [branches("bush")], "not as the schema says"),
}


@each_sdk
@pytest.mark.parametrize(("kind", "valid", "wrong", "reason"), KINDS.values(), ids=KINDS)
async def test_what_a_value_costs_to_check_does_not_outgrow_it(
    sdk: str, kind: Any, valid: list[Any], wrong: list[Any], reason: str
) -> None:
    got: list[Any] = []

    def take(value: Any) -> str:
        got.append(value)
        return "taken"

    take.__annotations__["value"] = kind
    async with serving(sdk, take) as call:
        for value in valid:
            assert (await call("take", value=value)).text == "taken"
        for value in wrong:
            assert reason in (await call("take", value=value)).text
    assert got == [TypeAdapter(kind).validate_python(value) for value in valid]


@each_mode
async def test_a_low_level_server_gets_valid_arguments_and_json_as_it_was_sent(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Any] = []

    unlike = {"b": {"uniqueItems": False}, "c": {"uniqueItems": True}}
    schema = {"properties": {"a": {"type": ["integer", "string"]}, **unlike}}
    server = low_level_server(lambda params: ran.append(params.arguments) or "ran", schema.copy)
    govern(server, guard_of("run", "hidden"))
    async with connected("mcp", server, mode) as call:
        assert (await call("run", a="[1]", b=[1, 1], c="aa"))[:2] == (False, "ran")
        assert (await call("run", a=[1])).text.startswith("Refused (params)")
        for params in ({"name": "run"}, {"name": "run", "arguments": None}, None):
            request = types.Request[Any, str](method="tools/call", params=params)
            answer = await call.client.session.send_request(request, types.CallToolResult)
            assert answer.is_error == (params is None)
        assert (await call("hidden")).text == "Refused (params): The server has no such tool now."
    assert ran == [{"a": "[1]", "b": [1, 1], "c": "aa"}, {}, {}]
    assert "the policy allows ['hidden'], which the server does not list" in caplog.messages


def test_what_no_property_alone_is_to_blame_for_is_said_without_a_reason() -> None:
    itself = {"$dynamicRef": "#self"}
    holding = {"$dynamicAnchor": "self", "properties": {"a": itself, "b": {}, "c": itself}}
    for schema, wrong, named in (
        ({"patternProperties": {"^x-": {"type": "integer"}}}, {"x-a": ""}, "they"),
        ({"type": "object", **holding}, {"a": 1, "b": 1}, "a"),
    ):
        validate = validator(schema)
        assert validate({"b": ""}) == {"b": ""}
        with pytest.raises(ValueError, match=f"not valid: {named}: not as the schema says"):
            validate(wrong)


def test_a_schema_of_an_older_draft_is_read_as_that() -> None:
    above = {"type": "integer", "minimum": 0, "exclusiveMinimum": True}
    other = {"$ref": "#/definitions/above"}
    draft = "http://json-schema.org/draft-04/schema#"
    parts = {"a": above, "b": {"format": "date"}, "c": other}
    schema = {"$schema": draft, "definitions": {"above": above}, "properties": parts}
    validate = validator({**schema, "additionalProperties": other})
    assert validate({"a": 1, "b": "soon"}) == {"a": 1, "b": "soon"}
    with pytest.raises(ValueError, match="not valid: a: it is less than or equal to"):
        validate({"a": 0})


def test_no_half_of_a_secret_is_said_of_arguments_that_are_not_valid() -> None:
    validate = validator({"additionalProperties": False})
    for shift in range(200, 300, 12):  # the sentence is cut short within the secret, too
        with pytest.raises(ValueError, match="not valid: Additional") as raised:
            validate({f"{'x' * shift} {SECRET}": 1})
        assert SECRET[:8] not in str(raised.value)


def test_a_schema_elsewhere_is_never_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        validate = validator({"$ref": f"http://127.0.0.1:{elsewhere.getsockname()[1]}/a.json"})
        with pytest.raises(ValueError, match="The tool's input schema cannot be used"):
            validate({})
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
