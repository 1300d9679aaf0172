"""The stores of the kernel's signer and authenticator: shared, sealed, and strict about records."""

import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from mcp_guard.redis_sessions import RedisSessionStore
from mcp_guard.redis_stores import RedisNonceStore, make_client
from support import processes
from support.processes import PATIENCE, in_processes
from support.redis_server import SECRET, Server, authenticator, session_store

from agent_mcp_governance import MCPMessageSigner, MCPSession, MCPSignedEnvelope


def make_signer(client: redis.Redis) -> MCPMessageSigner:
    return MCPMessageSigner(b"k" * 32, nonce_store=RedisNonceStore(client))


def contend(url: str, envelopes: list[MCPSignedEnvelope]) -> tuple[list[int], list[str]]:
    """Verify every envelope in two threads, and create sessions until one is refused."""
    accepted, tokens = [], []
    with make_client(url, timeout=PATIENCE) as client, ThreadPoolExecutor(2) as threads:
        signers = [make_signer(client) for _ in range(2)]
        for number, envelope in enumerate(envelopes):
            if number % 5 == 0:  # so that none gets ahead of the others
                processes.together.wait()
            verdicts = threads.map(lambda s, e=envelope: s.verify_message(e).is_valid, signers)
            accepted.append(sum(verdicts))
        sessions = authenticator(client, sessions=30)
        with suppress(RuntimeError):
            while len(tokens) < 31:
                tokens.append(sessions.create_session("agent", "user"))
    return accepted, tokens


def test_four_processes_accept_each_message_once_and_share_the_sessions(
    server: Server, client: redis.Redis
) -> None:
    signer = make_signer(client)
    envelopes = [signer.sign_message(f"message {number}", "agent") for number in range(200)]
    accepted, made = zip(*in_processes(contend, server.url, envelopes), strict=True)
    assert [sum(verdicts) for verdicts in zip(*accepted, strict=True)] == [1] * 200
    tokens = [token for of_one in made for token in of_one]
    assert len(tokens) == len(set(tokens)) == 30
    here = authenticator(client, sessions=30)
    for token in tokens:
        session = here.validate_session("agent", token)
        assert session is not None
        assert (session.token, session.user_id) == (token, "user")
        assert here.validate_session("other", token) is None
    with pytest.raises(RuntimeError, match="agent has 30 sessions already"):
        here.create_session("agent")
    other = here.create_session("other")
    assert here.revoke_session(tokens[0])
    assert session_store(client).revoke_agent("agent") == 29
    assert [here.validate_token(token) for token in tokens] == [None] * 30
    assert here.validate_token(other) is not None
    assert here.create_session("agent")


def test_a_nonce_is_claimed_once_and_kept_for_clocks_that_are_behind(client: redis.Redis) -> None:
    store = RedisNonceStore(client, clock_skew=3_600)
    expiry = datetime.now(timezone.utc) + timedelta(hours=1)
    store.add("nonce", expiry)
    with pytest.raises(ValueError, match="used before"):
        store.add("nonce", expiry)
    assert store.has("nonce")
    assert not store.has("other")
    assert not RedisNonceStore(client, prefix="another").has("nonce")
    assert store.cleanup() == 0
    (key,) = client.keys()
    assert 3_600 < client.ttl(key) <= 7_200
    client.delete(key)
    client.sadd(key, "member")  # a key of another type is a used nonce
    with pytest.raises(ValueError, match="used before"):
        store.add("nonce", expiry)


def test_redis_gets_no_token_and_keys_no_id_or_nonce(server: Server, client: redis.Redis) -> None:
    sessions, signer = authenticator(client), make_signer(client)
    tokens = [sessions.create_session("agent-of-mine") for _ in range(3)]
    envelope = signer.sign_message("payload")
    assert signer.verify_message(envelope).is_valid
    keys = client.keys()
    written = b"".join(file.read_bytes() for file in server.folder.rglob("*.aof"))
    assert [client.pttl(key) > 0 for key in keys] == [True] * 5
    assert [client.get(key) in written for key in client.keys("*:token:*")] == [True] * 3
    assert [token.encode() in written for token in tokens] == [False] * 3
    assert b"agent-of-mine" not in b"".join(keys)
    assert envelope.nonce.encode() not in b"".join(keys)


def seal(fields: dict[str, Any], key: str, secret: bytes = SECRET) -> str:
    text = f"record:{key}{json.dumps(fields, sort_keys=True)}"
    mac = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
    return json.dumps({**fields, "seal": mac})


Issued = tuple[str, str, dict[str, Any]]


@pytest.fixture
def issued(client: redis.Redis) -> Issued:
    """One session: its token, the key of its record and the record."""
    token = authenticator(client).create_session("agent", "user")
    (key,) = client.keys("mcp:session:token:*")
    return token, key.decode(), json.loads(client.get(key))


