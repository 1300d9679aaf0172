"""What each class raises, on which input: the data behind the table of errors in the README."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT

import agent_mcp_governance
from agent_mcp_governance import (
    ApprovalStatus,
    AuditEntry,
    CredentialMatch,
    CredentialPattern,
    CredentialRedactor,
    GatewayConfig,
    GovernancePolicy,
    InMemoryAuditSink,
    InMemoryNonceStore,
    InMemoryRateLimitStore,
    InMemorySessionStore,
    MCPAuditSink,
    MCPGateway,
    MCPMessageSigner,
    MCPMetrics,
    MCPMetricsRecorder,
    MCPNonceStore,
    MCPRateLimitStore,
    MCPResponseDecision,
    MCPResponseScanner,
    MCPResponseScanResult,
    MCPResponseThreat,
    MCPSecurityConfig,
    MCPSecurityScanner,
    MCPSession,
    MCPSessionAuthenticator,
    MCPSessionStore,
    MCPSeverity,
    MCPSignedEnvelope,
    MCPSlidingRateLimiter,
    MCPThreat,
    MCPThreatType,
    MCPVerificationResult,
    PatternType,
    ResponsePolicy,
    ScanResult,
    ToolFingerprint,
    load_mcp_security_config,
)

README = ROOT / "README.md"
KEY = b"0123456789abcdef" * 2
NOW = datetime.now(timezone.utc)


class Down:
    """Any store, sink, recorder or clock, out of order."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        raise OSError("out of order")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: each case is a call, and what its message matches or what it returns."""

    names: str
    given: str
    raises: type[Exception] | None
    cases: dict[str, tuple[Callable[[], object], Any]]


def policy(**fields: Any) -> GovernancePolicy:
    return GovernancePolicy(**fields)


def gateway(**options: Any) -> MCPGateway:
    return MCPGateway(GovernancePolicy(), **options)


def call(gateway: MCPGateway, params: Any = None, tool: str = "tool") -> object:
    return gateway.intercept_tool_call("agent", tool, {} if params is None else params)


def signer(**options: Any) -> MCPMessageSigner:
    return MCPMessageSigner(KEY, **options)


def sessions(**options: Any) -> MCPSessionAuthenticator:
    return MCPSessionAuthenticator(**options)


def limiter(**options: Any) -> MCPSlidingRateLimiter:
    return MCPSlidingRateLimiter(**options)


def scanner(**options: Any) -> MCPSecurityScanner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MCPSecurityScanner(**{"config": MCPSecurityConfig(), **options})


def load(text: str) -> MCPSecurityConfig:
    Path("rules.yaml").write_text(text)  # the test has changed to a directory of its own
    return load_mcp_security_config("rules.yaml")


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def deep() -> dict[str, Any]:
    value: Any = "value"
    for _ in range(100_000):
        value = [value]
    return {"key": value}


def unhashable(store: InMemoryRateLimitStore) -> None:
    store.set_bucket(["agent"], 1)  # type: ignore[arg-type]


def one_session_too_many() -> None:
    authenticator = sessions(max_concurrent_sessions=1)
    authenticator.create_session("agent")
    authenticator.create_session("agent")


def a_token_bound_twice() -> None:
    authenticator = sessions()
    for agent in ("alice", "bob"):
        authenticator.bootstrap_session(agent, "token", ttl=timedelta(days=1))


def a_store_that_fails_later(use: Callable[[MCPSessionAuthenticator], object]) -> None:
    class Store(InMemorySessionStore):
        get = delete = Down()

    authenticator = sessions(session_store=Store())
    authenticator.create_session("agent")
    use(authenticator)


def a_naive_expiry() -> None:
    store = InMemoryNonceStore()
    store.add("nonce", datetime(2030, 1, 1))
    store.has("nonce")


def a_limiter_after_a_gateway() -> None:
    store = InMemoryRateLimitStore()
    call(gateway(rate_limit_store=store))
    limiter(rate_limit_store=store).try_acquire("agent")


def a_gateway_after_a_limiter() -> None:
    store = InMemoryRateLimitStore()
    limiter(rate_limit_store=store).try_acquire("agent")
    gateway(rate_limit_store=store).get_agent_call_count("agent")


