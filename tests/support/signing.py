"""Two ends of a signed channel, and messages that only a holder of a key can write."""

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest
from mcp_guard.live_nonces import now
from mcp_guard.signed_envelopes import time_of
from mcp_guard.signed_messages import RefusedMessageError, SignedChannel

from agent_mcp_governance import MCPSignedEnvelope

KEYS = [hashlib.sha256(name).digest() for name in (b"request", b"reply", b"next", b"third")]
REQUEST_KEY, REPLY_KEY, *_ = KEYS
Reasons = Callable[[], list[str]]  # why messages were refused, by the log
HEADER = "mcp-signed/1 client server\n"
BODY = "launch-code-7391"
WINDOW = timedelta(minutes=5)

client = partial(
    SignedChannel, me="client", peer="server", send_key=REQUEST_KEY, receive_key=REPLY_KEY
)
server = partial(
    SignedChannel, me="server", peer="client", send_key=REPLY_KEY, receive_key=REQUEST_KEY
)


class Clock:
    """Stands still at the time when it was made, until a test moves it."""

    def __init__(self) -> None:
        self.now = now()

    def __call__(self) -> datetime:
        return self.now


def signed_text(envelope: MCPSignedEnvelope) -> str:
    milliseconds = int(envelope.timestamp.timestamp() * 1000)
    return f"{envelope.nonce}|{milliseconds}|{envelope.sender_id or ''}|{envelope.payload}"


def signed_by_hand(
    payload: str = HEADER + BODY,
    *,
    key: bytes = REQUEST_KEY,
    sender: str | None = "client",
    nonce: str = "0123456789abcdef" * 2,
    age: float = 0,
) -> MCPSignedEnvelope:
    """Return what a holder of *key* can sign: any sender, nonce, age in seconds and payload."""
    time = time_of(int((now().timestamp() - age) * 1000))
    envelope = MCPSignedEnvelope(payload, nonce, time, "", sender)
    digest = hmac.new(key, signed_text(envelope).encode(), hashlib.sha256).digest()
    return replace(envelope, signature=base64.b64encode(digest).decode())


def cut(envelope: MCPSignedEnvelope, nonce: int, sender: int) -> MCPSignedEnvelope:
    """Cut the signed text anew: so many parts for the nonce, one for the time, and so on."""
    parts = signed_text(envelope).split("|")
    return MCPSignedEnvelope(
        nonce="|".join(parts[:nonce]),
        timestamp=time_of(int(parts[nonce])),
        sender_id="|".join(parts[nonce + 1 : nonce + 1 + sender]),
        payload="|".join(parts[nonce + 1 + sender :]),
        signature=envelope.signature,
    )


def accepts(channel: SignedChannel, envelope: MCPSignedEnvelope) -> bool:
    try:
        channel.verify(envelope)
    except RefusedMessageError:
        return False
    return True


def assert_refused(action: Callable[..., object], *args: object, **options: object) -> None:
    """Check that *action* raises the one error, which says nothing."""
    with pytest.raises(RefusedMessageError) as caught:
        action(*args, **options)
    assert type(caught.value) is RefusedMessageError
    assert caught.value.args == ("message refused",)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
