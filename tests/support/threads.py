"""One action in many threads at one moment."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

THREADS = 32


def together(action: Callable[[int], Result], threads: int = THREADS) -> list[Result]:
    """Run *action* in each of *threads*, starting at one moment; return what each returned."""
    start = threading.Barrier(threads)

    def run(number: int) -> Result:
        start.wait(timeout=60)
        return action(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))
