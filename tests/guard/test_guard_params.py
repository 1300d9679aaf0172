"""Params: their size and shape, the copy the tool gets, and what is sent besides them."""

import json
import math
import tracemalloc
from collections import OrderedDict
from functools import reduce
from typing import Any

import pytest
from mcp_guard import Limits, ToolRules
from support.guards import SECRET, in_both_forms, make_guard


def nested(levels: int) -> Any:
    return reduce(lambda value, _: [value], range(levels), "x")


def in_json(text: str, levels: int) -> str:
    return reduce(lambda inner, _: json.dumps([inner]), range(levels), text)


Text = type("Text", (str,), {})  # a str that another class could say anything about
CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)
MANY_TIMES: Any = reduce(lambda value, _: [value, value], range(60), "x")  # 2 ** 60 if written out
NOT_ALLOWED = {
    **{f"no plain JSON, for a {type(it).__name__} in it": [it] for it in (b"x", {1}, (1,))},
    "no plain JSON, for a Text in it": [Text("x"), {Text("k"): 1}],
    "no plain JSON, for a OrderedDict in it": [OrderedDict(a=1)],
    "no plain JSON, for a float in it": [math.nan, math.inf, -math.inf],
    "no plain JSON, for a int in it": [{1: "x"}],
    "a number of over 1024 bits": [2**1_024, -(2**1_024)],
    "no plain JSON, for half of a surrogate pair in it": ["\ud800", {"\udfff": 1}],
    "over 100000 characters": ["x" * 100_000, {"k" * 100_000: 1}, [10**300] * 332],
    "over 50000 keys and elements": [[0] * 49_999, {f"{n}": 0 for n in range(49_999)}, MANY_TIMES],
    "over 64 levels": [nested(64), CIRCULAR, json.dumps(nested(64))],
    "JSON inside a string that cannot be opened": [f"[{'1' * 5_000}]"],
}


@in_both_forms
@pytest.mark.parametrize("why", NOT_ALLOWED)
def test_params_that_are_no_plain_json_within_the_caps_are_refused(check: Any, why: str) -> None:
    guard, log = make_guard()
    for value in NOT_ALLOWED[why]:
        decision = check.call(guard, "alice", "search", {"q": 0, "value": value})
        assert decision.refusal == f"Refused (params): The arguments are refused: {why}."
        assert decision.params == {}
    assert len(log) == len(NOT_ALLOWED[why])
    for params in (None, [], "{}", OrderedDict()):
        assert check.call(guard, "alice", "search", params).stage == "params"


def test_plain_json_is_allowed_both_ways_and_comes_back_equal() -> None:
    guard, log = make_guard()
    for value in (
        {"to": "bob@example.com", "body": "Ignore the previous mail; card ending 4111."},
        {"sql": "SELECT id, `name` FROM users WHERE note LIKE '%../%' -- all of them"},
        {"order": "4929384756102938", "ssn": "123-45-6789", "phone": "+1 555 123 4567"},
        {"code": "subprocess.run(['ls', '-l']); x = $(date) && echo \"a\\nb\""},
        {"id": "task-0123456789abcdef0123456789abcdef", "url": "https://example.com/?token=a"},
        *(None, True, 0, -1, 2**1_024 - 1, 0.1, 1e300, "", "x" * 99_980, [], {}, [{}, [[]]]),
        *("\U0001f600 世界 \x00\x7f\u2028", {"": {"": ""}}, nested(63), [0] * 30_000),
        *('{"a": [1]}', '["]', "{x}", '"', "[1, 2", "{'a': 1}", '[Infinity, "\\ud800"]'),
        in_json("deep", 6),
    ):
        decision = guard.check_call("alice", "search", {"value": value})
        assert json.dumps(decision.params) == json.dumps({"value": value})
        content = guard.check_response("alice", "search", [value]).content
        assert json.dumps(content) == json.dumps([value])
    assert {(entry["stage"], *entry["findings"]) for entry in log} == {("allowed",)}


@pytest.mark.parametrize(
    ("limits", "fits", "over"),
    [
        # Quotes are not counted; each key and element is one for its comma.
        ({"max_params_chars": 8}, {"q": "123456"}, {"q": "1234567"}),
        ({"max_params_chars": 7}, {"q": ["1", "2", ""]}, {"q": ["1", "2", "3"]}),
        ({"max_params_chars": 9}, {"q": ["1", None]}, {"q": [12, None]}),
        ({"max_items": 3}, {"q": [1, 2]}, {"q": [1, 2, 3]}),
        ({"max_items": 3}, {"q": {"a": 1, "b": 2}}, {"q": {"a": 1, "b": 2}, "c": 3}),
        ({"max_items": 3}, {"q": "[1, 2]"}, {"q": "[1, 2, 3]"}),
        ({"max_depth": 2}, {"q": [1]}, {"q": [[]]}),
        ({"max_params_chars": 170}, {"q": in_json("x" * 90, 4)}, {"q": in_json("x" * 90, 5)}),
        ({"max_depth": 2}, {"q": "[1]"}, {"q": "[[1]]"}),
        ({"max_depth": 64}, {"q": "[" * 40_000}, {"q": "[" * 40_000 + "]" * 40_000}),
    ],
)
def test_a_cap_is_the_last_that_fits(limits: Any, fits: Any, over: Any) -> None:
    guard, _ = make_guard(limits=Limits(**limits))
    assert guard.check_call("alice", "search", fits).allowed
    assert guard.check_call("alice", "search", over).stage == "params"


