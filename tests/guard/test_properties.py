"""Whatever it is given, an entry point returns, or raises what its documentation names.

Each exported class has its entry points here with the errors of the README's table, and so has
each recipe; signed messages are fuzzed in test_signed_messages.py.
"""

import asyncio
import contextlib
import enum
import inspect
import json
import logging
import math
import socket
import types
import unicodedata
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import guard as recipe
import pytest
import redis
import yaml
from guard import (
    PLACEHOLDER,
    AsyncGuard,
    Decision,
    ExtraCredentials,
    Guard,
    Limits,
    PoisonedToolError,
    bucket_label,
    canonical_caller,
    redact,
    refuse_poisoned_tools,
    verified_caller,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis_stores import (
    RedisBudgetStore,
    RedisNonceStore,
    RedisRateLimiter,
    RedisSessionStore,
    RedisWindowStore,
    make_client,
)

import agent_mcp_governance
from agent_mcp_governance import (
    ApprovalStatus,
    CredentialRedactor,
    GovernancePolicy,
    InMemoryAuditSink,
    InMemoryNonceStore,
    InMemoryRateLimitStore,
    InMemorySessionStore,
    MCPGateway,
    MCPMessageSigner,
    MCPMetrics,
    MCPResponseScanner,
    MCPSecurityScanner,
    MCPSession,
    MCPSessionAuthenticator,
    MCPSignedEnvelope,
    MCPSlidingRateLimiter,
    PatternType,
    ResponsePolicy,
    load_mcp_security_config,
)

# Random expressions are no model of style, and the scanner's detector warns about its rules.
pytestmark = pytest.mark.filterwarnings("ignore")


def fuzz(max_examples: int) -> settings:
    return settings(derandomize=True, deadline=None, database=None, max_examples=max_examples)


# Every code point, surrogates too; st.characters() spends seconds on its tables first.
LETTERS = st.sampled_from("aAbx09 _-.=:;/\\\"'<>[]{}()%&@$`\n\t\0é\u200b\ud800") | st.integers(
    0, 0x10FFFF
).map(chr)
# What the expressions of kernel and guard look for, whole and in parts.
FRAGMENTS = st.sampled_from(
    [
        *("sk-", "ABCDEFGHIJKLMNOPQRSTUVWX12", "ghp_", "AKIA", "ABCDEFGHIJKLMNOP", "password"),
        *("=", ":", "Bearer ", "token", "secret", "api_key", "xoxb-", "hf_", "Basic ", "passwd="),
        *("eyJhbGciOi", ".eyJzdWIi", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"),
        *("alice@example.com", "123-45-6789", "4111 1111 1111 1111", "10.0.0.1", "555-123-4567"),
        *("ignore all previous", " instructions", "<system>", "<sys", "tem>", "[INST]", "<|im_|>"),
        *("https://", "user:pass@", "webhook", "%3D", "&#61;", "\ufdfa", "\uff1d", "\u200b", '"'),
        *(PLACEHOLDER, "[REDACTED", "; rm", "$(", ")", "`", "' ", "x" * 40, "8" * 20, "a." * 30),
    ]
)
TEXT = st.text(LETTERS, max_size=40) | st.lists(FRAGMENTS | LETTERS, max_size=10).map("".join)
LONG_TEXT = st.builds(lambda text, times: text * times, TEXT, st.integers(1, 40))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=2)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def circular() -> Any:
    value: dict[str, Any] = {}
    value["list"] = [value]
    return value


ANYTHING = (
    JSON
    | st.binary(max_size=20)
    | st.builds(circular)
    | st.builds(nested, st.sampled_from([33, 100_000]))
    | st.builds(lambda: {1: 1, "q": {b"x": 1}})
    | st.builds(pow, st.just(10), st.just(5_000))
    | st.sampled_from([ApprovalStatus.APPROVED, math.nan, range(3), 1j])
)


class Entry(NamedTuple):
    """An entry point, what it takes, and the errors that its documentation names."""

    function: Callable[..., Any]
    arguments: tuple[st.SearchStrategy[Any], ...]
    raises: tuple[type[Exception], ...] = ()


NOW = datetime.now(timezone.utc)
KEY = b"0123456789abcdef" * 2


def on(make: Callable[[], Any], method: str) -> Callable[..., Any]:
    return lambda *arguments: getattr(make(), method)(*arguments)


def gateway() -> MCPGateway:
    return MCPGateway(GovernancePolicy(blocked_patterns=["evil"]), metrics=MCPMetrics())


def patterns(text: str, kind: PatternType, searched: str) -> list[str]:
    return GovernancePolicy(blocked_patterns=[(text, kind)]).matches_pattern(searched)


def round_trip(policy: dict[str, Any]) -> GovernancePolicy:
    return GovernancePolicy.from_yaml(GovernancePolicy.from_dict(policy).to_yaml())


def policy_text(text: str) -> str:
    return f"detection_patterns:\n  exfiltration: [{text}]\n"


POLICIES = st.dictionaries(
    st.sampled_from([*vars(GovernancePolicy()), "unknown"]),
    JSON | st.lists(st.fixed_dictionaries({"pattern": TEXT, "type": TEXT}), max_size=2),
)
AWARE = st.datetimes(timezones=st.just(timezone.utc))
SESSIONS = st.builds(MCPSession, TEXT, TEXT, st.none() | TEXT, AWARE, st.none() | AWARE, TEXT)
ENVELOPES = st.builds(MCPSignedEnvelope, JSON, JSON, AWARE | st.datetimes(), JSON, JSON)
TOOLS = st.fixed_dictionaries(
    {"name": TEXT}, optional={"description": TEXT, "inputSchema": OBJECTS}
)

KERNEL = {
    "CredentialRedactor.redact": Entry(CredentialRedactor.redact, (LONG_TEXT,)),
    "CredentialRedactor.find_matches": Entry(CredentialRedactor.find_matches, (LONG_TEXT,)),
    "CredentialRedactor.find_pii_matches": Entry(CredentialRedactor.find_pii_matches, (LONG_TEXT,)),
    "CredentialRedactor.contains_pii": Entry(CredentialRedactor.contains_pii, (TEXT,)),
    "CredentialRedactor.contains_credentials": Entry(
        CredentialRedactor.contains_credentials, (TEXT,)
    ),
    "CredentialRedactor.detect_credential_types": Entry(
        CredentialRedactor.detect_credential_types, (TEXT,)
    ),
    "CredentialRedactor.redact_data_structure": Entry(
        CredentialRedactor.redact_data_structure, (JSON,)
    ),
    "CredentialRedactor.redact_mapping": Entry(CredentialRedactor.redact_mapping, (OBJECTS,)),
    "CredentialRedactor.redact_dictionary": Entry(CredentialRedactor.redact_dictionary, (OBJECTS,)),
    "GovernancePolicy.matches_pattern": Entry(
        patterns, (TEXT, st.sampled_from(PatternType), TEXT), (ValueError,)
    ),
    "GovernancePolicy.from_dict": Entry(
        GovernancePolicy.from_dict, (POLICIES,), (ValueError, TypeError)
    ),
    "GovernancePolicy.to_yaml": Entry(
        round_trip, (POLICIES,), (ValueError, TypeError, yaml.YAMLError)
    ),
    "GovernancePolicy.from_yaml": Entry(
        GovernancePolicy.from_yaml,
        (TEXT | POLICIES.map(json.dumps),),
        (ValueError, TypeError, yaml.YAMLError),
    ),
    "InMemoryAuditSink.record": Entry(on(InMemoryAuditSink, "record"), (OBJECTS,)),
    "InMemoryNonceStore.has": Entry(on(InMemoryNonceStore, "has"), (TEXT,)),
    "InMemoryNonceStore.add": Entry(on(InMemoryNonceStore, "add"), (TEXT, AWARE)),
    "InMemoryRateLimitStore.get_bucket": Entry(on(InMemoryRateLimitStore, "get_bucket"), (TEXT,)),
    "InMemoryRateLimitStore.set_bucket": Entry(
        on(InMemoryRateLimitStore, "set_bucket"), (TEXT, JSON)
    ),
    "InMemorySessionStore.get": Entry(on(InMemorySessionStore, "get"), (TEXT,)),
    "InMemorySessionStore.set": Entry(on(InMemorySessionStore, "set"), (SESSIONS,), (ValueError,)),
    "InMemorySessionStore.delete": Entry(on(InMemorySessionStore, "delete"), (TEXT,)),
    "MCPGateway.intercept_tool_call": Entry(
        on(gateway, "intercept_tool_call"), (TEXT, TEXT, OBJECTS)
    ),
    "MCPGateway.intercept_tool_response": Entry(
        on(gateway, "intercept_tool_response"), (TEXT, TEXT, JSON)
    ),
    "MCPGateway.get_agent_call_count": Entry(on(gateway, "get_agent_call_count"), (TEXT,)),
    "MCPGateway.reset_agent_budget": Entry(on(gateway, "reset_agent_budget"), (TEXT,)),
    "MCPGateway.wrap_mcp_server": Entry(
        lambda config: MCPGateway.wrap_mcp_server(config, GovernancePolicy()), (OBJECTS,)
    ),
    "MCPMessageSigner": Entry(MCPMessageSigner, (st.binary(max_size=64),), (ValueError,)),
    "MCPMessageSigner.from_base64_key": Entry(
        MCPMessageSigner.from_base64_key, (TEXT,), (ValueError,)
    ),
    "MCPMessageSigner.sign_message": Entry(
        on(lambda: MCPMessageSigner(KEY), "sign_message"), (TEXT, st.none() | TEXT), (ValueError,)
    ),
    "MCPMessageSigner.verify_message": Entry(
        on(lambda: MCPMessageSigner(KEY), "verify_message"), (ENVELOPES,)
    ),
    "MCPMetrics.record_decision": Entry(
        lambda text: MCPMetrics().record_decision(
            allowed=True, agent_id=text, tool_name=text, stage=text
        ),
        (TEXT,),
    ),
    "MCPMetrics.record_threats_detected": Entry(
        lambda count, text: MCPMetrics().record_threats_detected(
            count, tool_name=text, server_name=text
        ),
        (st.integers(), TEXT),
    ),
    "MCPMetrics.record_rate_limit_hit": Entry(
        lambda text: MCPMetrics().record_rate_limit_hit(agent_id=text, tool_name=text), (TEXT,)
    ),
    "MCPMetrics.record_scan": Entry(
        lambda text: MCPMetrics().record_scan(operation=text, tool_name=text, server_name=text),
        (TEXT,),
    ),
    "MCPResponseScanner.scan_response": Entry(
        on(MCPResponseScanner, "scan_response"), (LONG_TEXT | JSON, TEXT)
    ),
    "MCPResponseScanner.sanitize_response": Entry(
        on(MCPResponseScanner, "sanitize_response"), (LONG_TEXT | JSON, TEXT)
    ),
    "MCPSecurityScanner.scan_tool": Entry(
        on(MCPSecurityScanner, "scan_tool"), (TEXT, TEXT | JSON, JSON, TEXT)
    ),
    "MCPSecurityScanner.scan_server": Entry(
        on(MCPSecurityScanner, "scan_server"), (TEXT, st.lists(TOOLS, max_size=3))
    ),
    "MCPSecurityScanner.register_tool": Entry(
        on(MCPSecurityScanner, "register_tool"), (TEXT, TEXT, OBJECTS, TEXT), (ValueError,)
    ),
    "MCPSecurityScanner.check_rug_pull": Entry(
        on(MCPSecurityScanner, "check_rug_pull"), (TEXT, TEXT, OBJECTS, TEXT), (ValueError,)
    ),
    "MCPSessionAuthenticator.create_session": Entry(
        on(MCPSessionAuthenticator, "create_session"), (TEXT, st.none() | TEXT), (ValueError,)
    ),
    "MCPSessionAuthenticator.bootstrap_session": Entry(
        lambda agent, token: MCPSessionAuthenticator().bootstrap_session(
            agent, token, ttl=timedelta(1)
        ),
        (TEXT, TEXT),
        (ValueError,),
    ),
    "MCPSessionAuthenticator.validate_session": Entry(
        on(MCPSessionAuthenticator, "validate_session"), (TEXT, TEXT)
    ),
    "MCPSessionAuthenticator.validate_token": Entry(
        on(MCPSessionAuthenticator, "validate_token"), (TEXT,)
    ),
    "MCPSessionAuthenticator.revoke_session": Entry(
        on(MCPSessionAuthenticator, "revoke_session"), (TEXT,)
    ),
    "MCPSessionAuthenticator.revoke_all_sessions": Entry(
        on(MCPSessionAuthenticator, "revoke_all_sessions"), (TEXT,)
    ),
    "MCPSlidingRateLimiter.try_acquire": Entry(
        on(MCPSlidingRateLimiter, "try_acquire"), (TEXT,), (ValueError,)
    ),
    "MCPSlidingRateLimiter.get_remaining_budget": Entry(
        on(MCPSlidingRateLimiter, "get_remaining_budget"), (TEXT,), (ValueError,)
    ),
    "MCPSlidingRateLimiter.get_call_count": Entry(
        on(MCPSlidingRateLimiter, "get_call_count"), (TEXT,), (ValueError,)
    ),
    "MCPSlidingRateLimiter.reset": Entry(
        on(MCPSlidingRateLimiter, "reset"), (TEXT,), (ValueError,)
    ),
}


def check_entry(entry: Entry, data: st.DataObject) -> None:
    arguments = [data.draw(argument) for argument in entry.arguments]
    with contextlib.suppress(*entry.raises):
        entry.function(*arguments)


@pytest.mark.parametrize("entry", KERNEL.values(), ids=KERNEL)
@fuzz(15)
@given(data=st.data())
def test_the_kernels_classes_return_or_raise_what_is_documented(
    entry: Entry, data: st.DataObject
) -> None:
    check_entry(entry, data)


@fuzz(30)
@given(TEXT.map(policy_text) | TEXT | OBJECTS.map(json.dumps))
def test_a_config_file_loads_or_is_refused(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))
    with contextlib.suppress(ValueError, AttributeError, yaml.YAMLError):
        load_mcp_security_config(str(path))


