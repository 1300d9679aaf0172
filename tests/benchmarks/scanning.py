"""Time of the redactor and the two scanners on 1 kB to 1 MB of text, and how it grows.

    python tests/benchmarks/scanning.py [--plot FILE.png]

A series ends where its next size would take too long: the expressions of the kernel are quadratic
on hostile text. All of it takes about a minute.
"""

import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from statistics import linear_regression, median

import common

from agent_mcp_governance import (
    CredentialRedactor,
    MCPResponseScanner,
    MCPSecurityConfig,
    MCPSecurityScanner,
)

SIZES = [2**power for power in range(10, 21)]  # characters, all of them ASCII
FITTED_FROM = 2**12  # below it the fixed cost of a call bends the curve
LONGEST = 4.0  # seconds for one call, guessed from the two sizes before
ENOUGH = 0.3  # seconds for the calls of one cell

PARAGRAPH = (
    "The harbour office keeps a list of every boat that is moored here, with its owner and its "
    "length in metres. Ask for the list at the desk, or read it on the wall beside the door. "
)
RECORD = {"name": "harbour list", "metres": 12.5, "moored": True, "tags": ["boat", "wood"]}


def prose(size: int) -> str:
    return fill(PARAGRAPH, size)


def json_text(size: int) -> str:
    records = size // len(json.dumps(RECORD)) + 1
    return json.dumps([{"id": number, **RECORD} for number in range(records)])[:size]


def fill(unit: str, size: int) -> str:
    return (unit * (size // len(unit) + 1))[:size]


def targets() -> dict[str, tuple[Callable[[str], object], str]]:
    """Return what is measured, each with the unit of a text that it is slow on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds a detector without a config, and says so
        scanner = MCPSecurityScanner(config=MCPSecurityConfig())
    return {
        "CredentialRedactor.redact": (CredentialRedactor.redact, "a."),
        "MCPResponseScanner.scan_response": (MCPResponseScanner().scan_response, "a."),
        "MCPSecurityScanner.scan_tool": (lambda text: scanner.scan_tool("tool", text), "<!--"),
    }


def seconds(call: Callable[[str], object], text: str) -> float:
    """Return the median time of a call."""
    taken: list[float] = []
    while sum(taken) < ENOUGH and len(taken) < 20:
        start = time.perf_counter()
        call(text)
        taken.append(time.perf_counter() - start)
    return median(taken)


def series(call: Callable[[str], object], text: Callable[[int], str]) -> list[float]:
    """Return the time at each size, as far as it goes in reasonable time."""
    times: list[float] = []
    for size in SIZES:
        times.append(seconds(call, text(size)))
        if len(times) > 1 and times[-1] * times[-1] / times[-2] > LONGEST:
            break
    return times


def exponent(times: list[float]) -> float:
    """Return the power of the size that the time grows with: 1 is linear, 2 quadratic."""
    points = [
        (size, taken) for size, taken in zip(SIZES, times, strict=False) if size >= FITTED_FROM
    ]
    logs = [(math.log(size), math.log(taken)) for size, taken in points]
    return linear_regression(*zip(*logs, strict=True)).slope


def cells(times: list[float], place: int) -> list[str]:
    if place >= len(times):
        return ["not run", ""]
    ratio = f"{times[place] / times[place - 1]:.1f}" if place else ""
    return [f"{times[place] * 1000:.2f}", ratio]


def show(target: str, results: dict[str, list[float]]) -> None:
    head = [target]
    for kind in results:
        head += [f"{kind} ms", "ratio"]
    rows = [
        [f"{size // 1024} kB", *(c for times in results.values() for c in cells(times, place))]
        for place, size in enumerate(SIZES)
    ]
    rows.append(["exponent", *(c for t in results.values() for c in (f"{exponent(t):.2f}", ""))])
    common.print_table("", head, rows)


def plot(file, results: dict[str, dict[str, list[float]]]) -> None:
    with common.figure(file, "Time of one call", len(results)) as panels:
        for axes, (target, kinds) in zip(panels, results.items(), strict=True):
            for kind, times in kinds.items():
                sizes = [size / 1024 for size in SIZES[: len(times)]]
                axes.loglog(sizes, [taken * 1000 for taken in times], marker="o", label=kind)
            axes.set_title(target, fontsize=10)
            axes.set_xlabel("kB")
            axes.set_ylabel("ms")
            axes.grid(alpha=0.3)
            axes.legend()


def main() -> None:
    chosen = common.options(__doc__.splitlines()[0]).parse_args()
    logging.getLogger("agent_os").setLevel(logging.CRITICAL)
    common.print_machine("agent-os-kernel")
    print("\nEach ratio is to half the size. Hostile text is one short piece repeated:")
    results = {}
    for target, (call, hostile) in targets().items():
        kinds = {"prose": prose, "JSON": json_text, "hostile": lambda n, u=hostile: fill(u, n)}
        results[target] = {kind: series(call, text) for kind, text in kinds.items()}
        print(f"{target}: {hostile!r}")
    for target, kinds in results.items():
        show(target, kinds)
    if chosen.plot:
        plot(chosen.plot, results)


if __name__ == "__main__":
    main()
