"""The channel: who signed, for whom, when, and once."""

import base64
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from textwrap import dedent
from typing import Any
from unittest.mock import Mock

import pytest
from mcp_guard import signed_messages
from mcp_guard.live_nonces import now
from mcp_guard.signed_envelopes import time_of
from mcp_guard.signed_messages import LiveNonceStore, from_wire, to_wire
from support.processes import PATIENCE
from support.signing import (
    BODY,
    HEADER,
    KEYS,
    WINDOW,
    Clock,
    Reasons,
    accepts,
    assert_refused,
    client,
    cut,
    server,
    signed_by_hand,
)

from agent_mcp_governance import InMemoryNonceStore, MCPMessageSigner

REQUEST_KEY, REPLY_KEY, NEXT_KEY, THIRD_KEY = KEYS
FORGED = "wrong signature, or outside the replay window"


def test_the_docstring_begins_with_the_restart_and_its_example_runs() -> None:
    doc = str(signed_messages.__doc__)
    assert {"restart", "RedisNonceStore"} <= set(doc.splitlines()[0].split())
    example = doc.split("::\n\n", 1)[1].split("\n\nA server", 1)[0]
    assert "assert server.verify" in example
    exec(dedent(example), dict(vars(signed_messages)))  # noqa: S102 - the recipe's own text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("payload", HEADER + text) for text in ("", "x", BODY + " ", BODY + "\0", BODY.upper())),
        *(("payload", text + HEADER + BODY) for text in ("\ufeff", "\u200b")),
        ("payload", HEADER + BODY.replace("a", "\u0430")),
        *(("nonce", "f" * 32), ("signature", base64.b64encode(bytes(32)).decode())),
        *(("sender_id", name) for name in ("mallory", "server", "Client")),
        *(("timestamp", timedelta(milliseconds=later)) for later in (-1000, -1, 1, 1000)),
    ],
)
def test_a_changed_message_burns_no_nonce_and_the_genuine_one_is_accepted_once(
    field: str, value: Any, reasons: Reasons
) -> None:
    """Nobody without the key finds out which nonces were used, not even in the log."""
    there, envelope = server(), client().sign(BODY)
    other = envelope.timestamp + value if field == "timestamp" else value
    changed = replace(envelope, **{field: other})
    assert_refused(there.verify, changed)
    assert there.verify(envelope) == BODY
    assert_refused(there.verify, changed)
    assert_refused(there.verify, from_wire(to_wire(envelope)))
    expected = "not from the peer" if field == "sender_id" else FORGED
    assert reasons() == [expected, expected, "ValueError: nonce already used"]


@pytest.mark.parametrize(
    ("sender", "payload", "nonce", "parts"),
    [
        ("client", HEADER + "transfer|100|bob", 1, 2),
        ("client", HEADER + "note|" + HEADER + "delete everything", 1, 2),
        ("client|x", HEADER + BODY, 1, 1),
        (None, "|client|" + HEADER + BODY, 1, 3),
        ("LATER", "client|" + HEADER + BODY, 2, 1),
        ("client", HEADER + "x|LATER|client|" + HEADER + BODY, 4, 1),
    ],
)
def test_bars_cannot_be_moved_between_the_fields(
    sender: str | None, payload: str, nonce: int, parts: int
) -> None:
    """The kernel alone accepts each; the last frees a body as a message of its own."""
    later = str(int(now().timestamp() * 1000) + 240_000)
    sender = sender and sender.replace("LATER", later)
    message = signed_by_hand(payload.replace("LATER", later), sender=sender)
    recut = cut(message, nonce, parts)
    assert MCPMessageSigner(REQUEST_KEY).verify_message(recut).is_valid
    assert_refused(server().verify, recut)


def test_a_message_cannot_be_sent_back_to_its_sender() -> None:
    here = client()
    assert_refused(here.verify, here.sign(BODY))
    reflected = signed_by_hand(key=REPLY_KEY, sender="server")  # one key for both directions
    assert_refused(here.verify, reflected)


