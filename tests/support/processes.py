"""One worker in several fresh processes at one moment, and waits that a slow machine can end."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

PROCESSES = 4
PATIENCE = 120.0  # seconds before a test that hangs fails

together: Barrier  # in a worker: where it meets the others


def _begin(barrier: Barrier) -> None:
    global together
    together = barrier


def in_processes(worker: Callable[..., Any], *args: Any) -> list[Any]:
    """Run *worker*, which has to wait at ``together``, in each process; return its answers."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES, timeout=PATIENCE)
    with context.Pool(PROCESSES, _begin, [barrier]) as pool:
        return pool.starmap_async(worker, [args] * PROCESSES, chunksize=1).get(PATIENCE)


def soon(call: Callable[[], bool]) -> bool:
    """Say whether *call*, which waits, succeeds in one of many tries: slow machines refuse some."""
    return any(call() for _ in range(1_000))
