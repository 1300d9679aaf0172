"""How the steps of a check are run: in the caller's thread, or in an event loop of asyncio.

A check is a generator that yields each step that may wait and gets its result sent, as httpx
describes an authentication flow. So one description serves both forms.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

LOCK_TIMEOUT = 1.0  # seconds; no lock of ours is held for longer than a few look-ups


class Step(NamedTuple):
    """One thing that may wait: *call* it, in a thread of *pool* or here; await what it returns.

    If the check is cancelled meanwhile, what is awaited is too, unless it is *shielded*.
    """

    call: Callable[[], Any]
    pool: Pool | None
    shielded: bool = False


Steps = Generator[Step, Any, T]


class PartError(Exception):
    """A part that was plugged in failed. Its text, which can hold a secret, is not repeated."""

    def __init__(self, error: BaseException) -> None:
        """Name the type of *error*."""
        super().__init__(type(error).__name__)


class Lock:
    """A lock that raises ``TimeoutError`` rather than hang, and is open in a forked child."""

    def __init__(self, after_fork: Callable[[], None] = lambda: None) -> None:
        """Call *after_fork* in a child before the lock is first taken there."""
        self._after_fork = after_fork
        self._lock, self._pid = threading.Lock(), os.getpid()

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
            self._after_fork()
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise TimeoutError("an interrupt left a lock taken")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Pool:
    """Threads that wait for others. When all of them do, it refuses instead of queueing."""

    def __init__(self, size: int) -> None:
        """Allow *size* threads."""
        self._size = size
        self._open()

    def _open(self) -> None:
        self._pid, self._free = os.getpid(), threading.BoundedSemaphore(self._size)
        self._threads = ThreadPoolExecutor(self._size, "mcp_guard")  # it starts none yet

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Run *call* in a thread, with this thread's context variables; return its future.

        Raises:
            RuntimeError: No thread is free, or the interpreter is ending.
        """
        if self._pid != os.getpid():  # a forked child has none of the threads
            self._open()
        free = self._free
        if not free.acquire(blocking=False):
            raise RuntimeError(f"{self._size} threads wait already")
        try:
            future = self._threads.submit(contextvars.copy_context().run, call)
        except BaseException:
            free.release()
            raise
        future.add_done_callback(lambda _: free.release())
        return future


class Part:
    """A part that was plugged in. It runs in *pool*, unless async or not ``blocking``."""

    def __init__(self, part: Any, pool: Pool, method: str = "__call__") -> None:
        """Take *method* of *part*."""
        self._method = getattr(part, method)
        here = inspect.iscoroutinefunction(part) or inspect.iscoroutinefunction(self._method)
        self.allowance = f"{getattr(part, 'allowance', '')}"
        self.pool = None if here or getattr(part, "blocking", True) is False else pool

    def __call__(self, *args: Any) -> Step:
        """Return the step that calls it with *args*."""
        return Step(partial(self._method, *args), self.pool)


def drive(steps: Steps[T]) -> T:
    """Run *steps* in this thread; return what they return, and raise what they raise."""
    try:
        step = next(steps)
        while True:
            try:
                result = _attempt(partial(_sync, step.call))
            except BaseException as error:  # noqa: BLE001, PERF203 - the steps raise it again
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def adrive(steps: Steps[T]) -> T:
    """Run *steps* in this event loop; return what they return, and raise what they raise."""
    try:
        step = next(steps)
        while True:
            try:
                result = await _async(step)
            except BaseException as error:  # noqa: BLE001, PERF203 - the steps raise it again
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except PartError:
        raise
    # It is not us who are cancelled here, but what the part waited for.
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
        raise PartError(error) from None


def _sync(call: Callable[[], Any]) -> Any:
    result = call()
    if inspect.iscoroutine(result):
        result.close()  # else Python warns that it was never awaited
    if inspect.isawaitable(result):
        raise TypeError("an async part in the sync form")
    return result


async def _async(step: Step) -> Any:
    if step.pool is None:
        result = _attempt(step.call)
    else:
        future = _attempt(partial(step.pool.submit, partial(_attempt, step.call)))
        # The thread goes on if we are cancelled: what it has begun cannot be taken back.
        result = await _wait(asyncio.wrap_future(future), shielded=True)
    if not inspect.isawaitable(result):
        return result
    task = _attempt(partial(asyncio.ensure_future, result))
    return await _wait(task, shielded=step.shielded)


async def _wait(task: asyncio.Future[Any], *, shielded: bool) -> Any:
    keep(task)
    try:
        await asyncio.wait({task})  # unlike await, it tells our being cancelled from the task's
    except BaseException:
        if not shielded:
            task.cancel()
        raise
    return _attempt(task.result)


_kept: set[asyncio.Future[Any]] = set()


def keep(task: asyncio.Future[Any]) -> None:
    """Keep *task* until it is done, though nobody may await it: an event loop forgets it."""
    _kept.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Future[Any]) -> None:
    _kept.discard(task)
    if not task.cancelled():
        task.exception()  # else asyncio logs its text, which can hold a secret
