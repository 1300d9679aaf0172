"""Signed messages: a restart forgets nonces in memory, so replays pass; a RedisNonceStore does not.

``MCPMessageSigner`` signs. This adds that the signed text can be cut in one way only, a message is
accepted once whatever the number of threads, it is bound to its direction and audience, keys can be
rotated, and whoever sends a bad message learns nothing from the answer::

    request_key, reply_key = MCPMessageSigner.generate_key(), MCPMessageSigner.generate_key()
    client = SignedChannel(me="client", peer="server", send_key=request_key, receive_key=reply_key)
    server = SignedChannel(me="server", peer="client", send_key=reply_key, receive_key=request_key)
    text = to_wire(client.sign("list the files"))
    assert server.verify(from_wire(text)) == "list the files"

A server keeps a channel for each peer and picks it by ``from_wire(text).sender_id``. To change a
key, the receiving end calls ``rotate_receive_key`` first and the sending end ``rotate_send_key``
after it. Without Redis, ``LiveNonceStore(forgotten_until=start + replay_window)`` refuses what was
dated before a start.

What it cannot do: HMAC keys are shared, so either peer could have written a message (section 7 of
the OWASP MCP Security Cheat Sheet asks for asymmetric keys); payloads are not encrypted; a message
that is held back arrives as fresh until ``replay_window`` is over, in any order.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from agent_mcp_governance import (
    InMemoryNonceStore,
    MCPMessageSigner,
    MCPNonceStore,
    MCPSignedEnvelope,
)

from .live_nonces import LiveNonceStore, now
from .signed_envelopes import (
    MAX_BYTES,
    RefusedMessageError,
    check,
    fits,
    from_wire,
    is_name,
    refuse,
    time_of,
    to_wire,
)

__all__ = ["LiveNonceStore", "RefusedMessageError", "SignedChannel", "from_wire", "to_wire"]

_FOREVER = datetime.max.replace(tzinfo=timezone.utc)


class _NoNonces:
    """What the kernel's signer sees of the nonces: the channel claims them itself.

    The signer would look a nonce up before it has checked the signature, once for each key, and
    log what the store raises with a traceback.
    """

    def has(self, nonce: str) -> bool:  # noqa: ARG002 - MCPNonceStore names it
        return False

    def add(self, nonce: str, expires_at: datetime) -> None: ...

    def cleanup(self) -> int:
        return 0


class _ReceiveKey(NamedTuple):
    key: bytes
    signer: MCPMessageSigner
    until: datetime


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
        clock: Callable[[], datetime] = now,
    ) -> None:
        """Make one end of a channel.

        Args:
            me: Name of this end: an ASCII letter or digit, then up to 127 of those or ``._:@-``.
            peer: Name of the other end. Names are compared exactly.
            send_key: Key for messages to the peer, known to these two only: 32 random bytes or more
                (RFC 2104, section 3), as ``MCPMessageSigner.generate_key()`` returns them.
            receive_key: Key for messages from the peer, another one than send_key.
            nonce_store: Where accepted nonces are kept; None for a ``LiveNonceStore`` of its own,
                which is empty after a restart. Only ``add`` is called: it claims a nonce, and
                raises if it was claimed before, in one step.
            replay_window: How old, and how far ahead of this clock, a message may be; up to a day.
            max_bytes: Largest payload, header line included, in bytes of UTF-8.
            clock: Returns the present time, aware; for the overlap of keys and for messages that
                expire while they are being verified. The kernel dates messages by the system clock.

        Raises:
            ValueError: If an argument is not as described.
        """
        if not (is_name(me) and is_name(peer)):
            raise ValueError("a name is 1 to 128 ASCII letters, digits and ._:@-")
        if me == peer:
            raise ValueError("me and peer must differ, or messages could be reflected")
        if isinstance(nonce_store, InMemoryNonceStore):
            raise ValueError("InMemoryNonceStore forgets live nonces: use LiveNonceStore")
        if replay_window > timedelta(days=1):  # that it is positive, the signer checks
            raise ValueError("replay_window must be at most a day")
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        self._me, self._peer = me, peer
        self._sent_header = f"mcp-signed/1 {me} {peer}\n"
        self._received_header = f"mcp-signed/1 {peer} {me}\n"
        self._nonces: Any = LiveNonceStore() if nonce_store is None else nonce_store
        self._window = replay_window
        self._max_bytes = max_bytes
        self._clock = clock
        self._rotating = threading.Lock()
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
        if type(body) is not str or not fits(self._sent_header + body, self._max_bytes):
            raise ValueError(
                f"body must be text of at most {self._max_bytes} bytes with its header"
            )
        signed = self._sender.sign_message(self._sent_header + body, sender_id=self._me)
        # The kernel's own arithmetic, so that the wire carries the number that it signed.
        return replace(signed, timestamp=time_of(int(signed.timestamp.timestamp() * 1000)))

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
            refuse(f"{type(exc).__name__}: {exc}", level)

    def rotate_send_key(self, key: bytes) -> None:
        """Sign with *key* from now on. The peer must accept it already, so it rotates first.

        Args:
            key: The new key, at least 32 random bytes.

        Raises:
            ValueError: If key is too short, not bytes, or in use on this channel.
        """
        with self._rotating:
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
        with self._rotating:
            self._check_key(key)
            end = self._clock() + overlap
            signer = MCPMessageSigner(key, replay_window=self._window, nonce_store=_NoNonces())
            earlier = [old._replace(until=min(old.until, end)) for old in self._accepted()]
            self._receive_keys = (_ReceiveKey(key, signer, _FOREVER), *earlier)

    def _check_key(self, key: bytes) -> None:
        if type(key) is not bytes or len(key) < 32:
            raise ValueError("a key must be at least 32 bytes")
        if key == self._send_key or any(key == old.key for old in self._receive_keys):
            raise ValueError("each direction needs a key of its own, and each rotation a new one")

    def _accepted(self) -> list[_ReceiveKey]:
        present = self._clock()
        return [key for key in self._receive_keys if present < key.until]

    def _verify(self, envelope: MCPSignedEnvelope) -> str:
        checked = check(envelope, self._max_bytes)
        if checked.sender_id != self._peer:
            refuse("not from the peer")
        # The envelope names no key. An attempt that fails leaves no trace: no nonce, no log.
        if not any(key.signer.verify_message(checked).is_valid for key in self._accepted()):
            refuse("wrong signature, or outside the replay window")
        if not checked.payload.startswith(self._received_header):
            refuse("for another direction or audience")
        expires_at = checked.timestamp + self._window
        # With the names in it, a peer cannot use up the nonces of another in a shared store.
        claimed = self._nonces.add(f"{self._peer}>{self._me}:{checked.nonce}", expires_at)
        if claimed is not None:  # such as the coroutine of an asynchronous store
            refuse(f"the nonce store answered {type(claimed).__name__}")
        # This thread may have slept until the store had forgotten the nonce.
        if self._clock() > expires_at:
            refuse("expired while it was verified")
        return checked.payload[len(self._received_header) :]
