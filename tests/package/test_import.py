"""What an import loads, and that the kernel around it behaves as it does without us.

Everything runs in fresh interpreters: what is tested is what the first import does.
"""

import json
import shutil
from importlib.metadata import distribution
from pathlib import Path

import pytest
from support.isolated import KERNEL_MODULES, PLACEHOLDERS, loaded_by_our_import, run_isolated

import agent_mcp_governance

# The whole kernel cannot be imported where warnings are errors, only what we load of it can.
LET_THE_KERNEL_WARN = "import warnings; warnings.simplefilter('ignore')\n"
OURS = f"import agent_mcp_governance\n{LET_THE_KERNEL_WARN}"
# The same modules loaded without us, which runs both of the kernel's __init__ files first.
KERNEL = f"{LET_THE_KERNEL_WARN}import {', '.join(sorted(KERNEL_MODULES))}\n"

# The kernel uses opentelemetry where it is installed, and the test extra installs it.
WITHOUT_OPENTELEMETRY = "sys.modules['opentelemetry'] = None\n"


def test_an_import_loads_twelve_kernel_modules_and_two_placeholders() -> None:
    loaded = loaded_by_our_import(first=WITHOUT_OPENTELEMETRY)
    assert loaded == {"agent_mcp_governance"} | KERNEL_MODULES | PLACEHOLDERS
    assert len(KERNEL_MODULES) == 12


def test_an_import_loads_none_of_the_kernels_other_packages() -> None:
    files = distribution("agent-os-kernel").files or []
    shipped = {file.parts[0] for file in files if file.name == "__init__.py"}
    others = shipped - {"agent_os"}
    assert {"agent_control_plane", "caas", "nexus"} < others
    assert not others & {name.partition(".")[0] for name in loaded_by_our_import()}


def test_opentelemetry_is_the_only_third_party_package_loaded_and_only_if_it_is_there() -> None:
    added = loaded_by_our_import() - loaded_by_our_import(first=WITHOUT_OPENTELEMETRY)
    assert {name.partition(".")[0] for name in added} == {"opentelemetry"}


ORDERS = {
    "ours first": f"{OURS}{KERNEL}",
    "kernel first": f"{KERNEL}{OURS}",
    "ours alone": OURS,
}
EACH_NAME_IS_THE_KERNELS = """
import sys
for name in agent_mcp_governance.__all__:
    value = getattr(agent_mcp_governance, name)
    assert value is getattr(sys.modules[value.__module__], name)
    print(name, value.__module__)
"""


@pytest.mark.parametrize("order", ORDERS)
def test_the_import_order_does_not_matter(order: str) -> None:
    printed = run_isolated(ORDERS[order] + EACH_NAME_IS_THE_KERNELS).splitlines()
    assert printed == [
        f"{name} {getattr(agent_mcp_governance, name).__module__}"
        for name in agent_mcp_governance.__all__
    ]


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
import agent_os
print(agent_os.__name__, agent_os.__package__, agent_os.__file__, *agent_os.__path__)
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


def test_probing_unknown_dunders_over_sys_modules_loads_nothing() -> None:
    code = """
import inspect, sys
before = set(sys.modules)
probes = ("__wrapped__", "__signature__", "__test__", "__bases__", "__warningregistry__", "__x__")
probed = 0
for module in list(sys.modules.values()):
    for probe in probes:
        probed += 1
        getattr(module, probe, None)
    inspect.unwrap(module)
    inspect.getmodule(module)
print(probed > 600, set(sys.modules) - before)
import agent_os
agent_os.KernelSpace
print(len(set(sys.modules) - before) > 100)
"""
    assert run_isolated(OURS + code).split("\n") == ["True set()", "True", ""]


COUNT_RUNS_OF_INITS = """
import collections, sys
runs = collections.Counter()
def count(event, args):
    if event == "exec" and getattr(args[0], "co_name", "") == "<module>":
        runs[args[0].co_filename] += 1
sys.addaudithook(count)
def print_runs():
    import agent_os, agent_os.integrations
    print(runs[agent_os.__file__], runs[agent_os.integrations.__file__])
"""


