"""What 32 threads may share: each test backs a row of the table of thread-safety in README.md.

What they may not share is a limit, and pinned as one, without chance: there threads meet at one
spot. Here they run as they come, and however they come the outcome is the same.
"""

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from support.documents import KERNEL, table
from support.parts import ACTIVE, KEY, SECRET, Meter, gateway, refuses
from support.threads import THREADS, together

import agent_mcp_governance as g

pytestmark = [
    pytest.mark.filterwarnings("ignore:PromptInjectionDetector:UserWarning"),
    pytest.mark.usefixtures("threads_take_turns_often"),
]

A_DAY = timedelta(days=1)
LATER = datetime.now(timezone.utc) + A_DAY
SESSION = g.MCPSession("token", "agent", None, LATER, None, "agent")
RULES = g.MCPSecurityConfig()
POLICY, RESPONSES = g.GovernancePolicy(blocked_patterns=["secret", "-7"]), g.MCPResponseScanner()


class Meeting:
    """A store where a thread waits for another, so that two that no lock keeps apart meet."""

    def __init__(self, store: Any) -> None:
        self._store, self._barrier = store, threading.Barrier(2)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def method(*arguments: object) -> Any:
            self._meet()
            result = getattr(self._store, name)(*arguments)
            self._meet()
            return result

        return method

    def _meet(self) -> None:
        # Where a lock keeps the other out, the barrier breaks after a moment and for good.
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(timeout=0.2)


def test_one_gateway_keeps_to_the_call_budget_and_loses_no_audit_entry() -> None:
    governed = gateway(max_tool_calls=100, rate_limit_store=Meeting(g.InMemoryRateLimitStore()))
    refused = together(lambda _: [refuses(governed) for _ in range(20)])
    assert sum(row.count(False) for row in refused) == governed.get_agent_call_count("a") == 100
    assert len(governed.audit_log) == THREADS * 20


ONCE: dict[str, Callable[[g.MCPSessionAuthenticator, int], object]] = {
    "session limit": lambda sessions, _: sessions.create_session("agent"),
    "revoked": lambda sessions, _: sessions.revoke_session("token"),
    "bound": lambda sessions, number: sessions.bootstrap_session(f"a{number}", "new", ttl=A_DAY),
}


@pytest.mark.parametrize("action", ONCE.values(), ids=ONCE)
def test_one_authenticator_does_once_what_may_be_done_once(action: Callable[..., object]) -> None:
    store = g.InMemorySessionStore()
    store.set(SESSION)
    sessions = g.MCPSessionAuthenticator(max_concurrent_sessions=1, session_store=Meeting(store))

    def done(number: int) -> bool:
        with contextlib.suppress(RuntimeError):
            return bool(action(sessions, number))
        return False

    assert together(done).count(True) == 1


def test_one_limiter_keeps_to_its_limit() -> None:
    store = Meeting(g.InMemoryRateLimitStore())
    limiter = g.MCPSlidingRateLimiter(
        max_calls_per_window=100, clock=lambda: 0.0, rate_limit_store=store
    )
    acquired = together(lambda _: sum(limiter.try_acquire("agent") for _ in range(20)))
    assert sum(acquired) == limiter.get_call_count("agent") == 100


def test_one_signer_accepts_each_of_many_messages_and_none_again() -> None:
    signer = g.MCPMessageSigner(KEY)

    def verify(number: int) -> list[bool]:
        accepted = []
        for turn in range(10):
            envelope = signer.sign_message(f"{number}-{turn}")
            forged = dataclasses.replace(envelope, payload="forged")
            accepted += [signer.verify_message(e).is_valid for e in (forged, envelope, envelope)]
        return accepted

    assert together(verify) == [[False, True, False] * 10] * THREADS
    assert signer.cached_nonce_count == THREADS * 10


def test_one_store_in_memory_loses_nothing_and_keeps_its_size() -> None:
    sink, buckets = g.InMemoryAuditSink(), g.InMemoryRateLimitStore()
    sessions, nonces = g.InMemorySessionStore(), g.InMemoryNonceStore(max_entries=500)

    def use(number: int) -> None:
        for turn in range(50):
            name = f"{number}-{turn}"
            sink.record({"entry": name})
            buckets.set_bucket(name, name)
            sessions.set(dataclasses.replace(SESSION, token=name))
            nonces.add(name, LATER)
            nonces.cleanup()

    together(use)
    names = {f"{number}-{turn}" for number in range(THREADS) for turn in range(50)}
    assert sorted(entry["entry"] for entry in sink.entries()) == sorted(names)
    assert {name for name in names if buckets.get_bucket(name) == name} == names
    assert {name for name in names if sessions.get(name)} == names
    assert sum(map(nonces.has, names)) == nonces.count() == 500


def scan_with_a_scanner_of_its_own(number: int) -> object:
    own, tool = g.MCPSecurityScanner(config=RULES, clock=float), f"read_file_{number}"
    own.register_tool(tool, "Reads.", None, "server")
    return own.scan_tool(tool, "Writes.", None, "server")


STATELESS: dict[str, Callable[[int], object]] = {
    "policy": lambda number: POLICY.matches_pattern(f"a secret of thread-{number}"),
    "redactor": lambda number: g.CredentialRedactor.redact(f"{number} {SECRET} end"),
    "responses": lambda number: RESPONSES.scan_response(f"<system {number}>", f"tool-{number}"),
    "tools": scan_with_a_scanner_of_its_own,
}


@pytest.mark.parametrize("action", STATELESS.values(), ids=STATELESS)
def test_a_class_without_state_answers_each_thread_as_if_it_were_alone(action: Any) -> None:
    alone = [[action(number)] * 10 for number in range(THREADS)]
    assert together(lambda number: [action(number) for _ in range(10)]) == alone


def test_one_recorder_counts_every_hit() -> None:
    meter = Meter()
    hit = partial(meter.metrics.record_rate_limit_hit, agent_id="a", tool_name="tool")
    together(lambda _: [hit() for _ in range(50)])
    ((_, count),) = meter.counted()["mcp_rate_limit_hits"]
    assert count == THREADS * 50


def test_the_table_of_thread_safety_names_every_class_and_what_shows_it() -> None:
    rows = table(KERNEL, "Thread-safety")[1:]
    classes = ACTIVE.keys() - {"load_mcp_security_config"}
    assert {row[0].strip("`") for row in rows} == classes
    shown = {test for row in rows for test in re.findall(r"`(test_\w+)`", row[2])}
    assert shown == {name for name in globals() if re.match("test_one_|test_a_class", name)}
    assert [row for row in rows if "`test_" not in row[2] and "(#limits)" not in row[2]] == []
