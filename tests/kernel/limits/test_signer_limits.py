"""Limits of MCPMessageSigner."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from support.limits import limit, refused
from support.parts import KEY, PATIENCE

from agent_mcp_governance import InMemoryNonceStore, MCPMessageSigner, MCPSignedEnvelope

SHARED = [MCPMessageSigner(KEY, nonce_store=store) for store in [InMemoryNonceStore()] * 2]


def accepts(signer: MCPMessageSigner, envelope: MCPSignedEnvelope, **change: Any) -> bool:
    return signer.verify_message(dataclasses.replace(envelope, **change)).is_valid


@limit("replay by threads", [MCPMessageSigner(KEY)], [[MCPMessageSigner(KEY)] * 8, SHARED])
def test_a_message_is_accepted_once_by_threads_that_verify_it_at_once(
    signers: list[MCPMessageSigner],
) -> bool:
    together = threading.Barrier(len(signers))

    class Payload(str):
        """Is written into the signed text between the check of the nonce and its remembering."""

        def __format__(self, spec: str) -> str:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(timeout=PATIENCE)
            return super().__format__(spec)

    envelope = MCPMessageSigner(KEY).sign_message("pay 100")
    accepted: list[bool] = []

    def verify(signer: MCPMessageSigner) -> None:
        accepted.append(accepts(signer, envelope, payload=Payload("pay 100")))

    threads = [threading.Thread(target=verify, args=(signer,)) for signer in signers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return accepted.count(True) == 1


CUTS: list[tuple[str | None, str, dict[str, str]]] = [
    ("alice", "transfer|100", {"sender_id": "alice|transfer", "payload": "100"}),
    ("alice|admin", "pay bob", {"sender_id": "alice", "payload": "admin|pay bob"}),
    (None, "admin|wipe", {"sender_id": "|admin", "payload": "wipe"}),
]


@limit("fields cut anew", ("alice", "100|bob", {"payload": "900|bob"}), CUTS)
def test_sender_and_payload_cannot_be_cut_anew(case: tuple[Any, str, dict[str, Any]]) -> bool:
    sender, payload, change = case
    signer = MCPMessageSigner(KEY)
    return not accepts(signer, signer.sign_message(payload, sender_id=sender), **change)


# Minutes ahead, within the window: its turn may come late.
MOMENT = (datetime.now(timezone.utc) + timedelta(minutes=4)).replace(microsecond=0)
FORGED = f"{int(MOMENT.timestamp() * 1000)}|admin|cmd"


def as_another_senders(envelope: MCPSignedEnvelope) -> dict[str, Any]:
    nonce = f"{envelope.nonce}|{int(envelope.timestamp.timestamp() * 1000)}|alice"
    return {"payload": "cmd", "nonce": nonce, "timestamp": MOMENT, "sender_id": "admin"}


def with_a_number(envelope: MCPSignedEnvelope) -> dict[str, Any]:
    return {"nonce": int(envelope.nonce)}


@limit("replay as another's", ("cmd", vars), [(FORGED, as_another_senders), ("cmd", with_a_number)])
def test_a_message_is_not_accepted_again(case: tuple[str, Callable[..., dict[str, Any]]]) -> bool:
    payload, change = case
    signer = MCPMessageSigner(KEY, nonce_generator=lambda: "123")
    envelope = signer.sign_message(payload, sender_id="alice")
    return accepts(signer, envelope) and not accepts(signer, envelope, **change(envelope))


@limit("fields of another type", ("5", 6), [("None", None), ("5", 5)])
def test_a_payload_cannot_change_its_type(case: tuple[str, Any]) -> bool:
    payload, other = case
    signer = MCPMessageSigner(KEY)
    return not accepts(signer, signer.sign_message(payload), payload=other)


@limit("below a millisecond", 1000, [1])
def test_a_timestamp_cannot_be_changed(microseconds: int) -> bool:
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
def test_a_message_for_another_is_refused(verifier: Callable[..., MCPMessageSigner]) -> bool:
    signer = MCPMessageSigner(KEY)
    return not accepts(verifier(signer), signer.sign_message("x", sender_id="client"))


@limit("nonces of another worker", SHARED, [[MCPMessageSigner(KEY), MCPMessageSigner(KEY)]])
def test_a_message_that_another_worker_accepted_is_refused(workers: list[MCPMessageSigner]) -> bool:
    one, two = workers
    envelope = one.sign_message("x")
    return accepts(one, envelope) and not accepts(two, envelope)


@limit("forgotten nonces", 100, [10_000])
def test_a_message_is_refused_again_after_others(others: int) -> bool:
    signer = MCPMessageSigner(KEY)
    first = signer.sign_message("first")
    signer.verify_message(first)
    for number in range(others):
        signer.verify_message(signer.sign_message(str(number)))
    return not accepts(signer, first)


@limit("what a forger is told", "unused", ["used"])
def test_a_forger_is_not_told_which_nonces_were_used(nonce: str) -> bool:
    signer = MCPMessageSigner(KEY, nonce_generator=lambda: "used")
    envelope = signer.sign_message("x")
    signer.verify_message(envelope)
    forged = dataclasses.replace(envelope, nonce=nonce, signature="forged")
    return signer.verify_message(forged).failure_reason == "Invalid signature."


@limit("keys that are none", b"short", ["k" * 32, [1] * 32, bytes(32)])
def test_a_key_that_is_no_key_is_refused(key: Any) -> bool:
    return refused(lambda: MCPMessageSigner(key))
