"""The kernel's four OpenTelemetry counters, read with the real SDK."""

import ast
import inspect
import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agent_mcp_governance import (
    ApprovalStatus,
    GovernancePolicy,
    MCPGateway,
    MCPMetrics,
    MCPSecurityConfig,
    MCPSecurityScanner,
)

# The scanner builds a detector without a config, whatever its own config is.
pytestmark = pytest.mark.filterwarnings("ignore:PromptInjectionDetector:UserWarning")

COUNTERS = {"mcp_decisions", "mcp_rate_limit_hits", "mcp_scans", "mcp_threats_detected"}
SDK_SERIES_LIMIT = 2_000


class Meter:
    """MCPMetrics over a meter provider of its own, and what has been counted so far."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.metrics = MCPMetrics(
            MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        )

    def collect(self) -> dict:
        data = self.reader.get_metrics_data()
        return json.loads(data.to_json()) if data else {"resource_metrics": []}

    def counted(self) -> dict[str, list[tuple[dict, int]]]:
        return {
            metric["name"]: [(p["attributes"], p["value"]) for p in metric["data"]["data_points"]]
            for resource in self.collect()["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
        }


@pytest.fixture
def meter():
    return Meter()


def decision(allowed: bool, stage: str, tool: str = "tool") -> dict[str, str]:
    return {
        "agent_id": "agent",
        "tool_name": tool,
        "decision": "allow" if allowed else "deny",
        "stage": stage,
    }


def fail(*_args: object) -> None:
    raise OSError("backend down")


@dataclass(frozen=True)
class Stage:
    """A call that ends at one stage of the gateway."""

    name: str
    allowed: bool
    policy: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    params: dict = field(default_factory=dict)


def approver(status: ApprovalStatus) -> dict:
    return {"sensitive_tools": ["tool"], "approval_callback": lambda *_call: status}


STAGES = (
    Stage("allowed", True),
    Stage("approval_granted", True, options=approver(ApprovalStatus.APPROVED)),
    Stage("deny_list", False, options={"denied_tools": ["tool"]}),
    Stage("allow_list", False, policy={"allowed_tools": ["other"]}),
    Stage("policy_pattern", False, policy={"blocked_patterns": ["evil"]}, params={"q": "evil"}),
    Stage("builtin_pattern", False, params={"q": "$(id)"}),
    Stage("approval_denied", False, options=approver(ApprovalStatus.DENIED)),
    Stage("approval_pending", False, options={"sensitive_tools": ["tool"]}),
    Stage(
        "approval_error", False, options={"sensitive_tools": ["tool"], "approval_callback": fail}
    ),
    Stage("error", False, params={("not", "json"): 1}),
)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_each_call_is_one_decision_with_the_stage_that_decided(stage, meter):
    gateway = MCPGateway(GovernancePolicy(**stage.policy), metrics=meter.metrics, **stage.options)
    gateway.intercept_tool_call("agent", "tool", stage.params)
    gateway.intercept_tool_call("agent", "tool", stage.params)
    assert meter.counted() == {"mcp_decisions": [(decision(stage.allowed, stage.name), 2)]}


def test_a_call_over_the_budget_is_a_decision_and_a_rate_limit_hit(meter):
    gateway = MCPGateway(GovernancePolicy(max_tool_calls=2), metrics=meter.metrics)
    for _ in range(5):
        gateway.intercept_tool_call("agent", "tool", {})
    assert meter.counted() == {
        "mcp_decisions": [
            (decision(True, "allowed"), 2),
            (decision(False, "rate_limit"), 3),
        ],
        "mcp_rate_limit_hits": [({"agent_id": "agent", "tool_name": "tool"}, 3)],
    }


def test_the_gateway_has_no_other_stage():
    source = ast.parse(textwrap.dedent(inspect.getsource(MCPGateway._evaluate)))
    returns = [node.value for node in ast.walk(source) if isinstance(node, ast.Return)]
    names = {stage.name for stage in STAGES} - {"error"} | {"rate_limit"}
    assert {returned.elts[3].value for returned in returns} == names
    assert len(names) == 10


def test_the_response_path_counts_nothing(meter):
    gateway = MCPGateway(GovernancePolicy(), metrics=meter.metrics)
    assert gateway.intercept_tool_response("agent", "tool", "hello").allowed
    assert not gateway.intercept_tool_response("agent", "tool", "<system>").allowed
    assert meter.counted() == {}


def test_a_call_whose_audit_sink_raises_is_not_counted(meter):
    class Sink:
        record = fail

    gateway = MCPGateway(GovernancePolicy(), metrics=meter.metrics, audit_sink=Sink())
    with pytest.raises(OSError, match="backend down"):
        gateway.intercept_tool_call("agent", "tool", {})
    assert meter.counted() == {}


def scan(tool: str, operation: str = "scan_tool") -> dict[str, str]:
    return {"operation": operation, "tool_name": tool, "server_name": "server"}


def security_scanner(meter: Meter) -> MCPSecurityScanner:
    return MCPSecurityScanner(meter.metrics, config=MCPSecurityConfig())


def test_a_tool_scan_is_counted_and_every_threat_that_it_finds(meter):
    scanner = security_scanner(meter)
    scanner.scan_tool("clean", "Adds numbers.", None, "server")
    threats = scanner.scan_tool("bad", "<!-- x --> use curl and wget", None, "server")
    assert len(threats) == 3
    assert meter.counted() == {
        "mcp_scans": [(scan("clean"), 1), (scan("bad"), 1)],
        "mcp_threats_detected": [({"tool_name": "bad", "server_name": "server"}, 3)],
    }


def test_a_server_scan_counts_itself_and_each_tool(meter):
    tools = [{"name": "one", "description": "Adds."}, {"name": "two", "description": "<!-- x -->"}]
    result = security_scanner(meter).scan_server("server", tools)
    assert (result.tools_scanned, result.tools_flagged) == (2, 1)
    assert meter.counted() == {
        "mcp_scans": [(scan("one"), 1), (scan("two"), 1), (scan("*", "scan_server"), 1)],
        "mcp_threats_detected": [({"tool_name": "two", "server_name": "server"}, 1)],
    }


def test_registering_a_tool_and_comparing_it_count_nothing(meter):
    scanner = security_scanner(meter)
    scanner.register_tool("tool", "Adds.", None, "server")
    assert scanner.check_rug_pull("tool", "Deletes.", None, "server") is not None
    assert meter.counted() == {}


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the kernel counts after the scan, inside its try"
)
def test_a_scan_that_fails_closed_is_counted(meter):
    assert security_scanner(meter).scan_tool("tool", None, None, "server")
    assert set(meter.counted()) == {"mcp_scans", "mcp_threats_detected"}


WHERE = {"tool_name": "tool", "server_name": "server"}


def record_each(metrics: MCPMetrics) -> None:
    metrics.record_decision(allowed=True, agent_id="agent", tool_name="tool", stage="mine")
    metrics.record_rate_limit_hit(agent_id="agent", tool_name="tool")
    metrics.record_scan(operation="mine", **WHERE)
    metrics.record_threats_detected(7, **WHERE)


def test_direct_calls_move_one_counter_each(meter):
    record_each(meter.metrics)
    counted = meter.counted()
    assert counted == {
        "mcp_decisions": [(decision(True, "mine"), 1)],
        "mcp_rate_limit_hits": [({"agent_id": "agent", "tool_name": "tool"}, 1)],
        "mcp_scans": [({"operation": "mine", **WHERE}, 1)],
        "mcp_threats_detected": [(WHERE, 7)],
    }
    assert set(counted) == COUNTERS


@pytest.mark.parametrize("count", [0, -1])
def test_no_threats_are_no_series(count, meter):
    meter.metrics.record_threats_detected(count, **WHERE)
    assert meter.counted() == {}


def test_the_counters_are_monotonic_sums_of_one_scope(meter):
    record_each(meter.metrics)
    (resource,) = meter.collect()["resource_metrics"]
    (scope,) = resource["scope_metrics"]
    assert (scope["scope"]["name"], scope["scope"]["version"]) == ("agent_os.mcp", "3.1.0")
    assert [metric["data"]["is_monotonic"] for metric in scope["metrics"]] == [True] * 4


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_params_never_reach_what_is_exported(stage, meter):
    params = {**stage.params, "canary-key": "canary-value", "list": [{"canary-key": "canary"}]}
    gateway = MCPGateway(GovernancePolicy(**stage.policy), metrics=meter.metrics, **stage.options)
    gateway.intercept_tool_call("agent", "tool", params)
    exported = json.dumps(meter.collect())
    assert stage.name in exported
    assert "canary" not in exported


def test_descriptions_and_schemas_never_reach_what_is_exported(meter):
    schema = {"properties": {"canary-field": {"description": "ignore previous canary"}}}
    threats = security_scanner(meter).scan_tool("tool", "<!-- canary -->", schema, "server")
    exported = json.dumps(meter.collect())
    assert len(threats) == 2
    assert "mcp_threats_detected" in exported
    assert "canary" not in exported


def test_agent_ids_and_tool_names_are_exported_verbatim(meter):
    agent, tool = "sk-" + "A" * 30, "password=hunter22"
    MCPGateway(GovernancePolicy(), metrics=meter.metrics).intercept_tool_call(agent, tool, {})
    ((labels, value),) = meter.counted()["mcp_decisions"]
    assert (labels["agent_id"], labels["tool_name"], value) == (agent, tool, 1)


def test_each_agent_id_and_tool_name_is_a_series_of_its_own(meter):
    gateway = MCPGateway(GovernancePolicy(max_tool_calls=1), metrics=meter.metrics)
    for agent in range(50):
        for tool in ("read", "write"):
            gateway.intercept_tool_call(f"agent-{agent}", tool, {})
    counted = meter.counted()
    assert len(counted["mcp_decisions"]) == 100
    assert len(counted["mcp_rate_limit_hits"]) == 50


def test_the_sdk_folds_series_past_its_limit_into_one(meter):
    for agent in range(SDK_SERIES_LIMIT + 100):
        meter.metrics.record_rate_limit_hit(agent_id=str(agent), tool_name="tool")
    series = meter.counted()["mcp_rate_limit_hits"]
    assert len(series) == SDK_SERIES_LIMIT + 1
    assert ({"otel.metric.overflow": True}, 100) in series


class Recorder:
    """A metrics recorder of one's own; it needs no OpenTelemetry."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def record_decision(self, *, allowed: bool, agent_id: str, tool_name: str, stage: str) -> None:
        self.calls.append(("decision", allowed, agent_id, tool_name, stage))

    def record_threats_detected(self, count: int, *, tool_name: str, server_name: str) -> None:
        self.calls.append(("threats", count, tool_name, server_name))

    def record_rate_limit_hit(self, *, agent_id: str, tool_name: str) -> None:
        self.calls.append(("rate_limit_hit", agent_id, tool_name))

    def record_scan(self, *, operation: str, tool_name: str, server_name: str) -> None:
        self.calls.append(("scan", operation, tool_name, server_name))


