"""Whatever a method is given that its signature allows, it returns or raises what README.md says.

The methods and what they take are read from the classes, so that those of a new kernel are met too.
"""

import builtins
import contextlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta, timezone
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.documents import KERNEL, table
from support.parts import ACTIVE, KEY

import agent_mcp_governance as g

# Random expressions are no model of style, and the scanner's detector warns about its rules.
pytestmark = pytest.mark.filterwarnings("ignore")

# Every code point, surrogates too; st.characters() spends seconds on its tables first.
LETTERS = st.sampled_from("aAbx09 _-.=:;/\\\"'<>[]{}()%&@$`\n\t\0é\u200b\ud800") | st.integers(
    0, 0x10FFFF
).map(chr)
# What the kernel's expressions look for, whole and in parts.
FRAGMENTS = st.sampled_from(
    [
        *("sk-", "ABCDEFGHIJKLMNOPQRSTUVWX12", "ghp_", "AKIA", "password", "=", ":", "Bearer "),
        *("token", "eyJhbGciOi", ".eyJzdWIi", "-----BEGIN PRIVATE KEY-----", "alice@example.com"),
        *("123-45-6789", "10.0.0.1", "ignore all previous", "<sys", "tem>", "<system>", "[INST]"),
        *("https://", "user:pass@", "webhook", "; rm", "$(", "a.a." * 10, "8" * 20, '"', "- ", "{"),
    ]
)
TEXT = st.text(LETTERS, max_size=40) | st.lists(FRAGMENTS | LETTERS, max_size=10).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=2)
AWARE = st.datetimes(timezones=st.just(timezone.utc))
TOOLS = st.fixed_dictionaries(
    {"name": TEXT}, optional={"description": TEXT, "inputSchema": OBJECTS}
)
POLICIES = st.dictionaries(st.sampled_from([*vars(g.GovernancePolicy()), "unknown"]), JSON)
# What stands in a signature, and for some parameters the name, since Any says nothing.
TAKES: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "str | None": st.none() | TEXT,
    "bool": st.booleans(),
    "int": st.integers(),
    "float": st.floats(),
    "bytes": st.binary(max_size=64),
    "Any": JSON,
    "str | Any": TEXT | JSON,
    "dict[str, Any]": OBJECTS,
    "dict[str, Any] | None": st.none() | OBJECTS,
    "list[dict[str, Any]]": st.lists(TOOLS, max_size=3),
    "datetime": AWARE,
    "timedelta": st.timedeltas(max_value=timedelta(days=999_999)),
    "GovernancePolicy": st.builds(g.GovernancePolicy, allowed_tools=st.lists(TEXT, max_size=2)),
    "MCPSignedEnvelope": st.builds(
        g.MCPSignedEnvelope, JSON, JSON, AWARE | st.datetimes(), JSON, JSON
    ),
    "session": st.builds(g.MCPSession, TEXT, TEXT, TEXT, AWARE, st.none() | AWARE, TEXT),
    "data": POLICIES,
    "yaml_str": TEXT | POLICIES.map(json.dumps),
}
MADE_WITH: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "GovernancePolicy": st.fixed_dictionaries(
        {"blocked_patterns": st.lists(st.tuples(TEXT, st.sampled_from(g.PatternType)), max_size=2)}
    ),
    "MCPGateway": st.just({"policy": g.GovernancePolicy(blocked_patterns=["evil"])}),
    "MCPMessageSigner": st.just({"signing_key": KEY}),
}
METHODS = [
    (name, method)
    for name, methods in ACTIVE.items()
    for method, text in methods.items()
    if "(" in text and not text.startswith("property") and "filepath" not in text
]


def arguments(function: Callable[..., Any], data: st.DataObject) -> dict[str, Any]:
    """Draw what the signature asks for, and what else of it is known here."""
    drawn = {}
    for name, parameter in inspect.signature(function).parameters.items():
        takes = TAKES.get(name) or TAKES.get(parameter.annotation)
        assert takes or parameter.default is not parameter.empty, f"what is {parameter}?"
        if takes:
            drawn[name] = data.draw(takes)
    return drawn


def errors_of(name: str) -> tuple[type[Exception], ...]:
    cells = [raises for row, _, raises in table(KERNEL, "Errors") if row == f"`{name}`"]
    names = {cell.strip("`") for cell in cells if cell.startswith("`")}
    return tuple(getattr(yaml, error, None) or getattr(builtins, error) for error in names)


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Keep half surrogate pairs out of the report, which cannot carry them."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("name", "method"), METHODS)
@settings(derandomize=True, deadline=None, database=None, max_examples=15)
@given(data=st.data())
def test_a_method_returns_or_raises_what_is_documented(name: str, method: str, data: Any) -> None:
    thing = getattr(g, name)
    with contextlib.suppress(*errors_of(name)):
        if method != "__init__":
            thing = getattr(thing(**data.draw(MADE_WITH.get(name, st.just({})))), method)
        thing(**arguments(thing, data))


def test_everything_that_does_something_is_met_but_the_reader_of_a_file() -> None:
    assert ACTIVE.keys() - {name for name, _ in METHODS} == {"load_mcp_security_config"}
    assert len(METHODS) > 60
