"""Limits that hold exactly while 32 threads, or 32 tasks, run into them through the recipes.

test_thread_safety.py does the same for the kernel's classes alone, test_redis.py for processes.
"""

import asyncio
import json
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guard import AsyncGuard, Guard, JsonLinesAuditSink, Limits, verified_caller
from signed_messages import (
    LiveNonceStore,
    RefusedMessageError,
    SignedChannel,
    from_wire,
    to_wire,
)
from support.threads import THREADS, together

from agent_mcp_governance import (
    ApprovalStatus,
    GovernancePolicy,
    InMemoryAuditSink,
    MCPSessionAuthenticator,
)

pytestmark = pytest.mark.usefixtures("threads_take_turns_often")

EACH = 10
repeated = pytest.mark.parametrize("turn", range(3))


def make_guard(sink: Any = None, budget: int = 100_000, **options: Any) -> Guard:
    policy = GovernancePolicy(allowed_tools=["read", "pay"], max_tool_calls=budget)
    options.setdefault("max_calls_per_window", 100_000)
    return Guard(
        policy,
        audit_sink=InMemoryAuditSink() if sink is None else sink,
        sensitive_tools=["pay"],
        clock=lambda: 0.0,
        **options,
    )


def stages(guard: Guard, tool: str = "read", caller: Callable[[int], str] | None = None) -> Any:
    """Count the stages of EACH calls in each thread."""

    def call(number: int) -> list[str]:
        name = caller(number) if caller else "alice"
        return [guard.check_call(name, tool, {"q": number}).stage for _ in range(EACH)]

    return Counter(stage for found in together(call) for stage in found)


@repeated
def test_the_window_is_exact(turn: int) -> None:
    guard = make_guard(max_calls_per_window=100 + turn)
    assert stages(guard) == {"allowed": 100 + turn, "rate_limit": THREADS * EACH - 100 - turn}


@repeated
def test_the_window_is_exact_for_all_spellings_of_a_caller(turn: int) -> None:
    guard = make_guard(max_calls_per_window=100)
    spellings = ["alice", "ALICE", " alice ", "\uff21lice"]
    counted = stages(guard, caller=lambda number: spellings[(number + turn) % 4])
    assert counted == {"allowed": 100, "rate_limit": THREADS * EACH - 100}


@repeated
def test_the_budget_is_exact_while_gateways_come_and_go(turn: int) -> None:
    guard = make_guard(budget=250 + turn)
    assert stages(guard) == {"allowed": 250 + turn, "budget": THREADS * EACH - 250 - turn}


