"""How the steps of a check are run: in the caller's thread, or in an event loop of asyncio.

A check is a generator that yields each step that may wait and gets its result sent, as httpx
describes an authentication flow. So one description serves both forms.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

LOCK_TIMEOUT = 1.0  # seconds; no lock of ours is held for longer than a few look-ups


class Step(NamedTuple):
    """One thing that may wait: *call* it, in a thread of *pool* or here; await what it returns.

    If the check is cancelled meanwhile, what is awaited is too, unless *failed* is to hear of it.
    """

    call: Callable[[], Any]
    pool: "Pool | None"
    failed: Callable[[BaseException], None] | None = None


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
        """Run *call* in a thread, with this thread's context variables; return its future."""
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

    def after(step: Step) -> Step:  # a try within the loop has a line that no handler covers
        try:
            result = _sync(step)
        except BaseException as error:  # noqa: BLE001 - the steps raise it again
            return steps.throw(error)
        return steps.send(result)

    try:
        step = next(steps)
        while True:
            step = after(step)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except BaseException as error:
        steps.throw(error)  # they raised it, or it came between two of them
        raise


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


def start(step: Step) -> None:
    """Run *step* and wait for nothing that it returns: that goes on in the event loop, if any."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _sync(step)
    else:
        _begin(step)


@contextmanager
def _failing(failed: Callable[[BaseException], None] | None) -> Iterator[None]:
    """Raise PartError instead of what a part raises, once *failed* has heard of it."""
    try:
        yield
    except PartError:
        raise
    # It is not us who are cancelled here, but what the part waited for.
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
        if failed:
            failed(error)
        raise PartError(error) from None


def _call(step: Step) -> Any:
    with _failing(step.failed):
        return step.call()


def _sync(step: Step) -> Any:
    with _failing(step.failed):
        result = step.call()
        if inspect.iscoroutine(result):
            result.close()  # else Python warns that it was never awaited
        if inspect.isawaitable(result):
            raise TypeError("an async part in the sync form")
        return result


async def _async(step: Step) -> Any:
    result = _begin(step)
    if not asyncio.isfuture(result):
        return result
    try:
        await asyncio.wait({result})  # unlike await, it tells our being cancelled from the part's
    except BaseException:
        if not step.failed:
            with suppress(RuntimeError):  # the loop is closed
                result.cancel()
        raise
    with _failing(None):
        return result.result()


_kept: set[asyncio.Future[Any]] = set()  # though nobody may await them: an event loop forgets


def _begin(step: Step) -> Any:
    """Run *step* in this event loop; return its result, or the future that will have it."""
    with _failing(step.failed):
        if step.pool is None:
            result = step.call()
            if not inspect.isawaitable(result):
                return result
        else:
            result = _finish(step.pool.submit(partial(_call, step)))
        future = asyncio.ensure_future(result)
    _kept.add(future)
    future.add_done_callback(partial(_end, step.failed))
    return future


async def _finish(thread: Future[Any]) -> Any:
    result = await asyncio.wrap_future(thread)
    return await result if inspect.isawaitable(result) else result


def _end(failed: Callable[[BaseException], None] | None, future: asyncio.Future[Any]) -> None:
    _kept.discard(future)
    # Ask for the exception in any case, else asyncio logs its text, which can hold a secret.
    error = asyncio.CancelledError() if future.cancelled() else future.exception()
    if failed and error and not isinstance(error, PartError):
        failed(error)
