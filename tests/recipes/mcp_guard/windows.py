"""The window and the budget in memory, exact with any number of threads."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any

from agent_mcp_governance import MCPSlidingRateLimiter

from .flow import Lock


class TooManyCallersError(RuntimeError):
    """As many callers are counted as may be, and none can be forgotten yet."""


class Budget:
    """So many calls of each caller in a period, which begins with the first of them."""

    blocking = False

    def __init__(
        self, max_calls: int, period: float | None, clock: Callable[[], float], max_callers: int
    ) -> None:
        """Count *max_calls* in *period* seconds of *clock*, None for ever, of *max_callers*."""
        in_words = "in all" if period is None else f"in {period:g} seconds"
        self.allowance = f"{max_calls} calls {in_words}"
        self._period = inf if period is None else period
        self._max_calls, self._max_callers = max_calls, max_callers
        self._clock, self._now = clock, 0.0
        self._times: OrderedDict[str, float] = OrderedDict()  # of each caller, oldest first
        self._spent: dict[str, int] = {}
        self._lock = Lock()

    def try_acquire(self, caller: str) -> bool:
        """Take one call of *caller*; return whether there was one.

        Raises:
            TooManyCallersError: The caller is new, and there is no room for one more.
            TimeoutError: The lock could not be had.
        """
        key = _key(caller)
        with self._lock:
            self._now = self._clock()
            # Of the others the oldest, so that no call pays for all that left before it.
            for name in (key, next(iter(self._times), key)):
                if self._times.get(name, inf) <= self._now - self._period:
                    self._forget(name)
                    del self._times[name]
            if key not in self._times and len(self._times) >= self._max_callers:
                many = f"{self._max_callers} callers are counted (Limits.max_callers)"
                raise TooManyCallersError(many)
            return self._take(key)

    def _take(self, key: str) -> bool:
        self._times.setdefault(key, self._now)
        spent = self._spent.get(key, 0)
        self._spent[key] = min(spent + 1, self._max_calls)
        return spent < self._max_calls

    def _forget(self, key: str) -> None:
        self._spent.pop(key, None)


class Window(Budget):
    """So many calls of each caller within any window of time, instead of from the first on.

    It is the kernel's limiter within a lock of ours, which makes it exact: alone it reads its clock
    before its own lock. Callers reach it as hashes, since it folds their case.
    """

    def __init__(
        self, max_calls: int, window_size: float, clock: Callable[[], float], max_callers: int
    ) -> None:
        """Count *max_calls* in any *window_size* seconds of *clock*, of *max_callers* at a time."""
        super().__init__(max_calls, window_size, clock, max_callers)
        self._buckets = _Buckets()
        self._renew()
        self._lock = Lock(after_fork=self._renew)

    def _renew(self) -> None:
        """Make a limiter, whose locks nobody holds, over the windows that there are."""
        self._limiter = MCPSlidingRateLimiter(
            max_calls_per_window=self._max_calls,
            window_size=self._period,
            rate_limit_store=self._buckets,
            clock=lambda: self._now,
        )

    def _take(self, key: str) -> bool:
        granted = self._limiter.try_acquire(key)
        if granted:
            self._times[key] = self._now
            self._times.move_to_end(key)
        return granted

    def _forget(self, key: str) -> None:
        self._limiter.reset(key)


@lru_cache  # both ask in turn
def _key(caller: str) -> str:
    return hashlib.sha256(caller.encode()).hexdigest()


class _Buckets:
    """The kernel's store of windows, without the empty ones."""

    # No subclass of dict: the kernel would replace it while it is empty, and so false.

    def __init__(self) -> None:
        self._buckets: dict[str, Any] = {}

    def get_bucket(self, agent_id: str) -> Any:
        return self._buckets.get(agent_id)

    def set_bucket(self, agent_id: str, bucket: Any) -> None:
        self._buckets[agent_id] = bucket
        if not bucket:
            del self._buckets[agent_id]
