"""What an import loads, when the kernel's two __init__ files run, and where all of it is imported.

Everything runs in fresh interpreters: what is tested is what the first import does.
"""

import py_compile
import shutil
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from support.first_imports import COUNT_RUNS_OF_INITS, KERNEL, LET_THE_KERNEL_WARN, OURS
from support.isolated import KERNEL_MODULES, PLACEHOLDERS, loaded_by_our_import, run_isolated

import agent_mcp_governance

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


ORDERS = {"ours first": f"{OURS}{KERNEL}", "kernel first": f"{KERNEL}{OURS}", "ours alone": OURS}
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


def test_a_kernel_imported_before_us_is_left_as_it_is() -> None:
    code = f"""
{LET_THE_KERNEL_WARN}
import agent_os
names, finders = set(vars(agent_os)), list(sys.meta_path)
import agent_mcp_governance
print(agent_os is sys.modules["agent_os"], set(vars(agent_os)) - names, sys.meta_path == finders)
print_runs()
"""
    printed = run_isolated(COUNT_RUNS_OF_INITS + code)
    assert printed.split("\n") == ["True {'mcp_gateway'} True", "1 1", ""]


@pytest.mark.parametrize("reloaded", ["agent_os", "agent_os.integrations"])
def test_a_reload_runs_the_init_in_the_package_itself(reloaded: str) -> None:
    code = f"""
import importlib, agent_os, agent_os.integrations
package = sys.modules["{reloaded}"]
print_runs()
print(importlib.reload(package) is package, type(package.__loader__).__name__)
print_runs()
"""
    once = {"agent_os": "1 0", "agent_os.integrations": "0 1"}[reloaded]
    printed = run_isolated(COUNT_RUNS_OF_INITS + OURS + code)
    assert printed.split("\n") == ["0 0", "True SourceFileLoader", once, ""]


KERNEL_FOLDER = Path(str(distribution("agent-os-kernel").locate_file("agent_os")))


def as_an_archive(folder: Path) -> str:
    packed = shutil.make_archive(
        str(folder / "kernel"), "zip", KERNEL_FOLDER.parent, KERNEL_FOLDER.name
    )
    return f"sys.path.insert(0, {packed!r})"


def as_bytecode(folder: Path) -> str:
    copied = Path(shutil.copytree(KERNEL_FOLDER, folder / KERNEL_FOLDER.name))
    for source in (copied / "__init__.py", copied / "integrations" / "__init__.py"):
        py_compile.compile(str(source), str(source.with_suffix(".pyc")), doraise=True)
        source.unlink()
    return f"sys.path.insert(0, {str(folder)!r})"


@pytest.mark.parametrize(
    ("provide", "loader"), [(as_an_archive, "zipimporter"), (as_bytecode, "SourcelessFileLoader")]
)
def test_a_kernel_that_is_no_plain_source_is_imported_whole(
    provide: Callable[[Path], str], loader: str, tmp_path: Path
) -> None:
    code = f"""
import sys
{provide(tmp_path)}
{LET_THE_KERNEL_WARN}
import agent_mcp_governance, agent_os, agent_os.integrations
for package, name in (agent_os, "KernelSpace"), (agent_os.integrations, "RateLimiter"):
    print(type(package.__loader__).__name__, name in vars(package))
"""
    assert run_isolated(code).splitlines() == [f"{loader} True"] * 2


def test_a_loader_that_another_library_put_in_place_is_no_reason_to_import_it_whole() -> None:
    """beartype, which fastmcp brings, puts a subclass in place for whatever is imported later."""
    code = f"""
from importlib.machinery import PathFinder, SourceFileLoader
from beartype.claw import beartype_package
beartype_package("a_package_of_somebody_else")
print(type(PathFinder.find_spec("agent_os").loader) is SourceFileLoader)
import agent_mcp_governance, agent_os, agent_os.integrations
print("KernelSpace" in vars(agent_os), "RateLimiter" in vars(agent_os.integrations))
{LET_THE_KERNEL_WARN}
print(agent_os.KernelSpace.__name__)
"""
    assert run_isolated(code).splitlines() == ["False", "False False", "KernelSpace"]


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
