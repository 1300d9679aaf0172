"""What an import loads, when the kernel's two __init__ files run, and where all of it is imported.

Everything runs in fresh interpreters: what is tested is what the first import does.
"""

import py_compile
import shutil
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from support.isolated import COUNT_RUNS, KERNEL, LET_WARN, LOADED, OURS, loaded_by_us, run_isolated

import agent_mcp_governance


def test_an_import_loads_twelve_kernel_modules_and_opentelemetry_if_it_is_there() -> None:
    assert len(LOADED) == 1 + 2 + 12  # ours, the two packages and the modules
    assert loaded_by_us(first="sys.modules['opentelemetry'] = None\n") == LOADED
    others = {name.partition(".")[0] for name in loaded_by_us() - LOADED}
    assert others == {"opentelemetry"}  # the test extra installs it


@pytest.mark.parametrize("imports", [OURS + KERNEL, KERNEL + OURS, OURS])
def test_each_name_is_the_kernels_in_whichever_order_both_are_imported(imports: str) -> None:
    code = """
import sys
for name in agent_mcp_governance.__all__:
    value = getattr(agent_mcp_governance, name)
    print(value is getattr(sys.modules[value.__module__], name))
"""
    assert run_isolated(imports + code).split() == ["True"] * 38


def test_probing_unknown_dunders_over_sys_modules_loads_nothing() -> None:
    code = """
import inspect, sys
before = set(sys.modules)
probes = ("__wrapped__", "__signature__", "__test__", "__bases__", "__warningregistry__", "__x__")
for module in list(sys.modules.values()):
    for probe in probes:
        getattr(module, probe, None)
    inspect.unwrap(module)
    inspect.getmodule(module)
print("agent_os" in before, set(sys.modules) - before)
import agent_os
agent_os.KernelSpace
print(len(set(sys.modules) - before) > 100)
"""
    assert run_isolated(OURS + code).splitlines() == ["True set()", "True"]


def test_the_kernels_inits_run_once_and_only_when_used() -> None:
    code = """
import agent_os
print_runs()
agent_os.KernelSpace
print_runs()
agent_os.integrations.RateLimiter
print_runs()
dir(agent_os), dir(agent_os.integrations), hasattr(agent_os, "missing"), agent_os.stateless
import agent_os.policies, agent_os.__init__, agent_os.integrations.__init__
from agent_os import *
print_runs()
"""
    assert run_isolated(COUNT_RUNS + OURS + code) == "0 0\n1 0\n1 1\n1 1\n"


def test_a_kernel_imported_before_us_is_left_as_it_is() -> None:
    code = """
import agent_os
names, finders = set(vars(agent_os)), list(sys.meta_path)
import agent_mcp_governance
print(agent_os is sys.modules["agent_os"], set(vars(agent_os)) - names, sys.meta_path == finders)
print_runs()
"""
    printed = run_isolated(COUNT_RUNS + LET_WARN + code)
    assert printed.splitlines() == ["True {'mcp_gateway'} True", "1 1"]


@pytest.mark.parametrize(
    ("reloaded", "runs"), [("agent_os", "1 0"), ("agent_os.integrations", "0 1")]
)
def test_a_reload_runs_the_init_in_the_package_itself(reloaded: str, runs: str) -> None:
    code = f"""
import importlib, agent_os, agent_os.integrations
package = sys.modules["{reloaded}"]
print_runs()
print(importlib.reload(package) is package, type(package.__loader__).__name__)
print_runs()
"""
    printed = run_isolated(COUNT_RUNS + OURS + code)
    assert printed.splitlines() == ["0 0", "True SourceFileLoader", runs]


KERNEL_FOLDER = Path(str(distribution("agent-os-kernel").locate_file("agent_os")))


def as_an_archive(folder: Path) -> str:
    return shutil.make_archive(str(folder / "a"), "zip", KERNEL_FOLDER.parent, KERNEL_FOLDER.name)


def as_bytecode(folder: Path) -> str:
    copied = Path(shutil.copytree(KERNEL_FOLDER, folder / KERNEL_FOLDER.name))
    for source in (copied / "__init__.py", copied / "integrations" / "__init__.py"):
        py_compile.compile(str(source), str(source.with_suffix(".pyc")), doraise=True)
        source.unlink()
    return str(folder)


@pytest.mark.parametrize(
    ("provide", "loader"), [(as_an_archive, "zipimporter"), (as_bytecode, "SourcelessFileLoader")]
)
def test_a_kernel_that_is_no_plain_source_is_imported_whole(
    provide: Callable[[Path], str], loader: str, tmp_path: Path
) -> None:
    code = f"""
import sys
sys.path.insert(0, {provide(tmp_path)!r})
import agent_mcp_governance, agent_os, agent_os.integrations
for package, name in (agent_os, "KernelSpace"), (agent_os.integrations, "RateLimiter"):
    print(type(package.__loader__).__name__, name in vars(package))
"""
    assert run_isolated(LET_WARN + code).splitlines() == [f"{loader} True"] * 2


def test_a_loader_that_another_library_put_in_place_is_no_reason_to_import_it_whole() -> None:
    """beartype, which fastmcp brings, puts a subclass in place for whatever is imported later."""
    code = """
from importlib.machinery import PathFinder, SourceFileLoader
from beartype.claw import beartype_package
beartype_package("a_package_of_somebody_else")
print(type(PathFinder.find_spec("agent_os").loader) is SourceFileLoader)
import agent_mcp_governance, agent_os, agent_os.integrations
print("KernelSpace" in vars(agent_os), "RateLimiter" in vars(agent_os.integrations))
print(agent_os.KernelSpace.__name__)
"""
    assert run_isolated(LET_WARN + code) == "False\nFalse False\nKernelSpace\n"


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
    assert run_isolated(code, site=False) == "No module named 'agent_os' agent_os\n[]\n"
