"""tests/recipes/signed_messages.py: each protection, the corpus of attacks, threads, fuzzing."""

import base64
import hashlib
import hmac
import json
import logging
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from textwrap import dedent
from typing import Any

import pytest
import signed_messages
from hypothesis import given, settings
from hypothesis import strategies as st
from signed_messages import (
    MAX_BYTES,
    LiveNonceStore,
    RefusedMessageError,
    SignedChannel,
    from_wire,
    to_wire,
)
from support import ROOT

from agent_mcp_governance import InMemoryNonceStore, MCPMessageSigner, MCPSignedEnvelope

REQUEST_KEY = hashlib.sha256(b"client to server").digest()
REPLY_KEY = hashlib.sha256(b"server to client").digest()
NEXT_KEY = hashlib.sha256(b"client to server, next").digest()
THIRD_KEY = hashlib.sha256(b"client to server, third").digest()
KEYS = {
    "request": REQUEST_KEY,
    "reply": REPLY_KEY,
    "next": NEXT_KEY,
    "other": hashlib.sha256(b"somebody else's").digest(),
    "truncated": REQUEST_KEY[:31],
}
WINDOW = timedelta(minutes=5)
FIELDS = ("nonce", "payload", "sender_id", "signature", "timestamp")
HEADER = "mcp-signed/1 client server\n"
BODY = "launch-code-7391"
NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)
CORPUS = ROOT / "tests" / "guard" / "attacks" / "envelopes.jsonl"


class FakeClock:
    """The system's time, shifted by what the test says."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(timezone.utc) + self.ahead


def client(**options: Any) -> SignedChannel:
    keys = {"send_key": REQUEST_KEY, "receive_key": REPLY_KEY}
    return SignedChannel(**{"me": "client", "peer": "server", **keys, **options})


def server(**options: Any) -> SignedChannel:
    keys = {"send_key": REPLY_KEY, "receive_key": REQUEST_KEY}
    return SignedChannel(**{"me": "server", "peer": "client", **keys, **options})


def signed_by_hand(
    payload: str,
    *,
    key: bytes = REQUEST_KEY,
    sender: str | None = "client",
    nonce: str = "0123456789abcdef" * 2,
    age: timedelta = timedelta(0),
) -> MCPSignedEnvelope:
    """What a holder of *key* can sign: any sender, nonce, time and payload."""
    now_ms = int(datetime.now(timezone.utc).timestamp() * 1000)
    timestamp = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=now_ms) - age
    text = f"{nonce}|{round(timestamp.timestamp() * 1000)}|{sender or ''}|{payload}"
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    return MCPSignedEnvelope(
        payload=payload, nonce=nonce, timestamp=timestamp, signature=signature, sender_id=sender
    )


def accepts(channel: SignedChannel, envelope: MCPSignedEnvelope) -> bool:
    try:
        channel.verify(envelope)
    except RefusedMessageError:
        return False
    return True


def accepts_all(channel: SignedChannel, envelopes: list[MCPSignedEnvelope]) -> bool:
    return {accepts(channel, envelope) for envelope in envelopes} == {True}


def assert_refused(action: Callable[..., object], *args: object, **options: object) -> None:
    with pytest.raises(RefusedMessageError) as caught:
        action(*args, **options)
    assert type(caught.value) is RefusedMessageError
    assert str(caught.value) == "message refused"
    assert caught.value.args == ("message refused",)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "signed_messages"]


def race(*actions: Callable[[], bool]) -> int:
    """Run all at once, each in a thread, and return how many came back True."""
    start = threading.Barrier(len(actions))
    results: list[bool] = []

    def run(action: Callable[[], bool]) -> None:
        start.wait(30)
        results.append(action())

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(actions)
    return sum(results)


@pytest.fixture(autouse=True)
def logs_are_clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test makes the kernel log, and no log holds a payload or a key."""
    caplog.set_level(logging.DEBUG)
    yield
    records = caplog.get_records("call")
    assert [r.getMessage() for r in records if r.name.startswith("agent_os")] == []
    text = "\n".join(f"{record.getMessage()} {record.args} {record.exc_info}" for record in records)
    for secret in (
        BODY,
        "delete file 7",
        *map(str, KEYS.values()),
        *(key.hex() for key in KEYS.values()),
    ):
        assert secret not in text


# --- what must work


@pytest.mark.parametrize(
    "body",
    ["", " ", "a|b|c", '{"id": 1, "q": "x\\n"}', "line\nline\r\n\t\0", "caf\u00e9 \U0001f600"],
)
def test_a_message_arrives_as_it_was_signed(body: str) -> None:
    here, there = client(), server()
    assert there.verify(from_wire(to_wire(here.sign(body)))) == body
    assert here.verify(from_wire(to_wire(there.sign(body)))) == body


def test_an_envelope_that_stays_in_the_process_needs_no_wire() -> None:
    assert server().verify(client().sign(BODY)) == BODY


def test_the_kernel_alone_accepts_what_the_channel_signs() -> None:
    envelope = client().sign(BODY)
    result = MCPMessageSigner(REQUEST_KEY).verify_message(envelope)
    assert (result.is_valid, result.sender_id, result.payload) == (True, "client", HEADER + BODY)


def test_what_these_tests_sign_by_hand_is_what_the_kernel_signs() -> None:
    assert MCPMessageSigner(REQUEST_KEY).verify_message(signed_by_hand("x|y")).is_valid
    assert server().verify(signed_by_hand(HEADER + BODY)) == BODY


def test_one_channel_carries_many_messages() -> None:
    here, there = client(), server()
    envelopes = [here.sign(str(number)) for number in range(100)]
    assert [there.verify(e) for e in envelopes] == [str(number) for number in range(100)]


def test_the_example_in_the_docstring_runs() -> None:
    example = str(signed_messages.__doc__).split("::\n\n", 1)[1].split("\n\nA server", 1)[0]
    assert "assert server.verify" in example
    exec(dedent(example), dict(vars(signed_messages)))  # noqa: S102 - the recipe's own text


# --- each field is what was signed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("payload", HEADER + "other"),
        ("nonce", "f" * 32),
        ("sender_id", "mallory"),
        ("signature", base64.b64encode(bytes(32)).decode()),
    ],
)
def test_a_changed_field_is_refused_and_the_message_still_arrives(field: str, value: str) -> None:
    there = server()
    envelope = client().sign(BODY)
    assert_refused(there.verify, replace(envelope, **{field: value}))
    assert there.verify(envelope) == BODY


@pytest.mark.parametrize("milliseconds", [-1000, -1, 1, 1000])
def test_a_changed_time_is_refused(milliseconds: int) -> None:
    envelope = client().sign(BODY)
    moved = envelope.timestamp + timedelta(milliseconds=milliseconds)
    assert_refused(server().verify, replace(envelope, timestamp=moved))


