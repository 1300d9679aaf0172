"""Code run in a fresh interpreter, and what our import loads there."""

import json
import sys
from pathlib import Path

from support import ROOT
from support.tools import run_tool

CONTRACT = json.loads((ROOT / "tests" / "kernel" / "contract.json").read_text(encoding="utf-8"))
# The kernel's module of each name of the surface.
HOMES: dict[str, str] = {name: entry["module"] for name, entry in CONTRACT.items()}
# Those of the names, and two that they import.
KERNEL_MODULES = {*HOMES.values(), "agent_os.exceptions", "agent_os.prompt_injection"}
LOADED = {"agent_mcp_governance", "agent_os", "agent_os.integrations", *KERNEL_MODULES}

# The whole kernel cannot be imported where warnings are errors, only what we load of it can.
LET_WARN = "import warnings; warnings.simplefilter('ignore')\n"
OURS = f"import agent_mcp_governance\n{LET_WARN}"
# The same modules loaded without us, which runs both of the kernel's __init__ files first.
KERNEL = f"{LET_WARN}import {', '.join(sorted(KERNEL_MODULES))}\n"
COUNT_RUNS = """
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
# Where a distributor splits the standard library, traceback imports _missing_stdlib_info (3.15).
_LIST_WHAT_OUR_IMPORT_LOADS = """
standard = sys.stdlib_module_names | {"_missing_stdlib_info"}
before = set(sys.modules)
import agent_mcp_governance
for name in set(sys.modules) - before:
    if name.partition(".")[0] not in standard:
        print(name)
"""


def run_isolated(code: str, python: Path | str = sys.executable, site: bool = True) -> str:
    """Run *code* in a fresh interpreter where every warning is an error; return what it printed."""
    options = ["-I", "-X", "utf8", "-W", "error", *([] if site else ["-S"])]
    return run_tool(python, *options, "-c", code).stdout


def loaded_by_us(python: Path | str = sys.executable, first: str = "") -> set[str]:
    """Return what an import of us after *first* adds, without the standard library's modules."""
    return set(run_isolated(f"import sys\n{first}{_LIST_WHAT_OUR_IMPORT_LOADS}", python).split())
