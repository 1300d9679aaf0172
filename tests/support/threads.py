"""One action in many threads at one moment."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

THREADS = 32


def together(action: Callable[[int], Result]) -> list[Result]:
    """Run *action* in each thread, starting at one moment; return what each returned."""
    start = threading.Barrier(THREADS)

    def run(number: int) -> Result:
        start.wait(timeout=60)
        return action(number)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(run, range(THREADS)))
