"""Nonces of ``signed_messages`` in the memory of one process."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from heapq import heappop, heappush

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def now() -> datetime:
    """Return the present time by the system clock, in UTC."""
    return datetime.now(timezone.utc)


class LiveNonceStore:
    """Nonces in memory: never forgets one that could still be replayed, refuses when full.

    ``add`` is one step, so channels in one process may share a store. Safe under threads.
    """

    def __init__(
        self,
        *,
        max_nonces: int = 100_000,
        clock: Callable[[], datetime] = now,
        forgotten_until: datetime = _EPOCH,
    ) -> None:
        """Make an empty store.

        Args:
            max_nonces: Most nonces held at once, up to about 300 bytes each. A nonce stays until
                its message is older than the replay window: 100,000 carry 333 messages a second
                with a window of 5 minutes.
            clock: Returns the present time, aware, on the clock that messages are dated with.
            forgotten_until: Refuse every message that expires up to then. A process that starts
                again passes its start time plus the replay window.

        Raises:
            ValueError: If max_nonces is under 1 or forgotten_until is naive.
        """
        if max_nonces < 1:
            raise ValueError("max_nonces must be at least 1")
        if forgotten_until.utcoffset() is None:
            raise ValueError("forgotten_until must be an aware datetime")
        self._max_nonces = max_nonces
        self._clock = clock
        self._forgotten_until = forgotten_until
        self._live: set[str] = set()
        self._by_expiry: list[tuple[datetime, str]] = []
        self._lock = threading.Lock()

    def has(self, nonce: str) -> bool:
        """Return whether *nonce* is held."""
        with self._lock:
            return nonce in self._live

    def add(self, nonce: str, expires_at: datetime) -> None:
        """Hold *nonce* until *expires_at*, in one step with the check that it is new.

        Args:
            nonce: The nonce to claim.
            expires_at: Last moment, aware, at which its message could be accepted.

        Raises:
            ValueError: If the nonce is held, or expires so early that it may have been held.
            OverflowError: If max_nonces live nonces are held.
            TypeError: If expires_at is naive.
        """
        with self._lock:
            # A clock that steps back must not revive what was forgotten while it was ahead.
            if nonce in self._live or expires_at <= self._forgotten_until:
                raise ValueError("nonce already used")
            self._forget_expired()
            if len(self._live) >= self._max_nonces:
                raise OverflowError("nonce store is full")
            self._live.add(nonce)
            heappush(self._by_expiry, (expires_at, nonce))

    def cleanup(self) -> int:
        """Forget expired nonces, as ``add`` does too, and return how many."""
        with self._lock:
            return self._forget_expired()

    def count(self) -> int:
        """Return how many nonces are held."""
        with self._lock:
            return len(self._live)

    def _forget_expired(self) -> int:
        present = self._clock()
        held = len(self._live)
        # A message is still accepted at the very moment of its expiry, so that one stays.
        while self._by_expiry and self._by_expiry[0][0] < present:
            expires_at, nonce = heappop(self._by_expiry)
            self._live.discard(nonce)
            self._forgotten_until = max(self._forgotten_until, expires_at)
        return held - len(self._live)