@pytest.mark.parametrize("microseconds", [1, 999])
def test_time_below_a_millisecond_is_refused_as_it_is_not_signed(microseconds: int) -> None:
    envelope = client().sign(BODY)
    finer = replace(envelope, timestamp=envelope.timestamp + timedelta(microseconds=microseconds))
    assert MCPMessageSigner(REQUEST_KEY).verify_message(finer).is_valid
    assert_refused(server().verify, finer)


def test_the_same_moment_in_another_time_zone_is_refused() -> None:
    envelope = client().sign(BODY)
    elsewhere = envelope.timestamp.astimezone(timezone(timedelta(hours=5)))
    assert_refused(server().verify, replace(envelope, timestamp=elsewhere))


def test_a_naive_time_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    envelope = client().sign(BODY)
    naive = envelope.timestamp.replace(tzinfo=None)
    assert_refused(server().verify, replace(envelope, timestamp=naive))
    assert reasons(caplog) == ["signed message refused: malformed timestamp"]


class TextThatLies(str):
    """Compares as one text and is formatted, and so signed, as another."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return HEADER + "harmless"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, 5, 5.0, True, b"x", ["x"], {"x": 1}, object()])
def test_a_field_of_another_type_is_refused(
    field: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    changed = replace(client().sign(BODY), **{field: value})
    assert_refused(server().verify, changed)
    assert_refused(to_wire, changed)
    assert reasons(caplog) == [f"signed message refused: malformed {field}"] * 2


@pytest.mark.parametrize(("text", "value"), [("None", None), ("5", 5), ("['x']", ["x"])])
def test_an_object_never_passes_for_the_text_that_it_prints_as(text: str, value: object) -> None:
    """2m, 2m2: the kernel alone formats whatever it is given."""
    bare = MCPMessageSigner(REQUEST_KEY)
    changed = replace(bare.sign_message(text, sender_id="client"), payload=value)
    assert bare.verify_message(changed).is_valid
    assert_refused(server().verify, changed)


def test_a_number_never_passes_for_the_nonce_that_it_prints_as() -> None:
    """2n: a nonce of digits only would be accepted a second time as a number."""
    digits = signed_by_hand(HEADER + BODY, nonce="7" * 32)
    number = replace(digits, nonce=int("7" * 32))
    assert MCPMessageSigner(REQUEST_KEY).verify_message(number).is_valid
    there = server()
    assert_refused(there.verify, number)
    assert there.verify(digits) == BODY
    assert_refused(there.verify, number)


@pytest.mark.parametrize("field", ["nonce", "payload", "sender_id", "signature"])
def test_a_subclass_of_str_is_refused(field: str) -> None:
    class Text(str):
        __slots__ = ()

    genuine = client().sign(BODY)
    assert_refused(server().verify, replace(genuine, **{field: Text(getattr(genuine, field))}))


def test_text_that_prints_as_other_text_is_refused() -> None:
    harmless = client().sign("harmless")
    lying = replace(harmless, payload=TextThatLies(HEADER + "delete everything"))
    assert MCPMessageSigner(REQUEST_KEY).verify_message(lying).is_valid
    assert_refused(server().verify, lying)


class FreshTime(datetime):
    """Compares as the present and is signed as an hour ago."""

    def timestamp(self) -> float:
        return super().timestamp() - 3_600


def test_a_subclass_of_datetime_is_refused() -> None:
    stale = signed_by_hand(HEADER + BODY, age=timedelta(hours=1))
    fresh = stale.timestamp + timedelta(hours=1)
    moved = FreshTime(*fresh.timetuple()[:6], fresh.microsecond, tzinfo=timezone.utc)
    lying = replace(stale, timestamp=moved)
    assert MCPMessageSigner(REQUEST_KEY).verify_message(lying).is_valid
    assert_refused(server().verify, lying)


def test_a_subclass_of_the_envelope_is_refused() -> None:
    class Envelope(MCPSignedEnvelope):
        pass

    genuine = client().sign(BODY)
    copied = Envelope(**{field: getattr(genuine, field) for field in FIELDS})
    assert MCPMessageSigner(REQUEST_KEY).verify_message(copied).is_valid
    assert_refused(server().verify, copied)


def test_an_envelope_that_changes_while_it_is_verified_is_verified_as_it_was_read() -> None:
    genuine = client().sign(BODY)

    class Swapping(InMemoryNonceStore):
        def add(self, nonce: str, expires_at: datetime) -> None:
            object.__setattr__(genuine, "payload", HEADER + "delete everything")
            super().add(nonce, expires_at)

    assert server(nonce_store=Swapping()).verify(genuine) == BODY


def test_an_envelope_without_its_fields_is_refused() -> None:
    empty = object.__new__(MCPSignedEnvelope)
    assert_refused(server().verify, empty)
    assert_refused(to_wire, empty)


@pytest.mark.parametrize("thing", [None, "", "text", b"bytes", 0, [], {}, object()])
def test_what_is_no_envelope_is_refused(thing: Any) -> None:
    assert_refused(server().verify, thing)
    assert_refused(to_wire, thing)


@pytest.mark.parametrize(
    "signature",
    ["", "bad", "\u00e9" * 44, "A" * 44, "A" * 43 + "==", " " + "A" * 42 + "=", "=" * 44],
)
def test_a_malformed_signature_never_reaches_the_kernel(
    signature: str, caplog: pytest.LogCaptureFixture
) -> None:
    changed = replace(client().sign(BODY), signature=signature)
    assert_refused(server().verify, changed)
    assert reasons(caplog) == ["signed message refused: malformed signature"]


@pytest.mark.parametrize("payload", ["\ud800", HEADER + "\udfff"])
def test_half_a_surrogate_pair_never_reaches_the_kernel(payload: str) -> None:
    assert_refused(server().verify, replace(client().sign(BODY), payload=payload))


# --- the signed text is cut in one way only


def test_the_start_of_a_payload_cannot_move_into_the_sender() -> None:
    """2a"""
    bare = MCPMessageSigner(REQUEST_KEY)
    envelope = bare.sign_message("transfer|100|bob", sender_id="client")
    cut = replace(envelope, sender_id="client|transfer", payload="100|bob")
    assert bare.verify_message(cut).is_valid
    assert_refused(server().verify, cut)


def test_a_body_cannot_hold_a_message_that_a_re_cut_sets_free() -> None:
    """2a, with a header of its own for the part that is set free."""
    envelope = client().sign("note|" + HEADER + "delete everything")
    sender, payload = envelope.payload.split("|", 1)
    cut = replace(envelope, sender_id="client|" + sender, payload=payload)
    assert MCPMessageSigner(REQUEST_KEY).verify_message(cut).is_valid
    assert_refused(server().verify, cut)


def test_a_message_without_sender_cannot_be_given_one() -> None:
    """2d"""
    envelope = MCPMessageSigner(REQUEST_KEY).sign_message("|client|" + HEADER + BODY)
    for cut in (
        envelope,
        replace(envelope, sender_id="", payload=envelope.payload),
        replace(envelope, sender_id="||client", payload=HEADER + BODY),
    ):
        assert MCPMessageSigner(REQUEST_KEY).verify_message(cut).is_valid
        assert_refused(server().verify, cut)


def test_a_body_cannot_hold_a_message_under_another_nonce() -> None:
    """2e2: everything before the body's own time becomes the nonce, and the replay is new."""
    later = datetime.now(timezone.utc).replace(microsecond=0)
    envelope = client().sign(f"x|{int(later.timestamp()) * 1000}|client|{HEADER}{BODY}")
    start, _, _, payload = envelope.payload.split("|", 3)
    milliseconds = json.loads(to_wire(envelope))["timestamp_ms"]
    nonce = f"{envelope.nonce}|{milliseconds}|client|{start}"
    cut = replace(envelope, nonce=nonce, timestamp=later, payload=payload)
    assert MCPMessageSigner(REQUEST_KEY).verify_message(cut).is_valid
    there = server()
    assert there.verify(envelope).startswith("x|")
    assert_refused(there.verify, cut)


