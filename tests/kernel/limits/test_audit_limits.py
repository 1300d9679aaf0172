"""Limits of MCPGateway: audit, logging, counters."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.limits import limit, raises
from support.parts import SECRET, Down, gateway, refuses

from agent_mcp_governance import InMemoryAuditSink, MCPGateway, MCPMetrics


def respond(governed: MCPGateway) -> object:
    return governed.intercept_tool_response("a", "tool", "fine")


@limit("broken parts", "rate_limit_store", ["audit_sink", "metrics", "clock"])
def test_a_broken_part_makes_nothing_raise(part: str) -> bool:
    governed = gateway(**{part: Down()})
    return not raises(OSError, lambda: refuses(governed)) or not governed.get_agent_call_count("a")


@limit("audit log without end", 10, [10_001])
def test_an_audit_log_is_bounded(calls: int) -> bool:
    governed = gateway(audit_sink=InMemoryAuditSink(), log_all_calls=False)
    for _ in range(calls):
        refuses(governed)
    governed.audit_log.clear()
    return len(governed.audit_log) <= 10_000


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what the kernel logs, with its tracebacks."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(handler.format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("agent_os")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@limit("log_all_calls", lambda _, messages: messages, [lambda governed, _: governed.audit_log])
def test_a_call_that_is_not_to_be_logged_leaves_no_trace(trace: Callable[..., list[Any]]) -> bool:
    governed = gateway(log_all_calls=False)
    with logged() as messages:
        refuses(governed)
    return trace(governed, messages) == []


@dataclasses.dataclass
class Account:
    token: str


@limit("entries that are not JSON", "x", [b"x", {"x"}, Account("x")])
def test_an_audit_entry_can_be_written_as_json(value: Any) -> bool:
    sink = InMemoryAuditSink()
    refuses(gateway(audit_sink=sink), {"q": value})
    return not raises(TypeError, lambda: json.dumps(sink.entries()))


HELD = [{SECRET: 1}, {"q": SECRET.encode()}, {"q": {SECRET}}, {"q": Account(SECRET)}]


@limit("secrets in keys and objects", {"q": [SECRET]}, HELD)
def test_a_secret_does_not_reach_the_audit_log(params: dict[str, Any]) -> bool:
    governed = gateway()
    refuses(governed, params)
    return SECRET not in repr(governed.audit_log)


@limit("personal data", SECRET, ["bob@example.com", "4111 1111 1111 1111", "123-45-6789"])
def test_personal_data_does_not_reach_the_audit_log(text: str) -> bool:
    governed = gateway()
    refuses(governed, {"q": text})
    return text not in repr(governed.audit_log)


@limit("secrets in names", {"params": {"q": SECRET}}, [{"agent": SECRET}, {"tool": SECRET}])
def test_a_secret_in_a_name_is_redacted(call: dict[str, Any]) -> bool:
    governed = gateway()
    with logged() as messages:
        refuses(governed, **call)
    return SECRET not in repr(governed.audit_log) or SECRET not in str(messages)


@limit("forged log lines", "agent forged", ["agent\nforged"])
def test_an_agent_id_cannot_forge_a_log_line(agent: str) -> bool:
    with logged() as messages:
        refuses(gateway(), agent=agent)
    return len(messages) == 1 and "\nforged" not in messages[0]


@limit("patterns in reasons", "nothing", ["sesame"])
def test_a_pattern_is_not_told_to_the_caller(pattern: str) -> bool:
    governed = gateway(blocked_patterns=[pattern])
    return pattern not in governed.intercept_tool_call("a", "tool", {"q": "open sesame"})[1]


def series(calls: list[dict[str, Any]]) -> int:
    reader = InMemoryMetricReader()
    governed = gateway(metrics=MCPMetrics(MeterProvider(metric_readers=[reader])))
    for call in calls:
        refuses(governed, **call)
    data = reader.get_metrics_data()
    assert data is not None
    return len(data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points)


@limit(
    "metric labels",
    [{"params": {"q": number}} for number in range(50)],
    [[{name: f"{name}-{number}"} for number in range(50)] for name in ("agent", "tool")],
)
def test_the_number_of_series_does_not_grow_with_the_callers(calls: list[dict[str, Any]]) -> bool:
    return 0 < series(calls) <= 20


@limit("uncounted responses", refuses, [respond])
def test_a_response_is_counted(use: Callable[[MCPGateway], object]) -> bool:
    counted: list[dict[str, Any]] = []

    class Recorder(MCPMetrics):
        def record_decision(self, **labels: Any) -> None:
            counted.append(labels)

    use(gateway(metrics=Recorder()))
    return counted != []
