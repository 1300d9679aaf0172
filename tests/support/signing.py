"""Two ends of a signed channel, and messages that only a holder of a key can write."""

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from mcp_guard.signed_messages import RefusedMessageError, SignedChannel

from agent_mcp_governance import MCPSignedEnvelope

REQUEST_KEY, REPLY_KEY, NEXT_KEY, THIRD_KEY = (
    hashlib.sha256(name).digest() for name in (b"request", b"reply", b"next", b"third")
)
HEADER = "mcp-signed/1 client server\n"
BODY = "launch-code-7391"
WINDOW = timedelta(minutes=5)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def now() -> datetime:
    return datetime.now(timezone.utc)


class FakeClock:
    """The system's time, shifted by what the test says."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return now() + self.ahead


def client(**options: Any) -> SignedChannel:
    keys = {"send_key": REQUEST_KEY, "receive_key": REPLY_KEY}
    return SignedChannel(**{"me": "client", "peer": "server", **keys, **options})


def server(**options: Any) -> SignedChannel:
    keys = {"send_key": REPLY_KEY, "receive_key": REQUEST_KEY}
    return SignedChannel(**{"me": "server", "peer": "client", **keys, **options})


def signed_by_hand(
    payload: str = HEADER + BODY,
    *,
    key: bytes = REQUEST_KEY,
    sender: str | None = "client",
    nonce: str = "0123456789abcdef" * 2,
    age: timedelta = timedelta(0),
) -> MCPSignedEnvelope:
    """Return what a holder of *key* can sign: any sender, nonce, time and payload."""
    milliseconds = (now() - age - EPOCH) // timedelta(milliseconds=1)
    text = f"{nonce}|{milliseconds}|{sender or ''}|{payload}"
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return MCPSignedEnvelope(
        payload=payload,
        nonce=nonce,
        timestamp=EPOCH + timedelta(milliseconds=milliseconds, microseconds=500),
        signature=base64.b64encode(digest).decode(),
        sender_id=sender,
    )


def cut(envelope: MCPSignedEnvelope, nonce: int, sender: int) -> MCPSignedEnvelope:
    """Cut the signed text anew: so many parts for the nonce, one for the time, and so on."""
    milliseconds = (envelope.timestamp - EPOCH) // timedelta(milliseconds=1)
    text = f"{envelope.nonce}|{milliseconds}|{envelope.sender_id or ''}|{envelope.payload}"
    parts = text.split("|")
    return MCPSignedEnvelope(
        nonce="|".join(parts[:nonce]),
        timestamp=EPOCH + timedelta(milliseconds=int(parts[nonce]), microseconds=500),
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


@pytest.fixture
def logs_are_clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test makes the kernel log, and no log holds a payload or a key."""
    caplog.set_level(logging.DEBUG)
    yield
    records = caplog.get_records("call")
    assert [r.getMessage() for r in records if r.name.startswith("agent_os")] == []
    text = "\n".join(f"{record.getMessage()} {record.args} {record.exc_info}" for record in records)
    keys = REQUEST_KEY, REPLY_KEY, NEXT_KEY, THIRD_KEY
    for secret in (BODY, *map(str, keys), *(key.hex() for key in keys)):
        assert secret not in text


@pytest.fixture
def reasons(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return why messages were refused, by the log."""

    def read() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.name.startswith("mcp_guard")]
        return [message.removeprefix("signed message refused: ") for message in found]

    return read
