"""Signed messages between two peers, verified strictly. Copy this file; it needs nothing beside it.

``MCPMessageSigner`` computes and checks the signature. This file adds what it leaves open: the
signed text can be cut in one way only, a message is accepted once whatever the number of threads,
it is bound to its direction and its audience, keys can be rotated, and whoever sends a bad message
learns nothing from the answer::

    request_key, reply_key = MCPMessageSigner.generate_key(), MCPMessageSigner.generate_key()
    client = SignedChannel(me="client", peer="server", send_key=request_key, receive_key=reply_key)
    server = SignedChannel(me="server", peer="client", send_key=reply_key, receive_key=request_key)
    text = to_wire(client.sign("list the files"))
    assert server.verify(from_wire(text)) == "list the files"

A server with several peers keeps one channel for each, picks it by ``from_wire(text).sender_id``
and answers a name that it does not know with ``RefusedMessageError``, too. To change a key, the
receiving end calls ``rotate_receive_key`` first and the sending end ``rotate_send_key`` after it.

What it cannot do: HMAC keys are shared, so either peer could have written a message and neither can
prove to others who did (section 7 of the OWASP MCP Security Cheat Sheet asks for asymmetric keys);
payloads are not encrypted; a message that is held back arrives as fresh until ``replay_window`` is
over, in any order; nonces in memory are gone after a restart (see ``LiveNonceStore``) and unknown
to other processes (give them a store that they share).
"""

import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from heapq import heappop, heappush
from typing import Any, NamedTuple, NoReturn

from agent_mcp_governance import MCPMessageSigner, MCPNonceStore, MCPSignedEnvelope

MAX_BYTES = 262_144

logger = logging.getLogger(__name__)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FOREVER = datetime.max.replace(tzinfo=timezone.utc)
_WIRE_FIELDS = ["nonce", "payload", "sender_id", "signature", "timestamp_ms"]
_YEAR_10000_MS = 253_402_300_800_000
# No space, bar, ">" or line end: a name is one word of the header and of the signed text.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{43}=")


class RefusedMessageError(Exception):
    """The one error for every message that is not accepted. Its text never says why."""


