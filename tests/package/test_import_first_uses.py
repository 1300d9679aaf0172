"""The first use of any part of the kernel gives what it gives without us."""

import json

import pytest
from support.first_imports import KERNEL, LET_THE_KERNEL_WARN, OURS
from support.isolated import run_isolated

# Each of these is the first use of a part of the kernel. What it prints must not depend on us.
FIRST_USES = {
    "dir": """
import agent_os, agent_os.integrations
for package in (agent_os, agent_os.integrations):
    print(*(name for name in dir(package) if name[:2] != "__"))
""",
    "every name that dir lists": """
import agent_os, agent_os.integrations
for package in (agent_os, agent_os.integrations):
    for name in dir(package):
        value = getattr(package, name)
        # The two helpers that the __init__ defines carry its name, which is accepted.
        home = getattr(value, "__module__", "").replace(".__init__", "")
        if name[:2] != "__":
            print(package.__name__, name, type(value), home, getattr(value, "__qualname__", ""))
""",
    "star import": """
names = {}
exec("from agent_os import *", names)
print(*sorted(names))
""",
    # It fails: one of the adapters needs a package that the kernel does not declare.
    "star import of integrations": """
names = {}
try:
    exec("from agent_os.integrations import *", names)
except ModuleNotFoundError as error:
    print(error)
print(*sorted(names))
""",
    "import": """
import importlib.resources, importlib.util, inspect
import agent_os, agent_os.integrations
for package in (agent_os, agent_os.integrations):
    print(package.__name__, package.__package__, package.__file__, *package.__path__)
    print(importlib.util.find_spec(package.__name__).origin, package.__spec__.cached)
    print(importlib.resources.files(package), len(inspect.getsource(package)))
""",
    "attribute": "import agent_os; print(agent_os.KernelSpace)",
    "from import": """
from agent_os import KernelSpace, integrations
print(KernelSpace, integrations)
""",
    "version": """
import agent_os
print(agent_os.__version__, agent_os.__author__, agent_os.__license__, agent_os.__all__)
""",
    "private name": "import agent_os; print(agent_os._CONTROL_PLANE_AVAILABLE)",
    "missing name": """
import agent_os
print(hasattr(agent_os, "missing"), getattr(agent_os, "missing", "default"))
try:
    from agent_os import missing
except ImportError as error:
    print(type(error), error.name, error.path)
try:
    import agent_os.missing
except ModuleNotFoundError as error:
    print(error, error.name)
""",
    "submodule": "import agent_os; print(agent_os.stateless, agent_os.KernelSpace)",
    "submodule by from": """
from agent_os import mcp_cve_feed, policies
print(mcp_cve_feed, policies)
""",
    "subpackage": "import agent_os.policies as policies; print(policies, sorted(policies.__all__))",
    "integrations": """
import agent_os
print(agent_os.integrations.RateLimiter, agent_os.integrations.base, agent_os.integrations.logging)
""",
    "lazy adapters": """
import agent_os.integrations
from agent_os.integrations import OpenAIKernel
print(OpenAIKernel, agent_os.integrations.LangChainKernel, agent_os.integrations.OpenAIKernel)
print(agent_os.integrations.OpenAIKernel is OpenAIKernel)
""",
    "patched class": """
from unittest.mock import patch
with patch("agent_os.mcp_gateway.MCPGateway") as fake:
    import agent_os.mcp_gateway
    print(agent_os.mcp_gateway.MCPGateway is fake)
print(agent_os.mcp_gateway.MCPGateway)
""",
    "patched top-level name": """
from unittest.mock import patch
with patch("agent_os.KernelSpace") as fake:
    import agent_os
    print(agent_os.KernelSpace is fake)
print(agent_os.KernelSpace)
""",
    "patched name of a module not loaded": """
from unittest.mock import patch
with patch("agent_os.mcp_cve_feed.logger") as fake:
    import agent_os.mcp_cve_feed
    print(agent_os.mcp_cve_feed.logger is fake)
print(agent_os.mcp_cve_feed.logger is fake)
""",
    "cloudpickle": """
import agent_os, cloudpickle, pickle
def use():
    import agent_os.integrations
    return agent_os.KernelSpace, agent_os.stateless, agent_os.integrations.RateLimiter
print(pickle.loads(cloudpickle.dumps(use))(), pickle.loads(cloudpickle.dumps(agent_os)))
""",
    "reload": """
import importlib, sys
import agent_os, agent_os.integrations
for package in (agent_os, agent_os.integrations, agent_os):
    print(importlib.reload(package) is package is sys.modules[package.__name__])
print(agent_os.KernelSpace, agent_os.mcp_gateway, agent_os.integrations.RateLimiter)
print(agent_os.integrations.LangChainKernel, hasattr(agent_os, "missing"), agent_os.__version__)
""",
    "reload of a module": """
import importlib
import agent_os.mcp_gateway
before = agent_os.mcp_gateway.MCPGateway
print(importlib.reload(agent_os.mcp_gateway) is agent_os.mcp_gateway)
print(agent_os.mcp_gateway.MCPGateway is before, agent_os.mcp_gateway.MCPGateway)
""",
}


