"""Threads that import us and use the kernel at the same time.

CPython by itself fails now and then where one thread imports a package and another a submodule of
it, as it takes the two locks in either order. No thread here does that to the kernel without us.
"""

import pytest
from support.isolated import COUNT_RUNS, LET_WARN, run_isolated

THREADS = f"""
{COUNT_RUNS}
{LET_WARN}
import os, threading
sys.setswitchinterval(1e-6)
failures = []
start = threading.Barrier(1)
class Running(threading.Thread):
    def __init__(self, code, *pauses_at):
        super().__init__(daemon=True)
        self.code, self.pauses_at = code, pauses_at
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.start()
    def run(self):
        start.wait()
        try:
            exec(self.code, {{}})
        except BaseException as error:
            failures.append((self.code, error))
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
def pause(event, what):
    thread = threading.current_thread()
    if getattr(thread, "pauses_at", None) == (event, what):
        thread.reached.set()
        assert thread.go_on.wait(60)
def pause_at(event, args):
    if event == "import":
        pause(event, args[0])
    elif event == "exec":
        pause(event, args[0].co_filename.replace(os.sep, "/").rpartition("/agent_os/")[2])
sys.addaudithook(pause_at)
def print_outcome_of(*threads):
    for thread in threads:
        thread.go_on.set()
    for thread in threads:
        thread.join()
    import agent_os, agent_os.integrations, agent_mcp_governance
    for name in [name for name in sys.modules if name.startswith("agent_os.")]:
        parent, _, child = name.rpartition(".")
        if getattr(sys.modules[parent], child, None) is not sys.modules[name]:
            failures.append((name, "is not bound"))
    agent_os.KernelSpace, agent_os.integrations.RateLimiter
    print(failures)
    print_runs()
"""
ALL_WENT_WELL = ["[]", "1 1"]
PAUSE_WHERE_A_MODULE_IS_FOUND = """
from importlib.machinery import PathFinder, SourceFileLoader
class PausingLoader(SourceFileLoader):
    def create_module(self, spec):
        pause("found", spec.name)
class PausingFinder:
    def find_spec(name, path=None, target=None):
        if name.startswith("agent_os") and (spec := PathFinder.find_spec(name, path)):
            spec.loader = PausingLoader(name, spec.origin)
            return spec
sys.meta_path.insert(0, PausingFinder)
"""
KERNEL, OURS = "import agent_os", "import agent_mcp_governance"
USE = f"{KERNEL}; agent_os.KernelSpace, agent_os.integrations.RateLimiter"
PLACES = {
    (KERNEL, "found", OURS): ["agent_os", "agent_os.integrations", "agent_os.stateless"],
    (KERNEL, "exec", OURS): ["__init__.py", "integrations/__init__.py", "stateless.py"],
    (OURS, "import", USE): ["agent_os._mcp_metrics", "agent_os.mcp_sliding_rate_limiter"],
    (OURS, "exec", USE): ["integrations/base.py", "mcp_gateway.py"],
}


@pytest.mark.parametrize(
    ("first", "event", "second", "at"), [(*key, at) for key in PLACES for at in PLACES[key]]
)
def test_both_imports_stay_whole_wherever_the_second_begins_during_the_first(
    first: str, event: str, second: str, at: str
) -> None:
    code = f"""
{PAUSE_WHERE_A_MODULE_IS_FOUND}
first = Running({first!r}, {event!r}, {at!r})
first.until_it_pauses()
second = Running({second!r})
second.until_it_is_done_or_waits_for_another()
print(second.is_alive() or {second == USE})  # which may find all that it needs
print_outcome_of(first, second)
"""
    assert run_isolated(THREADS + code).splitlines() == ["True", *ALL_WENT_WELL]


WHEN_ITS_PACKAGES_APPEAR = [
    f"import sys\nwhile {package!r} not in sys.modules: pass\nimport agent_os.integrations\n"
    for package in ("agent_os", "agent_os.integrations")
]
READ = ["KernelSpace", "stateless", "AgentsParser", "_CONTROL_PLANE_AVAILABLE"]
READ += ["integrations.RateLimiter", "integrations.LangChainKernel", "integrations.base"]
IMPORTED = ["policies", "server", "base_agent", "semantic_policy", "mcp_cve_feed"]
IMPORTED += [f"integrations.{name}" for name in ("templates", "webhooks", "escalation")]
FIRST_USES_AFTER_US = [
    *(f"agent_os.{name}" for name in READ),
    *(f"import agent_os.{name}" for name in IMPORTED),
    *("dir(agent_os)", "dir(agent_os.integrations)", "import agent_os.integrations.drift_detector"),
    *("from agent_os import *", "from agent_os import MCPSecurityScanner"),
    *("from agent_os import transparency, trust_root", "from agent_os.sandbox import *"),
    "from agent_os.integrations import OpenAIKernel, DryRunPolicy",
    "from agent_os.sandbox_provider import *",
]
RACES = {
    "us and the kernel in six ways": [
        *(OURS, "from agent_mcp_governance import MCPGateway"),
        "import agent_os; agent_os.KernelSpace",
        "from agent_os import KernelSpace",
        "from agent_os import integrations; integrations.RateLimiter",
        "from agent_os import mcp_gateway; mcp_gateway.MCPGateway",
    ],
    "us and the kernel as soon as it appears": [
        OURS,
        *(
            f"{when_it_appears}{use}"
            for when_it_appears in WHEN_ITS_PACKAGES_APPEAR
            for use in ("agent_os.integrations.RateLimiter", "agent_os.KernelSpace")
        ),
    ],
    "the kernel after us in every way": [
        f"{OURS}, agent_os, agent_os.integrations; {use}" for use in FIRST_USES_AFTER_US
    ],
}


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("race", RACES)
def test_threads_that_race_all_succeed(race: str, attempt: int) -> None:
    code = f"""
start = threading.Barrier({len(RACES[race])})
racing = [Running(use) for use in {RACES[race]!r}]
print_outcome_of(*racing)
"""
    assert run_isolated(THREADS + code).splitlines() == ALL_WENT_WELL, f"attempt {attempt}"
