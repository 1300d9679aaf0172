"""Kernel objects made in one line, values that are hard to check, parts that are out of order."""

import dataclasses
import json
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agent_mcp_governance import (
    GovernancePolicy,
    MCPGateway,
    MCPMetrics,
    MCPSecurityConfig,
    MCPSecurityScanner,
    load_mcp_security_config,
)
from support.isolated import CONTRACT

KEY = b"0123456789abcdef" * 2
SECRET = "sk-" + "ABCDEFGHIJKLMNOPQRSTUVWX1234"  # in two pieces, for scanners of this file

# Seconds; only something that is broken makes a thread wait for so long.
PATIENCE = 30

# Methods by name of what does something; enumerations, protocols and most records only hold.
ACTIVE: dict[str, dict[str, str]] = {
    name: entry.get("attributes", {})
    for name, entry in CONTRACT.items()
    if entry["is"] in ("a class", "a function") or name == "GovernancePolicy"
}

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


def loaded(rules: str) -> MCPSecurityConfig:
    """Return what the scanner's rules are that this text of a file says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rules.yaml")
        path.write_text(rules, encoding="utf-8")
        return load_mcp_security_config(str(path))


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
        self.reads = 0
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
        if self.after_write:
            self.after_write.pop(0)()


def meanwhile(action: Callable[[], object]) -> threading.Thread:
    """Let another thread act to its end now; if it needs a lock of ours, it acts after us."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(timeout=PATIENCE)
    return thread


class Own:
    """A store or sink of one's own: notes in order what is used, and answers None if not told."""

    def __init__(self, **answers: object) -> None:
        self.used: list[str] = []
        self._answers = answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def method(*_: object, **__: object) -> object:
            self.used.append(name)
            return self._answers.get(name)

        return method


class Meter:
    """MCPMetrics over a meter provider of its own, and what has been counted so far."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        provider = MeterProvider(metric_readers=[self._reader], shutdown_on_exit=False)
        self.metrics = MCPMetrics(provider)

    def exported(self) -> str:
        """Return all that leaves the process, as JSON."""
        data = self._reader.get_metrics_data()
        return data.to_json() if data else '{"resource_metrics": []}'

    def counted(self) -> dict[str, list[tuple[dict[str, Any], int]]]:
        """Return each counter's series: its labels and its sum."""
        return {
            metric["name"]: [(p["attributes"], p["value"]) for p in metric["data"]["data_points"]]
            for resource in json.loads(self.exported())["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
        }