@pytest.fixture(scope="module")
def without_us() -> dict[str, str]:
    """Return what each use prints where the whole kernel was loaded first, all in one program."""
    code = f"""
import contextlib, io, json
printed = {{}}
for use, code in {FIRST_USES!r}.items():
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {{}})
    printed[use] = output.getvalue()
print(json.dumps(printed))
"""
    printed: dict[str, str] = json.loads(run_isolated(KERNEL + code))
    return printed


@pytest.mark.parametrize("use", FIRST_USES)
def test_a_first_use_of_the_kernel_is_as_without_us(use: str, without_us: dict[str, str]) -> None:
    assert without_us[use]
    assert run_isolated(OURS + FIRST_USES[use]) == without_us[use]


# Imports ours whatever came before, so that one program serves both sides.
PICKLE_EVERY_DATACLASS = """
import dataclasses, pickle, re
from datetime import datetime, timezone
import agent_mcp_governance
from agent_mcp_governance import *
now = datetime(2026, 1, 2, tzinfo=timezone.utc)
threat = MCPThreat(MCPThreatType.RUG_PULL, MCPSeverity.CRITICAL, "tool", "server", "message")
instances = [
    AuditEntry(1.5, "agent", "tool", {"path": "a"}, True, "reason", ApprovalStatus.APPROVED),
    CredentialMatch("key", "text"),
    CredentialPattern("key", re.compile("a+")),
    GatewayConfig({"command": "server"}, "policy", ["a"], ["b"], ["c"], 5, True),
    GovernancePolicy(allowed_tools=["a"], blocked_patterns=[("b", PatternType.REGEX)]),
    MCPResponseDecision(False, "reason", "content", [{"category": "pii"}], "blocked"),
    MCPResponseScanResult(False, "tool", [MCPResponseThreat("pii", "an address")]),
    MCPResponseThreat("pii", "an address", "pattern", {"kind": "email"}),
    MCPSecurityConfig(disclaimer="text"),
    MCPSession("token", "agent", "user", now, now, "user:agent"),
    MCPSignedEnvelope("payload", "nonce", now, "signature", "sender"),
    MCPVerificationResult(True, "payload", "sender"),
    ScanResult(False, [threat], 1, 1),
    ToolFingerprint("tool", "server", "hash", "hash", 1.0, 2.0, 1),
    threat,
]
exported = [getattr(agent_mcp_governance, name) for name in agent_mcp_governance.__all__]
assert {type(i) for i in instances} == {e for e in exported if dataclasses.is_dataclass(e)}
for instance in instances:
    pickled = pickle.dumps(instance)
    assert pickle.loads(pickled) == instance
    print(type(instance).__name__, pickled.hex())
"""


def test_pickles_of_every_dataclass_are_those_made_without_us() -> None:
    with_us = run_isolated(OURS + PICKLE_EVERY_DATACLASS)
    assert len(with_us.splitlines()) == 15
    assert with_us == run_isolated(KERNEL + PICKLE_EVERY_DATACLASS)


def test_a_pickle_brings_in_the_kernel_without_us() -> None:
    policy = "import pickle; print(pickle.dumps(agent_mcp_governance.GovernancePolicy()).hex())"
    pickled = run_isolated(OURS + policy).strip()
    read = f"import pickle; print(pickle.loads(bytes.fromhex('{pickled}')))"
    assert run_isolated(LET_THE_KERNEL_WARN + read).startswith("GovernancePolicy(")


def test_a_cloudpickled_function_runs_where_we_are_not_loaded() -> None:
    make = """
import agent_os, cloudpickle
def use():
    return agent_os.KernelSpace.__name__, agent_os.mcp_gateway.MCPGateway.__name__
print(cloudpickle.dumps(use).hex())
"""
    pickled = run_isolated(OURS + make).strip()
    read = f"import pickle; print(*pickle.loads(bytes.fromhex('{pickled}'))())"
    for first in (LET_THE_KERNEL_WARN, OURS):
        assert run_isolated(first + read).split() == ["KernelSpace", "MCPGateway"]