def test_the_kernels_inits_run_once_and_only_when_used() -> None:
    code = """
print_runs()
agent_os.KernelSpace
print_runs()
agent_os.integrations.RateLimiter
print_runs()
"""
    everything = """
dir(agent_os), dir(agent_os.integrations), hasattr(agent_os, "missing"), agent_os.stateless
import agent_os.policies, agent_os.__init__, agent_os.integrations.__init__
from agent_os import *
print_runs()
"""
    first = f"{COUNT_RUNS_OF_INITS}{OURS}import agent_os\n"
    assert run_isolated(first + code + everything).split("\n") == ["0 0", "1 0", "1 1", "1 1", ""]


# A package beside one of its own submodules would fail now and then with and without us, as
# CPython takes the two locks in either order: only agent_os and integrations may stand so here.
PARTS = """
agent_os.KernelSpace
agent_os.stateless
agent_os.AgentsParser
agent_os.integrations.RateLimiter
agent_os.integrations.LangChainKernel
agent_os.integrations.base.GovernancePolicy
agent_os._CONTROL_PLANE_AVAILABLE
dir(agent_os)
dir(agent_os.integrations)
import agent_os.policies
import agent_os.server
import agent_os.base_agent
import agent_os.semantic_policy
import agent_os.integrations.templates
import agent_os.integrations.webhooks
import agent_os.integrations.escalation
import agent_os.mcp_cve_feed
from agent_os import *
from agent_os import MCPSecurityScanner
from agent_os import transparency, trust_root
import agent_os.integrations.drift_detector
from agent_os.integrations import OpenAIKernel, DryRunPolicy
from agent_os.sandbox import *
from agent_os.sandbox_provider import *
"""
RACE = f"""
import threading
{LET_THE_KERNEL_WARN}
sys.setswitchinterval(1e-6)
parts = PARTS.strip().splitlines()
start = threading.Barrier(len(parts))
failures = []
def use(part):
    start.wait()
    try:
        exec("import agent_mcp_governance, agent_os, agent_os.integrations; " + part, {{}})
    except BaseException as error:
        failures.append((part, error))
threads = [threading.Thread(target=use, args=[part]) for part in parts]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(parts), failures)
print_runs()
"""


@pytest.mark.parametrize("attempt", range(5))
def test_threads_that_race_for_their_first_use_succeed(attempt: int) -> None:
    race = f"{COUNT_RUNS_OF_INITS}PARTS = '''{PARTS}'''\n{RACE}"
    assert run_isolated(race).split("\n") == ["24 []", "1 1", ""], f"attempt {attempt}"


PAUSED_IMPORTS = f"""
import threading
from importlib.machinery import PathFinder
{LET_THE_KERNEL_WARN}
failures = []
class Importing(threading.Thread):
    def __init__(self, module, *pauses_at):
        super().__init__()
        self.module, self.pauses_at = module, pauses_at
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.start()
    def run(self):
        try:
            __import__(self.module)
        except BaseException as error:
            failures.append((self.module, error))
        self.reached.set()
    def until_it_pauses(self):
        assert self.reached.wait(60)
        assert self.is_alive()
    def until_it_is_done_or_waits_for_another(self):
        while self.is_alive():
            frame = sys._current_frames().get(self.ident)
            running = frame and (frame.f_code.co_filename, frame.f_code.co_name)
            if running == ("<frozen importlib._bootstrap>", "acquire"):
                return
            self.join(0.01)
class PausingLoader:
    def __init__(self, loader):
        self.loader = loader
    def __getattr__(self, name):
        return getattr(self.loader, name)
    def pause(self, *place):
        thread = threading.current_thread()
        if getattr(thread, "pauses_at", None) == place:
            thread.reached.set()
            assert thread.go_on.wait(60)
    def create_module(self, spec):
        self.pause(spec.name, "found")
    def exec_module(self, module):
        self.pause(module.__name__, "created")
        self.loader.exec_module(module)
class PausingFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "agent_os" and (spec := PathFinder.find_spec(name, path)):
            spec.loader = PausingLoader(spec.loader)
            return spec
sys.meta_path.insert(0, PausingFinder)
"""
PRINT_WHAT_IS_MISSING = """
import agent_os, agent_os.integrations
missing = []
for name in [name for name in sys.modules if name.startswith("agent_os.")]:
    parent, _, child = name.rpartition(".")
    if getattr(sys.modules[parent], child, None) is not sys.modules[name]:
        missing.append(name)
agent_os.KernelSpace, agent_os.integrations.RateLimiter
print(failures, missing)
print_runs()
"""