def test_only_exact_header_sender_and_key_pass_and_others_burn_no_nonce(reasons: Reasons) -> None:
    there = server()
    headers = ["", BODY, *(before + HEADER for before in "\n \ufeff")]
    headers += [HEADER[:-1] + after for after in ("", "\r\n", " \n", "2\n")]
    headers += [HEADER.replace(*change) for change in (("1", "2"), ("c", "C"), (" ", "  "))]
    names = "server client", "mallory server", "client files"
    headers += [f"mcp-signed/1 {of_two}\n" for of_two in names]
    for payload in headers:
        assert_refused(there.verify, signed_by_hand(payload))
    for sender in ("mallory", "Client", "server", "client2"):
        assert_refused(there.verify, signed_by_hand(sender=sender))
    for key in (NEXT_KEY, REPLY_KEY, REQUEST_KEY[:31]):
        assert_refused(there.verify, signed_by_hand(key=key))
    assert reasons() == [
        *["for another direction or audience"] * 15,
        *["not from the peer"] * 4,
        *[FORGED] * 3,
    ]
    assert there.verify(signed_by_hand()) == BODY


@pytest.mark.parametrize("seconds", [0, 240, -240, 301, 3_600, 10**9, -400, -3_600, -(10**9)])
def test_a_message_is_accepted_inside_the_window_only(seconds: int) -> None:
    message = signed_by_hand(age=seconds)
    assert accepts(server(), message) == (abs(seconds) < 300)
    assert accepts(server(replay_window=timedelta(seconds=100)), message) == (seconds == 0)


@pytest.mark.parametrize("microseconds", [0, 1, 999])
@pytest.mark.parametrize(
    ("start", "inexact"), [(2**31 * 1000 - 1000, False), (2**31 * 1000, True), (2**41, False)]
)
def test_every_millisecond_is_accepted_before_in_and_after_2038(
    monkeypatch: pytest.MonkeyPatch, start: int, inexact: bool, microseconds: int
) -> None:
    here, there = client(), server(clock=(clock := Clock()))
    monkeypatch.setattr(sys.modules[MCPMessageSigner.__module__], "_utcnow", clock)
    rounded_down = 0
    for milliseconds in range(start, start + 1_000):
        exact = time_of(milliseconds) - timedelta(microseconds=500)
        rounded_down += int(exact.timestamp() * 1000) < milliseconds
        clock.now = exact + timedelta(microseconds=microseconds)
        assert there.verify(from_wire(to_wire(here.sign("")))) == ""
    assert (rounded_down > 200) == inexact  # what would be refused if it stood at its start


def test_a_peer_cannot_burn_the_nonce_of_another_in_a_shared_store() -> None:
    shared, envelope = LiveNonceStore(), client().sign(BODY)
    mallory = server(peer="mallory", receive_key=NEXT_KEY, nonce_store=shared)
    signed = partial(signed_by_hand, "mcp-signed/1 mallory server\n", key=NEXT_KEY)
    assert mallory.verify(signed(sender="mallory", nonce=envelope.nonce)) == ""
    assert server(nonce_store=shared).verify(envelope) == BODY