def test_what_is_far_too_long_is_refused_before_it_is_put_together() -> None:
    guard, _ = make_guard()
    tracemalloc.start()
    refused = guard.check_call("alice", "search", {"q": ["x" * 100_000] * 2_000})
    assert (refused.stage, tracemalloc.get_traced_memory()[1] < 10**7) == ("params", True)
    tracemalloc.stop()


def test_a_tools_rules_may_set_its_own_caps_of_params_and_responses() -> None:
    caps = ToolRules(max_params_chars=200_000, max_response_chars=9)
    guard, _ = make_guard(tools={"search": caps})
    assert guard.check_call("alice", "search", {"q": "x" * 150_000}).allowed
    assert guard.check_call("alice", "search", {"q": "x" * 200_000}).stage == "params"
    assert guard.check_call("alice", "refund", {"q": "x" * 150_000}).stage == "params"
    assert guard.check_response("alice", "search", "x" * 9).allowed
    assert guard.check_response("alice", "search", "x" * 10).stage == "response"
    assert guard.check_response("alice", "refund", "x" * 10).allowed


def test_tool_caller_and_audit_log_have_a_copy_each() -> None:
    inner = ["one"]
    params: dict[str, Any] = {"q": [inner, inner]}
    guard, log = make_guard()
    decision = guard.check_call("alice", "search", params)
    inner.append("two")
    log[0]["parameters"]["q"][0].append("three")
    assert decision.params == {"q": [["one"], ["one"]]}
    decision.params["q"][0].append("four")
    assert decision.params["q"][1] == ["one"]
    assert log[0]["parameters"] == {"q": [["one", "three"], ["one"]]}


def test_what_another_thread_changes_meanwhile_is_not_what_the_tool_gets() -> None:
    inner = ["safe"]

    def redact(text: str) -> str:  # it is called between the copy and the end
        inner[:] = ["../secret"]
        return text

    rules = {"search": ToolRules(refuse_secrets=True)}
    guard, _ = make_guard(blocked_patterns=["../"], redact=redact, tools=rules)
    assert guard.check_call("alice", "search", {"q": inner}).params == {"q": ["safe"]}
    assert inner == ["../secret"]


@in_both_forms
def test_a_secret_is_refused_if_the_tools_rules_say_so(check: Any) -> None:
    guard, log = make_guard(tools={"refund": ToolRules(refuse_secrets=True)})
    for params, where in (
        ({"q": {"to": [0, f"key {SECRET}"]}}, "q.to[1]"),
        ({SECRET: 1}, "[REDACTED]"),
        ({"q": ["", {"SecretAccessKey": "aB3dE5gH/+" * 4}]}, "a key and its value"),
        ({f'"\\u0067{SECRET[1:]}"': 1}, '"[REDACTED]".(JSON)'),
        ({"q": f'{{"a": "\\u0067{SECRET[1:]}"}}'}, "q.(JSON).a"),
        ({"q": f"line\n{SECRET}"}, "q"),
        ({"q": f'{{}}\n{{"a": "\\u0067{SECRET[1:]}"}}'}, "q"),
    ):
        decision = check.call(guard, "alice", "refund", params)
        assert decision.refusal == "Refused (secret): The arguments hold a secret."
        assert log[-1]["detail"] == f"at {where}"
        assert check.call(guard, "alice", "search", params).params == params
    assert SECRET not in json.dumps(log)


def test_a_redact_of_ones_own_sees_each_text_of_json_inside_a_string() -> None:
    rules = {"search": ToolRules(refuse_secrets=True)}
    guard, log = make_guard(tools=rules, redact=lambda text: text if text != "B-17" else "[BADGE]")
    assert guard.check_call("alice", "search", {"q": '{"id": "B-17"}'}).stage == "secret"
    assert log[0]["detail"] == "at q.(JSON).id"


@in_both_forms
def test_what_is_sent_besides_the_arguments_is_checked_alike_and_kept_from_the_tool(
    check: Any,
) -> None:
    guard, log = make_guard(blocked_patterns=["../"])
    extra: dict[str, Any] = {"requestState": "state", "inputResponses": [2]}
    assert check.call(guard, "alice", "search", {"q": 1}, extra=extra).params == {"q": 1}
    assert log[0]["parameters"] == {"q": 1, "requestState": "state", "inputResponses": [2]}
    for state, stage in (("../", "pattern"), ("x" * 100_000, "params"), (b"", "params")):
        extra = {"requestState": state}
        assert check.call(guard, "alice", "search", {"q": 1}, extra=extra).stage == stage
    decision = check.call(guard, "alice", "search", {"requestState": 1}, extra=extra)
    assert (decision.stage, "reserved name" in decision.reason) == ("params", True)


@in_both_forms
def test_the_tool_gets_what_validation_makes_of_its_arguments(check: Any) -> None:
    def validate(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["q"] == "no":
            raise ValueError("q: 'no' is no list. " + "x" * 100_000)
        return {"q": json.loads(arguments["q"])}  # which may be equal, as 1 and true are

    guard, log = make_guard()
    options: dict[str, Any] = {"extra": {"state": 1}, "validate": validate}
    assert check.call(guard, "alice", "search", {"q": "[1]"}, **options).params == {"q": [1]}
    same = check.call(guard, "alice", "search", {"q": 1}, validate=lambda _: {"q": True})
    assert same.params["q"] is True
    decision = check.call(guard, "alice", "search", {"q": "no"}, **options)
    assert decision.refusal == "Refused (params): " + ("q: 'no' is no list. " + "x" * 1_000)[:1_000]
    assert log[2]["parameters"] == {"q": "no", "state": 1}
