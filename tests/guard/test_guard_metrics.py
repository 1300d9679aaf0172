"""Metrics: each decision is counted, with few labels; a recorder that fails decides nothing."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.guards import in_both_forms, make_guard
from support.threads import THREADS, together

from agent_mcp_governance import MCPMetrics


class Recorded:
    """A real recorder, and what it has counted."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.metrics = MCPMetrics(meter_provider=MeterProvider([self._reader]))

    def counted(self, name: str, *labels: str) -> dict[tuple[Any, ...], float]:
        """Return the counts of *name* by the values of *labels*."""
        counts: Counter[tuple[Any, ...]] = Counter()
        data = self._reader.get_metrics_data()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            for point in metric.data.data_points if metric.name == name else ():
                counts[tuple(point.attributes[label] for label in labels)] += point.value
        return dict(counts)


def fail(*_: object, **__: object) -> Any:
    raise OSError("private")


@in_both_forms
def test_each_decision_is_counted_once_and_a_response_as_a_scan_too(check: Any) -> None:
    recorded = Recorded()
    options: dict[str, Any] = {"blocked_patterns": ["x"], "max_calls_per_window": 2}
    guard, _ = make_guard(
        metrics=recorded.metrics, detectors=[lambda *_: ["a", "b"]], max_tool_calls=1, **options
    )
    for caller, tool, params in (
        *[("alice", "search", {}), ("alice", "drop", {}), ("alice", "search", {})],
        *[("bob", "search", {"q": "x"}), ("carl", "refund", {}), ("carl", "refund", {})],
    ):
        check.call(guard, caller, tool, params)
    check.response(guard, "alice", "search", "text")
    assert recorded.counted("mcp_decisions", "stage", "tool_name", "agent_id") == {
        ("allowed", "search", "any"): 1,
        ("allow_list", "other", "any"): 1,
        ("rate_limit", "search", "any"): 1,
        ("pattern", "search", "any"): 1,
        ("allowed", "refund", "any"): 1,
        ("budget", "refund", "any"): 1,
        ("detector", "search", "any"): 1,
    }
    hits = {("any", "search"): 1, ("any", "refund"): 1}
    assert recorded.counted("mcp_rate_limit_hits", "agent_id", "tool_name") == hits
    assert recorded.counted("mcp_scans", "server_name", "tool_name") == {("desk", "search"): 1}
    assert recorded.counted("mcp_threats_detected", "server_name") == {("desk",): 2}


def test_labels_of_callers_are_the_operators_choice() -> None:
    recorded = Recorded()
    guard, _ = make_guard(metrics=recorded.metrics, caller_label=lambda caller: caller[0])
    for caller in ("alice", "adam", "bob"):
        guard.check_call(caller, f"tool of {caller}", {})
    counted = recorded.counted("mcp_decisions", "agent_id", "tool_name")
    assert counted == {("a", "other"): 2, ("b", "other"): 1}


@in_both_forms
def test_a_recorder_or_a_label_that_fails_decides_nothing_and_is_counted(
    check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    guard, log = make_guard(metrics=SimpleNamespace(record_decision=fail))
    unnamed, _ = make_guard(metrics=Recorded().metrics, caller_label=fail)
    for one in (guard, unnamed):
        assert check.call(one, "alice", "search", {"q": 1}).params == {"q": 1}
        assert one.metrics.failures == 1
    assert len(log) == 1
    assert caplog.messages == ["the metrics recorder failed: OSError"] * 2


@pytest.mark.usefixtures("threads_take_turns_often")
def test_every_failure_is_counted_with_32_threads() -> None:
    broken = SimpleNamespace(record=fail, record_decision=fail, blocking=False)
    guard, _ = make_guard(metrics=broken, audit_sink=broken)
    together(lambda _: [guard.check_call("alice", "search", {}) for _ in range(10)])
    assert guard.audit.failures == guard.metrics.failures == THREADS * 10
