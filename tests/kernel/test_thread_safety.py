"""What 32 threads may share: each test backs a line of the README's table of thread-safety.

What they may not share is pinned in test_limits.py, without chance: there threads meet at one spot.
Here they run as they come, and however they come the outcome is the same.
"""

import contextlib
import dataclasses
import re
import threading
from collections import UserDict
from collections.abc import KeysView
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support import ROOT
from support.threads import THREADS, together

from agent_mcp_governance import (
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
    MCPResponseScanResult,
    MCPSecurityConfig,
    MCPSecurityScanner,
    MCPSession,
    MCPSessionAuthenticator,
    MCPSlidingRateLimiter,
    PatternType,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:PromptInjectionDetector:UserWarning"),
    pytest.mark.usefixtures("threads_take_turns_often"),
]

README = ROOT / "README.md"
KEY = b"0123456789abcdef" * 2
SECRET = "sk-" + "ABCDEFGHIJKLMNOPQRSTUVWX"
LATER = datetime.now(timezone.utc) + timedelta(hours=1)


class Meeting:
    """Where a thread waits for another, so that two that no lock keeps apart are there at once."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)

    def __call__(self) -> None:
        # Where a lock keeps the other out, the barrier breaks after a moment and for good.
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(timeout=0.2)


class MeetingBuckets(InMemoryRateLimitStore):
    def __init__(self) -> None:
        super().__init__()
        self._meet = Meeting()

    def get_bucket(self, agent_id: str) -> Any | None:
        bucket = super().get_bucket(agent_id)
        self._meet()
        return bucket


class MeetingSessions(InMemorySessionStore):
    def __init__(self) -> None:
        super().__init__()
        self._meet = Meeting()

    def get(self, session_id: str) -> Any | None:
        session = super().get(session_id)
        self._meet()
        return session

    def set(self, session: Any) -> None:
        self._meet()
        super().set(session)


class MeetingText(str):
    """Text that is met where a class asks for its hash, its lower case, or whether it is empty."""

    meet: Meeting

    def __new__(cls, text: str, meet: Meeting) -> "MeetingText":
        self = super().__new__(cls, text)
        self.meet = meet
        return self

    def __bool__(self) -> bool:
        self.meet()
        return len(self) > 0

    def __hash__(self) -> int:
        self.meet()
        return super().__hash__()

    def lower(self) -> str:
        self.meet()
        return super().lower()


def test_one_gateway_keeps_to_the_call_budget_and_loses_no_audit_entry() -> None:
    sink = InMemoryAuditSink()
    policy = GovernancePolicy(max_tool_calls=100, log_all_calls=False)
    gateway = MCPGateway(policy, audit_sink=sink, rate_limit_store=MeetingBuckets())

    def call(_: int) -> int:
        return sum(gateway.intercept_tool_call("agent", "tool", {})[0] for _ in range(20))

    assert sum(together(call)) == gateway.get_agent_call_count("agent") == 100
    assert len(gateway.audit_log) == len(sink.entries()) == THREADS * 20


@pytest.mark.parametrize("limit", [1, 50])
def test_one_authenticator_keeps_to_the_session_limit(limit: int) -> None:
    authenticator = MCPSessionAuthenticator(
        max_concurrent_sessions=limit, session_store=MeetingSessions()
    )
    tokens: list[str] = []

    def create(_: int) -> None:
        with contextlib.suppress(RuntimeError):
            tokens.extend(authenticator.create_session("agent") for _ in range(5))

    together(create)
    assert len(set(tokens)) == len(tokens) == authenticator.active_session_count == limit
    assert all(authenticator.validate_session("agent", token) for token in tokens)


def test_one_authenticator_revokes_a_token_once() -> None:
    store = MeetingSessions()
    # Not through the store's own set(): nobody could be met there yet.
    InMemorySessionStore.set(store, MCPSession("token", "agent", None, LATER, None, "agent"))
    authenticator = MCPSessionAuthenticator(session_store=store)
    assert together(lambda _: authenticator.revoke_session("token")).count(True) == 1


def test_one_authenticator_binds_a_token_once() -> None:
    authenticator = MCPSessionAuthenticator(session_store=MeetingSessions())
    bound: list[int] = []

    def bind(number: int) -> None:
        with contextlib.suppress(RuntimeError):
            authenticator.bootstrap_session(f"agent-{number}", "token", ttl=timedelta(days=1))
            bound.append(number)

    together(bind)
    assert len(bound) == 1


def test_one_limiter_keeps_to_its_limit() -> None:
    limiter = MCPSlidingRateLimiter(
        max_calls_per_window=100, clock=lambda: 0.0, rate_limit_store=MeetingBuckets()
    )

    def acquire(number: int) -> int:
        agent = ("agent", "AGENT")[number % 2]
        return sum(limiter.try_acquire(agent) for _ in range(20))

    assert sum(together(acquire)) == limiter.get_call_count("agent") == 100


def test_one_signer_accepts_each_of_many_messages_and_none_again() -> None:
    signer = MCPMessageSigner(KEY)

    def verify(number: int) -> list[bool]:
        accepted = []
        for turn in range(10):
            envelope = signer.sign_message(f"{number}-{turn}")
            forged = dataclasses.replace(envelope, payload="forged")
            accepted += [signer.verify_message(e).is_valid for e in (forged, envelope, envelope)]
        return accepted

    assert together(verify) == [[False, True, False] * 10] * THREADS
    assert signer.cached_nonce_count == THREADS * 10


def test_one_audit_sink_loses_no_entry() -> None:
    sink = InMemoryAuditSink()
    meet = Meeting()

    class Entry(UserDict[str, Any]):
        def keys(self) -> KeysView[str]:
            meet()
            return super().keys()

    def record(number: int) -> None:
        for turn in range(50):
            sink.record(Entry(entry=(number, turn)))  # type: ignore[arg-type]

    together(record)
    assert {entry["entry"] for entry in sink.entries()} == {
        (number, turn) for number in range(THREADS) for turn in range(50)
    }
    assert len(sink.entries()) == THREADS * 50


def test_one_nonce_store_keeps_its_size() -> None:
    store = InMemoryNonceStore(max_entries=500)

    def add(number: int) -> None:
        for turn in range(50):
            store.add(f"{number}-{turn}", LATER)
            store.has(f"{number}-{turn}")
            store.cleanup()

    together(add)
    assert store.count() == 500


def test_one_rate_limit_store_keeps_every_bucket() -> None:
    store = InMemoryRateLimitStore()
    meet = Meeting()

    def count(number: int) -> None:
        agent = MeetingText(f"agent-{number}", meet)
        for turn in range(50):
            store.set_bucket(agent, (store.get_bucket(agent) or 0) + turn)

    together(count)
    assert [store.get_bucket(f"agent-{number}") for number in range(THREADS)] == [1225] * THREADS


def test_one_session_store_deletes_a_session_once() -> None:
    store = InMemorySessionStore()
    store.set(MCPSession("token", "agent", None, LATER, None, "agent"))
    token = MeetingText("token", Meeting())
    assert together(lambda _: store.delete(token)).count(True) == 1


def test_one_policy_matches_for_every_thread() -> None:
    policy = GovernancePolicy(blocked_patterns=["secret", (r"\bthread-7\b", PatternType.REGEX)])
    meet = Meeting()

    def match(number: int) -> list[str]:
        return policy.matches_pattern(MeetingText(f"a secret of thread-{number}", meet))

    assert together(match) == [
        ["secret"] + [r"\bthread-7\b"] * (number == 7) for number in range(THREADS)
    ]


def test_the_redactor_redacts_for_every_thread() -> None:
    meet = Meeting()

    def redact(number: int) -> str:
        return CredentialRedactor.redact(MeetingText(f"{number} {SECRET} end", meet))

    assert together(redact) == [f"{number} [REDACTED] end" for number in range(THREADS)]


def test_one_response_scanner_scans_for_every_thread() -> None:
    scanner = MCPResponseScanner()
    meet = Meeting()

    def scan(number: int) -> MCPResponseScanResult:
        text = f"<system {number}>" if number % 2 else "fine"
        return scanner.scan_response(MeetingText(text, meet), f"tool-{number}")

    results = together(scan)
    assert [result.tool_name for result in results] == [f"tool-{n}" for n in range(THREADS)]
    assert [[threat.matched_pattern for threat in result.threats] for result in results] == [
        [f"<system {number}>"] if number % 2 else [] for number in range(THREADS)
    ]


def test_tool_scanners_of_their_own_do_not_disturb_each_other() -> None:
    def scan(number: int) -> list[str]:
        scanner = MCPSecurityScanner(config=MCPSecurityConfig())
        scanner.register_tool(f"read_file_{number}", "Reads a file.", None, "server")
        threats = scanner.scan_tool(f"read_file_{number}", "Writes a file.", None, "server")
        return [threat.threat_type.value for threat in threats]

    assert together(scan) == [["rug_pull"]] * THREADS


def test_one_recorder_counts_every_decision() -> None:
    reader = InMemoryMetricReader()
    recorder = MCPMetrics(MeterProvider(metric_readers=[reader]))

    def record(_: int) -> None:
        for _ in range(50):
            recorder.record_decision(allowed=True, agent_id="a", tool_name="t", stage="allowed")

    together(record)
    data = reader.get_metrics_data()
    assert data is not None
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert getattr(point, "value", 0) == THREADS * 50


def test_the_table_of_the_readme_names_every_class_and_a_test_for_each() -> None:
    _, found, section = README.read_text(encoding="utf-8").partition("\n## Thread-safety\n")
    if not found:
        pytest.skip("the README has no section Thread-safety")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [(line.split("|")[1], re.findall(r"`(test_\w+)`", line)) for line in lines[2:]]
    assert sorted(name for first, _ in rows for name in re.findall(r"`(\w+)`", first)) == [
        "CredentialRedactor",
        "GovernancePolicy",
        "InMemoryAuditSink",
        "InMemoryNonceStore",
        "InMemoryRateLimitStore",
        "InMemorySessionStore",
        "MCPGateway",
        "MCPMessageSigner",
        "MCPMetrics",
        "MCPResponseScanner",
        "MCPSecurityScanner",
        "MCPSessionAuthenticator",
        "MCPSlidingRateLimiter",
    ]
    assert all(tests for _, tests in rows)
    source = Path(__file__).read_text(encoding="utf-8")
    source += Path(__file__).with_name("test_limits.py").read_text(encoding="utf-8")
    assert [test for _, tests in rows for test in tests if f"def {test}(" not in source] == []
