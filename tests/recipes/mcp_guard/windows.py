"""The window and the budget in memory, exact with any number of threads."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import Any

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
        self._max_calls, self._max_callers, self._clock = max_calls, max_callers, clock
        # Of each caller the time from which the period runs, oldest first, and what was counted.
        self._callers: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self._lock = Lock()

    def try_acquire(self, caller: str) -> bool:
        """Take one call of *caller*; return whether there was one.

        Raises:
            TooManyCallersError: The caller is new, and there is no room for one more.
            TimeoutError: The lock could not be had.
        """
        with self._lock:
            now = self._clock()
            # Of the others the oldest, so that no call pays for all that left before it.
            for name in (caller, next(iter(self._callers), caller)):
                if name in self._callers and self._callers[name][0] <= now - self._period:
                    del self._callers[name]
            if caller not in self._callers and len(self._callers) >= self._max_callers:
                raise TooManyCallersError(f"Limits.max_callers is {self._max_callers}")
            return self._take(caller, now)

    def _take(self, caller: str, now: float) -> bool:
        began, spent = self._callers.get(caller, (now, 0))
        self._callers[caller] = began, spent + 1
        return bool(spent < self._max_calls)


class Window(Budget):
    """So many calls of each caller within any period of time, instead of from the first on.

    It counts as the kernel's limiter does, but exactly: that one reads its clock before its lock,
    and folds the case of a caller.
    """

    def _take(self, caller: str, now: float) -> bool:
        _, calls = self._callers.get(caller, (now, []))
        del calls[: bisect_right(calls, now - self._period)]
        if len(calls) >= self._max_calls:
            return False
        calls.append(now)
        self._callers[caller] = now, calls
        self._callers.move_to_end(caller)
        return True