@pytest.mark.parametrize("error", [ConnectionError, OverflowError, RecursionError])
def test_a_store_that_fails_refuses_the_message_and_is_logged(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    add = Mock(side_effect=[error("store is down"), KeyboardInterrupt()])
    there = server(nonce_store=Mock(add=add))
    assert_refused(there.verify, client().sign(BODY))
    assert [(r.levelname, r.exc_info) for r in caplog.records] == [("ERROR", None)]
    assert f"{error.__name__}: store is down" in caplog.text
    with pytest.raises(KeyboardInterrupt):  # which is not swallowed
        there.verify(client().sign(BODY))


@pytest.mark.parametrize("answer", [False, True, 0, "", object], ids=repr)
def test_a_store_that_answers_anything_refuses(answer: object, reasons: Reasons) -> None:
    """The coroutine of an asynchronous store is such an answer."""
    there = server(nonce_store=Mock(add=lambda *_: answer))
    assert_refused(there.verify, client().sign(BODY))
    assert reasons() == [f"the nonce store answered {type(answer).__name__}"]


def test_a_thread_that_sleeps_until_the_nonce_is_forgotten_refuses(reasons: Reasons) -> None:
    clock = Clock()
    late = Mock(add=lambda *_: setattr(clock, "now", now() + 2 * WINDOW))
    assert_refused(server(nonce_store=late, clock=clock).verify, client().sign(BODY))
    assert reasons() == ["expired while it was verified"]


def test_no_thread_waits_for_another_that_waits_for_the_store() -> None:
    """Deterministic: with a lock around the claim, the two would never meet."""
    meeting = threading.Barrier(2, timeout=PATIENCE)

    def add(*_: object) -> None:
        meeting.wait()

    here, there = client(), server(nonce_store=Mock(add=add))
    other = threading.Thread(target=there.verify, args=(here.sign("first"),))
    other.start()
    assert there.verify(here.sign("second")) == "second"
    other.join()


@pytest.mark.parametrize(
    ("overlaps", "minutes", "accepted"),
    [
        ([2], 1, [True, True, False]),
        ([2], 2, [False, True, False]),
        ([1, 3], 0, [True, True, True]),
        ([1, 3], 2, [False, True, True]),
        ([3, 1], 2, [False, False, True]),
        ([1440, 0], 0, [False, False, True]),  # a key that leaked
    ],
)
def test_a_key_counts_until_its_overlap_ends_and_a_later_one_never_lengthens_it(
    overlaps: list[int], minutes: int, accepted: list[bool]
) -> None:
    here, there = client(), server(clock=(clock := Clock()))
    messages = [here.sign(BODY)]
    for key in (NEXT_KEY, THIRD_KEY):
        here.rotate_send_key(key)
        messages.append(here.sign(BODY))
    for key, overlap in zip((NEXT_KEY, THIRD_KEY), overlaps, strict=False):
        there.rotate_receive_key(key, overlap=timedelta(minutes=overlap))
    clock.now += timedelta(minutes=minutes)
    assert [accepts(there, message) for message in messages] == accepted
    assert not any(accepts(there, message) for message in messages)  # each once
    there.rotate_receive_key(b"4" * 32, overlap=timedelta(0))
    assert len(there._receive_keys) == 1 + sum(accepted)  # one that has ended is not kept


@pytest.mark.parametrize(
    ("key", "match"),
    [
        *((key, "32 bytes") for key in (None, "k" * 32, b"k" * 31, bytearray(32), [1] * 32)),
        *((key, "a key of its own") for key in (REQUEST_KEY, REPLY_KEY)),
    ],
    ids=ascii,
)
def test_a_bad_or_used_key_is_refused_and_nothing_changes(key: Any, match: str) -> None:
    channel = client()
    for action in (
        partial(channel.rotate_send_key, key),
        partial(channel.rotate_receive_key, key, overlap=timedelta(0)),
        partial(client, send_key=key, receive_key=key),
    ):
        with pytest.raises(ValueError, match=match):
            action()
    assert server().verify(channel.sign(BODY)) == BODY
    assert "key" not in repr(channel).lower()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        *(({"me": name}, "a name is") for name in ("", " ", "a b", "a|b", "a>b", "a\n", "-a", 5)),
        *(({"peer": name}, "a name is") for name in ("caf\u00e9", "a" * 129, None, b"a")),
        ({"peer": "client"}, "differ"),
        ({"nonce_store": InMemoryNonceStore()}, "InMemoryNonceStore forgets live nonces"),
        *(({"replay_window": timedelta(days=days)}, "replay_window") for days in (-1, 0, 2)),
        ({"max_bytes": 0}, "max_bytes"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        client(**options)
    for overlap in (timedelta(seconds=-1), timedelta(days=31), timedelta.max):
        with pytest.raises(ValueError, match="overlap"):
            client().rotate_receive_key(NEXT_KEY, overlap=overlap)