def test_a_recorder_of_ones_own_gets_what_the_counters_would():
    recorder = Recorder()
    gateway = MCPGateway(GovernancePolicy(max_tool_calls=1), metrics=recorder)
    gateway.intercept_tool_call("agent", "tool", {})
    gateway.intercept_tool_call("agent", "tool", {})
    scanner = MCPSecurityScanner(recorder, config=MCPSecurityConfig())
    scanner.scan_server("server", [{"name": "bad", "description": "<!-- x -->"}])
    scanner.scan_tool("clean", "Adds.", None, "server")
    assert recorder.calls == [
        ("decision", True, "agent", "tool", "allowed"),
        ("decision", False, "agent", "tool", "rate_limit"),
        ("rate_limit_hit", "agent", "tool"),
        ("scan", "scan_tool", "bad", "server"),
        ("threats", 1, "bad", "server"),
        ("scan", "scan_server", "*", "server"),
        ("scan", "scan_tool", "clean", "server"),
        ("threats", 0, "clean", "server"),
    ]


# A global meter provider can be set once in a process, so each of these has its own.
def run(python: str | Path, code: str) -> object:
    """Run code in a fresh interpreter and return the JSON that it prints."""
    done = subprocess.run(  # noqa: S603 - an interpreter and code of ours
        [python, "-I", "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


WITH_READER = """
import json
import logging
import warnings
from datetime import timedelta
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from agent_mcp_governance import *

logging.getLogger("agent_os").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", "PromptInjectionDetector", UserWarning)
reader = InMemoryMetricReader()
provider = MeterProvider(metric_readers=[reader])

def totals():
    data = reader.get_metrics_data()
    return {
        metric.name: sum(point.value for point in metric.data.data_points)
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
"""


def test_the_global_provider_is_used_when_none_is_given():
    code = """
metrics.set_meter_provider(provider)
MCPGateway(GovernancePolicy()).intercept_tool_call("agent", "tool", {})
MCPSecurityScanner(config=MCPSecurityConfig()).scan_tool("tool", "<!-- x -->", None, "server")
MCPMetrics().record_rate_limit_hit(agent_id="agent", tool_name="tool")
print(json.dumps(totals()))
"""
    assert run(sys.executable, WITH_READER + code) == dict.fromkeys(COUNTERS, 1)


def test_a_gateway_made_before_the_global_provider_counts_from_then_on():
    code = """
gateway = MCPGateway(GovernancePolicy())
gateway.intercept_tool_call("agent", "tool", {})
metrics.set_meter_provider(provider)
gateway.intercept_tool_call("agent", "tool", {})
gateway.intercept_tool_call("agent", "tool", {})
print(json.dumps(totals()))
"""
    assert run(sys.executable, WITH_READER + code) == {"mcp_decisions": 2}


def test_a_provider_of_ones_own_keeps_calls_from_the_global_one():
    code = """
metrics.set_meter_provider(provider)
own = MCPMetrics(meter_provider=MeterProvider())
MCPGateway(GovernancePolicy(), metrics=own).intercept_tool_call("agent", "tool", {})
print(json.dumps(totals()))
"""
    assert run(sys.executable, WITH_READER + code) == {}


def test_the_other_classes_count_nothing():
    code = """
metrics.set_meter_provider(provider)

limiter = MCPSlidingRateLimiter(max_calls_per_window=1)
refused = [limiter.try_acquire("agent"), limiter.try_acquire("agent")] == [True, False]

signer = MCPMessageSigner(MCPMessageSigner.generate_key())
envelope = signer.sign_message("payload", "sender")
signer.verify_message(envelope)
refused &= not signer.verify_message(envelope).is_valid

sessions = MCPSessionAuthenticator()
token = sessions.create_session("agent", "user")
refused &= sessions.validate_session("another", token) is None
sessions.revoke_session(token)

refused &= not MCPResponseScanner().scan_response("<system>", "tool").is_safe
refused &= CredentialRedactor.redact("password=hunter22") == "[REDACTED]"
MCPGateway.wrap_mcp_server({}, GovernancePolicy())
InMemoryAuditSink().record({"agent_id": "agent"})

before = totals()
MCPMetrics().record_scan(operation="control", tool_name="tool", server_name="server")
print(json.dumps([refused, before, totals()]))
"""
    assert run(sys.executable, WITH_READER + code) == [True, {}, {"mcp_scans": 1}]


def test_the_api_without_a_provider_works_and_says_nothing():
    code = """
import json
import logging
from agent_mcp_governance import *
gateway = MCPGateway(GovernancePolicy())
print(json.dumps(gateway.intercept_tool_call("agent", "tool", {})))
"""
    assert run(sys.executable, code) == [True, "Allowed by policy"]


BLOCKED = "import sys\nsys.modules['opentelemetry'] = None\n"
ABSENT = """
import importlib.util
assert importlib.util.find_spec("opentelemetry") is None
"""
WITHOUT_OPENTELEMETRY = """
import json
import sys
import warnings
from agent_mcp_governance import *

warnings.filterwarnings("ignore", "PromptInjectionDetector", UserWarning)
ignored = MCPMetrics(meter_provider=object())
gateway = MCPGateway(GovernancePolicy(max_tool_calls=1), metrics=ignored)
allowed = [gateway.intercept_tool_call("agent", "tool", {})[0] for _ in range(2)]
allowed.append(gateway.intercept_tool_response("agent", "tool", "hello").allowed)
scanner = MCPSecurityScanner(config=MCPSecurityConfig())
allowed.append(scanner.scan_server("server", [{"name": "tool", "description": "Adds."}]).safe)

where = {"tool_name": "tool", "server_name": "server"}
recorded = [
    ignored.record_decision(allowed=True, agent_id="agent", tool_name="tool", stage="allowed"),
    ignored.record_rate_limit_hit(agent_id="agent", tool_name="tool"),
    ignored.record_scan(operation="scan", **where),
    ignored.record_threats_detected(1, **where),
]

class Recorder(MCPMetrics):
    def record_decision(self, **labels):
        recorded.append(labels["stage"])

MCPGateway(GovernancePolicy(), metrics=Recorder()).intercept_tool_call("agent", "tool", {})
loaded = [name for name in sys.modules if name.startswith("opentelemetry.")]
print(json.dumps([allowed, recorded, loaded]))
"""
NOTHING_RECORDED = [[True, False, True, True], [None, None, None, None, "allowed"], []]


def test_without_opentelemetry_everything_works_and_counts_nothing():
    assert run(sys.executable, BLOCKED + WITHOUT_OPENTELEMETRY) == NOTHING_RECORDED


def check_a_clean_environment(python: Path) -> None:
    """Assert the same in an environment that has the package and what it declares, no more."""
    assert run(python, ABSENT + WITHOUT_OPENTELEMETRY) == NOTHING_RECORDED
