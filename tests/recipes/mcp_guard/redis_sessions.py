"""Sessions of MCPSessionAuthenticator that all processes on one Redis share.

``redis_stores`` says what the Redis server has to be, and how long a call waits::

    secret = bytes.fromhex(os.environ["SESSION_SECRET"])
    sessions = RedisSessionStore(make_client(url), secret=secret, max_sessions=10)
    authenticator = MCPSessionAuthenticator(session_store=sessions)

Make the secret once, with ``python -c "import secrets; print(secrets.token_hex(32))"``, and keep it
with the service's other secrets: not in code, and not in Redis.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import hashlib
import hmac
import json
import math
from datetime import datetime
from typing import Any

import redis

from agent_mcp_governance import MCPSession, MCPSessionStore

from .redis_stores import RedisStore, digest, positive


class RedisSessionStore(RedisStore, MCPSessionStore):
    """Sessions that are limited and revoked across processes.

    Call ``revoke_agent`` of this store to end all of an agent's sessions: the authenticator's own
    ``revoke_all_sessions`` and ``active_session_count`` know only those that it made itself, and
    its ``max_concurrent_sessions`` is a further limit for each process.

    A token is kept as its HMAC-SHA256 (RFC 2104), so Redis and its backups hold nothing to log in
    with. A slow password hash would add nothing: a token of ``create_session`` is 32 random bytes,
    which nobody guesses. Tokens that you choose yourself for ``bootstrap_session`` need as much
    (``secrets.token_urlsafe(32)``).

    A record is JSON with five fields and a seal, an HMAC-SHA256 over them and their key. A record
    that is malformed, was altered or was moved to another key is refused. A copy that was kept of a
    revoked one is not: who can write to Redis can bring a session back until it expires.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        secret: bytes,
        max_sessions: int = 10,
        prefix: str = "mcp:session",
    ) -> None:
        """Keep sessions below *prefix*.

        Args:
            client: From ``make_client``.
            secret: At least 32 random bytes, as ``secrets.token_bytes(32)`` makes them: the same in
                every process, used for nothing else. To change it ends all sessions.
            max_sessions: Live sessions of one agent, over all processes.
            prefix: What every key begins with.

        Raises:
            ValueError: *secret* is too short, or *max_sessions* is not a positive integer.
        """
        if type(secret) is not bytes or len(secret) < 32:
            raise ValueError("secret must be at least 32 bytes")
        super().__init__(client)
        self._secret = secret
        self._max_sessions = positive("max_sessions", max_sessions)
        self._prefix = prefix

    def get(self, session_id: str) -> MCPSession | None:
        """Return the session whose token is *session_id*, or None if there is none.

        Raises:
            ValueError: The record was altered or is not one of this class.
            redis.RedisError: Redis did not answer in time.
        """
        key = self._token_key(session_id)
        raw: Any = self.wait(lambda: self._client.get(key))
        return None if raw is None else self._open(key, session_id, raw)

    def set(self, session: MCPSession) -> None:
        """Keep a new *session* until it expires.

        Args:
            session: It has to expire, and its times need a time zone.

        Raises:
            RuntimeError: The agent has ``max_sessions`` already, or the token is in use.
            ValueError: A field has the wrong type, or a time has no time zone.
            redis.RedisError: Redis did not answer in time, or has no room.
        """
        _check_session(session)
        key, index = self._token_key(session.token), self._agent_key(session.agent_id)
        record, expiry = self._seal(key, session), math.ceil(_expiry(session).timestamp() * 1000)

        def add(pipe: redis.client.Pipeline) -> None:
            if pipe.exists(key):
                raise RuntimeError("session token is in use")
            known: Any = pipe.zrange(index, 0, -1, withscores=True)
            kept: Any = pipe.mget([name for name, _ in known]) if known else []
            live = {
                name: expires
                for (name, expires), record in zip(known, kept, strict=True)
                if record is not None
            }
            if len(live) >= self._max_sessions:
                raise RuntimeError(f"agent has {self._max_sessions} sessions already")
            live[key] = expiry
            pipe.multi()
            pipe.delete(index)
            pipe.zadd(index, live)
            pipe.pexpireat(index, int(max(live.values())))
            pipe.set(key, record, pxat=expiry)

        # Begun again whenever one of the two keys was changed meanwhile.
        self.wait(lambda: self._client.transaction(add, key, index))

    def delete(self, session_id: str) -> bool:
        """Revoke the session whose token is *session_id*, and return whether there was one.

        Raises:
            redis.RedisError: Redis did not answer in time: the session may still be valid.
        """
        key = self._token_key(session_id)
        return bool(self.wait(lambda: self._client.delete(key)))

    def revoke_agent(self, agent_id: str) -> int:
        """Revoke every session of *agent_id*, whichever process made it.

        Args:
            agent_id: Exactly as the sessions were created with.

        Returns:
            How many sessions were revoked. One that is being created meanwhile may survive: stop
            creating them first.

        Raises:
            redis.RedisError: Redis did not answer in time: repeat it until it returns.
        """

        def revoke() -> int:
            # Not in MULTI: a full Redis refuses even deletions there. The index forgets them later.
            names: Any = self._client.zrange(self._agent_key(agent_id), 0, -1)
            return int(self._client.delete(*names)) if names else 0

        return self.wait(revoke)

    def _token_key(self, token: str) -> str:
        return f"{self._prefix}:token:{self._mac('token', token)}"

    def _agent_key(self, agent_id: str) -> str:
        return f"{self._prefix}:agent:{digest(agent_id)}"

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()

    def _fields_mac(self, key: str, fields: dict[str, Any]) -> str:
        return self._mac("record", key + json.dumps(fields, sort_keys=True))

    def _seal(self, key: str, session: MCPSession) -> str:
        fields = {
            "agent_id": session.agent_id,
            "user_id": session.user_id,
            "created_at": session.created_at.isoformat(),
            "expires_at": _expiry(session).isoformat(),
            "rate_limit_key": session.rate_limit_key,
        }
        return json.dumps({**fields, "seal": self._fields_mac(key, fields)})

    def _open(self, key: str, token: str, raw: bytes | str) -> MCPSession:
        try:
            fields = json.loads(raw)
            genuine = hmac.compare_digest(fields.pop("seal"), self._fields_mac(key, fields))
            for name in ("created_at", "expires_at"):
                fields[name] = datetime.fromisoformat(fields[name])
            session = MCPSession(token=token, **fields)
            _check_session(session)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            # Not chained: the text of a decoding error can show what it could not decode.
            raise ValueError(f"session record is malformed ({type(error).__name__})") from None
        if not genuine:
            raise ValueError("session record was altered")
        return session


def _expiry(session: MCPSession) -> datetime:
    if session.expires_at is None:
        raise ValueError("a session must expire")
    return session.expires_at


def _check_session(session: MCPSession) -> None:
    texts = session.token, session.agent_id, session.rate_limit_key
    if not all(type(text) is str and text for text in texts):
        raise ValueError("token, agent_id and rate_limit_key must be non-empty strings")
    if session.user_id is not None and type(session.user_id) is not str:
        raise ValueError("user_id must be a string or None")
    for time in (session.created_at, _expiry(session)):
        if not isinstance(time, datetime) or time.utcoffset() is None:
            raise ValueError("times must be datetimes with a time zone")