# --- direction and audience


def test_a_message_cannot_be_sent_back_to_its_sender() -> None:
    here = client()
    assert_refused(here.verify, here.sign(BODY))


def test_a_message_cannot_be_sent_back_even_under_one_key_for_both_directions() -> None:
    payload = HEADER + BODY
    reflected = signed_by_hand(payload, key=REPLY_KEY, sender="server")
    assert_refused(client().verify, reflected)


def test_a_message_for_another_audience_is_refused_and_burns_no_nonce() -> None:
    there = server()
    strayed = signed_by_hand("mcp-signed/1 client files\n" + BODY)
    assert_refused(there.verify, strayed)
    assert there.verify(signed_by_hand(HEADER + BODY, nonce=strayed.nonce)) == BODY


@pytest.mark.parametrize(
    "payload",
    [
        BODY,
        "",
        "mcp-signed/1 client server",
        "mcp-signed/1 client server2\n",
        "mcp-signed/1 client server \n",
        "mcp-signed/1 server client\n",
        "mcp-signed/1 mallory server\n",
        "mcp-signed/1 Client Server\n",
        "mcp-signed/2 client server\n",
        " mcp-signed/1 client server\n",
        "\ufeffmcp-signed/1 client server\n",
        "mcp-signed/1 client server\r\n",
    ],
)
def test_only_the_exact_header_is_accepted(payload: str) -> None:
    assert_refused(server().verify, signed_by_hand(payload))


@pytest.mark.parametrize("sender", [None, "", "mallory", "Client", "client ", "server", "client|"])
def test_only_the_exact_sender_is_accepted(sender: str | None) -> None:
    assert_refused(server().verify, signed_by_hand(HEADER + BODY, sender=sender))


def test_a_wrong_key_is_refused() -> None:
    assert_refused(server(receive_key=NEXT_KEY).verify, client().sign(BODY))


# --- time


@pytest.mark.parametrize("seconds", [301, 3_600, 10**9, -400, -3_600, -(10**9)])
def test_a_message_outside_the_window_is_refused(seconds: int) -> None:
    stale = signed_by_hand(HEADER + BODY, age=timedelta(seconds=seconds))
    assert_refused(server().verify, stale)


@pytest.mark.parametrize("seconds", [0, 240, -240])
def test_a_message_inside_the_window_is_accepted(seconds: int) -> None:
    recent = signed_by_hand(HEADER + BODY, age=timedelta(seconds=seconds))
    assert server().verify(recent) == BODY


@pytest.mark.parametrize("seconds", [30, -30])
def test_the_window_is_the_one_that_was_asked_for(seconds: int) -> None:
    recent = signed_by_hand(HEADER + BODY, age=timedelta(seconds=seconds))
    assert_refused(server(replay_window=timedelta(seconds=10)).verify, recent)


@pytest.mark.parametrize("year", [1, 1969, 1970, 2038, 9999])
def test_a_time_at_the_ends_of_the_calendar_is_refused_without_noise(year: int) -> None:
    distant = datetime(year, 12, 31, 23, 59, 59, 999_000, tzinfo=timezone.utc)
    assert_refused(server().verify, replace(client().sign(BODY), timestamp=distant))


def test_a_message_that_expires_while_it_is_verified_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A thread that sleeps past the expiry finds a store that has forgotten the nonce."""
    clock = FakeClock()

    class Forgetful(InMemoryNonceStore):
        def has(self, nonce: str) -> bool:
            held = super().has(nonce)
            clock.ahead += WINDOW
            return held

    there = server(nonce_store=Forgetful(), clock=clock)
    assert_refused(there.verify, client().sign(BODY))
    assert reasons(caplog) == ["signed message refused: expired while it was verified"]


# --- replay


def test_a_message_is_accepted_once() -> None:
    there = server()
    text = to_wire(client().sign(BODY))
    assert there.verify(from_wire(text)) == BODY
    for _ in range(3):
        assert_refused(there.verify, from_wire(text))


def test_a_forged_message_burns_no_nonce() -> None:
    there = server()
    envelope = client().sign(BODY)
    for _ in range(3):
        assert_refused(there.verify, replace(envelope, payload=HEADER + "forged"))
    assert there.verify(envelope) == BODY


def test_a_forgery_of_a_used_nonce_is_logged_as_a_forgery(caplog: pytest.LogCaptureFixture) -> None:
    """2t: nobody without the key finds out which nonces were used, not even in the log."""
    there = server()
    envelope = client().sign(BODY)
    there.verify(envelope)
    assert_refused(there.verify, replace(envelope, payload=HEADER + "forged"))
    assert_refused(there.verify, envelope)
    assert reasons(caplog) == [
        "signed message refused: wrong signature, or outside the replay window",
        "signed message refused: replayed",
    ]


def test_channels_that_share_a_store_accept_a_message_once_between_them() -> None:
    store = LiveNonceStore()
    envelope = client().sign(BODY)
    assert server(nonce_store=store).verify(envelope) == BODY
    assert_refused(server(nonce_store=store).verify, envelope)


def test_a_peer_cannot_burn_the_nonce_of_another_in_a_shared_store() -> None:
    store = LiveNonceStore()
    envelope = client().sign(BODY)
    mallory = server(peer="mallory", receive_key=NEXT_KEY, nonce_store=store)
    copied = signed_by_hand(
        "mcp-signed/1 mallory server\n", key=NEXT_KEY, sender="mallory", nonce=envelope.nonce
    )
    assert mallory.verify(copied) == ""
    assert server(nonce_store=store).verify(envelope) == BODY
    assert store.count() == 2


def test_a_store_that_is_false_when_empty_is_used() -> None:
    """3h: the kernel alone replaces it with one of its own."""

    class Sized(InMemoryNonceStore):
        def __len__(self) -> int:
            return self.count()

    store = Sized()
    server(nonce_store=store).verify(client().sign(BODY))
    assert store.count() == 1


def test_a_store_whose_add_never_raises_still_stops_replays_on_one_channel() -> None:
    there = server(nonce_store=InMemoryNonceStore())
    envelope = client().sign(BODY)
    assert there.verify(envelope) == BODY
    assert_refused(there.verify, envelope)


def test_a_store_that_only_raises_on_a_duplicate_is_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The shape of a shared store outside the process: the truth is in add()."""

    class SetIfAbsent:
        def __init__(self) -> None:
            self.keys: set[str] = set()

        def has(self, _: str) -> bool:
            return False

        def add(self, nonce: str, _: datetime) -> None:
            if nonce in self.keys:
                raise ValueError("nonce already used")
            self.keys.add(nonce)

        def cleanup(self) -> int:
            return 0

    there = server(nonce_store=SetIfAbsent())
    envelope = client().sign(BODY)
    assert there.verify(envelope) == BODY
    assert_refused(there.verify, envelope)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("method", ["has", "add"])