@repeated
def test_the_budget_is_exact_for_each_of_several_callers(turn: int) -> None:
    guard = make_guard(budget=33)
    counted: Counter[tuple[str, str]] = Counter()

    def call(number: int) -> list[tuple[str, str]]:
        caller = f"caller-{(number + turn) % 4}"
        return [(caller, guard.check_call(caller, "read", {}).stage) for _ in range(EACH)]

    for found in together(call):
        counted.update(found)
    assert counted == {
        (f"caller-{number}", stage): count
        for number in range(4)
        for stage, count in (("allowed", 33), ("budget", THREADS * EACH // 4 - 33))
    }


@repeated
def test_the_budget_is_exact_when_all_approvals_come_at_once(turn: int) -> None:
    """Every call is asked for before any is granted."""
    everybody = threading.Barrier(THREADS)

    def approve(*_: object) -> ApprovalStatus:
        everybody.wait(timeout=60)
        return ApprovalStatus.APPROVED

    guard = make_guard(budget=10 + turn, approver=approve)
    found = together(lambda _: guard.check_call("alice", "pay", {}).stage)
    assert Counter(found) == {"approval_granted": 10 + turn, "budget": THREADS - 10 - turn}


@repeated
def test_an_approval_counts_for_its_own_call_only(turn: int) -> None:
    def decide(caller: str, *_: object) -> ApprovalStatus:
        return [*ApprovalStatus][int(caller) % 3]

    guard = make_guard(approver=decide)

    def call(number: int) -> bool:
        caller = str(number + turn)
        status = [*ApprovalStatus][int(caller) % 3]
        decisions = [guard.check_call(caller, "pay", {"q": number}) for _ in range(EACH)]
        return all(
            decision.allowed is (status is ApprovalStatus.APPROVED)
            and decision.params == ({"q": number} if decision.allowed else {})
            for decision in decisions
        )

    assert together(call) == [True] * THREADS


@repeated
def test_the_number_of_callers_is_exact(turn: int) -> None:
    guard = make_guard(limits=Limits(max_callers=10 + turn))
    found = together(lambda number: guard.check_call(f"caller-{number}", "read", {}).stage)
    assert Counter(found) == {"allowed": 10 + turn, "caller": THREADS - 10 - turn}


@repeated
def test_windows_and_rooms_are_exact_while_idle_callers_are_forgotten(turn: int) -> None:
    now = 0.0
    policy = GovernancePolicy(allowed_tools=["read"], max_tool_calls=100_000)
    guard = Guard(
        policy,
        audit_sink=InMemoryAuditSink(),
        max_calls_per_window=50 + turn,
        limits=Limits(max_callers=3, forget_after=100.0),
        clock=lambda: now,
    )
    for idle in ("first", "second"):
        assert guard.check_call(idle, "read", {}).allowed
    now = 100.0
    assert guard.check_call("alice", "read", {}).allowed

    def call(number: int) -> tuple[int, int]:
        if number % 2:
            return 0, guard.check_call(f"late-{number}", "read", {}).allowed
        return sum(guard.check_call("alice", "read", {}).allowed for _ in range(EACH)), 0

    alice, late = zip(*together(call), strict=True)
    assert (sum(alice), sum(late)) == (49 + turn, 2)


@repeated
def test_every_decision_is_audited_once(turn: int) -> None:
    sink = InMemoryAuditSink()
    guard = make_guard(sink, budget=100 + turn)
    counted = stages(guard, caller=lambda number: f"caller-{number % 3}")
    assert Counter(entry["stage"] for entry in sink.entries()) == counted
    assert sum(counted.values()) == THREADS * EACH


@repeated
def test_every_failure_of_the_sink_and_the_metrics_is_counted(turn: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(turn)

    broken = types.SimpleNamespace(record=fail, record_decision=fail)
    guard = make_guard(broken, metrics=broken)
    assert stages(guard) == {"audit": THREADS * EACH}
    assert guard.audit_failures == guard.metrics_failures == THREADS * EACH
    assert len(guard.unrecorded) == 100


def test_the_lines_of_a_file_sink_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    sinks = [JsonLinesAuditSink(path) for _ in range(4)]

    def record(number: int) -> None:
        for turn in range(EACH):
            sinks[number % 4].record({"entry": [number, turn], "long": "x" * 20_000})

    together(record)
    for sink in sinks:
        sink.close()
    entries = [tuple(json.loads(line)["entry"]) for line in path.read_text().splitlines()]
    assert sorted(entries) == [(number, turn) for number in range(THREADS) for turn in range(EACH)]


@repeated
@pytest.mark.parametrize("in_thread", [False, True])
def test_window_and_budget_are_exact_for_tasks(in_thread: bool, turn: int) -> None:
    async def check(guard: AsyncGuard) -> Counter[str]:
        calls = [guard.check_call("alice", "read", {}, {}) for _ in range(THREADS * 4)]
        return Counter(decision.stage for decision in await asyncio.gather(*calls))

    by_window = AsyncGuard(make_guard(max_calls_per_window=40 + turn), in_thread=in_thread)
    by_budget = AsyncGuard(make_guard(budget=40 + turn), in_thread=in_thread)
    assert asyncio.run(check(by_window))["allowed"] == 40 + turn
    assert asyncio.run(check(by_budget))["allowed"] == 40 + turn


@repeated
def test_async_approvals_share_the_budget_with_threads(turn: int) -> None:
    async def approve(*_: object) -> ApprovalStatus:
        await asyncio.sleep(0)
        return ApprovalStatus.APPROVED

    guard = make_guard(budget=50 + turn, approver=approve)

    async def ask() -> list[bool]:
        calls = [guard.acheck_call("alice", "pay", {}) for _ in range(4)]
        return [decision.allowed for decision in await asyncio.gather(*calls)]

    def call(number: int) -> int:
        if number % 2:
            return sum(guard.check_call("alice", "read", {}).allowed for _ in range(4))
        return sum(asyncio.run(ask()))

    assert sum(together(call)) == 50 + turn


@repeated
def test_responses_are_checked_for_every_thread(turn: int) -> None:
    guard = make_guard()
    secret = "sk-" + "ABCDEFGHIJKLMNOPQRSTUVWX"

    def check(number: int) -> bool:
        content = {"q": f"{number} {secret if number % 2 else turn}"}
        decisions = [guard.check_response("alice", "read", content) for _ in range(EACH)]
        expected = None if number % 2 else content
        return all(decision.content == expected for decision in decisions)

    assert together(check) == [True] * THREADS


# --- every place where a thread could be interrupted


class Interruption:
    """Lets *action* happen before the instruction *at* of the guard's function *name*.

    It happens only if no lock of the guard is held, as another thread would have to wait then.
    """

    def __init__(self, guard: Guard, name: str, at: int, action: Callable[[], object]) -> None:
        self.locks = guard._state_lock, guard._gateway_lock
        self.name, self.at, self.action = name, at, action
        self.instructions = 0
        self.came = False

    def __enter__(self) -> "Interruption":
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: types.FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name != self.name or self.came:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.instructions += 1
            if self.instructions == self.at and not any(lock.locked() for lock in self.locks):
                self.came = True
                self.action()
        return self.trace


@pytest.mark.parametrize(
    ("name", "options", "stages"),
    [
        ("_admit", {"limits": Limits(max_callers=1)}, ["allowed", "caller"]),
        ("_audit", {"sink": "broken"}, ["audit", "audit"]),
        ("_measure", {"metrics": "broken"}, ["allowed", "allowed"]),
        ("_ask_gateway", {}, ["allowed", "approval_denied"]),
    ],
)
def test_another_call_may_come_between_any_two_instructions(
    name: str, options: dict[str, Any], stages: list[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError

    broken = types.SimpleNamespace(record=fail, record_decision=fail)
    options = {key: broken if value == "broken" else value for key, value in options.items()}
    came = 0
    for at in range(1_000):  # the first time, Python 3.12 only learns that it is to stop there
        guard = make_guard(approver=lambda *_: ApprovalStatus.DENIED, **options)
        other: list[str] = []
        tool = "pay" if name == "_ask_gateway" else "read"

        def call(guard: Guard = guard, other: list[str] = other, tool: str = tool) -> None:
            other.append(guard.check_call("bob", tool, {}).stage)

        with Interruption(guard, name, at, call) as interruption:
            first = guard.check_call("alice", "read", {}).stage
        if at and interruption.instructions < at:
            break
        came += interruption.came
        found = sorted([first, *other]) if interruption.came else stages
        assert found == stages, at
        failures = guard.audit_failures + guard.metrics_failures
        assert failures == (len(other) + 1 if broken in options.values() else 0), at
    assert at > 20
    assert came > 5


# --- sessions in front of the guard


@repeated
def test_the_session_limit_is_exact_and_each_session_has_its_callers_budget(turn: int) -> None:
    authenticator = MCPSessionAuthenticator(max_concurrent_sessions=20 + turn)
    guard = make_guard(budget=30)

    def use(_: int) -> int | None:
        try:
            token = authenticator.create_session("agent", "alice")
        except RuntimeError:
            return None
        session = authenticator.validate_token(token)
        assert session is not None
        named = types.SimpleNamespace(
            client_id=session.agent_id, subject=session.user_id, claims=None
        )
        caller = verified_caller(named, remote=True)
        return sum(guard.check_call(caller, "read", {}).allowed for _ in range(EACH))

    used = [calls for calls in together(use) if calls is not None]
    assert len(used) == authenticator.active_session_count == 20 + turn
    assert sum(used) == 30


@repeated
def test_a_revoked_session_is_revoked_once(turn: int) -> None:
    authenticator = MCPSessionAuthenticator(max_concurrent_sessions=THREADS)
    tokens = [authenticator.create_session("agent") for _ in range(4 + turn)]
    revoked = together(lambda number: authenticator.revoke_session(tokens[number % len(tokens)]))
    assert revoked.count(True) == len(tokens)
    assert authenticator.active_session_count == 0


# --- nonces


def channel(store: LiveNonceStore, me: str = "server", peer: str = "client") -> SignedChannel:
    keys = {"client": b"c" * 32, "server": b"s" * 32}
    return SignedChannel(
        me=me, peer=peer, send_key=keys[me], receive_key=keys[peer], nonce_store=store
    )


def accepts(receiver: SignedChannel, wire: str) -> bool:
    try:
        receiver.verify(from_wire(wire))
    except RefusedMessageError:
        return False
    return True


@repeated
@pytest.mark.parametrize("receivers", [1, THREADS], ids=["one-channel", "32-channels"])
def test_each_message_is_accepted_exactly_once(receivers: int, turn: int) -> None:
    store = LiveNonceStore()
    channels = [channel(store) for _ in range(receivers)]
    client = channel(LiveNonceStore(), "client", "server")
    wires = [to_wire(client.sign(f"{turn} {number}")) for number in range(EACH)]

    def receive(number: int) -> list[bool]:
        return [accepts(channels[number % receivers], wire) for wire in wires]

    accepted = zip(*together(receive), strict=True)
    assert [sum(answers) for answers in accepted] == [1] * EACH
    assert store.count() == EACH


@repeated
def test_forged_messages_burn_no_nonce_however_many_come(turn: int) -> None:
    store = LiveNonceStore()
    server, client = channel(store), channel(LiveNonceStore(), "client", "server")
    genuine = to_wire(client.sign(f"genuine {turn}"))
    forged = genuine.replace("genuine", "forged!")

    def receive(number: int) -> bool:
        return accepts(server, genuine if number == turn else forged)

    assert [number for number, answer in enumerate(together(receive)) if answer] == [turn]


@repeated
def test_a_full_nonce_store_holds_as_many_as_it_may(turn: int) -> None:
    store = LiveNonceStore(max_nonces=20 + turn)
    server, client = channel(store), channel(LiveNonceStore(), "client", "server")
    wires = [to_wire(client.sign(str(number))) for number in range(THREADS)]
    accepted = together(lambda number: accepts(server, wires[number]))
    assert accepted.count(True) == store.count() == 20 + turn