def assert_refused(client: redis.Redis, token: str, key: str, raw: str | bytes) -> None:
    client.set(key, raw)
    with pytest.raises(ValueError, match=r"^session record"):
        session_store(client).get(token)
    assert authenticator(client).validate_token(token) is None


LATER = "2999-01-01T00:00:00+00:00"
WELL_FORMED = [("agent_id", "admin"), ("user_id", None), ("rate_limit_key", "another")]
WELL_FORMED += [("created_at", LATER), ("expires_at", LATER)]
MALFORMED: list[tuple[str, object]] = [
    *(("agent_id", value) for value in ("", 1, ...)),  # the dots: without this field
    *(("user_id", value) for value in (1, ...)),
    *(("expires_at", value) for value in (LATER[:19], None, 4102444800, "never", ...)),
    *(("created_at", LATER[:19]), ("rate_limit_key", ["x"])),
    *(("is_admin", True), ("token", "another")),
]


@pytest.mark.parametrize(("field", "value"), WELL_FORMED + MALFORMED)
def test_an_altered_record_is_refused_and_a_malformed_one_even_with_a_seal(
    client: redis.Redis, issued: Issued, field: str, value: object
) -> None:
    token, key, record = issued
    changed = {name: kept for name, kept in {**record, field: value}.items() if kept is not ...}
    assert_refused(client, token, key, json.dumps(changed))
    changed.pop("seal")
    if (field, value) in MALFORMED:
        assert_refused(client, token, key, seal(changed, key))
    else:
        client.set(key, seal(changed, key))
        assert session_store(client).get(token) is not None


def test_what_has_not_the_seal_of_its_key_is_refused(client: redis.Redis, issued: Issued) -> None:
    token, key, record = issued
    unsealed = {name: value for name, value in record.items() if name != "seal"}
    for mac in ("0" * 64, "é", "", None, 1):
        assert_refused(client, token, key, json.dumps({**record, "seal": mac}))
    assert_refused(client, token, key, json.dumps(unsealed))
    assert_refused(client, token, key, seal(unsealed, key, secret=b"x" * 32))
    assert_refused(client, token, key, seal(unsealed, key + "0"))
    others = b"", b"null", b"[1]", b'"text"', b"{}", b"\x80\x04pickle", b"[" * 100_000, b"\xff"
    for other in others:
        assert_refused(client, token, key, other)


def test_a_session_key_of_another_type_lets_nobody_in(client: redis.Redis, issued: Issued) -> None:
    for key in client.scan_iter():
        client.delete(key)
        client.sadd(key, "member")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        session_store(client).get(issued[0])
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        authenticator(client).create_session("agent")


def a_session(**changes: Any) -> MCPSession:
    present = datetime.now(timezone.utc)
    session = MCPSession("token", "agent", None, present, present + timedelta(hours=1), "agent")
    return replace(session, **changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("token", ""), ("agent_id", 1), ("user_id", 1), ("rate_limit_key", None)),
        *(("expires_at", None), ("expires_at", datetime(2999, 1, 1)), ("created_at", LATER)),
    ],
)
def test_only_a_well_formed_session_is_stored(client: redis.Redis, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        session_store(client).set(a_session(**{field: value}))
    assert client.keys() == []


def test_a_token_in_use_cannot_be_bound_to_another_agent(client: redis.Redis) -> None:
    store, first = session_store(client), a_session()
    store.set(first)
    with pytest.raises(RuntimeError, match="in use"):
        store.set(replace(first, agent_id="other"))
    assert store.revoke_agent("other") == 0
    assert store.get("token") == first


def test_sessions_and_their_index_expire_on_the_server(client: redis.Redis) -> None:
    sessions = authenticator(client)
    for hours in (1, 24, 2):
        sessions.bootstrap_session("agent", f"{hours:032}", ttl=timedelta(hours=hours))

    def hours_left(kind: str) -> list[int]:
        return sorted(round(client.ttl(key) / 3_600) for key in client.keys(f"*:{kind}:*"))

    assert (hours_left("token"), hours_left("agent")) == ([1, 2, 24], [24])


def test_sessions_that_are_gone_make_room_and_leave_the_index(client: redis.Redis) -> None:
    sessions = authenticator(client, sessions=2)
    for _ in range(20):
        assert sessions.revoke_session(sessions.create_session("agent"))
    (index,) = client.keys("*:agent:*")
    assert client.zcard(index) == 1


def test_another_secret_or_prefix_reads_no_session(client: redis.Redis) -> None:
    token = authenticator(client).create_session("agent")
    assert RedisSessionStore(client, secret=b"x" * 32).get(token) is None
    assert RedisSessionStore(client, secret=SECRET, prefix="another").get(token) is None


@pytest.mark.parametrize(
    "options",
    [
        *({"secret": secret} for secret in (b"", b"x" * 31, "x" * 32, None)),
        *({"secret": SECRET, "max_sessions": number} for number in (0, True, "1")),
    ],
)
def test_bad_settings_are_refused(client: redis.Redis, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RedisSessionStore(client, **options)