def a_reset_while_an_agent_comes() -> None:
    class Store(InMemoryRateLimitStore):
        def set_bucket(self, agent_id: str, bucket: Any) -> None:
            super().set_bucket(agent_id, bucket)
            if coming:
                governed.intercept_tool_call(coming.pop(), "tool", {})

    coming: list[str] = []
    governed = gateway(rate_limit_store=Store())
    governed.reset_agent_budget("old")
    coming.append("new")
    governed.reset_all_budgets()


def an_answer(value: object) -> object:
    return call(gateway(sensitive_tools=["pay"], approval_callback=lambda *_: value), tool="pay")


class Unprintable:
    def __str__(self) -> str:
        raise OSError("out of order")


MATCH = CredentialMatch("name", "text")
PATTERN = CredentialPattern("name", re.compile("x"))
SCANNED = MCPResponseScanResult.safe("tool")
THREAT = MCPResponseThreat("category", "description")
SESSION = MCPSession("token", "agent", None, NOW, None, "agent")
ENVELOPE = MCPSignedEnvelope("payload", "nonce", NOW, "signature")
VERIFIED = MCPVerificationResult.failed("reason")
ENUMS: list[Any] = [ApprovalStatus, MCPSeverity, MCPThreatType, PatternType, ResponsePolicy]
PROTOCOLS: list[Any] = [
    MCPAuditSink,
    MCPMetricsRecorder,
    MCPNonceStore,
    MCPRateLimitStore,
    MCPSessionStore,
]
FROZEN: list[Any] = [MATCH, PATTERN, SCANNED, THREAT, SESSION, ENVELOPE, VERIFIED]
RECORDS: list[Any] = [
    AuditEntry,
    CredentialMatch,
    CredentialPattern,
    GatewayConfig,
    MCPResponseDecision,
    MCPResponseScanResult,
    MCPResponseThreat,
    MCPSecurityConfig,
    MCPSession,
    MCPSignedEnvelope,
    MCPThreat,
    MCPVerificationResult,
    ScanResult,
    ToolFingerprint,
]


def names(values: list[Any]) -> str:
    return " ".join(value.__name__ for value in values)


