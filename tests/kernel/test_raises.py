"""What each class raises, and on which input: the table of errors in README.md, row by row.

The document says what is raised; here stand the calls that show it.
"""

import builtins
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import yaml
from support.documents import KERNEL, table
from support.parts import (
    ACTIVE,
    KEY,
    Down,
    Unprintable,
    blocks,
    circular,
    gateway,
    loaded,
    nested,
    refuses,
)
from support.parts import scanner as tools

import agent_mcp_governance as g

# Redaction is written in Python and counts frames; what is written in C takes far more.
DEEP, VERY_DEEP = nested(1_200), nested(100_000)
ENVELOPE, RULES = g.MCPMessageSigner(KEY).sign_message("x"), g.MCPSecurityConfig()
redact, from_yaml = g.CredentialRedactor.redact_mapping, g.GovernancePolicy.from_yaml
policy, signer = g.GovernancePolicy, partial(g.MCPMessageSigner, KEY)
sessions, limiter = g.MCPSessionAuthenticator, g.MCPSlidingRateLimiter
responses, broken_sessions = g.MCPResponseScanner(), sessions(session_store=Down())


def ask(reviewer: Any) -> bool:
    return refuses(gateway(sensitive_tools=["tool"], approval_callback=reviewer))


def valid(envelope: Any, **options: Any) -> bool:
    return signer(**options).verify_message(envelope).is_valid


def register(description: Any = "d", schema: Any = None, **options: Any) -> None:
    tools(**options).register_tool("tool", description, schema, "server")


def open_two(**options: Any) -> None:
    authenticator = sessions(**options)
    authenticator.create_session("agent")
    authenticator.create_session("agent")


def bind_twice() -> None:
    authenticator = sessions()
    for agent in ("alice", "bob"):
        authenticator.bootstrap_session(agent, "token", ttl=timedelta(days=1))


