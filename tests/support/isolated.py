"""Code run in a fresh interpreter, and what our import loads there."""

import json
import subprocess
import sys
from pathlib import Path

from support import ROOT

_CONTRACT = json.loads((ROOT / "tests" / "kernel" / "contract.json").read_text(encoding="utf-8"))
# The kernel's module of each name of the surface.
HOMES: dict[str, str] = {name: entry["module"] for name, entry in _CONTRACT.items()}
# Those of the names, and two that they import.
KERNEL_MODULES = {*HOMES.values(), "agent_os.exceptions", "agent_os.prompt_injection"}
PLACEHOLDERS = frozenset({"agent_os", "agent_os.integrations"})

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
    done = subprocess.run(  # noqa: S603 - the tests' own code
        [python, *options, "-c", code],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by_our_import(python: Path | str = sys.executable, first: str = "") -> set[str]:
    """Import the package in a fresh interpreter, after running *first*.

    Returns:
        The modules that this added, without the standard library's.
    """
    return set(run_isolated(f"import sys\n{first}{_LIST_WHAT_OUR_IMPORT_LOADS}", python).split())