def test_every_exported_class_that_does_something_is_fuzzed() -> None:
    """Enumerations, protocols and records do nothing; a policy is a record that matches."""
    names = agent_mcp_governance.__all__
    things = {name: getattr(agent_mcp_governance, name) for name in names}
    active = {
        name
        for name, thing in things.items()
        if not inspect.isclass(thing)
        or not (
            issubclass(thing, enum.Enum)
            or getattr(thing, "_is_protocol", False)
            or hasattr(thing, "__dataclass_fields__")
        )
    }
    fuzzed = {name.partition(".")[0] for name in KERNEL}
    assert fuzzed == active - {"load_mcp_security_config"} | {"GovernancePolicy"}


# --- the recipes

SECRET = "sk-" + "ABCDEFGHIJKLMNOPQRSTUVWX1234"


def make_guard(sink: Any = None, **options: Any) -> Guard:
    policy = GovernancePolicy(allowed_tools=["read", "pay"], blocked_patterns=["evil"])
    return Guard(
        policy,
        audit_sink=InMemoryAuditSink() if sink is None else sink,
        sensitive_tools=["pay"],
        **options,
    )


def tokens(client: Any, issuer: Any, subject: Any) -> str:
    claims = None if issuer is None else {"iss": issuer}
    token = types.SimpleNamespace(client_id=client, subject=subject, claims=claims)
    return verified_caller(token, remote=True)