@pytest.mark.parametrize("error", [ConnectionError, RuntimeError, KeyError, RecursionError])
def test_a_store_that_fails_refuses_the_message_and_is_logged(
    method: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    class Down(InMemoryNonceStore):
        pass

    def fail(*_: object) -> None:
        raise error("store is down")

    setattr(Down, method, fail)
    there = server(nonce_store=Down())
    assert_refused(there.verify, client().sign(BODY))
    assert [(r.levelname, r.exc_info) for r in caplog.records] == [("ERROR", None)]
    assert error.__name__ in caplog.text
    assert "store is down" in caplog.text


@pytest.mark.parametrize("answer", [True, None, 0, "", 1, object()])
def test_a_store_that_does_not_answer_false_refuses_the_message(answer: object) -> None:
    """The coroutine of a store that is asynchronous is such an answer."""

    class Odd(InMemoryNonceStore):
        def has(self, _: str) -> Any:
            return answer

    assert_refused(server(nonce_store=Odd()).verify, client().sign(BODY))


def test_a_clock_that_fails_refuses_the_message() -> None:
    def broken() -> datetime:
        if armed:
            raise RuntimeError("no time")
        return datetime.now(timezone.utc)

    armed = False
    there = server(clock=broken)
    armed = True
    assert_refused(there.verify, client().sign(BODY))


def test_the_kernel_may_still_clean_up_the_store() -> None:
    class Counting(InMemoryNonceStore):
        cleanups = 0

        def cleanup(self) -> int:
            self.cleanups += 1
            return super().cleanup()

    store = Counting()
    server(nonce_store=store)._receive_keys[0].signer.cleanup_nonce_cache()
    assert store.cleanups == 1


# --- threads


def test_32_threads_with_one_message_get_it_accepted_once() -> None:
    there, here = server(), client()
    for size in (10, 200_000):  # above 2,047 bytes HMAC lets other threads run
        envelope = here.sign("x" * size)
        assert race(*[partial(accepts, there, envelope)] * 32) == 1


def test_32_channels_on_one_store_get_a_message_accepted_once() -> None:
    store = LiveNonceStore()
    envelope = client().sign("x" * 200_000)
    channels = [server(nonce_store=store) for _ in range(32)]
    assert race(*[partial(accepts, channel, envelope) for channel in channels]) == 1
    assert store.count() == 1


def test_32_threads_with_their_own_messages_get_all_accepted() -> None:
    store = LiveNonceStore()
    here, there = client(), server(nonce_store=store)
    envelopes = [[here.sign(BODY) for _ in range(20)] for _ in range(32)]
    assert race(*[partial(accepts_all, there, own) for own in envelopes]) == 32
    assert store.count() == 640


def test_two_threads_never_stand_between_has_and_add_of_one_channel() -> None:
    """Deterministic: without the lock both meet at the barrier, and both are accepted."""
    meeting = threading.Barrier(2)

    class Waiting(InMemoryNonceStore):
        def has(self, nonce: str) -> bool:
            held = super().has(nonce)
            # With the lock nobody else can come: giving up is the expected way out.
            with suppress(threading.BrokenBarrierError):
                meeting.wait(0.2)
            return held

    there = server(nonce_store=Waiting())
    envelope = client().sign(BODY)
    assert race(*[partial(accepts, there, envelope)] * 2) == 1


def test_two_channels_that_both_found_a_nonce_new_accept_it_once() -> None:
    """Deterministic: both have passed has() before either calls add()."""
    meeting = threading.Barrier(2)

    class Waiting(LiveNonceStore):
        def has(self, nonce: str) -> bool:
            held = super().has(nonce)
            meeting.wait(30)
            return held

    store = Waiting()
    envelope = client().sign(BODY)
    channels = [server(nonce_store=store) for _ in range(2)]
    assert race(*[partial(accepts, channel, envelope) for channel in channels]) == 1


def test_two_threads_never_stand_between_the_check_and_the_insertion_of_one_store() -> None:
    """Deterministic: the clock is read between the two, and without the lock both meet there."""
    meeting = threading.Barrier(2)

    def clock() -> datetime:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.2)
        return NOW

    store = LiveNonceStore(clock=clock)

    def claims() -> bool:
        try:
            store.add("n", NOW + WINDOW)
        except ValueError:
            return False
        return True

    assert race(claims, claims) == 1


def test_threads_that_fill_a_store_stop_at_its_size() -> None:
    store = LiveNonceStore(max_nonces=10)
    here, there = client(), server(nonce_store=store)
    envelopes = [here.sign(BODY) for _ in range(32)]
    assert race(*[partial(accepts, there, envelope) for envelope in envelopes]) == 10
    assert store.count() == 10


def test_keys_can_be_rotated_while_messages_are_verified() -> None:
    here, there = client(), server()
    envelopes = [here.sign(BODY) for _ in range(200)]
    keys = [hashlib.sha256(bytes([number])).digest() for number in range(50)]

    def rotate() -> bool:
        for key in keys:
            there.rotate_receive_key(key, overlap=timedelta(minutes=1))
        return True

    assert race(rotate, partial(accepts_all, there, envelopes)) == 2


# --- the nonce store by itself


class Times:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def test_the_store_holds_a_nonce_up_to_its_last_moment() -> None:
    """3f: the kernel's store forgets at a moment at which its signer still accepts."""
    clock = Times()
    store = LiveNonceStore(clock=clock)
    store.add("n", NOW + WINDOW)
    clock.now = NOW + WINDOW
    assert store.cleanup() == 0
    assert store.has("n")
    clock.now += timedelta(microseconds=1)
    assert store.cleanup() == 1
    assert not store.has("n")


