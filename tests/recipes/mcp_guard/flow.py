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
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

T = TypeVar("T")

LOCK_TIMEOUT = 1.0  # seconds; no lock of ours is held for longer than a few look-ups
_opened: WeakSet["Lock | Pool"] = WeakSet()
if hasattr(os, "register_at_fork"):  # where nobody will release a lock, and no thread goes on
    os.register_at_fork(after_in_child=lambda: [one.open() for one in list(_opened)])

Steps = Generator[tuple["Part", tuple[Any, ...]], Any, T]
"""Yields each thing that may wait: a part, and what it is called with."""


class Failed(NamedTuple):
    """What a step comes to if its part fails, without the error's text: it can hold a secret."""

    error: str  # its type


class Lock:
    """A lock that raises ``TimeoutError`` rather than hang, and is open in a forked child."""

    def __init__(self) -> None:
        """Be open."""
        self.open()
        _opened.add(self)

    def open(self) -> None:
        """Forget who holds it."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise TimeoutError("an interrupt left a lock taken")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Pool:
    """Threads that wait for others. When all of them do, it refuses instead of queueing."""

    def __init__(self, size: int) -> None:
        """Allow *size* threads."""
        self._size = size
        self.open()
        _opened.add(self)

    def open(self) -> None:
        """Have no threads yet, and all of them free."""
        self._free = threading.BoundedSemaphore(self._size)
        self._threads = ThreadPoolExecutor(self._size, "mcp_guard")

    def submit(self, call: Callable[..., T], *args: Any) -> Future[T]:
        """Run *call* in a thread, with this thread's context variables; return its future."""
        if not self._free.acquire(blocking=False):
            raise RuntimeError(f"{self._size} threads wait already")
        try:
            future = self._threads.submit(contextvars.copy_context().run, call, *args)
        except BaseException:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return future


class Part:
    """A part that was plugged in. It runs in *pool*, unless async or not ``blocking``.

    If a check is cancelled meanwhile, what is awaited is too, unless *failed* is to hear of it.
    """

    def __init__(
        self,
        part: Any,
        pool: Pool,
        method: str = "__call__",
        failed: Callable[..., None] | None = None,
    ) -> None:
        """Take *method* of *part*; *failed* gets what it raises, and what it was called with."""
        self.call = getattr(part, method)
        here = inspect.iscoroutinefunction(part) or inspect.iscoroutinefunction(self.call)
        self.allowance = f"{getattr(part, 'allowance', '')}"
        self.pool = None if here or getattr(part, "blocking", True) is False else pool
        self.failed = failed

    def failure(self, error: BaseException, args: tuple[Any, ...]) -> Failed:
        """Return what the step comes to with *error*, once *failed* has heard of it."""
        if self.failed:
            self.failed(error, *args)
        return Failed(type(error).__name__)


# What a part raises, or what it waited for: it is not the check that is cancelled here.
_FAILURES = (Exception, asyncio.CancelledError)


def drive(steps: Steps[T]) -> T:
    """Run *steps* in this thread; return what they return, and raise what they raise."""
    try:
        step = next(steps)
        while True:
            step = steps.send(_call(*step))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except BaseException as error:
        _call(*steps.throw(error))  # they raise it again, or have a last step
        raise


async def adrive(steps: Steps[T]) -> T:
    """Run *steps* in this event loop; return what they return, and raise what they raise."""
    try:
        step = next(steps)
        while True:
            result = _begin(*step)
            if hasattr(result, "__await__"):
                result = await _result(step[0], result)
            step = steps.send(result)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except BaseException as error:
        last = steps.throw(error)  # they raise it again, or have a last step to begin
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            _call(*last)
        else:
            _begin(*last)
        steps.close()  # else they and the error hold each other, and the call's params
        raise


def _call(part: Part, args: tuple[Any, ...], in_thread: bool = False) -> Any:
    """Run *part*; return its result, which may be async *in_thread* only, or its failure."""
    try:
        result = part.call(*args)
        if in_thread or not hasattr(result, "__await__"):
            return result
        if inspect.iscoroutine(result):
            result.close()  # else Python warns that it was never awaited
        raise TypeError("an async part in the sync form")
    except _FAILURES as error:  # not left to a thread's future, which takes no StopIteration
        return part.failure(error, args)


_kept: set[asyncio.Future[Any]] = set()  # though nobody may await them: an event loop forgets


def _begin(part: Part, args: tuple[Any, ...]) -> Any:
    """Run *part* in this event loop; return its result, or the future that will have it."""
    try:
        if part.pool is None:
            result = part.call(*args)
            if not hasattr(result, "__await__"):
                return result
        else:
            result = _finish(part.pool.submit(_call, part, args, True))
        future = asyncio.ensure_future(result, loop=asyncio.get_running_loop())
    except _FAILURES as error:
        return part.failure(error, args)
    _kept.add(future)
    future.add_done_callback(partial(_end, part, args))
    return future


async def _finish(thread: Future[Any]) -> Any:
    result = await asyncio.wrap_future(thread)
    return await result if hasattr(result, "__await__") else result


def _end(part: Part, args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
    _kept.discard(future)
    # Ask for the exception in any case, else asyncio logs its text, which can hold a secret.
    error = asyncio.CancelledError() if future.cancelled() else future.exception()
    if error:
        part.failure(error, args)


async def _result(part: Part, future: asyncio.Future[Any]) -> Any:
    try:
        await asyncio.wait({future})  # unlike await, it tells our being cancelled from the part's
    finally:
        if not part.failed:
            with suppress(RuntimeError):  # the loop is closed
                future.cancel()
    try:
        return future.result()
    except _FAILURES as error:  # of which it has heard
        return Failed(type(error).__name__)
