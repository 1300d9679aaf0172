"""The window and the budget in memory, exact with any number of threads."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from math import inf
from types import EllipsisType
from typing import Any

from agent_mcp_governance import MCPSlidingRateLimiter

from .decisions import RateLimiter
from .flow import Lock
from .options import require_number


class TooManyCallersError(RuntimeError):
    """As many callers are counted as may be, and none can be forgotten yet."""


class Window:
    """So many calls of each caller within any window of time.

    It is the kernel's limiter within a lock of ours, which makes it exact: alone it reads its clock
    before its own lock. Callers reach it as hashes, since it folds their case.
    """

    blocking = False

    def __init__(
        self, max_calls: int, window_size: float, clock: Callable[[], float], max_callers: int
    ) -> None:
        """Count with *clock*, in seconds: *max_calls* in any *window_size* seconds.

        Args:
            max_calls: Calls of one caller.
            window_size: Seconds.
            clock: What gives the time. It must never go back.
            max_callers: Callers with a call in their window. One more is refused.
        """
        self.allowance = f"{max_calls} calls in {window_size:g} seconds"
        self._size, self._clock, self._max_callers = window_size, clock, max_callers
        self._max_calls, self._now = max_calls, 0.0
        self._last_calls: OrderedDict[str, float] = OrderedDict()
        self._buckets = _Buckets()
        self._renew()
        self._lock = Lock(after_fork=self._renew)

    def _renew(self) -> None:
        """Make a limiter, whose locks nobody holds, over the windows that there are."""
        self._limiter = MCPSlidingRateLimiter(
            max_calls_per_window=self._max_calls,
            window_size=self._size,
            rate_limit_store=self._buckets,
            clock=lambda: self._now,
        )

    def try_acquire(self, caller: str) -> bool:
        """Take one call of *caller*'s window; return whether there was one.

        Raises:
            TooManyCallersError: The caller is new, and there is no room for one more.
            TimeoutError: The lock could not be had.
        """
        key = hashlib.sha256(caller.encode()).hexdigest()
        with self._lock:
            self._now = self._clock()
            for idle in _over(self._last_calls, key, self._now - self._size, self._max_callers):
                self._limiter.reset(idle)
            granted = self._limiter.try_acquire(key)
            if granted:
                self._last_calls[key] = self._now
                self._last_calls.move_to_end(key)
            return granted


class Budget:
    """So many calls of each caller in a period, which begins with the first of them."""

    blocking = False

    def __init__(
        self, max_calls: int, period: float | None, clock: Callable[[], float], max_callers: int
    ) -> None:
        """Count with *clock*, in seconds: *max_calls* in each *period*.

        Args:
            max_calls: Calls of one caller.
            period: Seconds after which a budget is whole again; None means never.
            clock: What gives the time. It must never go back.
            max_callers: Callers whose period is not over. One more is refused.
        """
        in_words = "in all" if period is None else f"in {period:g} seconds"
        self.allowance = f"{max_calls} calls {in_words}"
        self._max_calls, self._max_callers = max_calls, max_callers
        self._period = inf if period is None else period
        self._clock = clock
        self._starts: OrderedDict[str, float] = OrderedDict()
        self._spent: dict[str, int] = {}
        self._lock = Lock()

    def try_acquire(self, caller: str) -> bool:
        """Take one call of *caller*'s budget; return whether there was one.

        Raises:
            TooManyCallersError: The caller is new, and there is no room for one more.
            TimeoutError: The lock could not be had.
        """
        with self._lock:
            now = self._clock()
            for idle in _over(self._starts, caller, now - self._period, self._max_callers):
                del self._spent[idle]
            self._starts.setdefault(caller, now)
            spent = self._spent.get(caller, 0)
            self._spent[caller] = min(spent + 1, self._max_calls)
            return spent < self._max_calls


def make_limiter(
    limiter: RateLimiter | None,
    max_calls: int | EllipsisType,
    window_size: float | EllipsisType,
    clock: Callable[[], float],
    max_callers: int,
) -> RateLimiter:
    """Return *limiter*, or a window in memory if there is none.

    Raises:
        ValueError: Both are given, or neither, or a number is none.
    """
    if limiter is not None:
        if max_calls is not ... or window_size is not ...:
            raise ValueError("limiter takes the place of max_calls_per_window and window_size")
        return limiter
    if max_calls is ... or window_size is ...:
        raise ValueError("give max_calls_per_window and window_size in seconds, or a limiter")
    require_number("max_calls_per_window", max_calls, whole=True)
    require_number("window_size", window_size)
    return Window(max_calls, window_size, clock, max_callers)


def make_budget(
    budget: RateLimiter | None,
    max_calls: int,
    period: float | EllipsisType | None,
    clock: Callable[[], float],
    max_callers: int,
) -> RateLimiter:
    """Return *budget*, or one in memory if there is none.

    Raises:
        ValueError: Both are given, or neither, or the period is no number.
    """
    if budget is not None:
        if period is not ...:
            raise ValueError("budget takes the place of budget_period")
        return budget
    if period is ...:
        raise ValueError(
            f"give budget_period, the seconds after which a caller has {max_calls} calls again "
            "(policy.max_tool_calls), or None for never; or a budget"
        )
    if period is not None:
        require_number("budget_period", period)
    return Budget(max_calls, period, clock, max_callers)


class _Buckets:
    """The kernel's store of windows, without the empty ones."""

    def __init__(self) -> None:
        self._buckets: dict[str, Any] = {}

    def get_bucket(self, agent_id: str) -> Any:
        return self._buckets.get(agent_id)

    def set_bucket(self, agent_id: str, bucket: Any) -> None:
        self._buckets[agent_id] = bucket
        if not bucket:
            del self._buckets[agent_id]


def _over(times: OrderedDict[str, float], caller: str, over: float, max_callers: int) -> list[str]:
    """Take out *caller* and the two oldest of *times* if they are over; see that *caller* fits in.

    Two, so that no call pays for all that left before it, and the table still shrinks.
    """
    gone = [name for name in {*islice(times, 2), caller} if times.get(name, inf) <= over]
    for name in gone:
        del times[name]
    if caller not in times and len(times) >= max_callers:
        raise TooManyCallersError(f"{max_callers} callers are counted (Limits.max_callers)")
    return gone