def test_a_full_store_refuses_and_forgets_nothing() -> None:
    clock = Times()
    store = LiveNonceStore(max_nonces=3, clock=clock)
    for number in range(3):
        store.add(str(number), NOW + WINDOW)
    for _ in range(5):
        with pytest.raises(OverflowError, match="full"):
            store.add("one more", NOW + WINDOW)
    assert [store.has(str(number)) for number in range(3)] == [True] * 3
    assert not store.has("one more")
    clock.now += WINDOW + timedelta(microseconds=1)
    store.add("one more", clock.now + WINDOW)
    assert store.count() == 1


def test_a_channel_with_a_full_store_refuses_until_nonces_expire(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    here, there = client(), server(nonce_store=LiveNonceStore(max_nonces=2, clock=clock))
    first = here.sign("first")
    assert there.verify(first) == "first"
    assert there.verify(here.sign("second")) == "second"
    assert_refused(there.verify, here.sign("third"))
    assert_refused(there.verify, first)
    assert "OverflowError: nonce store is full" in reasons(caplog)[0]
    clock.ahead = WINDOW + timedelta(seconds=1)
    assert there.verify(here.sign("fourth")) == "fourth"


def test_ten_thousand_messages_do_not_flush_an_accepted_one() -> None:
    """3b: they do with the kernel's store."""
    here, there = client(), server()
    first = here.sign(BODY)
    assert there.verify(first) == BODY
    for _ in range(10_000):
        there.verify(here.sign(""))
    assert_refused(there.verify, first)


def test_a_clock_that_steps_back_revives_no_nonce() -> None:
    clock = Times()
    store = LiveNonceStore(clock=clock)
    store.add("n", NOW + WINDOW)
    clock.now += timedelta(hours=1)
    assert store.cleanup() == 1
    clock.now = NOW
    with pytest.raises(ValueError, match="already used"):
        store.add("n", NOW + WINDOW)
    store.add("later", NOW + WINDOW + timedelta(milliseconds=1))


def test_a_late_claim_of_an_expired_nonce_revives_no_other() -> None:
    clock = Times()
    store = LiveNonceStore(clock=clock)
    store.add("n", NOW + timedelta(minutes=1))
    clock.now += timedelta(minutes=2)
    store.add("late", NOW)
    assert store.cleanup() == 1
    with pytest.raises(ValueError, match="already used"):
        store.add("n", NOW + timedelta(minutes=1))


def test_memory_is_freed_in_the_order_of_expiry() -> None:
    clock = Times()
    store = LiveNonceStore(clock=clock)
    for minutes in (9, 1, 5, 3, 7):
        store.add(f"{minutes}", NOW + timedelta(minutes=minutes))
    clock.now = NOW + timedelta(minutes=6)
    store.add("new", NOW + timedelta(minutes=20))
    assert [name for name in "13579" if store.has(name)] == ["7", "9"]
    assert store.count() == 3


def test_after_a_restart_nothing_dated_before_it_is_accepted() -> None:
    now = datetime.now(timezone.utc)
    there = server(nonce_store=LiveNonceStore(forgotten_until=now + WINDOW))
    old = signed_by_hand(HEADER + BODY, age=timedelta(seconds=1))
    assert_refused(there.verify, old)
    assert there.verify(signed_by_hand(HEADER + BODY, age=timedelta(seconds=-1))) == BODY


def test_a_naive_expiry_leaves_the_store_as_it_was() -> None:
    store = LiveNonceStore()
    with pytest.raises(TypeError):
        store.add("n", datetime(2030, 1, 1))
    assert store.count() == 0
    store.add("n", datetime.now(timezone.utc) + WINDOW)


@pytest.mark.parametrize("options", [{"max_nonces": 0}, {"forgotten_until": datetime(2030, 1, 1)}])
def test_a_store_refuses_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LiveNonceStore(**options)


# --- keys


def test_both_keys_count_during_the_overlap_and_one_after_it() -> None:
    clock = FakeClock()
    here, late, there = client(), client(), server(clock=clock)
    there.rotate_receive_key(NEXT_KEY, overlap=timedelta(minutes=2))
    here.rotate_send_key(NEXT_KEY)
    clock.ahead = timedelta(seconds=60)
    assert there.verify(late.sign("old key")) == "old key"
    assert there.verify(here.sign("new key")) == "new key"
    clock.ahead = timedelta(seconds=120)
    assert_refused(there.verify, late.sign("old key"))
    assert there.verify(here.sign("new key")) == "new key"


def test_a_message_is_accepted_once_across_a_rotation(caplog: pytest.LogCaptureFixture) -> None:
    there = server()
    envelope = client().sign(BODY)
    assert there.verify(envelope) == BODY
    there.rotate_receive_key(NEXT_KEY, overlap=timedelta(minutes=1))
    assert_refused(there.verify, envelope)
    assert reasons(caplog) == ["signed message refused: replayed"]


def test_an_earlier_key_is_tried_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    store = LiveNonceStore()
    there = server(nonce_store=store)
    there.rotate_receive_key(NEXT_KEY, overlap=timedelta(minutes=1))
    there.rotate_receive_key(THIRD_KEY, overlap=timedelta(minutes=1))
    assert there.verify(client().sign(BODY)) == BODY
    assert store.count() == 1
    assert caplog.records == []


def test_no_overlap_ends_every_earlier_key_at_once() -> None:
    moment = datetime.now(timezone.utc)
    here, there = client(), server(clock=lambda: moment)
    there.rotate_receive_key(NEXT_KEY, overlap=timedelta(days=1))
    there.rotate_receive_key(THIRD_KEY, overlap=timedelta(0))
    assert_refused(there.verify, here.sign(BODY))
    assert_refused(there.verify, client(send_key=NEXT_KEY).sign(BODY))
    assert there.verify(client(send_key=THIRD_KEY).sign(BODY)) == BODY


def test_a_second_rotation_never_lengthens_the_first_overlap() -> None:
    clock = FakeClock()
    there = server(clock=clock)
    there.rotate_receive_key(NEXT_KEY, overlap=timedelta(minutes=1))
    there.rotate_receive_key(THIRD_KEY, overlap=timedelta(minutes=3))
    clock.ahead = timedelta(minutes=2)
    assert_refused(there.verify, client().sign(BODY))
    assert there.verify(client(send_key=NEXT_KEY).sign(BODY)) == BODY


def test_ended_keys_are_let_go() -> None:
    clock = FakeClock()
    there = server(clock=clock)
    there.rotate_receive_key(NEXT_KEY, overlap=timedelta(minutes=1))
    clock.ahead = timedelta(minutes=2)
    there.rotate_receive_key(THIRD_KEY, overlap=timedelta(minutes=1))
    assert len(there._receive_keys) == 2


@pytest.mark.parametrize(
    "key", [None, "", b"", "k" * 32, b"k" * 31, bytearray(32), [1] * 32, 5], ids=ascii
)
def test_a_key_that_is_short_or_no_bytes_is_refused(key: Any) -> None:
    channel = client()
    for action in (
        partial(client, send_key=key),
        partial(client, receive_key=key),
        partial(channel.rotate_send_key, key),
        partial(channel.rotate_receive_key, key, overlap=timedelta(0)),
    ):
        with pytest.raises(ValueError, match="32 bytes"):
            action()
    assert server().verify(channel.sign(BODY)) == BODY


def test_each_direction_needs_a_key_of_its_own() -> None:
    channel = client()
    for action in (
        partial(client, receive_key=REQUEST_KEY),
        partial(channel.rotate_send_key, REPLY_KEY),
        partial(channel.rotate_send_key, REQUEST_KEY),
        partial(channel.rotate_receive_key, REQUEST_KEY, overlap=timedelta(0)),
        partial(channel.rotate_receive_key, REPLY_KEY, overlap=timedelta(0)),
    ):
        with pytest.raises(ValueError, match="key of its own"):
            action()


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=31), timedelta.max])
def test_an_overlap_has_bounds(overlap: timedelta) -> None:
    with pytest.raises(ValueError, match="overlap"):
        server().rotate_receive_key(NEXT_KEY, overlap=overlap)