def async_check(arguments: dict[str, Any], answers: dict[str, Any]) -> Decision:
    guard = AsyncGuard(make_guard())
    return asyncio.run(guard.check_call("alice", "read", arguments, answers))


def async_error(text: str, data: Any) -> str | None:
    guard = AsyncGuard(make_guard())
    return asyncio.run(guard.check_error("alice", "read", ValueError(text), data))


POLICY_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "denied_tools": st.lists(TEXT, max_size=2) | TEXT,
        "sensitive_tools": st.lists(TEXT, max_size=2) | TEXT,
        "max_calls_per_window": st.integers() | st.booleans(),
        "window_size": st.floats() | st.integers(),
        "blocked_pii": st.lists(TEXT, max_size=2) | TEXT,
    },
)


def construct(tools: list[str], patterns: list[str], options: dict[str, Any]) -> Guard:
    policy = GovernancePolicy(allowed_tools=tools, blocked_patterns=list(patterns))
    return Guard(policy, audit_sink=InMemoryAuditSink(), **options)


GUARD = {
    "Guard": Entry(
        construct,
        (st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=2), POLICY_OPTIONS),
        (ValueError,),
    ),
    "Guard.check_call": Entry(
        on(make_guard, "check_call"), (TEXT | ANYTHING, TEXT | ANYTHING, ANYTHING)
    ),
    "Guard.check_call, known tool": Entry(
        on(make_guard, "check_call"), (st.just("a"), st.sampled_from(["read", "pay"]), OBJECTS)
    ),
    "Guard.check_response": Entry(
        on(make_guard, "check_response"), (TEXT | ANYTHING, TEXT | ANYTHING, ANYTHING)
    ),
    "Guard.check_response, known tool": Entry(
        on(make_guard, "check_response"), (st.just("a"), st.just("read"), ANYTHING | LONG_TEXT)
    ),
    "AsyncGuard.check_call": Entry(async_check, (OBJECTS, OBJECTS)),
    "AsyncGuard.check_error": Entry(async_error, (TEXT, ANYTHING)),
    "canonical_caller": Entry(canonical_caller, (TEXT | ANYTHING,), (ValueError,)),
    "verified_caller": Entry(tokens, (TEXT, st.none() | JSON, st.none() | TEXT)),
    "bucket_label": Entry(lambda count, text: bucket_label(count)(text), (ANYTHING, TEXT)),
    "redact": Entry(redact, (LONG_TEXT,)),
    "refuse_poisoned_tools": Entry(
        lambda tools, server: refuse_poisoned_tools(tools, server_name=server),
        (st.lists(TOOLS | ANYTHING, max_size=3), TEXT),
        (PoisonedToolError,),
    ),
    "Limits": Entry(
        lambda options: Limits(**options),
        (st.dictionaries(st.sampled_from([*vars(Limits())]), ANYTHING, max_size=2),),
        (ValueError,),
    ),
    "ExtraCredentials.redact": Entry(ExtraCredentials.redact, (LONG_TEXT,)),
}
GUARD["bucket_label"] = GUARD["bucket_label"]._replace(raises=(ValueError,))