@pytest.mark.parametrize("stage", ["found", "created"])
@pytest.mark.parametrize("module", ["agent_os", "agent_os.integrations", "agent_os.stateless"])
def test_an_import_of_the_kernel_under_way_in_another_thread_stays_whole(
    module: str, stage: str
) -> None:
    code = f"""
theirs = Importing("agent_os", "{module}", "{stage}")
theirs.until_it_pauses()
ours = Importing("agent_mcp_governance")
ours.until_it_is_done_or_waits_for_another()
theirs.go_on.set()
theirs.join()
ours.join()
"""
    printed = run_isolated(COUNT_RUNS_OF_INITS + PAUSED_IMPORTS + code + PRINT_WHAT_IS_MISSING)
    assert printed.split("\n") == ["[] []", "1 1", ""]


@pytest.mark.parametrize("stage", ["found", "created"])
def test_an_import_that_comes_between_our_two_placeholders_stays_whole(stage: str) -> None:
    code = f"""
ours = Importing("agent_mcp_governance", "agent_os.integrations", "found")
ours.until_it_pauses()
theirs = Importing("agent_os.integrations", "agent_os.integrations", "{stage}")
theirs.until_it_pauses()
ours.go_on.set()
ours.until_it_is_done_or_waits_for_another()
theirs.go_on.set()
theirs.join()
ours.join()
"""
    printed = run_isolated(COUNT_RUNS_OF_INITS + PAUSED_IMPORTS + code + PRINT_WHAT_IS_MISSING)
    assert printed.split("\n") == ["[] []", "1 1", ""]


def test_an_import_that_begins_while_we_look_for_the_kernel_is_waited_for() -> None:
    code = """
import importlib.util
find_spec = importlib.util.find_spec
theirs = []
def find_spec_after_theirs_began(name):
    if not theirs:
        theirs.append(Importing("agent_os", "agent_os", "created"))
        theirs[0].until_it_pauses()
    return find_spec(name)
importlib.util.find_spec = find_spec_after_theirs_began
ours = Importing("agent_mcp_governance")
ours.until_it_is_done_or_waits_for_another()
third = Importing("agent_os")
third.until_it_is_done_or_waits_for_another()
print(third.is_alive())
theirs[0].go_on.set()
for thread in (theirs[0], ours, third):
    thread.join()
"""
    printed = run_isolated(COUNT_RUNS_OF_INITS + PAUSED_IMPORTS + code + PRINT_WHAT_IS_MISSING)
    assert printed.split("\n") == ["True", "[] []", "1 1", ""]


def test_a_kernel_imported_before_us_is_left_as_it_is() -> None:
    code = f"""
{LET_THE_KERNEL_WARN}
import agent_os
before = dict(vars(agent_os))
import agent_mcp_governance
print(agent_os is sys.modules["agent_os"], set(vars(agent_os)) - set(before))
print_runs()
"""
    printed = run_isolated(COUNT_RUNS_OF_INITS + code)
    assert printed.split("\n") == ["True {'mcp_gateway'}", "1 1", ""]


def test_a_frozen_program_defers_nothing() -> None:
    frozen = "import sys; sys.frozen = True\n"
    code = f"{frozen}{LET_THE_KERNEL_WARN}import agent_mcp_governance\nprint_runs()"
    assert run_isolated(COUNT_RUNS_OF_INITS + code) == "1 1\n"


def test_without_the_kernel_the_error_names_it(tmp_path: Path) -> None:
    package = Path(agent_mcp_governance.__file__).parent
    shutil.copytree(package, tmp_path / package.name)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    import agent_mcp_governance
except ModuleNotFoundError as error:
    print(error, error.name)
print([name for name in sys.modules if name.startswith("agent_")])
"""
    printed = run_isolated(code, site=False)
    assert printed.splitlines() == ["No module named 'agent_os' agent_os", "[]"]
