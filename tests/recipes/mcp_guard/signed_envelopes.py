"""Envelopes of ``signed_messages``: what one looks like, and how it is written as JSON."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import json
import logging
import re
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

from agent_mcp_governance import MCPSignedEnvelope

MAX_BYTES = 262_144

logger = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_YEAR_10000_MS = 253_402_300_800_000
_WIRE_FIELDS = ["nonce", "payload", "sender_id", "signature", "timestamp_ms"]
# No space, bar, ">" or line end: a name is one word of the header and of the signed text.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{43}=")


class RefusedMessageError(Exception):
    """The one error for every message that is not accepted. Its text never says why."""


def to_wire(envelope: MCPSignedEnvelope, *, max_bytes: int = MAX_BYTES) -> str:
    """Write an envelope as one line of JSON.

    Args:
        envelope: What ``SignedChannel.sign`` returned.
        max_bytes: Largest payload, in bytes of UTF-8: the channel's.

    Returns:
        An object with exactly the fields nonce, payload, sender_id, signature (all text) and
        timestamp_ms (since 1970 in UTC: the signature covers no finer time). ASCII only.

    Raises:
        RefusedMessageError: If it is not an envelope that a channel could accept.
    """
    checked = check(envelope, max_bytes)
    fields = {
        "nonce": checked.nonce,
        "payload": checked.payload,
        "sender_id": checked.sender_id,
        "signature": checked.signature,
        "timestamp_ms": (checked.timestamp - _EPOCH) // timedelta(milliseconds=1),
    }
    return json.dumps(fields)


def from_wire(text: str, *, max_bytes: int = MAX_BYTES) -> MCPSignedEnvelope:
    """Read an envelope from JSON. It is not verified yet; its sender_id only says who to ask.

    Args:
        text: What ``to_wire`` wrote, in any order and spacing.
        max_bytes: Largest payload, in bytes of UTF-8: the channel's.

    Returns:
        The envelope, every field of the right type and shape.

    Raises:
        RefusedMessageError: If text is anything else: fields that are missing, unknown, given twice
            (RFC 8259, section 4, leaves open which one counts) or of another type, or too long.
    """
    # JSON writes a character as up to six. The other fields and the spacing get 2,048.
    if type(text) is not str or len(text) > 6 * max_bytes + 2_048:
        refuse("wire: not text, or too long")
    try:
        fields = json.loads(text, object_pairs_hook=_exact_fields)
    except (ValueError, RecursionError):
        refuse("wire: not JSON with exactly the fields of an envelope")
    if type(fields) is not dict:
        refuse("wire: not an object")
    milliseconds = fields.pop("timestamp_ms")
    if type(milliseconds) is not int or not 0 <= milliseconds < _YEAR_10000_MS:
        refuse("wire: malformed timestamp_ms")
    return check(MCPSignedEnvelope(timestamp=time_of(milliseconds), **fields), max_bytes)


def time_of(milliseconds: int) -> datetime:
    """Return the middle of a millisecond, counted since 1970 in UTC.

    The kernel signs ``int(timestamp.timestamp() * 1000)``. From 2038-01-19 to 2039-09-07, and again
    later, that is one too low for a quarter of the times at the start of their millisecond.
    """
    return _EPOCH + timedelta(milliseconds=milliseconds, microseconds=500)


def check(envelope: object, max_bytes: int) -> MCPSignedEnvelope:
    """Return a copy of an envelope whose signed text can be cut in only one way; refuse others.

    The kernel signs ``nonce|milliseconds|sender|payload``. It formats whatever the fields hold, so
    types are exact: None, 5 or a list must not pass for the text that was signed.
    """
    if type(envelope) is not MCPSignedEnvelope:
        refuse("not an envelope")
    # Read each field once: what is checked is what is verified.
    names = ("nonce", "payload", "sender_id", "signature", "timestamp")
    fields: dict[str, Any] = {name: getattr(envelope, name, None) for name in names}
    timestamp = fields["timestamp"]
    well_formed = {
        "nonce": _matches(_NONCE, fields["nonce"]),
        "payload": fits(fields["payload"], max_bytes),
        "sender_id": is_name(fields["sender_id"]),
        "signature": _matches(_SIGNATURE, fields["signature"]),
        # Less than a millisecond is not signed, so it is the same in all of them.
        "timestamp": type(timestamp) is datetime
        and timestamp.tzinfo is timezone.utc
        and timestamp.microsecond % 1000 == 500,
    }
    if malformed := [name for name, ok in well_formed.items() if not ok]:
        refuse(f"malformed {', '.join(malformed)}")
    return MCPSignedEnvelope(**fields)


def is_name(text: object) -> bool:
    """Return whether *text* can be the name of a peer."""
    return _matches(_NAME, text)


def fits(text: object, max_bytes: int) -> bool:
    """Return whether *text* is text of at most *max_bytes* bytes of UTF-8."""
    if type(text) is not str or len(text) > max_bytes:
        return False
    try:
        return len(text.encode()) <= max_bytes
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def refuse(reason: str, level: int = logging.WARNING) -> NoReturn:
    """Log *reason*, which the sender must not learn, and raise RefusedMessageError."""
    logger.log(level, "signed message refused: %s", reason)
    raise RefusedMessageError("message refused") from None


def _matches(shape: re.Pattern[str], text: object) -> bool:
    return type(text) is str and shape.fullmatch(text) is not None


def _exact_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if sorted(name for name, _ in pairs) != _WIRE_FIELDS:
        raise ValueError("not exactly the fields of an envelope")
    return dict(pairs)
