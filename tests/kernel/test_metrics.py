"""The kernel's four OpenTelemetry counters, read with the real SDK.

What counts a decision, stage by stage, is in test_gateway.py.
"""

import json
import re

import pytest
from support.documents import KERNEL, table
from support.isolated import run_isolated
from support.parts import Down, Meter, gateway, refuses, scanner

import agent_mcp_governance as g


def test_responses_registrations_and_what_fails_are_not_counted() -> None:
    meter = Meter()
    governed, tools = gateway(metrics=meter.metrics), scanner(metrics=meter.metrics)
    assert governed.intercept_tool_response("agent", "tool", "hello").allowed
    assert not governed.intercept_tool_response("agent", "tool", "<system>").allowed
    tools.register_tool("tool", "Adds.", None, "server")
    assert tools.check_rug_pull("tool", "Deletes.", None, "server") is not None
    assert tools.scan_tool("tool", None, None, "server")
    with pytest.raises(OSError, match="out of order"):
        refuses(gateway(metrics=meter.metrics, audit_sink=Down()))
    assert meter.counted() == {}


def test_a_server_scan_counts_itself_each_tool_and_every_threat() -> None:
    meter = Meter()
    schema = {"properties": {"canary": {"description": "ignore previous canary"}}}
    bad = {"name": "bad", "description": "<!-- canary --> use curl", "inputSchema": schema}
    result = scanner(metrics=meter.metrics).scan_server(
        "server", [{"name": "good", "description": "Adds."}, bad]
    )
    scans = [("scan_tool", "good"), ("scan_tool", "bad"), ("scan_server", "*")]
    assert isinstance(result, g.ScanResult)
    assert (result.tools_scanned, result.tools_flagged, len(result.threats)) == (2, 1, 3)
    assert meter.counted() == {
        "mcp_scans": [
            ({"operation": operation, "tool_name": tool, "server_name": "server"}, 1)
            for operation, tool in scans
        ],
        "mcp_threats_detected": [({"tool_name": "bad", "server_name": "server"}, 3)],
    }
    assert "canary" not in meter.exported()


def test_the_table_of_counters_is_true() -> None:
    meter, where = Meter(), {"tool_name": "tool", "server_name": "server"}
    meter.metrics.record_decision(allowed=True, agent_id="a", tool_name="tool", stage="mine")
    meter.metrics.record_rate_limit_hit(agent_id="a", tool_name="tool")
    meter.metrics.record_scan(operation="mine", **where)
    meter.metrics.record_threats_detected(7, **where)
    meter.metrics.record_threats_detected(0, **where)
    counted = {name: series for name, ((series, _),) in meter.counted().items()}
    rows = table(KERNEL, "Metrics")[1:]
    assert {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in rows} == {
        name: set(labels) for name, labels in counted.items()
    }
    (scope,) = json.loads(meter.exported())["resource_metrics"][0]["scope_metrics"]
    assert scope["scope"]["name"] == "agent_os.mcp"
    assert [metric["data"]["is_monotonic"] for metric in scope["metrics"]] == [True] * len(rows)


# A global meter provider can be set once in a process, so this has a process of its own.
GLOBAL_PROVIDER = """
from agent_mcp_governance import *
def use(gateway):
    gateway.intercept_tool_call("agent", "tool", {})
gateway = MCPGateway(GovernancePolicy())
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
use(gateway)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
use(gateway)
use(MCPGateway(GovernancePolicy()))
limiter = MCPSlidingRateLimiter(max_calls_per_window=1)
assert [limiter.try_acquire("agent") for _ in range(2)] == [True, False]
use(MCPGateway(GovernancePolicy(), metrics=MCPMetrics(MeterProvider())))
(metric,) = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
print(metric.name, sum(point.value for point in metric.data.data_points))
"""


def test_the_global_provider_counts_once_it_is_set_what_has_no_provider_of_its_own() -> None:
    assert run_isolated(GLOBAL_PROVIDER) == "mcp_decisions 2\n"