CASES: dict[str, dict[str, Callable[[], object]]] = {
    "CredentialRedactor": {
        "a circular structure": lambda: redact(circular()),
        "a deep structure": lambda: redact(DEEP),
    },
    "GovernancePolicy": {
        "a bad number": lambda: policy(max_tool_calls=-1),
        "a tool list that is no list": lambda: policy(allowed_tools="read"),
        "a bad regular expression": lambda: policy(blocked_patterns=[("(", g.PatternType.REGEX)]),
        "YAML that is no mapping": lambda: from_yaml("- a"),
        "YAML with a bad value": lambda: from_yaml("allowed_tools: null"),
        "YAML with `blocked_patterns: null`": lambda: from_yaml("blocked_patterns: null"),
        "text that is no YAML": lambda: from_yaml("a: ["),
        "a file that is not there": lambda: policy.load("missing.yaml"),
    },
    "InMemoryNonceStore": {"a size of zero or less": lambda: g.InMemoryNonceStore(max_entries=0)},
    "InMemorySessionStore": {
        "a session without a token": lambda: g.InMemorySessionStore().set(None)
    },
    "MCPGateway": {
        "an approval answer `True`": lambda: ask(lambda *_: True),
        "circular params": lambda: refuses(gateway(), circular()),
        "deep params": lambda: refuses(gateway(), DEEP),
        "a very deep response": lambda: blocks(VERY_DEEP),
        "a response whose text raises": lambda: blocks(Unprintable()),
        "an audit sink that raises": lambda: refuses(gateway(audit_sink=Down())),
        "a metrics recorder that raises": lambda: refuses(gateway(metrics=Down())),
        "a clock that raises": lambda: refuses(gateway(clock=Down())),
        "params that are no JSON": lambda: refuses(gateway(), {(1, 2): 3}),
        "a store that raises during a call": lambda: refuses(gateway(rate_limit_store=Down())),
        "an approval callback that raises": lambda: ask(Down()),
    },
    "MCPMessageSigner": {
        "a key that is `None`": lambda: g.MCPMessageSigner(None),
        "a key of fewer than 32 bytes": lambda: g.MCPMessageSigner(b"x" * 31),
        "a key that is no base64": lambda: g.MCPMessageSigner.from_base64_key("not base64!!"),
        "a window of zero or less": lambda: signer(replay_window=timedelta(0)),
        "a blank payload": lambda: signer().sign_message(" "),
        "a payload with half a surrogate pair": lambda: signer().sign_message("\ud800"),
        "`None` for an envelope": lambda: valid(None),
        "anything else for an envelope": lambda: not valid("x"),
        "a nonce store that raises": lambda: not valid(ENVELOPE, nonce_store=Down()),
    },
    "MCPMetrics": {
        "a meter provider that raises": lambda: not refuses(gateway(metrics=g.MCPMetrics(Down())))
    },
    "MCPResponseScanner": {
        "a response that is no text": lambda: not responses.scan_response(b"x").is_safe,
        "no text to sanitize": lambda: responses.sanitize_response(5)[0] == "",
    },
    "MCPSecurityScanner": {
        "being made while warnings are errors": lambda: g.MCPSecurityScanner(config=RULES),
        "registering a circular schema": lambda: register(schema=circular()),
        "registering half a surrogate pair": lambda: register("\ud800"),
        "registering a very deep schema": lambda: register(schema=VERY_DEEP),
        "a clock that raises": lambda: register(clock=Down()),
        "a metrics recorder that raises in `scan_server`": (
            lambda: tools(metrics=Down()).scan_server("server", [])
        ),
        "`scan_tool` of what cannot be scanned": lambda: len(tools().scan_tool("tool", None)) == 1,
        "an audit sink that raises in `scan_tool`": (
            lambda: len(tools(audit_sink=Down()).scan_tool("tool", "d")) == 1
        ),
    },
    "MCPSessionAuthenticator": {
        "a lifetime of zero or less": lambda: sessions(session_ttl=timedelta(0)),
        "a lifetime beyond the calendar": lambda: open_two(session_ttl=timedelta(days=10**8)),
        "a blank id, when a session is made": lambda: sessions().create_session(" "),
        "one session too many": lambda: open_two(max_concurrent_sessions=1),
        "a provisioned token that is bound already": bind_twice,
        "a store that raises when a session is made": lambda: broken_sessions.create_session("a"),
        "a store that raises when one is revoked": lambda: broken_sessions.revoke_session("token"),
        "a wrong, blank or unknown token": lambda: (
            sessions().validate_session("", "") is sessions().validate_token("token") is None
        ),
        "a store that raises when a token is validated": (
            lambda: broken_sessions.validate_token("token") is None
        ),
    },
    "MCPSlidingRateLimiter": {
        "a window of zero or less": lambda: limiter(window_size=0),
        "a blank id": lambda: limiter().try_acquire(" "),
        "a store that raises": lambda: limiter(rate_limit_store=Down()).try_acquire("a"),
        "a clock that raises": lambda: limiter(clock=Down()).try_acquire("a"),
    },
    "load_mcp_security_config": {
        "a file that is not there": lambda: g.load_mcp_security_config("missing.yaml"),
        "a file that is no YAML": lambda: loaded("a: ["),
        "a file without `detection_patterns`": lambda: loaded("a: 1"),
        "an empty `detection_patterns`": lambda: loaded("detection_patterns:"),
    },
}
# Of a type that the signature does not name. Only what decides on a call fails closed instead.
WRONG_TYPES: list[Callable[[], object]] = [
    lambda: g.CredentialRedactor.redact(b"x"),
    lambda: redact([1]),
    lambda: g.InMemoryAuditSink().record(None),
    lambda: g.InMemoryRateLimitStore().set_bucket(["agent"], 1),
    lambda: refuses(g.MCPGateway(None)),
    lambda: signer(replay_window=5),
    lambda: signer().sign_message(5),
    lambda: register(None),
    lambda: sessions(session_ttl=5),
    lambda: sessions().validate_token(5),
    lambda: limiter().try_acquire(5),
]
HEAD, *ROWS = table(KERNEL, "Errors")


def error_named(cell: str) -> type[Exception]:
    """Return the error that a cell names; a part of one's own raises an OSError here."""
    name = "OSError" if cell == "what that raises" else cell.strip("`")
    return getattr(yaml, name, None) or getattr(builtins, name)


def check_raises(error: Any, action: Callable[[], object]) -> None:
    with pytest.raises(error) as caught:
        action()
    assert any("agent_os" in str(entry.path) for entry in caught.traceback)  # not only ours


@pytest.mark.parametrize(("name", "given", "raises"), ROWS, ids=lambda cell: cell)
def test_a_class_raises_what_the_table_says(name: str, given: str, raises: str) -> None:
    action = CASES[name.strip("`")][given]
    if raises.startswith("nothing: "):
        assert action() is True
    else:
        check_raises(error_named(raises), action)


@pytest.mark.parametrize("action", WRONG_TYPES, ids=lambda a: f"line {a.__code__.co_firstlineno}")
def test_a_wrong_type_raises_type_error_or_attribute_error(action: Callable[[], object]) -> None:
    check_raises((TypeError, AttributeError), action)


def test_the_table_of_errors_has_each_row_once() -> None:
    rows = [[f"`{name}`", given] for name, cases in CASES.items() for given in cases]
    assert [row[:2] for row in ROWS] == rows


def test_what_does_something_has_a_row_or_raises_for_wrong_types_only() -> None:
    assert ACTIVE.keys() - CASES.keys() == {"InMemoryAuditSink", "InMemoryRateLimitStore"}
