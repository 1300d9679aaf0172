"""What the benchmarks share: taking turns, a table, the machine that they ran on, a plot."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser that has ``--plot``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--plot", type=plot_file, metavar="FILE.png", help="write a plot as well")
    return parser


def plot_file(name: str) -> Path:
    # Asked before anything is measured, which takes a while.
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("a plot needs matplotlib: pip install matplotlib")
    return Path(name)


def turns(arms: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield every arm once a round, each round starting with another one.

    A machine that slows down for a while then slows every arm alike.
    """
    for number in range(rounds):
        first = number % len(arms)
        yield from (*arms[first:], *arms[:first])


def print_machine(*packages: str) -> None:
    """Say what this runs on."""
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}")
    print(f"{os.cpu_count()} x {processor()}")
    if hasattr(os, "getloadavg"):  # above the number of processors, processes waited for one
        print(f"load average before: {os.getloadavg()[0]:.1f}")
    print(", ".join(f"{package} {version(package)}" for package in packages))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose others are figures."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print(f"\n{title}")
    for row in (head, ["-" * width for width in widths], *rows):
        figures = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *figures]))


@contextmanager
def figure(file: Path, title: str, panels: int) -> Iterator[Any]:
    """Yield the axes of a row of panels, and write them to the file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(1, panels, figsize=(5 * panels, 4.2), squeeze=False)
    yield axes[0]
    fig.suptitle(f"{title} (Python {platform.python_version()})")
    fig.tight_layout()
    fig.savefig(file, dpi=120)
    print(f"\nwrote {file}")


def verdict(limits: Sequence[tuple[str, float, float]]) -> bool:
    """Print each (name, measured, limit) and return whether all are kept."""
    print()
    for name, measured, limit in limits:
        print(f"{'ok' if measured <= limit else 'OVER'}: {name} {measured:.3g}, at most {limit:g}")
    return all(measured <= limit for _, measured, limit in limits)


def leave(kept: bool, check: bool) -> None:
    """End the program, with an error if a limit is broken and was to be checked."""
    sys.exit(1 if check and not kept else 0)