@pytest.mark.parametrize("entry", GUARD.values(), ids=GUARD)
@fuzz(25)
@given(data=st.data())
def test_the_guard_returns_or_raises_what_is_documented(entry: Entry, data: st.DataObject) -> None:
    check_entry(entry, data)


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Keep records with half a surrogate pair out of the report, which cannot carry them."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def nobody() -> Any:
    """Return a client of a port where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with make_client(f"redis://127.0.0.1:{taken.getsockname()[1]}") as client:
            yield client


REDIS_ERRORS = (ValueError, redis.RedisError)
REDIS: dict[str, tuple[Callable[[Any], Any], str, tuple[st.SearchStrategy[Any], ...]]] = {
    "limiter": (RedisRateLimiter, "try_acquire", (TEXT,)),
    "budget-get": (lambda r: RedisBudgetStore(r, GovernancePolicy()), "get_bucket", (TEXT,)),
    "budget-set": (
        lambda r: RedisBudgetStore(r, GovernancePolicy()),
        "set_bucket",
        (TEXT, JSON),
    ),
    "window-get": (lambda r: RedisWindowStore(r, window_size=60.0), "get_bucket", (TEXT,)),
    "window-set": (lambda r: RedisWindowStore(r, window_size=60.0), "set_bucket", (TEXT, JSON)),
    "nonce-has": (RedisNonceStore, "has", (TEXT,)),
    "nonce-add": (RedisNonceStore, "add", (TEXT, AWARE)),
    "session-get": (lambda r: RedisSessionStore(r, secret=KEY), "get", (TEXT,)),
    "session-set": (lambda r: RedisSessionStore(r, secret=KEY), "set", (SESSIONS,)),
    "session-delete": (lambda r: RedisSessionStore(r, secret=KEY), "delete", (TEXT,)),
    "session-revoke": (lambda r: RedisSessionStore(r, secret=KEY), "revoke_agent", (TEXT,)),
}


@pytest.mark.parametrize("store", REDIS.values(), ids=REDIS)
@fuzz(8)
@given(data=st.data())
def test_the_redis_stores_return_or_raise_what_is_documented(
    nobody: Any, store: Any, data: st.DataObject
) -> None:
    make, method, arguments = store
    check_entry(Entry(on(lambda: make(nobody), method), arguments, REDIS_ERRORS), data)


# --- caller ids


@fuzz(150)
@given(TEXT)
@example("\u03b1\u0345\u0301")
@example("\u1e9b\u0323")
def test_canonical_ids_are_canonical(caller: str) -> None:
    try:
        name = canonical_caller(caller)
    except ValueError:
        return
    assert canonical_caller(name) == name
    assert canonical_caller(f" {name.upper()} ") == canonical_caller(name.upper())
    assert name.isprintable()


def test_every_character_that_is_folded_has_one_canonical_form() -> None:
    names = 0
    for character in map(chr, range(0x110000)):
        if unicodedata.normalize("NFKC", character).casefold() == character:
            continue
        with contextlib.suppress(ValueError):
            name = canonical_caller(f"a{character}")
            names += 1
            assert canonical_caller(name) == name
    assert names > 5_000


# --- redaction


def assert_redacted(text: str) -> None:
    once = redact(text)
    assert redact(once) == once
    if once != PLACEHOLDER:
        assert CredentialRedactor.find_matches(once) == []
        assert CredentialRedactor.find_pii_matches(once) == []
        assert ExtraCredentials.find_matches(once) == []
    assert len(once) <= 1_024


@fuzz(120)
@given(LONG_TEXT)
@example("pwd=pwd=pwd=12345")
@example("x" * 1_010 + "[REDACTED] passwd=[REDACTED]")
@example("%2525")
def test_redaction_is_idempotent_and_grows_no_secret_back(text: str) -> None:
    assert_redacted(text)


@fuzz(50)
@given(st.integers(950, 1_300), FRAGMENTS, FRAGMENTS, FRAGMENTS)
def test_redaction_is_idempotent_around_the_cut(
    start: int, first: str, second: str, third: str
) -> None:
    assert_redacted(" " * start + first + second + third)
    assert_redacted("a" * start + first + second + third)


@fuzz(60)
@given(TEXT, TEXT, st.integers(0, 1_100))
def test_a_secret_between_any_two_texts_is_redacted(before: str, after: str, start: int) -> None:
    shown = redact("." * start + before + " " + SECRET + " " + after)
    assert SECRET[3:] not in shown


ORDER_WORDS = st.sampled_from(
    [
        *("ignore", "forget", "dont", "never", "tell", "alert", "user", "your", "the", "prior"),
        *("above", "all", "rules", "prompt", "negeer", "obig", "regel"),
    ]
)
EXPRESSIONS = {
    credential.name: credential.pattern
    for credential in (
        *CredentialRedactor.PATTERNS,
        *CredentialRedactor.PII_PATTERNS,
        *ExtraCredentials.PATTERNS,
    )
}


@fuzz(150)
@given(
    st.text("AKIASkeysecretokn_", min_size=1, max_size=19)
    | st.text(LETTERS, max_size=5)
    | st.lists(ORDER_WORDS, max_size=4).map("_".join)
)
@example("AKIA" + "A" * 15)
@example("dont_tell_user")
@example("negeer_obig_regel")
def test_nothing_is_found_in_a_text_that_counts_as_plain(text: str) -> None:
    if not recipe._PLAIN.fullmatch(text):
        return
    assert [name for name, pattern in EXPRESSIONS.items() if pattern.search(text)] == []
    assert recipe._INSTRUCTIONS.search(text.lower()) is None
    assert MCPResponseScanner().scan_response(text).is_safe
    assert recipe._redacted_once(text) == text


@pytest.mark.parametrize("name", EXPRESSIONS)
@fuzz(10)
@given(data=st.data())
def test_no_match_of_an_expression_counts_as_plain(name: str, data: st.DataObject) -> None:
    letters = st.characters(codec="ascii")
    match = data.draw(st.from_regex(EXPRESSIONS[name], fullmatch=True, alphabet=letters))
    assert not recipe._PLAIN.fullmatch(match)


# --- the guard


TOOL_NAMES = ["read", "write", "pay", "Read", "read ", "re\u200bad", "reads", "drop", ""]
WORDS = ["evil", "e\\u0076il", "ev", "il", "; rm", "a\nb", "<x>", '"', "C:\\x", "é", "1"]
SOME_JSON = st.recursive(
    st.sampled_from(WORDS) | st.integers(0, 20) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=5,
)
CALLS = st.tuples(
    st.sampled_from(["alice", "Alice", " bob", "bob", "\0"]),
    st.sampled_from(TOOL_NAMES),
    st.dictionaries(st.sampled_from(WORDS), SOME_JSON, max_size=3),
    st.sampled_from([*ApprovalStatus, True, None, "approved"]),
)
SOME_PATTERNS = st.sampled_from(
    ["evil", "EVIL", '"', "\n", "C:\\", ("^ev$", PatternType.REGEX), ("*b", PatternType.GLOB)]
)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@fuzz(80)
@given(
    tools=st.lists(st.sampled_from(["read", "write", "pay"]), min_size=1, unique=True),
    patterns=st.lists(SOME_PATTERNS, max_size=2),
    budget=st.integers(0, 4),
    window=st.integers(1, 6),
    sensitive=st.booleans(),
    calls=st.lists(CALLS, max_size=12),
)
def test_the_guard_never_allows_what_the_policy_denies(
    tools: list[str],
    patterns: list[Any],
    budget: int,
    window: int,
    sensitive: bool,
    calls: list[tuple[str, str, dict[str, Any], Any]],
) -> None:
    policy = GovernancePolicy(allowed_tools=tools, blocked_patterns=patterns, max_tool_calls=budget)
    sink = InMemoryAuditSink()
    answer: Any = None
    guard = Guard(
        policy,
        audit_sink=sink,
        denied_tools=["drop"],
        sensitive_tools=tools if sensitive else [],
        approver=lambda *_: answer,
        max_calls_per_window=window,
        clock=lambda: 0.0,
    )
    allowed: dict[str, int] = {}
    asked: dict[str, int] = {}
    for caller, tool, params, answer in calls:
        decision = guard.check_call(caller, tool, params)
        name = caller.strip().lower()
        asked[name] = asked.get(name, 0) + 1
        if not decision.allowed:
            assert decision.params == {}
            continue
        allowed[name] = allowed.get(name, 0) + 1
        assert tool in tools
        assert tool != "drop"
        assert not [text for text in strings(params) if policy.matches_pattern(text)]
        assert not policy.matches_pattern(json.dumps(params))
        assert not sensitive or answer is ApprovalStatus.APPROVED
        assert allowed[name] <= budget
        assert asked[name] <= window
        assert decision.params == params
        assert name != "\0"
    assert [entry["allowed"] for entry in sink.entries()].count(True) == sum(allowed.values())
    assert len(sink.entries()) == len(calls)


@fuzz(50)
@given(TEXT | st.just("alice"), TEXT | st.just("read"), ANYTHING | OBJECTS)
def test_every_audit_entry_is_json_without_secrets(caller: Any, tool: Any, params: Any) -> None:
    sink = InMemoryAuditSink()
    guard = make_guard(sink)
    guard.check_call(caller, tool, params)
    guard.check_call("alice", "read", {"value": [params], SECRET: {"password": params}})
    guard.check_response(caller, tool, params)
    entries = sink.entries()
    assert len(entries) == 3
    for entry in entries:
        written = json.dumps(entry, allow_nan=False)
        assert json.loads(written) == entry
        assert SECRET not in written


@fuzz(50)
@given(JSON | LONG_TEXT, st.sampled_from(ResponsePolicy))
def test_a_response_that_is_allowed_is_clean_or_logged(content: Any, policy: Any) -> None:
    sink = InMemoryAuditSink()
    decision = make_guard(sink, response_policy=policy).check_response("alice", "read", content)
    (entry,) = sink.entries()
    if not decision.allowed:
        assert decision.content is None
        return
    again = make_guard().check_response("alice", "read", decision.content)
    assert again.allowed or policy is ResponsePolicy.LOG
    assert again.allowed is (policy is not ResponsePolicy.LOG or entry["threats"] == [])
    if entry["threats"] == [] or policy is ResponsePolicy.LOG:
        assert decision.content == content
