"""Time and peak memory of a whole process that imports MCPGateway, from here and from the kernel.

    python tests/benchmarks/import_cost.py [--check] [--rounds N] [--plot FILE.png]

Each arm is `python -I -c ...` of the interpreter that runs this, in turn: alone, with NumPy and
SciPy, which the kernel imports where they are installed, and in a process that has imported the MCP
SDK before. The floor is what our import loads from the standard library. Needs a POSIX system, for
the peak memory of each process.
"""

import subprocess
import sys
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import common

WITHOUT_NUMPY = "import sys; sys.modules.update(numpy=None, scipy=None)\n"
ALONE, WITH_NUMPY = "alone", "with NumPy and SciPy"
SCENARIOS = {
    ALONE: WITHOUT_NUMPY,
    WITH_NUMPY: "",
    "after import mcp": f"{WITHOUT_NUMPY}import mcp\n",
}
NOTHING, FLOOR, OURS, KERNEL = "nothing", "the floor", "agent_mcp_governance", "agent_os"
LIST_THE_FLOOR = """
import sys
sys.modules["opentelemetry"] = None
before = set(sys.modules)
import agent_mcp_governance
added = set(sys.modules) - before
print(*sorted(name for name in added if name.partition(".")[0] in sys.stdlib_module_names))
"""
TIME_LIMIT, MEMORY_LIMIT = 0.27, 0.52
BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
MIB = 2**20

# On Linux a process starts with the peak memory of the one that starts it, so that has to be small.
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
print(status, time.perf_counter() - start, usage.ru_maxrss)
"""


class Sample(NamedTuple):
    seconds: float
    peak: int


def run(code: str) -> Sample:
    """Run code in a fresh interpreter and return its time and its peak memory in bytes."""
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-I", "-S", "-c", LAUNCHER, *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    status, seconds, peak = done.stdout.split()
    if status != "0":
        sys.exit(f"failed: {command}")
    return Sample(float(seconds), int(peak) * BYTES)


def make_arms() -> dict[str, str]:
    """Return the code of each arm."""
    command = [sys.executable, "-I", "-c", LIST_THE_FLOOR]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return {
        NOTHING: "",
        FLOOR: f"import {', '.join(listed.stdout.split())}",
        OURS: f"from {OURS} import MCPGateway",
        KERNEL: f"from {KERNEL}.mcp_gateway import MCPGateway",
    }


def measure(arms: dict[str, str], before: str, rounds: int) -> dict[str, Sample]:
    """Return the medians of each arm."""
    samples: dict[str, list[Sample]] = {arm: [] for arm in arms}
    for code in arms.values():
        run(before + code)  # writes the bytecode files
    for arm in common.turns(list(arms), rounds):
        samples[arm].append(run(before + arms[arm]))
    return {
        arm: Sample(median(s.seconds for s in taken), int(median(s.peak for s in taken)))
        for arm, taken in samples.items()
    }


def row(arm: str, medians: dict[str, Sample]) -> list[str]:
    own, nothing, kernel = medians[arm], medians[NOTHING], medians[KERNEL]
    return [
        arm,
        f"{own.seconds * 1000:.0f}",
        f"{(own.seconds - nothing.seconds) * 1000:+.0f}",
        f"{own.seconds / kernel.seconds:.2f}",
        f"{own.peak / MIB:.1f}",
        f"{(own.peak - nothing.peak) / MIB:+.1f}",
        f"{own.peak / kernel.peak:.2f}",
    ]


def plot(file, results: dict[str, dict[str, Sample]]) -> None:
    with common.figure(file, "Whole process", 2) as (time_axes, memory_axes):
        for number, (scenario, medians) in enumerate(results.items()):
            places = [place + 0.25 * number for place in range(len(medians))]
            times = [sample.seconds * 1000 for sample in medians.values()]
            peaks = [sample.peak / MIB for sample in medians.values()]
            time_axes.bar(places, times, width=0.24, label=scenario)
            memory_axes.bar(places, peaks, width=0.24, label=scenario)
        for axes, unit in ((time_axes, "ms"), (memory_axes, "peak MiB")):
            axes.set_xticks(range(4), [NOTHING, FLOOR, "this package", "kernel"])
            axes.set_ylabel(unit)
            axes.legend()


def main() -> None:
    parser = common.options(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="runs of each arm")
    parser.add_argument("--check", action="store_true", help="fail if a limit is broken")
    chosen = parser.parse_args()
    common.print_machine("agent-mcp-governance", "agent-os-kernel", "mcp")
    scenarios = dict(SCENARIOS)
    if not (find_spec("numpy") and find_spec("scipy")):
        print(f"not measured {WITH_NUMPY}: pip install numpy scipy")
        del scenarios[WITH_NUMPY]
    arms = make_arms()
    results = {name: measure(arms, code, chosen.rounds) for name, code in scenarios.items()}
    head = ["", "ms", "added", "ratio", "peak MiB", "added", "ratio"]
    for scenario, medians in results.items():
        title = f"{scenario}, medians of {chosen.rounds} processes; ratios to the kernel"
        common.print_table(title, head, [row(arm, medians) for arm in arms])
    if chosen.plot:
        plot(chosen.plot, results)
    ours, kernel = results[ALONE][OURS], results[ALONE][KERNEL]
    kept = common.verdict(
        [
            ("time ratio", ours.seconds / kernel.seconds, TIME_LIMIT),
            ("peak memory ratio", ours.peak / kernel.peak, MEMORY_LIMIT),
        ]
    )
    common.leave(kept, chosen.check)


if __name__ == "__main__":
    main()
