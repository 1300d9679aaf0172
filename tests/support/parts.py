"""Kernel objects made in one line, values that are hard to check, parts that are out of order."""

import dataclasses
import threading
import warnings
from collections.abc import Callable
from typing import Any

from agent_mcp_governance import (
    GovernancePolicy,
    MCPGateway,
    MCPSecurityConfig,
    MCPSecurityScanner,
)

KEY = b"0123456789abcdef" * 2
SECRET = "sk-" + "ABCDEFGHIJKLMNOPQRSTUVWX1234"  # in two pieces, for scanners of this file

# Seconds; only something that is broken makes a thread wait for so long.
PATIENCE = 30

_POLICY_FIELDS = {field.name for field in dataclasses.fields(GovernancePolicy)}


def gateway(**options: Any) -> MCPGateway:
    """Return a gateway; each option goes to the policy if that has such a field."""
    fields = {name: options.pop(name) for name in _POLICY_FIELDS & options.keys()}
    return MCPGateway(GovernancePolicy(**fields), **options)


def refuses(gateway: MCPGateway, params: Any = None, tool: Any = "tool", agent: Any = "a") -> bool:
    """Say whether the call is refused."""
    return not gateway.intercept_tool_call(agent, tool, {} if params is None else params)[0]


def blocks(content: Any, **options: Any) -> bool:
    """Say whether a gateway with *options* blocks the response."""
    return not gateway(**options).intercept_tool_response("a", "tool", content).allowed


def scanner(**options: Any) -> MCPSecurityScanner:
    """Return a tool scanner that was made without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MCPSecurityScanner(**{"config": MCPSecurityConfig(), **options})


def nested(depth: int, kind: type = list) -> dict[str, Any]:
    """Return a list in a list in a list; a *kind* of tuple costs the redactor two frames each."""
    value: Any = "value"
    for _ in range(depth):
        value = kind([value])
    return {"key": value}


def circular() -> dict[str, Any]:
    """Return a dict that holds itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


class Down:
    """Any store, sink, recorder, scanner or clock, out of order."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        raise OSError("out of order")


class Unprintable:
    """An object that cannot be made text."""

    def __str__(self) -> str:
        raise OSError("out of order")


class OpenStore:
    """A rate-limit store that shows its buckets, counts, and lets the test act in between."""

    def __init__(self) -> None:
        self.buckets: dict[str, Any] = {}
        self.reads = self.writes = 0
        # The first is taken off and called after the next read, or after the next write.
        self.after_read: list[Callable[[], object]] = []
        self.after_write: list[Callable[[], object]] = []

    def get_bucket(self, agent_id: str) -> Any | None:
        bucket = self.buckets.get(agent_id)
        self.reads += 1
        if self.after_read:
            self.after_read.pop(0)()
        return bucket

    def set_bucket(self, agent_id: str, bucket: Any) -> None:
        self.buckets[agent_id] = bucket
        self.writes += 1
        if self.after_write:
            self.after_write.pop(0)()


def meanwhile(action: Callable[[], object]) -> threading.Thread:
    """Let another thread act to its end now; if it needs a lock of ours, it acts after us."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(timeout=PATIENCE)
    return thread