TABLE = [
    Row(
        names(ENUMS),
        "a value that is not a member's",
        ValueError,
        {kind.__name__: (partial(kind, "other"), "is not a valid") for kind in ENUMS},
    ),
    Row(
        names(PROTOCOLS),
        "an instance of it, or `isinstance` with it",
        TypeError,
        {kind.__name__: (kind, "Protocols cannot be instantiated") for kind in PROTOCOLS}
        | {
            f"isinstance {kind.__name__}": (partial(isinstance, 1, kind), "runtime_checkable")
            for kind in PROTOCOLS
        },
    ),
    Row(
        names(RECORDS),
        "an unknown field",
        TypeError,
        {kind.__name__: (partial(kind, other=1), "argument") for kind in RECORDS},
    ),
    Row(
        names([type(record) for record in FROZEN]),
        "assignment to a field",
        FrozenInstanceError,
        {
            type(record).__name__: (
                partial(setattr, record, dataclasses.fields(record)[0].name, 1),
                "cannot assign to field",
            )
            for record in FROZEN
        },
    ),
    Row(
        "AuditEntry",
        "`to_dict()` with an approval status that is no `ApprovalStatus`",
        AttributeError,
        {"text": (AuditEntry(1, "a", "t", {}, True, "", "approved").to_dict, "value")},  # type: ignore[arg-type]
    ),
    Row(
        "CredentialRedactor",
        "bytes or a number where text is due",
        TypeError,
        {
            "redact bytes": (lambda: CredentialRedactor.redact(b"x"), "bytes-like"),  # type: ignore[arg-type]
            "redact number": (lambda: CredentialRedactor.redact(5), "expected string"),  # type: ignore[arg-type]
            "find bytes": (lambda: CredentialRedactor.find_matches(b"x"), "bytes-like"),  # type: ignore[arg-type]
            "pii number": (lambda: CredentialRedactor.find_pii_matches(5), "expected string"),  # type: ignore[arg-type]
        },
    ),
    Row(
        "CredentialRedactor",
        "a list where `redact_mapping` expects a dict",
        AttributeError,
        {"list": (lambda: CredentialRedactor.redact_mapping([1]), "items")},  # type: ignore[arg-type]
    ),
    Row(
        "CredentialRedactor",
        "a circular or very deep structure",
        RecursionError,
        {
            "circular": (lambda: CredentialRedactor.redact_mapping(circular()), "recursion"),
            "deep": (lambda: CredentialRedactor.redact_data_structure(deep()), "recursion"),
        },
    ),
    Row(
        "GovernancePolicy",
        "a bad number, tool list, pattern list, regular expression or version; "
        "YAML that is no mapping",
        ValueError,
        {
            "budget": (lambda: policy(max_tool_calls=-1), "non-negative integer, got -1"),
            "budget text": (lambda: policy(max_tool_calls="5"), "non-negative integer, got '5'"),
            "tokens": (lambda: policy(max_tokens=0), "max_tokens must be a positive integer"),
            "timeout": (lambda: policy(timeout_seconds=1.5), "timeout_seconds must be a positive"),
            "concurrent": (lambda: policy(max_concurrent=0), "max_concurrent must be a positive"),
            "confidence": (lambda: policy(confidence_threshold=1.1), "between 0.0 and 1.0"),
            "drift": (lambda: policy(drift_threshold="x"), "between 0.0 and 1.0"),
            "tools": (lambda: policy(allowed_tools="read"), "allowed_tools must be a list"),
            "tool": (lambda: policy(allowed_tools=[1]), r"allowed_tools\[0\] must be a string"),
            "patterns": (lambda: policy(blocked_patterns="x"), "blocked_patterns must be a list"),
            "pattern": (lambda: policy(blocked_patterns=[1]), r"blocked_patterns\[0\] must be"),
            "kind": (lambda: policy(blocked_patterns=[("x", "regex")]), "must be a PatternType"),
            "regex": (
                lambda: policy(blocked_patterns=[("(", PatternType.REGEX)]),
                "invalid regex",
            ),
            "version": (lambda: policy(version=""), "version must be a non-empty string"),
            "yaml list": (lambda: GovernancePolicy.from_yaml("- a"), "Expected a YAML mapping"),
            "yaml null": (
                lambda: GovernancePolicy.from_yaml("allowed_tools: null"),
                "allowed_tools must be a list",
            ),
            "dict entry": (
                lambda: GovernancePolicy.from_dict({"blocked_patterns": [5]}),
                "Invalid blocked_pattern entry",
            ),
            "dict kind": (
                lambda: GovernancePolicy.from_dict(
                    {"blocked_patterns": [{"pattern": "a", "type": "other"}]}
                ),
                "Unknown pattern type",
            ),
        },
    ),
    Row(
        "GovernancePolicy",
        "an unknown argument; `blocked_patterns: null` in YAML; bytes to `matches_pattern`",
        TypeError,
        {
            "argument": (lambda: policy(max_calls=1), "unexpected keyword argument"),
            "null": (lambda: GovernancePolicy.from_yaml("blocked_patterns: null"), "not iterable"),
            "bytes": (
                lambda: policy(blocked_patterns=["x"]).matches_pattern(b"x"),  # type: ignore[arg-type]
                "bytes-like",
            ),
        },
    ),
    Row(
        "GovernancePolicy",
        "`None` or a number to `matches_pattern`",
        AttributeError,
        {
            "none": (lambda: policy(blocked_patterns=["x"]).matches_pattern(None), "lower"),  # type: ignore[arg-type]
            "number": (lambda: policy(blocked_patterns=["x"]).matches_pattern(5), "lower"),  # type: ignore[arg-type]
        },
    ),
    Row(
        "GovernancePolicy",
        "`load` of a file that is not there",
        FileNotFoundError,
        {"load": (lambda: GovernancePolicy.load("missing.yaml"), "missing.yaml")},
    ),
    Row(
        "GovernancePolicy",
        "text that is no YAML",
        yaml.YAMLError,
        {"yaml": (lambda: GovernancePolicy.from_yaml("a: ["), "expected the node content")},
    ),
    Row(
        "InMemoryAuditSink",
        "an entry that is no mapping",
        TypeError,
        {"none": (lambda: InMemoryAuditSink().record(None), "not iterable")},  # type: ignore[arg-type]
    ),
    Row(
        "InMemoryNonceStore",
        "a size of zero or less",
        ValueError,
        {"size": (lambda: InMemoryNonceStore(max_entries=0), "max_entries must be positive")},
    ),
    Row(
        "InMemoryNonceStore",
        "a naive expiry, when it is compared",
        TypeError,
        {"naive": (a_naive_expiry, "offset-naive and offset-aware")},
    ),
    Row(
        "InMemoryRateLimitStore",
        "an id that cannot be hashed",
        TypeError,
        {"list": (lambda: unhashable(InMemoryRateLimitStore()), "unhashable type")},
    ),
    Row(
        "InMemorySessionStore",
        "a session without a token",
        ValueError,
        {
            "none": (lambda: InMemorySessionStore().set(None), "non-empty string token"),
            "empty": (
                lambda: InMemorySessionStore().set(dataclasses.replace(SESSION, token="")),
                "non-empty string token",
            ),
        },
    ),
    Row(
        "MCPGateway",
        "options by position; a count from a store that a limiter used",
        TypeError,
        {
            "position": (lambda: MCPGateway(policy(), ["tool"]), "positional argument"),  # type: ignore[call-arg]
            "count": (a_gateway_after_a_limiter, "int"),
        },
    ),
    Row(
        "MCPGateway",
        "a policy that is none, at the first call; an approval answer that is true but no "
        "`ApprovalStatus`, a coroutine included",
        AttributeError,
        {
            "none": (lambda: call(MCPGateway(None)), "log_all_calls"),  # type: ignore[arg-type]
            "wrap": (lambda: MCPGateway.wrap_mcp_server({}, None), "name"),  # type: ignore[arg-type]
            "true": (lambda: an_answer(True), "value"),
            "text": (lambda: an_answer("denied"), "value"),
        },
    ),
    Row(
        "MCPGateway",
        "circular or very deep params; a very deep response",
        RecursionError,
        {
            "circular": (lambda: call(gateway(), circular()), "recursion"),
            "deep": (lambda: call(gateway(), deep()), "recursion"),
            "response": (
                lambda: gateway().intercept_tool_response("agent", "tool", deep()),
                "recursion",
            ),
        },
    ),
    Row(
        "MCPGateway",
        "`reset_all_budgets` while another thread brings a new agent",
        RuntimeError,
        {"reset": (a_reset_while_an_agent_comes, "changed size during iteration")},
    ),
    Row(
        "MCPGateway",
        "an audit sink, metrics recorder, clock, or response whose text raises it; "
        "whatever they raise passes through",
        OSError,
        {
            "sink": (lambda: call(gateway(audit_sink=Down())), "out of order"),
            "metrics": (lambda: call(gateway(metrics=Down())), "out of order"),
            "clock": (lambda: call(gateway(clock=Down())), "out of order"),
            "count": (
                lambda: gateway(rate_limit_store=Down()).get_agent_call_count("agent"),
                "out of order",
            ),
            "response": (
                lambda: gateway().intercept_tool_response("agent", "tool", Unprintable()),
                "out of order",
            ),
        },
    ),
    Row(
        "MCPGateway",
        "params that are no JSON, a broken store, an approval callback that raises: "
        "the call is denied",
        None,
        {
            "keys": (
                lambda: call(gateway(), {(1, 2): 3}),
                (False, "Internal gateway error — access denied (fail closed)"),
            ),
            "store": (
                lambda: call(gateway(rate_limit_store=Down())),
                (False, "Internal gateway error — access denied (fail closed)"),
            ),
            "approval": (
                lambda: call(
                    gateway(sensitive_tools=["pay"], approval_callback=Down()), tool="pay"
                ),
                (False, "Approval callback error — access denied (fail closed)"),
            ),
        },
    ),
    Row(
        "MCPMessageSigner",
        "a key that is none, short or no base64; a window, interval or size of zero or less; "
        "a payload that is none, blank or no UTF-8; an envelope that is none",
        ValueError,
        {
            "key": (lambda: MCPMessageSigner(None), "signing_key must not be None"),  # type: ignore[arg-type]
            "short": (lambda: MCPMessageSigner(b"x" * 31), "at least 32 bytes"),
            "window": (
                lambda: signer(replay_window=timedelta(0)),
                "replay_window must be positive",
            ),
            "interval": (
                lambda: signer(nonce_cache_cleanup_interval=timedelta(0)),
                "nonce_cache_cleanup_interval must be positive",
            ),
            "size": (lambda: signer(max_nonce_cache_size=0), "max_nonce_cache_size must be"),
            "payload": (lambda: signer().sign_message(None), "payload must not be None"),  # type: ignore[arg-type]
            "blank": (lambda: signer().sign_message(" "), "payload must not be empty"),
            "surrogate": (lambda: signer().sign_message("\ud800"), "surrogates not allowed"),
            "envelope": (lambda: signer().verify_message(None), "envelope must not be None"),  # type: ignore[arg-type]
            "no base64": (lambda: MCPMessageSigner.from_base64_key("not base64!!"), "(?i)base64"),
            "empty base64": (lambda: MCPMessageSigner.from_base64_key(""), "must not be empty"),
            "short base64": (lambda: MCPMessageSigner.from_base64_key("YWJj"), "32 bytes"),
        },
    ),
    Row(
        "MCPMessageSigner",
        "a number for a key; a window that is no `timedelta`, a size that is no number; "
        "a text for a key, when it signs",
        TypeError,
        {
            "number": (lambda: MCPMessageSigner(5), "no len"),  # type: ignore[arg-type]
            "text": (lambda: MCPMessageSigner("k" * 32).sign_message("x"), "bytes or bytearray"),  # type: ignore[arg-type]
            "window": (lambda: signer(replay_window=5), "not supported between"),
            "size": (lambda: signer(max_nonce_cache_size="5"), "not supported between"),
        },
    ),
    Row(
        "MCPMessageSigner",
        "a payload that is no text; bytes to `from_base64_key`",
        AttributeError,
        {
            "payload": (lambda: signer().sign_message(5), "strip"),  # type: ignore[arg-type]
            "bytes": (lambda: MCPMessageSigner.from_base64_key(b"YWJj"), "encode"),  # type: ignore[arg-type]
        },
    ),
    Row(
        "MCPMessageSigner",
        "any other envelope, a broken nonce store: the message is not valid",
        None,
        {
            "text": (lambda: signer().verify_message("x").is_valid, False),  # type: ignore[arg-type]
            "naive": (
                lambda: (
                    signer()
                    .verify_message(
                        dataclasses.replace(ENVELOPE, timestamp=NOW.replace(tzinfo=None))
                    )
                    .is_valid
                ),
                False,
            ),
            "store": (
                lambda: (
                    signer(nonce_store=Down()).verify_message(signer().sign_message("x")).is_valid
                ),
                False,
            ),
        },
    ),
    Row(
        "MCPMetrics",
        "labels by position, or left out",
        TypeError,
        {
            "position": (lambda: MCPMetrics().record_decision(True), "argument"),  # type: ignore[call-arg]
            "left out": (lambda: MCPMetrics().record_scan(operation="scan"), "argument"),  # type: ignore[call-arg]
        },
    ),
    Row(
        "MCPMetrics",
        "a meter provider that raises: metrics are off",
        None,
        {
            "provider": (
                lambda: MCPMetrics(Down()).record_rate_limit_hit(agent_id="a", tool_name="t"),
                None,
            )
        },
    ),
    Row(
        "MCPResponseScanner",
        "anything: what cannot be scanned is not safe, what cannot be sanitized is empty",
        None,
        {
            "bytes": (lambda: MCPResponseScanner().scan_response(b"x").is_safe, False),  # type: ignore[arg-type]
            "number": (lambda: MCPResponseScanner().scan_response(5).is_safe, False),  # type: ignore[arg-type]
            "sanitize": (lambda: MCPResponseScanner().sanitize_response(5)[0], ""),  # type: ignore[arg-type]
        },
    ),
    Row(
        "MCPSecurityScanner",
        "being made while warnings are errors, with a config or without",
        UserWarning,
        {
            "without": (MCPSecurityScanner, "built-in sample rules"),
            "with": (
                lambda: MCPSecurityScanner(config=MCPSecurityConfig()),
                "built-in sample rules",
            ),
        },
    ),
    Row(
        "MCPSecurityScanner",
        "a config of another type; a tool list entry that is no mapping; "
        "`register_tool` without a description",
        AttributeError,
        {
            "config": (lambda: scanner(config="x"), "has no attribute"),
            "entry": (lambda: scanner().scan_server("server", ["tool"]), "get"),  # type: ignore[list-item]
            "description": (
                lambda: scanner().register_tool("tool", None, None, "server"),  # type: ignore[arg-type]
                "encode",
            ),
        },
    ),
    Row(
        "MCPSecurityScanner",
        "a tool list that is none; `register_tool` with a schema whose keys are of several types",
        TypeError,
        {
            "list": (lambda: scanner().scan_server("server", None), "not iterable"),  # type: ignore[arg-type]
            "keys": (
                lambda: scanner().register_tool("tool", "d", {1: 1, "a": 2}, "server"),  # type: ignore[dict-item]
                "not supported between",
            ),
        },
    ),
    Row(
        "MCPSecurityScanner",
        "`register_tool` with a circular schema, or a description that is no UTF-8",
        ValueError,
        {
            "circular": (
                lambda: scanner().register_tool("tool", "d", circular(), "server"),
                "Circular reference",
            ),
            "surrogate": (
                lambda: scanner().register_tool("tool", "\ud800", None, "server"),
                "surrogates not allowed",
            ),
        },
    ),
    Row(
        "MCPSecurityScanner",
        "`register_tool` with a very deep schema",
        RecursionError,
        {"deep": (lambda: scanner().register_tool("t", "d", deep(), "server"), "recursion")},
    ),
    Row(
        "MCPSecurityScanner",
        "a clock, or in `scan_server` a metrics recorder, that raises it; "
        "whatever they raise passes through",
        OSError,
        {
            "clock": (
                lambda: scanner(clock=Down()).register_tool("t", "d", None, "server"),
                "out of order",
            ),
            "metrics": (
                lambda: scanner(metrics=Down()).scan_server("server", []),
                "out of order",
            ),
        },
    ),
    Row(
        "MCPSecurityScanner",
        "anything to `scan_tool`: what cannot be scanned is a threat",
        None,
        {
            "description": (
                lambda: [t.message for t in scanner().scan_tool("tool", None)],  # type: ignore[arg-type]
                ["Scan error — fail closed"],
            ),
            "sink": (
                lambda: [t.message for t in scanner(audit_sink=Down()).scan_tool("tool", "d")],
                ["Scan error — fail closed"],
            ),
        },
    ),
    Row(
        "MCPSessionAuthenticator",
        "a lifetime or number of sessions of zero or less; a blank agent id or token when a "
        "session is made",
        ValueError,
        {
            "ttl": (lambda: sessions(session_ttl=timedelta(0)), "session_ttl must be positive"),
            "number": (
                lambda: sessions(max_concurrent_sessions=0),
                "max_concurrent_sessions must be positive",
            ),
            "agent": (lambda: sessions().create_session(" "), "agent_id must not be empty"),
            "token": (
                lambda: sessions().bootstrap_session("agent", " ", ttl=timedelta(1)),
                "session_token must not be empty",
            ),
            "token ttl": (
                lambda: sessions().bootstrap_session("agent", "token", ttl=timedelta(0)),
                "ttl must be positive",
            ),
        },
    ),
    Row(
        "MCPSessionAuthenticator",
        "one session too many; a provisioned token that is bound already",
        RuntimeError,
        {
            "limit": (one_session_too_many, r"exceeded maximum concurrent sessions \(1\)"),
            "bound": (a_token_bound_twice, "already bound to an active session"),
        },
    ),
    Row(
        "MCPSessionAuthenticator",
        "a lifetime that is no `timedelta`, or left out for a provisioned token",
        TypeError,
        {
            "ttl": (lambda: sessions(session_ttl=5), "not supported between"),
            "number": (lambda: sessions(max_concurrent_sessions="3"), "not supported between"),
            "left out": (
                lambda: sessions().bootstrap_session("agent", "token"),  # type: ignore[call-arg]
                "keyword-only argument: 'ttl'",
            ),
        },
    ),
    Row(
        "MCPSessionAuthenticator",
        "an agent id or token that is no text",
        AttributeError,
        {
            "create": (lambda: sessions().create_session(5), "strip"),  # type: ignore[arg-type]
            "agent": (lambda: sessions().validate_session(5, "token"), "strip"),  # type: ignore[arg-type]
            "token": (lambda: sessions().validate_token(5), "strip"),  # type: ignore[arg-type]
        },
    ),
    Row(
        "MCPSessionAuthenticator",
        "a lifetime beyond the calendar, when a session is made",
        OverflowError,
        {
            "ttl": (
                lambda: sessions(session_ttl=timedelta(days=10**8)).create_session("agent"),
                "out of range",
            )
        },
    ),
    Row(
        "MCPSessionAuthenticator",
        "a store that raises it when sessions are made or revoked; "
        "whatever it raises passes through",
        OSError,
        {
            "first": (lambda: sessions(session_store=Down()).create_session("a"), "out of order"),
            "create": (
                lambda: a_store_that_fails_later(lambda a: a.create_session("agent")),
                "out of order",
            ),
            "revoke": (
                lambda: a_store_that_fails_later(lambda a: a.revoke_session("token")),
                "out of order",
            ),
            "revoke all": (
                lambda: a_store_that_fails_later(lambda a: a.revoke_all_sessions("agent")),
                "out of order",
            ),
        },
    ),
    Row(
        "MCPSessionAuthenticator",
        "a wrong, blank or unknown token, a broken store when one is validated: `None`",
        None,
        {
            "blank": (lambda: sessions().validate_session("", ""), None),
            "unknown": (lambda: sessions().validate_token("token"), None),
            "store": (lambda: sessions(session_store=Down()).validate_token("token"), None),
        },
    ),
    Row(
        "MCPSlidingRateLimiter",
        "a number of calls or a window of zero or less; a blank agent id",
        ValueError,
        {
            "calls": (
                lambda: limiter(max_calls_per_window=0),
                "max_calls_per_window must be positive",
            ),
            "window": (lambda: limiter(window_size=0), "window_size must be positive"),
            "agent": (lambda: limiter().try_acquire(" "), "agent_id must not be empty"),
        },
    ),
    Row(
        "MCPSlidingRateLimiter",
        "text for a number; a store that a gateway used",
        TypeError,
        {
            "calls": (lambda: limiter(max_calls_per_window="5"), "not supported between"),
            "window": (lambda: limiter(window_size="5"), "not supported between"),
            "store": (a_limiter_after_a_gateway, "not iterable"),
        },
    ),
    Row(
        "MCPSlidingRateLimiter",
        "an agent id that is no text",
        AttributeError,
        {"number": (lambda: limiter().try_acquire(5), "strip")},  # type: ignore[arg-type]
    ),
    Row(
        "MCPSlidingRateLimiter",
        "a store or clock that raises it; whatever they raise passes through: treat it as a denial",
        OSError,
        {
            "store": (lambda: limiter(rate_limit_store=Down()).try_acquire("a"), "out of order"),
            "clock": (lambda: limiter(clock=Down()).try_acquire("agent"), "out of order"),
        },
    ),
    Row(
        "load_mcp_security_config",
        "a file that is not there",
        FileNotFoundError,
        {"missing": (lambda: load_mcp_security_config("missing.yaml"), "config not found")},
    ),
    Row(
        "load_mcp_security_config",
        "a file without `detection_patterns`",
        ValueError,
        {"other": (lambda: load("a: 1"), "must contain a 'detection_patterns' section")},
    ),
    Row(
        "load_mcp_security_config",
        "an empty `detection_patterns`",
        AttributeError,
        {"empty": (lambda: load("detection_patterns:"), "get")},
    ),
    Row(
        "load_mcp_security_config",
        "a file that is no YAML",
        yaml.YAMLError,
        {"yaml": (lambda: load("a: ["), "expected the node content")},
    ),
]