def test_keys_show_in_no_repr() -> None:
    channel = client()
    assert "key" not in repr(channel).lower()
    assert str(REQUEST_KEY) not in repr(channel)


# --- settings and sizes


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a|b", "a>b", "a\n", "-a", ".", "caf\u00e9", "a" * 129, None, 5, b"a"]
)
def test_a_name_is_one_plain_word(name: Any) -> None:
    for field in ("me", "peer"):
        with pytest.raises(ValueError, match="name"):
            client(**{field: name})


@pytest.mark.parametrize("name", ["a", "7", "agent-1.example:8080", "me@example.com", "a" * 128])
def test_ordinary_names_work(name: str) -> None:
    here, there = client(me=name), server(peer=name)
    assert there.verify(from_wire(to_wire(here.sign(BODY)))) == BODY


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"peer": "client"}, "differ"),
        ({"replay_window": timedelta(0)}, "replay_window"),
        ({"replay_window": timedelta(seconds=-1)}, "replay_window"),
        ({"replay_window": timedelta(days=2)}, "replay_window"),
        ({"max_bytes": 0}, "max_bytes"),
    ],
)
def test_a_channel_refuses_bad_settings(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        client(**options)


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u20ac", "\U0001f600", '"', "\0"])
def test_the_largest_payload_passes_and_one_byte_more_does_not(letter: str) -> None:
    room = 4_096 - len(HEADER)
    count, rest = divmod(room, len(letter.encode()))
    body = letter * count + "x" * rest
    here, there = client(max_bytes=4_096), server(max_bytes=4_096)
    text = to_wire(here.sign(body), max_bytes=4_096)
    assert there.verify(from_wire(text, max_bytes=4_096)) == body
    with pytest.raises(ValueError, match="4096 bytes"):
        here.sign(body + "x")
    larger = client().sign(body + "x")
    assert_refused(there.verify, larger)
    assert_refused(to_wire, larger, max_bytes=4_096)
    assert_refused(from_wire, to_wire(larger), max_bytes=4_096)


@pytest.mark.parametrize("body", [None, b"x", 5, ["x"], TextThatLies("lie"), "\ud800"])
def test_only_text_can_be_signed(body: Any) -> None:
    with pytest.raises(ValueError, match="body must be text"):
        client().sign(body)


# --- the wire


def wire_fields() -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(to_wire(client().sign(BODY)))
    return fields


def test_the_wire_is_one_line_of_ascii_json() -> None:
    text = to_wire(client().sign("caf\u00e9\u2028\n"))
    assert text.isascii()
    assert len(text.splitlines()) == 1
    fields = json.loads(text)
    assert sorted(fields) == ["nonce", "payload", "sender_id", "signature", "timestamp_ms"]
    assert [type(fields[name]) for name in sorted(fields)] == [str, str, str, str, int]


def test_the_wire_gives_back_the_same_envelope() -> None:
    envelope = client().sign(BODY)
    assert from_wire(to_wire(envelope)) == envelope


def test_order_and_spacing_do_not_matter_on_the_wire() -> None:
    fields = dict(reversed(wire_fields().items()))
    text = "\n " + json.dumps(fields, indent=4, ensure_ascii=False) + "\n"
    assert server().verify(from_wire(text)) == BODY


@pytest.mark.parametrize("field", ["nonce", "payload", "sender_id", "signature", "timestamp_ms"])
def test_the_wire_needs_every_field_once(field: str) -> None:
    fields = wire_fields()
    text = json.dumps(fields)
    again = f'{text[:-1]}, "{field}": {json.dumps(fields[field])}}}'
    del fields[field]
    assert_refused(from_wire, json.dumps(fields))
    assert_refused(from_wire, json.dumps({**fields, "extra": "x"}))
    assert_refused(from_wire, again)


@pytest.mark.parametrize("field", ["nonce", "payload", "sender_id", "signature", "timestamp_ms"])
@pytest.mark.parametrize("value", [None, True, 5.0, [], {}, ["x"], {"x": 1}, -1, 10**30], ids=str)
def test_the_wire_needs_every_field_of_its_type(field: str, value: object) -> None:
    assert_refused(from_wire, json.dumps({**wire_fields(), field: value}))


@pytest.mark.parametrize("field", ["nonce", "sender_id", "signature", "timestamp_ms"])
@pytest.mark.parametrize("value", ["", " ", "x y", "a|b", "x\n", "\u0665 5", "\u0661"])
def test_the_wire_needs_every_field_of_its_shape(field: str, value: str) -> None:
    assert_refused(from_wire, json.dumps({**wire_fields(), field: value}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "null",
        "true",
        "5",
        "NaN",
        '"text"',
        "[]",
        "{}",
        "{",
        "[" * 100_000,
        '{"nonce":' * 100_000,
        "9" * 100_000,
        "\ufeff{}",
        b"{}",
        bytearray(b"{}"),
        None,
        5,
        {},
    ],
    ids=lambda text: repr(text)[:20],
)
def test_what_is_no_envelope_on_the_wire_is_refused(text: Any) -> None:
    assert_refused(from_wire, text)


def test_an_envelope_inside_something_else_is_refused() -> None:
    fields = wire_fields()
    text = json.dumps(fields)
    for other in (f"[{text}]", text + text, json.dumps({**fields, "payload": fields})):
        assert_refused(from_wire, other)


def test_text_that_is_too_long_is_refused_before_it_is_parsed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert_refused(from_wire, " " * (6 * MAX_BYTES + 2_049))
    assert reasons(caplog) == ["signed message refused: wire: not text, or too long"]


@pytest.mark.parametrize("milliseconds", [0, 1, 1_700_000_000_123, 253_402_300_799_999])
def test_every_time_of_the_calendar_can_be_read(milliseconds: int) -> None:
    envelope = from_wire(json.dumps({**wire_fields(), "timestamp_ms": milliseconds}))
    assert json.loads(to_wire(envelope))["timestamp_ms"] == milliseconds


@pytest.mark.parametrize("milliseconds", [-1, 253_402_300_800_000, 10**400])
def test_a_time_beyond_the_calendar_is_refused(milliseconds: int) -> None:
    text = json.dumps({**wire_fields(), "timestamp_ms": milliseconds})
    assert_refused(from_wire, text)


# --- one error


def test_the_error_can_be_pickled() -> None:
    pickled = pickle.dumps(RefusedMessageError("message refused"))
    error = pickle.loads(pickled)  # noqa: S301 - made in the line above
    assert (type(error), str(error)) == (RefusedMessageError, "message refused")


def test_interrupts_are_not_swallowed() -> None:
    class Interrupted(InMemoryNonceStore):
        def has(self, _: str) -> bool:
            raise KeyboardInterrupt

    there = server(nonce_store=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        there.verify(client().sign(BODY))


# --- the corpus

CASES = [json.loads(line) for line in CORPUS.read_text(encoding="ascii").splitlines()]
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class Exchange:
    """One message of the corpus, from the client's signature to the last delivery.

    Each step of a case is a method of the same name. ``item`` is what is on the way: text of the
    wire, or an object where the case is about an envelope that never left the process.
    """

    def __init__(self, body: str, max_nonces: int = 100) -> None:
        self.clock = FakeClock()
        self.store_clock = FakeClock()
        self.store = LiveNonceStore(max_nonces=max_nonces, clock=self.store_clock)
        self.ends = {
            "client": client(),
            "server": server(nonce_store=self.store, clock=self.clock),
            # The worst case: another server that was given the same key.
            "files": server(me="files"),
        }
        self.body = self.fill_in(body)
        self.item: Any = to_wire(self.ends["client"].sign(self.body))

    def fill_in(self, text: str) -> str:
        now_ms = int(datetime.now(timezone.utc).timestamp() * 1000)
        later_ms = now_ms + 864_000_000
        return text.replace("{now_ms}", str(now_ms)).replace("{later_ms}", str(later_ms))

    def deliver(self, expect: str, to: str = "server") -> None:
        end = self.ends[to]
        try:
            item = from_wire(self.item) if isinstance(self.item, str) else self.item
            body = end.verify(item)
        except RefusedMessageError:
            assert expect == "refuse"
        else:
            assert expect in {"accept", "missed"}
            assert body == self.body

    # what an attacker does to the text

    def set(self, field: str, value: object) -> None:
        self.item = json.dumps({**json.loads(self.item), field: value})

    def drop(self, field: str) -> None:
        fields = json.loads(self.item)
        del fields[field]
        self.item = json.dumps(fields)

    def edit(self, field: str, at: int, put: str | None = None) -> None:
        text = json.loads(self.item)[field]
        other = put or BASE64[BASE64.index(text[at]) ^ 1]
        self.set(field, text[:at] + other + text[at + 1 :])

    def shift(self, milliseconds: int) -> None:
        self.set("timestamp_ms", json.loads(self.item)["timestamp_ms"] + milliseconds)

    def time(self, text: str, times: int) -> None:
        self.text(str(json.loads(self.item)["timestamp_ms"]), text * times)

    def text(self, find: str, put: str) -> None:
        assert find in self.item
        self.item = self.item.replace(find, put)

    def raw(self, text: str) -> None:
        self.item = text

    def wrap(self, before: str, after: str, times: int) -> None:
        self.item = before * times + self.item + after * times

    def repeat(self, find: str, times: int) -> None:
        self.text(find, find * times)

    def twice(self) -> None:
        self.item *= 2

    def quote(self) -> None:
        self.item = json.dumps(self.item)

    def reverse(self) -> None:
        self.item = json.dumps(dict(reversed(json.loads(self.item).items())))

    def duplicate(self, field: str, value: str, *, first: bool) -> None:
        member, inside = f'"{field}": {json.dumps(value)}', self.item[1:-1]
        self.item = "{" + (f"{member}, {inside}" if first else f"{inside}, {member}") + "}"

    def recut(self, nonce: int, sender: int, bare: str = "accepts") -> None:
        """Cut the signed text anew: so many parts for the nonce, one for the time, and so on."""
        item = json.loads(self.item)
        signed = "{nonce}|{timestamp_ms}|{sender_id}|{payload}".format_map(
            {**item, "sender_id": item["sender_id"] or ""}
        )
        parts = signed.split("|")
        milliseconds = timedelta(milliseconds=int(parts[nonce]))
        self.item = MCPSignedEnvelope(
            nonce="|".join(parts[:nonce]),
            timestamp=datetime(1970, 1, 1, tzinfo=timezone.utc) + milliseconds,
            sender_id="|".join(parts[nonce + 1 : nonce + 1 + sender]),
            payload="|".join(parts[nonce + 1 + sender :]),
            signature=item["signature"],
        )
        verdict = MCPMessageSigner(REQUEST_KEY).verify_message(self.item).is_valid
        assert verdict is (bare == "accepts")

    def object(self, field: str | None, kind: str) -> None:
        envelope = from_wire(self.item)
        value: Any = getattr(envelope, field) if field else envelope
        changed = {
            "same": lambda: envelope,
            "dict": lambda: by_name(envelope),
            "nothing": lambda: None,
            "subclass": lambda: type("Envelope", (MCPSignedEnvelope,), {})(**vars(envelope)),
            "bytes": lambda: value.encode(),
            "lying": lambda: TextThatLies(value),
            "naive": lambda: value.replace(tzinfo=None),
            "offset": lambda: value.astimezone(timezone(timedelta(hours=5))),
            "finer": lambda: value + timedelta(microseconds=1),
            "text": lambda: value.isoformat(),
            "number": lambda: value.timestamp(),
            "none": lambda: None,
        }[kind]()
        self.item = replace(envelope, **{field: changed}) if field else changed

    # what holders of keys do

    def sign(
        self,
        key: str,
        payload: str,
        sender: str | None = "client",
        nonce: str = "0123456789abcdef" * 2,
        age_s: int = 0,
    ) -> None:
        envelope = signed_by_hand(
            self.fill_in(payload),
            key=KEYS[key],
            sender=sender and self.fill_in(sender),
            nonce=nonce,
            age=timedelta(seconds=age_s),
        )
        fields = ("nonce", "payload", "sender_id", "signature", "timestamp_ms")
        self.item = json.dumps({field: by_name(envelope)[field] for field in fields})

    def sign_again(self, body: str, times: int) -> None:
        self.body = body * times
        self.item = to_wire(self.ends["client"].sign(self.body))

    def send_with(self, key: str) -> None:
        self.ends["client"].rotate_send_key(KEYS[key])

    def others(self, count: int) -> None:
        for number in range(count):
            assert accepts(self.ends["server"], self.ends["client"].sign(str(number)))

    # what happens at the server

    def replay(self) -> None:
        self.deliver("accept")

    def keep(self) -> None:
        self.kept = (self.item, self.body)

    def restore(self) -> None:
        self.item, self.body = self.kept

    def wait(self, seconds: int) -> None:
        self.clock.ahead += timedelta(seconds=seconds)

    def forget(self, seconds: int) -> None:
        self.store_clock.ahead += timedelta(seconds=seconds)

    def rotate(self, key: str, overlap_s: int) -> None:
        self.ends["server"].rotate_receive_key(KEYS[key], overlap=timedelta(seconds=overlap_s))

    def second(self, store: str) -> None:
        stores = {"shared": self.store, "own": LiveNonceStore()}
        self.ends["server"] = server(nonce_store=stores[store])

    def restart(self, *, guarded: bool) -> None:
        until = datetime.now(timezone.utc) + WINDOW
        store = LiveNonceStore(forgotten_until=until) if guarded else LiveNonceStore()
        self.ends["server"] = server(nonce_store=store)


def by_name(envelope: MCPSignedEnvelope) -> dict[str, Any]:
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    milliseconds = (envelope.timestamp - epoch) // timedelta(milliseconds=1)
    return {**vars(envelope), "timestamp_ms": milliseconds}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_corpus(case: dict[str, Any]) -> None:
    options = dict(case["input"])
    steps, to = options.pop("steps"), options.pop("to", "server")
    exchange = Exchange(**options)
    for step in steps:
        arguments = {name: value for name, value in step.items() if name != "op"}
        getattr(exchange, step["op"])(**arguments)
    exchange.deliver(case["expect"], to)


def test_the_corpus_is_whole() -> None:
    assert {case["kind"] for case in CASES} == {"envelope"}
    assert Counter(case["expect"] for case in CASES) == {
        "refuse": 163,
        "accept": 32,
        "missed": 5,
    }


# --- fuzzing: it returns, or raises what is documented

# Every code point, surrogates too; st.characters() spends seconds on its tables first.
LETTERS = st.sampled_from('ax09|"\\{}[]:,. \n\0\u00e9\ud800') | st.integers(0, 0x10FFFF).map(chr)
TEXTS = st.text(LETTERS, max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
ANYTHING = (
    JSON
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.none() | st.just(timezone.utc))
    | st.timedeltas()
    | st.builds(object)
)
ENVELOPES = st.builds(
    MCPSignedEnvelope,
    payload=ANYTHING,
    nonce=ANYTHING | st.just("a" * 32),
    timestamp=ANYTHING,
    signature=ANYTHING | st.just("A" * 43 + "="),
    sender_id=ANYTHING | st.just("client"),
)
FUZZ = settings(database=None, deadline=None, max_examples=80, derandomize=True)


@FUZZ
@given(TEXTS | JSON.map(json.dumps))
def test_fuzz_from_wire_with_text(text: str) -> None:
    assert_refused(from_wire, text)


@FUZZ
@given(st.dictionaries(st.sampled_from(["nonce", "payload", "sender_id", "timestamp_ms"]), JSON))
def test_fuzz_from_wire_with_fields(changes: dict[str, Any]) -> None:
    genuine = wire_fields()
    text = json.dumps({**genuine, **changes})
    if all(changes[name] == genuine[name] for name in changes):
        return
    there = server()
    try:
        envelope = from_wire(text)
    except RefusedMessageError:
        return
    assert_refused(there.verify, envelope)


@FUZZ
@given(ENVELOPES | ANYTHING)
def test_fuzz_verify_and_to_wire(thing: Any) -> None:
    assert_refused(server().verify, thing)
    with suppress(RefusedMessageError):
        assert from_wire(to_wire(thing)) == thing


@FUZZ
@given(TEXTS)
def test_fuzz_sign(body: str) -> None:
    try:
        envelope = client().sign(body)
    except ValueError:
        assert not body.isascii()
        return
    assert server().verify(from_wire(to_wire(envelope))) == body


@FUZZ
@given(st.text("a|0\n", max_size=30), st.data())
def test_fuzz_every_cut_of_the_signed_text(body: str, data: st.DataObject) -> None:
    """Whatever bar becomes the border of two fields, only the genuine cut is accepted."""
    envelope = client().sign(body + "|" + HEADER + "x")
    milliseconds = json.loads(to_wire(envelope))["timestamp_ms"]
    signed = f"{envelope.nonce}|{milliseconds}|client|{envelope.payload}"
    bars = [index for index, letter in enumerate(signed) if letter == "|"]
    first, second, third = sorted(
        data.draw(st.lists(st.sampled_from(bars), min_size=3, max_size=3, unique=True))
    )
    number = signed[first + 1 : second]
    time = envelope.timestamp if number == str(milliseconds) else NOW
    cut = MCPSignedEnvelope(
        nonce=signed[:first],
        timestamp=time,
        sender_id=signed[second + 1 : third],
        payload=signed[third + 1 :],
        signature=envelope.signature,
    )
    assert accepts(server(), cut) == (cut == envelope)


@FUZZ
@given(st.text('ax|"\\\n\0\u00e9\u20ac', max_size=30), st.integers(0, 400), LETTERS)
def test_fuzz_one_changed_character_on_the_wire(body: str, at: int, letter: str) -> None:
    """It is refused, or it did not change what the message says."""
    envelope = client().sign(body)
    text = to_wire(envelope)
    at %= len(text)
    changed = text[:at] + letter + text[at + 1 :]
    there = server()
    try:
        assert there.verify(from_wire(changed)) == body
    except RefusedMessageError:
        assert there.verify(envelope) == body


@FUZZ
@given(
    st.lists(
        st.tuples(st.integers(-600, 600), st.integers(0, 9), st.booleans()), min_size=1, max_size=60
    )
)
def test_fuzz_no_nonce_is_claimed_twice_whatever_the_clock_does(
    steps: list[tuple[int, int, bool]],
) -> None:
    clock = Times()
    store = LiveNonceStore(clock=clock, max_nonces=5)
    claimed: list[int] = []
    for seconds, number, clean in steps:
        clock.now += timedelta(seconds=seconds)
        if clean:
            store.cleanup()
        with suppress(ValueError, OverflowError):
            store.add(str(number), NOW + timedelta(seconds=60 * number))
            claimed.append(number)
    assert len(claimed) == len(set(claimed))
    assert store.count() <= 5
