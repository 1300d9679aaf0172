"""Limits of MCPMessageSigner."""

import contextlib
import dataclasses
import threading
from datetime import datetime, timedelta, timezone

from support.limits import limit, refused
from support.parts import KEY, PATIENCE
from support.threads import together

from agent_mcp_governance import InMemoryNonceStore, MCPMessageSigner

SHARED = [MCPMessageSigner(KEY, nonce_store=store) for store in [InMemoryNonceStore()] * 2]
# Minutes ahead, within the window: its turn may come late.
MOMENT = (datetime.now(timezone.utc) + timedelta(minutes=4)).replace(microsecond=0)
FORGED = f"{int(MOMENT.timestamp() * 1000)}|admin|cmd"
CUTS = [
    ("alice", "transfer|100", {"sender_id": "alice|transfer", "payload": "100"}),
    ("alice|admin", "pay bob", {"sender_id": "alice", "payload": "admin|pay bob"}),
    (None, "admin|wipe", {"sender_id": "|admin", "payload": "wipe"}),
]
RETYPED = [(None, "None", {"payload": None}), (None, "5", {"payload": 5})]


def accepts(signer, envelope, **change):
    return signer.verify_message(dataclasses.replace(envelope, **change)).is_valid


@limit("replay by threads", [MCPMessageSigner(KEY)], [[MCPMessageSigner(KEY)] * 8, SHARED])
def test_a_message_is_accepted_once_by_threads_that_verify_it_at_once(signers):
    meeting = threading.Barrier(len(signers))

    class Payload(str):
        """Is written into the signed text between the check of the nonce and its remembering."""

        def __format__(self, spec):
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(timeout=PATIENCE)
            return super().__format__(spec)

    envelope = MCPMessageSigner(KEY).sign_message("pay 100")
    sent = dataclasses.replace(envelope, payload=Payload("pay 100"))
    accepted = together(lambda number: accepts(signers[number], sent), len(signers))
    return accepted.count(True) == 1


@limit("fields cut anew", ("alice", "100|bob", {"payload": "900|bob"}), CUTS)
@limit("fields of another type", (None, "5", {"payload": 6}), RETYPED)
def test_sender_and_payload_cannot_be_changed(sender, payload, change):
    signer = MCPMessageSigner(KEY)
    return not accepts(signer, signer.sign_message(payload, sender_id=sender), **change)


def as_another_senders(envelope):
    nonce = f"{envelope.nonce}|{int(envelope.timestamp.timestamp() * 1000)}|alice"
    return {"payload": "cmd", "nonce": nonce, "timestamp": MOMENT, "sender_id": "admin"}


def with_a_number(envelope):
    return {"nonce": int(envelope.nonce)}


@limit("replay as another's", ("cmd", vars), [(FORGED, as_another_senders), ("cmd", with_a_number)])
def test_a_message_is_not_accepted_again(payload, change):
    signer = MCPMessageSigner(KEY, nonce_generator=lambda: "123")
    envelope = signer.sign_message(payload, sender_id="alice")
    return accepts(signer, envelope) and not accepts(signer, envelope, **change(envelope))


@limit("below a millisecond", 1000, [1])
def test_a_timestamp_cannot_be_changed(microseconds):
    signer = MCPMessageSigner(KEY)
    envelope = signer.sign_message("x")
    down = envelope.timestamp.microsecond % 1000 == 999
    change = timedelta(microseconds=-microseconds if down else microseconds)
    return not accepts(signer, envelope, timestamp=envelope.timestamp + change)


@limit(
    "recipient and direction",
    lambda _: MCPMessageSigner(KEY[::-1]),
    [lambda _: MCPMessageSigner(KEY), lambda signer: signer],
)
def test_a_message_for_another_is_refused(verifier):
    signer = MCPMessageSigner(KEY)
    return not accepts(verifier(signer), signer.sign_message("x", sender_id="client"))


@limit("nonces of another worker", SHARED, [[MCPMessageSigner(KEY), MCPMessageSigner(KEY)]])
def test_a_message_that_another_worker_accepted_is_refused(workers):
    one, two = workers
    envelope = one.sign_message("x")
    return accepts(one, envelope) and not accepts(two, envelope)


@limit("forgotten nonces", 100, [10_000])
def test_a_message_is_refused_again_after_others(others):
    signer = MCPMessageSigner(KEY)
    first = signer.sign_message("first")
    for envelope in [first, *(signer.sign_message(str(number)) for number in range(others))]:
        signer.verify_message(envelope)
    return not accepts(signer, first)


@limit("what a forger is told", "unused", ["used"])
def test_a_forger_is_not_told_which_nonces_were_used(nonce):
    signer = MCPMessageSigner(KEY, nonce_generator=lambda: "used")
    envelope = signer.sign_message("x")
    signer.verify_message(envelope)
    forged = dataclasses.replace(envelope, nonce=nonce, signature="forged")
    return signer.verify_message(forged).failure_reason == "Invalid signature."


@limit("keys that are none", b"short", ["k" * 32, [1] * 32, bytes(32)])
def test_a_key_that_is_no_key_is_refused(key):
    return refused(lambda: MCPMessageSigner(key))
