"""Limits of the stores in memory."""

from datetime import datetime, timedelta, timezone

from mcp_guard.signed_messages import LiveNonceStore
from support.limits import limit, refused

from agent_mcp_governance import InMemoryAuditSink, InMemoryNonceStore

LATER = datetime.now(timezone.utc) + timedelta(hours=1)


@limit("nonces added twice", LiveNonceStore, [InMemoryNonceStore])
def test_a_nonce_cannot_be_added_twice(make):
    store = make()
    store.add("nonce", LATER)
    return refused(lambda: store.add("nonce", LATER))


@limit("full nonce store", 2, [1])
def test_a_full_nonce_store_keeps_live_nonces(max_entries):
    store = InMemoryNonceStore(max_entries=max_entries)
    store.add("first", LATER)
    store.add("second", LATER)
    return store.has("first")


@limit("audit sink without end", 10, [10_001])
def test_an_audit_sink_is_bounded(entries):
    sink = InMemoryAuditSink()
    for _ in range(entries):
        sink.record({})
    return len(sink.entries()) <= 10_000
