"""Time and peak memory of a whole process that imports MCPGateway, from here and from the kernel.

    python tests/benchmarks/import_cost.py [--check] [--rounds N] [--plot FILE.png]

Each arm is `python -I -c ...` of the interpreter that runs this, in turn, alone and in a process
that has imported the MCP SDK before. Needs a POSIX system, for the peak memory of each process.
"""

import subprocess
import sys
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import common

SCENARIOS = {"alone": "", "after import mcp": "import mcp\n"}
NOTHING, OURS, KERNEL = "nothing", "agent_mcp_governance", "agent_os.mcp_gateway"
ARMS = {
    NOTHING: "",
    OURS: f"from {OURS} import MCPGateway",
    KERNEL: f"from {KERNEL} import MCPGateway",
}
TIME_LIMIT, MEMORY_LIMIT = 0.35, 0.6
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


def measure(before: str, rounds: int) -> dict[str, Sample]:
    """Return the medians of each arm."""
    samples: dict[str, list[Sample]] = {arm: [] for arm in ARMS}
    for code in ARMS.values():
        run(before + code)  # writes the bytecode files
    for arm in common.turns(list(ARMS), rounds):
        samples[arm].append(run(before + ARMS[arm]))
    return {
        arm: Sample(median(s.seconds for s in taken), int(median(s.peak for s in taken)))
        for arm, taken in samples.items()
    }


def row(arm: str, medians: dict[str, Sample]) -> list[str]:
    own, nothing, kernel = medians[arm], medians[NOTHING], medians[KERNEL]
    return [
        f"import {arm}",
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
            places = [place + 0.4 * number for place in range(len(medians))]
            times = [sample.seconds * 1000 for sample in medians.values()]
            peaks = [sample.peak / MIB for sample in medians.values()]
            time_axes.bar(places, times, width=0.38, label=scenario)
            memory_axes.bar(places, peaks, width=0.38, label=scenario)
        for axes, unit in ((time_axes, "ms"), (memory_axes, "peak MiB")):
            axes.set_xticks([0.2, 1.2, 2.2], ["nothing", "this package", "kernel"])
            axes.set_ylabel(unit)
            axes.legend()


def main() -> None:
    parser = common.options(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="runs of each arm")
    parser.add_argument("--check", action="store_true", help="fail if a limit is broken")
    chosen = parser.parse_args()
    common.print_machine("agent-mcp-governance", "agent-os-kernel", "mcp")
    if find_spec("numpy"):
        print("numpy is installed, which the kernel then imports too: the ratios flatter us")
    results = {name: measure(before, chosen.rounds) for name, before in SCENARIOS.items()}
    head = ["", "ms", "added", "ratio", "peak MiB", "added", "ratio"]
    for scenario, medians in results.items():
        title = f"{scenario}, medians of {chosen.rounds} processes; ratios to the kernel"
        common.print_table(title, head, [row(arm, medians) for arm in ARMS])
    if chosen.plot:
        plot(chosen.plot, results)
    ours, kernel = results["alone"][OURS], results["alone"][KERNEL]
    kept = common.verdict(
        [
            ("time ratio", ours.seconds / kernel.seconds, TIME_LIMIT),
            ("peak memory ratio", ours.peak / kernel.peak, MEMORY_LIMIT),
        ]
    )
    common.leave(kept, chosen.check)


if __name__ == "__main__":
    main()
