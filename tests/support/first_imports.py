"""Starts of programs that import the kernel, with us or without, and count what runs."""

from support.isolated import KERNEL_MODULES

# The whole kernel cannot be imported where warnings are errors, only what we load of it can.
LET_THE_KERNEL_WARN = "import warnings; warnings.simplefilter('ignore')\n"
OURS = f"import agent_mcp_governance\n{LET_THE_KERNEL_WARN}"
# The same modules loaded without us, which runs both of the kernel's __init__ files first.
KERNEL = f"{LET_THE_KERNEL_WARN}import {', '.join(sorted(KERNEL_MODULES))}\n"

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
