"""Nonces in memory, by themselves and under threads."""

import threading
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from mcp_guard.live_nonces import now
from mcp_guard.signed_messages import LiveNonceStore
from support.limits import raises
from support.signing import WINDOW, Clock, Reasons, accepts, client, server, signed_by_hand
from support.threads import THREADS, together

pytestmark = pytest.mark.usefixtures("threads_take_turns_often")

TICK = timedelta(microseconds=1)


def test_a_nonce_is_held_up_to_its_last_moment() -> None:
    store = LiveNonceStore(clock=(clock := Clock()))
    clock.now += WINDOW
    store.add("n", clock.now)
    assert (store.cleanup(), store.has("n")) == (0, True)
    clock.now += TICK
    assert (store.cleanup(), store.has("n")) == (1, False)


def test_a_full_store_refuses_and_forgets_nothing_until_nonces_expire(reasons: Reasons) -> None:
    store = LiveNonceStore(max_nonces=2, clock=(clock := Clock()))
    here, there = client(), server(nonce_store=store)
    first = here.sign("1")
    messages = [first, here.sign("2"), here.sign("3"), first]
    assert [accepts(there, message) for message in messages] == [True, True, False, False]
    assert reasons() == ["OverflowError: nonce store is full", "ValueError: nonce already used"]
    clock.now += 2 * WINDOW
    assert there.verify(here.sign("4")) == "4"


def test_a_clock_that_steps_back_revives_no_nonce() -> None:
    store = LiveNonceStore(clock=(clock := Clock()))
    start = clock.now
    store.add("n", start + WINDOW)
    clock.now = start + 2 * WINDOW
    store.add("late", start)
    assert store.cleanup() == 1
    clock.now = start
    with pytest.raises(ValueError, match="already used"):
        store.add("n", start + WINDOW)
    store.add("later", start + WINDOW + TICK)


def test_a_restart_forgets_unless_the_store_is_told_of_it() -> None:
    old = signed_by_hand(age=1)
    assert accepts(server(), old)
    assert accepts(server(), old)
    there = server(nonce_store=LiveNonceStore(forgotten_until=now() + WINDOW))
    assert not accepts(there, old)
    assert accepts(there, signed_by_hand(age=-1))


@pytest.mark.parametrize("options", [{"max_nonces": 0}, {"forgotten_until": datetime(2030, 1, 1)}])
def test_bad_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LiveNonceStore(**options)


@pytest.mark.parametrize("receivers", [1, THREADS], ids=["one-channel", "32-channels"])
def test_each_message_is_accepted_once_and_forgeries_burn_none(receivers: int) -> None:
    class Sized(LiveNonceStore):
        __len__ = LiveNonceStore.count  # which makes it false when it is empty

    store = Sized()
    here, channels = client(), [server(nonce_store=store) for _ in range(receivers)]
    # Above 2,047 bytes HMAC lets other threads run.
    envelopes = [here.sign("x" * size) for size in (10, 3_000, 200_000)]
    envelopes.append(signed_by_hand("forged", nonce="0" * 32))

    def receive(number: int) -> list[bool]:
        return [accepts(channels[number % receivers], envelope) for envelope in envelopes]

    assert [sum(found) for found in zip(*together(receive), strict=True)] == [1, 1, 1, 0]
    assert store.count() == 3


def test_two_threads_never_stand_between_the_check_and_the_insertion() -> None:
    """Deterministic: the clock is read between the two, and without the lock both meet there."""
    meeting, expiry = threading.Barrier(2), now() + WINDOW

    def clock() -> datetime:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.2)  # with the lock nobody else can come
        return now()

    store = LiveNonceStore(clock=clock)
    refusals = together(lambda _: raises(ValueError, lambda: store.add("n", expiry)), 2)
    assert sorted(refusals) == [False, True]
