"""What an envelope is, in the process and on the wire: one form, and everything else is refused."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp_guard.signed_envelopes import MAX_BYTES, RefusedMessageError, from_wire, time_of, to_wire
from support.signing import BODY, HEADER, Reasons, assert_refused, client, server

from agent_mcp_governance import MCPSignedEnvelope

FIELDS = ("nonce", "payload", "sender_id", "signature", "timestamp")
WIRE = ("nonce", "payload", "sender_id", "signature", "timestamp_ms")


def wire_fields() -> Any:
    return json.loads(to_wire(client().sign(BODY)))


BODIES = [
    *("", " ", "a|b|c", '{"jsonrpc": "2.0", "id": 1}', "line\nline\r\n\t\0\x1b", "SELECT '\\'"),
    *("café 日本語 \U0001f600", HEADER * 2, "x" * 100_000, "f" * 32 + "|1700000000000|client|x"),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: ascii(body)[:20])
def test_a_message_arrives_as_it_was_signed(body: str) -> None:
    name = "agent-1@example.com:8080"
    here, there = client(me=name), server(peer=name)
    assert there.verify(from_wire(to_wire(here.sign(body)))) == body
    assert here.verify(from_wire(to_wire(there.sign(body)))) == body
    assert there.verify(here.sign(body)) == body  # an envelope that stays in the process


def test_the_wire_is_one_line_of_ascii_json_with_five_fields() -> None:
    envelope = client().sign("café\u2028\n")
    text = to_wire(envelope)
    assert text.isascii()
    assert len(text.splitlines()) == 1
    fields = json.loads(text)
    assert tuple(sorted(fields)) == WIRE
    assert [type(fields[name]) for name in WIRE] == [str, str, str, str, int]
    assert from_wire(text) == envelope


def test_order_spacing_and_escapes_do_not_matter_on_the_wire() -> None:
    fields = dict(reversed(wire_fields().items()))
    text = "\n " + json.dumps(fields, indent=4, ensure_ascii=False) + "\n"
    assert server().verify(from_wire(text)) == BODY
    assert server().verify(from_wire(text.replace("client", "\\u0063lient"))) == BODY


@pytest.mark.parametrize("milliseconds", [0, 1, 2**31 * 1000 + 1, 253_402_300_799_999])
def test_every_time_of_the_calendar_can_be_read_and_written(milliseconds: int) -> None:
    envelope = from_wire(json.dumps({**wire_fields(), "timestamp_ms": milliseconds}))
    assert json.loads(to_wire(envelope))["timestamp_ms"] == milliseconds


class TextThatLies(str):
    """Compares as one text and is formatted, and so signed, as another."""

    def __format__(self, spec: str) -> str:
        return HEADER + "harmless"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, 5, 5.0, True, b"x", ["x"], {"x": 1}, TextThatLies("y")])
def test_a_field_of_another_type_is_refused(field: str, value: object, reasons: Reasons) -> None:
    changed = replace(client().sign(BODY), **{field: value})
    assert_refused(server().verify, changed)
    assert_refused(to_wire, changed)
    assert reasons() == [f"malformed {field}"] * 2


class Time(datetime):
    """Could be compared as one time and signed as another."""


TIME = time_of(1_700_000_000_000)
OTHER_TIMES = [
    *(TIME.replace(tzinfo=zone) for zone in (None, timezone(timedelta(0), "GMT"))),
    *(TIME.astimezone(timezone(timedelta(hours=5))), TIME - timedelta(microseconds=500)),
    TIME + timedelta(microseconds=1),  # which the kernel does not sign
    Time(*TIME.timetuple()[:6], TIME.microsecond, tzinfo=timezone.utc),
]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("signature", text) for text in ("", "bad", "é" * 44, "A" * 44, "A" * 43 + "==")),
        *(("signature", text) for text in (" " + "A" * 42 + "=", "A" * 43 + "=\n", "-" * 43 + "=")),
        *(("nonce", text) for text in ("", "f" * 31, "F" * 32, "f" * 31 + "|", "f" * 32 + "\n")),
        *(("sender_id", text) for text in ("", "a b", "a|b", "client\n", "\uff43lient", "x" * 129)),
        *(("payload", text) for text in ("\ud800", HEADER + "\udfff", "x" * (MAX_BYTES + 1))),
        *(("timestamp", time) for time in OTHER_TIMES),
    ],
)
def test_no_misshapen_field_reaches_the_kernel(field: str, value: Any, reasons: Reasons) -> None:
    assert_refused(server().verify, replace(client().sign(BODY), **{field: value}))
    assert reasons() == [f"malformed {field}"]


def test_what_is_no_envelope_is_refused() -> None:
    class Envelope(MCPSignedEnvelope):
        pass

    copied, bare = Envelope(**vars(client().sign(BODY))), object.__new__(MCPSignedEnvelope)
    for thing in (None, "", b"bytes", 0, [], {}, object(), copied, bare):
        assert_refused(server().verify, thing)
        assert_refused(to_wire, thing)


@pytest.mark.parametrize("field", WIRE)
def test_the_wire_needs_every_field_once(field: str) -> None:
    fields = wire_fields()
    text = json.dumps(fields)
    again = f'"{field}": {json.dumps(fields[field])}'
    escaped = again.replace(field, f"\\u{ord(field[0]):04x}{field[1:]}", 1)
    for other in (f"{text[:-1]}, {again}}}", f"{{{again}, {text[1:]}", f"{text[:-1]}, {escaped}}}"):
        assert_refused(from_wire, other)
    assert_refused(from_wire, json.dumps({**fields, "extra": "x"}))
    assert_refused(from_wire, text.replace(f'"{field}"', f'"{field.upper()}"'))
    del fields[field]
    assert_refused(from_wire, json.dumps(fields))


def test_what_is_written_otherwise_is_refused() -> None:
    fields = wire_fields()
    text, time = json.dumps(fields), str(fields["timestamp_ms"])
    times = ["NaN", "1e999", "17e11", "-0.0", "0x10", "9" * 100_000, '"\u0665"', str(10**15)]
    values = None, True, 5.0, [], {}, ["x"], -1, 10**30
    others: list[Any] = [
        *(text.replace(time, other) for other in times),
        *("", "null", "true", "5", '"text"', "[]", "{}", "{", "NaN", "\ufeff{}", None, {}),
        *("[" * 100_000, '{"nonce":' * 100_000, "9" * 100_000),
        *(text.encode(), f"[{text}]", text + text, json.dumps(text), "\ufeff" + text),
        *(text.replace('"', "'"), text[:-1] + ",}", text + " // comment"),
        *(text.replace(BODY, "\n" + BODY), text.replace(BODY, "\\ud800")),
        json.dumps({**fields, "payload": fields}),
        *(json.dumps({**fields, name: value}) for name, value in product(WIRE, values)),
    ]
    for other in others:
        assert_refused(from_wire, other)


def test_text_that_is_too_long_is_refused_before_it_is_parsed(reasons: Reasons) -> None:
    assert_refused(from_wire, " " * (6 * MAX_BYTES + 2_049))
    assert reasons() == ["wire: not text, or too long"]


@pytest.mark.parametrize("letter", ["x", "é", "€", "\U0001f600", '"', "\0"], ids=ascii)
def test_the_largest_payload_passes_and_one_byte_more_does_not(letter: str) -> None:
    count, rest = divmod(4_096 - len(HEADER), len(letter.encode()))
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


@pytest.mark.parametrize("body", [None, b"x", 5, ["x"], TextThatLies("lie"), "\ud800"], ids=ascii)
def test_only_text_can_be_signed(body: Any) -> None:
    with pytest.raises(ValueError, match="body must be text"):
        client().sign(body)


LETTERS = st.sampled_from('ax09|"\\{}[]:,. \n\0é\ud800') | st.integers(0, 0x10FFFF).map(chr)


@settings(database=None, deadline=None, max_examples=200, derandomize=True)
@given(st.text('ax é€\n\0"\\|', max_size=30), st.integers(0, 400), LETTERS)
def test_a_changed_character_is_refused_or_changes_nothing(body: str, at: int, letter: str) -> None:
    envelope = client().sign(body)
    text, there = to_wire(envelope), server()
    at %= len(text)
    try:
        assert there.verify(from_wire(text[:at] + letter + text[at + 1 :])) == body
    except RefusedMessageError:
        assert there.verify(envelope) == body