CASES = [
    pytest.param(
        row, *case, id=f"{row.names.split()[0]}-{row.raises and row.raises.__name__}-{key}"
    )
    for row in TABLE
    for key, case in row.cases.items()
]


@pytest.mark.parametrize(("row", "action", "expected"), CASES)
def test_what_is_raised(
    row: Row,
    action: Callable[[], object],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if row.raises is None:
        assert action() == expected
    else:
        with pytest.raises(row.raises, match=expected):
            action()


def pairs(table: list[Row]) -> set[tuple[str, str]]:
    return {
        (name, row.raises.__name__ if row.raises else "nothing")
        for row in table
        for name in row.names.split()
    }


def test_every_exported_name_has_a_row() -> None:
    assert {name for name, _ in pairs(TABLE)} == set(agent_mcp_governance.__all__)


def test_no_row_is_without_a_case_and_none_is_there_twice() -> None:
    assert all(row.cases for row in TABLE)
    assert len(TABLE) == len({(row.names, row.raises) for row in TABLE})


def test_the_table_of_the_readme_says_the_same() -> None:
    _, found, section = README.read_text(encoding="utf-8").partition("\n## Errors\n")
    if not found:
        pytest.skip("the README has no section Errors")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    stated = set()
    for line in lines[2:]:
        first, *_, last = [cell.strip() for cell in line.strip("|").split("|")]
        raised = re.findall(r"`(?:\w+\.)*(\w+)`", last) or ["nothing"]
        stated |= {(name, error) for name in re.findall(r"`(\w+)`", first) for error in raised}
    assert stated == pairs(TABLE)