class LiveNonceStore:
    """Nonces in memory: never forgets one that could still be replayed, refuses when full.

    ``InMemoryNonceStore`` drops the oldest nonce at 10,000, and ``MCPMessageSigner`` looks a nonce
    up and adds it in two steps. Here ``add`` is one step, so channels in one process may share a
    store. Safe under threads.
    """

    def __init__(
        self,
        *,
        max_nonces: int = 100_000,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        forgotten_until: datetime = _EPOCH,
    ) -> None:
        """Make an empty store.

        Args:
            max_nonces: Most nonces held at once, up to about 300 bytes each. A nonce stays until
                its message is older than the replay window: 100,000 carry 333 messages a second
                with a window of 5 minutes.
            clock: Returns the present time, aware, on the clock that messages are dated with.
            forgotten_until: Refuse every message that expires up to then. A process that starts
                again passes its start time plus the replay window, so that no message dated
                before the start is accepted a second time.

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
        now = self._clock()
        held = len(self._live)
        # A message is still accepted at the very moment of its expiry, so that one stays.
        while self._by_expiry and self._by_expiry[0][0] < now:
            expires_at, nonce = heappop(self._by_expiry)
            self._live.discard(nonce)
            self._forgotten_until = max(self._forgotten_until, expires_at)
        return held - len(self._live)


class _ReceiveKey(NamedTuple):
    key: bytes
    signer: MCPMessageSigner
    until: datetime


class _CleanupOnly:
    """What the kernel's signer sees of a nonce store: the channel claims the nonces itself.

    The signer would look a nonce up before it has checked the signature, once for each key, and
    log what the store raises with a traceback.
    """

    def __init__(self, store: MCPNonceStore) -> None:
        self._store = store

    def has(self, nonce: str) -> bool:  # noqa: ARG002 - MCPNonceStore names it
        return False

    def add(self, nonce: str, expires_at: datetime) -> None:
        pass

    def cleanup(self) -> int:
        return self._store.cleanup()


class SignedChannel:
    """Signs what one peer sends to another and verifies what comes back. Safe under threads.

    The payload that is signed is a header line, ``mcp-signed/1 <from> <to>``, and the body. Names
    hold no space, so a header reads in one way; it is compared as a whole and never parsed.
    """

    def __init__(
        self,
        *,
        me: str,
        peer: str,
        send_key: bytes,
        receive_key: bytes,
        nonce_store: MCPNonceStore | None = None,
        replay_window: timedelta = timedelta(minutes=5),
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        """Make one end of a channel.

        Args:
            me: Name of this end: an ASCII letter or digit, then up to 127 of those or ``._:@-``.
            peer: Name of the other end. Names are compared exactly.
            send_key: Key for messages to the peer, known to these two only: 32 random bytes or more
                (RFC 2104, section 3), as ``MCPMessageSigner.generate_key()`` returns them.
            receive_key: Key for messages from the peer, another one than send_key.
            nonce_store: Where accepted nonces are kept; None for a ``LiveNonceStore`` of its own.
                ``add`` must raise on a nonce that it holds, in one step: that is what makes a
                store safe to share between channels and processes.
            replay_window: How old, and how far ahead of this clock, a message may be; up to a day.
            max_bytes: Largest payload, header line included, in bytes of UTF-8.
            clock: Returns the present time, aware; for the overlap of keys and for messages that
                expire while they are being verified. The kernel dates messages by the system clock.

        Raises:
            ValueError: If a name, a key, replay_window or max_bytes is not as described.
        """
        for name in (me, peer):
            if not _matches(_NAME, name):
                raise ValueError("a name is 1 to 128 ASCII letters, digits and ._:@-")
        if me == peer:
            raise ValueError("me and peer must differ, or messages could be reflected")
        if not timedelta(0) < replay_window <= timedelta(days=1):
            raise ValueError("replay_window must be positive and at most a day")
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        self._peer = peer
        self._me = me
        self._sent_header = f"mcp-signed/1 {me} {peer}\n"
        self._received_header = f"mcp-signed/1 {peer} {me}\n"
        self._nonces: MCPNonceStore = LiveNonceStore() if nonce_store is None else nonce_store
        self._window = replay_window
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._send_key = b""
        self._receive_keys: tuple[_ReceiveKey, ...] = ()
        self.rotate_send_key(send_key)
        self.rotate_receive_key(receive_key, overlap=timedelta(0))

    def sign(self, body: str) -> MCPSignedEnvelope:
        """Sign a message to the peer.

        Args:
            body: The message, which may be empty.

        Returns:
            The envelope to hand to ``to_wire``, dated in whole milliseconds.

        Raises:
            ValueError: If body is not text that UTF-8 can carry within max_bytes.
        """
        if type(body) is not str or not _fits(self._sent_header + body, self._max_bytes):
            raise ValueError(
                f"body must be text of at most {self._max_bytes} bytes with its header"
            )
        signed = self._sender.sign_message(self._sent_header + body, sender_id=self._me)
        whole_ms = signed.timestamp.microsecond // 1000 * 1000
        return replace(signed, timestamp=signed.timestamp.replace(microsecond=whole_ms))

    def verify(self, envelope: MCPSignedEnvelope) -> str:
        """Accept a message from the peer, once.

        Args:
            envelope: What ``from_wire`` returned. Any other object is refused.

        Returns:
            The body that the peer signed.

        Raises:
            RefusedMessageError: For every message that is not accepted, whatever the reason, a
                nonce store that fails or is full included. The log has the reason.
        """
        try:
            return self._verify(envelope)
        except RefusedMessageError:
            raise
        except Exception as exc:  # noqa: BLE001 - a store or clock that fails is a refusal
            level = logging.WARNING if isinstance(exc, ValueError) else logging.ERROR
            _refuse(f"{type(exc).__name__}: {exc}", level)

    def rotate_send_key(self, key: bytes) -> None:
        """Sign with *key* from now on. The peer must accept it already, so it rotates first.

        Args:
            key: The new key, at least 32 random bytes.

        Raises:
            ValueError: If key is too short, not bytes, or in use on this channel.
        """
        with self._lock:
            self._check_key(key)
            self._send_key = key
            self._sender = MCPMessageSigner(key)

    def rotate_receive_key(self, key: bytes, *, overlap: timedelta) -> None:
        """Accept messages signed with *key*, and for a while those signed with the keys before it.

        Args:
            key: The new key, at least 32 random bytes.
            overlap: How long earlier keys still count, up to 30 days. Give the peer time to sign
                with the new one, plus the replay window. Zero when a key has leaked: that ends
                every overlap that is still running.

        Raises:
            ValueError: If key is too short, not bytes, or in use on this channel, or overlap is
                negative or over 30 days.
        """
        if not timedelta(0) <= overlap <= timedelta(days=30):
            raise ValueError("overlap must be from zero to 30 days")
        with self._lock:
            self._check_key(key)
            end = self._clock() + overlap
            signer = MCPMessageSigner(
                key, replay_window=self._window, nonce_store=_CleanupOnly(self._nonces)
            )
            earlier = [old._replace(until=min(old.until, end)) for old in self._accepted()]
            self._receive_keys = (_ReceiveKey(key, signer, _FOREVER), *earlier)

    def _check_key(self, key: bytes) -> None:
        if type(key) is not bytes or len(key) < 32:
            raise ValueError("a key must be at least 32 bytes")
        if key == self._send_key or any(key == old.key for old in self._receive_keys):
            raise ValueError("each direction needs a key of its own, and each rotation a new one")

    def _accepted(self) -> list[_ReceiveKey]:
        now = self._clock()
        return [key for key in self._receive_keys if now < key.until]

    def _verify(self, envelope: MCPSignedEnvelope) -> str:
        checked = _checked(envelope, self._max_bytes)
        if checked.sender_id != self._peer:
            _refuse("not from the peer")
        # The envelope names no key. An attempt that fails leaves no trace: no nonce, no log.
        if not any(key.signer.verify_message(checked).is_valid for key in self._accepted()):
            _refuse("wrong signature, or outside the replay window")
        if not checked.payload.startswith(self._received_header):
            _refuse("for another direction or audience")
        expires_at = checked.timestamp + self._window
        self._claim(checked.nonce, expires_at)
        # This thread may have slept until the store had forgotten the nonce.
        if self._clock() > expires_at:
            _refuse("expired while it was verified")
        return checked.payload[len(self._received_header) :]

    def _claim(self, nonce: str, expires_at: datetime) -> None:
        # With the names in it, a peer cannot use up the nonces of another in a shared store.
        own_nonce = f"{self._peer}>{self._me}:{nonce}"
        # The lock is for stores whose add() does not raise, such as InMemoryNonceStore.
        with self._lock:
            # Anything but False is a refusal: the coroutine of an asynchronous store, too.
            if self._nonces.has(own_nonce) is not False:
                _refuse("replayed")
            self._nonces.add(own_nonce, expires_at)


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
    checked = _checked(envelope, max_bytes)
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
        _refuse("wire: not text, or too long")
    try:
        fields = json.loads(text, object_pairs_hook=_exact_fields)
    except (ValueError, RecursionError):
        _refuse("wire: not JSON with exactly the fields of an envelope")
    if type(fields) is not dict:
        _refuse("wire: not an object")
    milliseconds = fields.pop("timestamp_ms")
    if type(milliseconds) is not int or not 0 <= milliseconds < _YEAR_10000_MS:
        _refuse("wire: malformed timestamp_ms")
    timestamp = _EPOCH + timedelta(milliseconds=milliseconds)
    return _checked(MCPSignedEnvelope(timestamp=timestamp, **fields), max_bytes)


def _checked(envelope: object, max_bytes: int) -> MCPSignedEnvelope:
    """Return a copy of the envelope if its signed text can be cut in only one way.

    The kernel signs ``nonce|milliseconds|sender|payload``. It formats whatever the fields hold, so
    types are exact: None, 5 or a list must not pass for the text that was signed.
    """
    if type(envelope) is not MCPSignedEnvelope:
        _refuse("not an envelope")
    # Read each field once: what is checked is what is verified.
    names = ("nonce", "payload", "sender_id", "signature", "timestamp")
    fields: dict[str, Any] = {name: getattr(envelope, name, None) for name in names}
    timestamp = fields["timestamp"]
    well_formed = {
        "nonce": _matches(_NONCE, fields["nonce"]),
        "payload": _fits(fields["payload"], max_bytes),
        "sender_id": _matches(_NAME, fields["sender_id"]),
        "signature": _matches(_SIGNATURE, fields["signature"]),
        # Less than a millisecond is not signed, so there must be none.
        "timestamp": type(timestamp) is datetime
        and timestamp.tzinfo is timezone.utc
        and timestamp.microsecond % 1000 == 0,
    }
    malformed = [name for name, ok in well_formed.items() if not ok]
    if malformed:
        _refuse(f"malformed {', '.join(malformed)}")
    return MCPSignedEnvelope(**fields)


def _matches(shape: re.Pattern[str], text: object) -> bool:
    return type(text) is str and shape.fullmatch(text) is not None


def _fits(text: object, max_bytes: int) -> bool:
    if type(text) is not str or len(text) > max_bytes:
        return False
    try:
        return len(text.encode()) <= max_bytes
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _exact_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if sorted(name for name, _ in pairs) != _WIRE_FIELDS:
        raise ValueError("not exactly the fields of an envelope")
    return dict(pairs)


def _refuse(reason: str, level: int = logging.WARNING) -> NoReturn:
    logger.log(level, "signed message refused: %s", reason)
    raise RefusedMessageError("message refused") from None
