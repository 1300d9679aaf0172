"""The state of several processes or hosts, kept in one Redis.

The in-memory stores of ``agent_mcp_governance`` hold one process. These hold as many as share a
Redis server. Copy this file; it needs ``redis>=5`` and ``limits>=5``, and Redis 6.2 or later::

    client = make_client("rediss://user:password@redis.internal:6379/0")
    check_server(client)  # once, at start-up

    MCPMessageSigner(signing_key, nonce_store=RedisNonceStore(client))
    MCPSessionAuthenticator(
        session_store=RedisSessionStore(client, secret=session_secret, max_sessions=10)
    )
    Guard(
        policy,
        audit_sink=sink,
        limiter=RedisRateLimiter(client, max_calls_per_window=60, window_size=60),
        budget_store=RedisBudgetStore(client, policy),
    )

What is exact over all processes: each nonce is accepted once, ``max_sessions``, ``revoke_agent``,
``RedisRateLimiter`` and ``RedisBudgetStore``. ``RedisWindowStore`` is not: see there.

When Redis is down, slow or full, every method here raises ``redis.RedisError`` and waits no longer
than the client's timeout for a connection or an answer. The gateway, the signer, the guard and
``validate_session`` turn that into a denial; ``try_acquire``, ``create_session`` and
``revoke_session`` let it out: treat it as a denial. A full Redis still answers reads, so a session
made before stays valid and can be revoked. All of it works again as soon as Redis does. No command
is sent twice, so a claim whose answer was lost may count although its call was denied. The kernel's
gateway, signer and authenticator hold a lock while they wait: threads that share one wait in line,
a timeout each.

What the server must be, and ``check_server`` checks as far as a client can see it:

- ``maxmemory-policy noeviction``: an evicted nonce can be replayed, an evicted count starts again.
- ``appendonly yes``: a restart without it forgets nonces, counts and sessions, so messages can be
  replayed and limits start again. With ``appendfsync always`` nothing that was answered is lost,
  with ``everysec`` the last second or two can be.
- one primary, no Redis Cluster. Replication is asynchronous: a failover forgets the last writes.
- reachable by these processes only, with TLS and a password. Whoever can write to it can reset
  counts and forget nonces; sessions are sealed and cannot be forged or altered there.

Clocks of the hosts must agree: to ``clock_skew`` for nonces, and a rate window is shortened by as
much as one host's clock is ahead of the others'.

Keys never hold an agent id, a nonce or a token as it is, only its SHA-256 or HMAC. So no id can be
written such that it reaches the key of another. Give each use a prefix of its own: one for each
gateway, limiter, signing key and authenticator that is not meant to share.
"""

import hashlib
import hmac
import json
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import redis
from limits import RateLimitItemPerSecond
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent_mcp_governance import (
    GovernancePolicy,
    MCPNonceStore,
    MCPRateLimitStore,
    MCPSession,
    MCPSessionStore,
)


def make_client(url: str, *, timeout: float = 0.5) -> redis.Redis:
    """Return a client whose every wait is bounded.

    A name in *url* is resolved by the operating system, which no timeout here bounds: give an
    address, or run a caching resolver.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as ``redis.Redis.from_url`` takes it.
        timeout: Seconds to wait for a connection, and again for each answer.

    Returns:
        A client that threads may share. It connects at its first command.

    Raises:
        ValueError: *timeout* is not a positive finite number, or *url* is not one of these.
    """
    if not 0 < timeout < math.inf:
        raise ValueError("timeout must be a positive number of seconds")
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # Sent again, a claim whose answer was lost would be refused as a duplicate or count twice.
        # A connection that the server closed is noticed before it is used, and opened again.
        retry=Retry(NoBackoff(), 0),
        # Over RESP 3 a server can ask redis-py 7 and later for longer timeouts.
        protocol=2,
    )


def check_server(client: redis.Redis, *, require_persistence: bool = True) -> None:
    """Refuse a client or server on which the stores would not hold what they promise.

    Args:
        client: From ``make_client``.
        require_persistence: Whether a server without an append-only file is refused. False accepts
            that a restart of Redis forgets all nonces, counts and sessions.

    Raises:
        RuntimeError: Names everything that is wrong.
        redis.RedisError: The server cannot be asked.
    """
    timeout = client.get_connection_kwargs().get("socket_timeout")
    info = client.info()
    problems = {
        "the client has no socket_timeout": not timeout,
        "maxmemory-policy is not noeviction": info.get("maxmemory_policy") != "noeviction",
        "appendonly is off": require_persistence and not info.get("aof_enabled"),
        "the server is a replica": info.get("role") != "master",
        "the server is part of a cluster": bool(info.get("cluster_enabled")),
    }
    if any(problems.values()):
        raise RuntimeError("; ".join(problem for problem, found in problems.items() if found))


class RedisNonceStore(MCPNonceStore):
    """Nonces for MCPMessageSigner: each is accepted once, by whichever process is first.

    The signer asks ``has`` before it checks the signature and calls ``add`` after it. So ``has``
    only looks, and a forged message burns no nonce; ``add`` claims, in one command, and raises for
    all but the first. That is the replay protection of the OWASP MCP Security Cheat Sheet, section
    7, which the kernel's signer alone does not keep when two threads or processes verify at once.
    """

    def __init__(
        self, client: redis.Redis, *, prefix: str = "mcp:nonce", clock_skew: float = 60.0
    ) -> None:
        """Keep nonces below *prefix*.

        Args:
            client: From ``make_client``.
            prefix: What every key begins with.
            clock_skew: Seconds by which the clocks of two hosts may differ. A nonce is kept this
                much longer than asked, because a host that is behind accepts its message longer.
        """
        self._client = client
        self._prefix = prefix
        self._clock_skew = timedelta(seconds=clock_skew)

    def has(self, nonce: str) -> bool:
        """Return whether *nonce* was claimed.

        Args:
            nonce: Any text; only its SHA-256 is sent.

        Returns:
            True from the claim until it expires.

        Raises:
            redis.RedisError: Redis did not answer.
        """
        return bool(self._client.exists(self._key(nonce)))

    def add(self, nonce: str, expires_at: datetime) -> None:
        """Claim *nonce* until *expires_at*.

        Args:
            nonce: Any text; only its SHA-256 is sent.
            expires_at: When the message becomes too old, with a time zone.

        Raises:
            ValueError: It was claimed before. The signer refuses the message.
            redis.RedisError: Redis did not answer, or has no room.
        """
        keep = expires_at - datetime.now(timezone.utc) + self._clock_skew
        if not self._client.set(self._key(nonce), b"1", nx=True, px=keep):
            raise ValueError("nonce was used before")

    def cleanup(self) -> int:
        """Return 0: Redis removes what has expired."""
        return 0

    def _key(self, nonce: str) -> str:
        return f"{self._prefix}:{_digest(nonce)}"


class RedisSessionStore(MCPSessionStore):
    """Sessions for MCPSessionAuthenticator, limited and revoked across processes.

    Call ``revoke_agent`` of this store to end all of an agent's sessions: the authenticator's own
    ``revoke_all_sessions`` and ``active_session_count`` know only those that it made itself, and
    its ``max_concurrent_sessions`` is a further limit for each process.

    A token is kept as its HMAC-SHA256 (RFC 2104), so Redis and its backups hold nothing to log in
    with. A slow password hash would add nothing: a token of ``create_session`` is 32 random bytes,
    which nobody guesses, and a hash that is salted for each record cannot be looked up. Tokens that
    you choose yourself for ``bootstrap_session``, which takes any, need as much
    (``secrets.token_urlsafe(32)``): a weak one can be guessed at your own door, though not from a
    copy of the database without *secret*.

    A record is JSON with exactly the fields below and a seal, an HMAC-SHA256 over them and their
    key. Anything else, or a record that was altered or moved to another key, is refused.
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
            secret: At least 32 random bytes (``MCPMessageSigner.generate_key()``), the same in
                every process, used for nothing else and not kept in Redis. To change it ends all
                sessions.
            max_sessions: Live sessions of one agent, over all processes.
            prefix: What every key begins with.

        Raises:
            ValueError: *secret* is too short, or *max_sessions* is not a positive integer.
        """
        if type(secret) is not bytes or len(secret) < 32:
            raise ValueError("secret must be at least 32 bytes")
        self._client = client
        self._secret = secret
        self._max_sessions = _positive("max_sessions", max_sessions)
        self._prefix = prefix

    def get(self, session_id: str) -> MCPSession | None:
        """Return the session whose token is *session_id*.

        Args:
            session_id: The token that was presented.

        Returns:
            The session with that token in it, or None if there is none.

        Raises:
            ValueError: The record was altered or is not one of this class.
            redis.RedisError: Redis did not answer.
        """
        key = self._token_key(session_id)
        raw = self._client.get(key)
        return None if raw is None else self._open(key, session_id, raw)

    def set(self, session: MCPSession) -> None:
        """Keep a new *session* until it expires.

        Args:
            session: It has to expire, and its times need a time zone.

        Raises:
            RuntimeError: The agent has ``max_sessions`` already, or the token is in use.
            ValueError: A field has the wrong type, or a time has no time zone.
            redis.RedisError: Redis did not answer, or has no room.
        """
        _check_session(session)
        key, index = self._token_key(session.token), self._agent_key(session.agent_id)
        record, expiry = self._seal(key, session), math.ceil(_expiry(session).timestamp() * 1000)
        # A race is lost to one more session of the agent, so this many attempts are enough.
        for _ in range(self._max_sessions + 1):
            with self._client.pipeline() as pipe:
                try:
                    self._add(pipe, key, index, record, expiry)
                except redis.WatchError:
                    continue
                return
        raise RuntimeError("the agent's sessions keep changing; try again")

    def _add(
        self, pipe: redis.client.Pipeline, key: str, index: str, record: str, expiry: int
    ) -> None:
        pipe.watch(key, index)  # type: ignore[no-untyped-call]  # redis-py does not annotate it
        if pipe.exists(key):
            raise RuntimeError("session token is in use")
        known: Any = pipe.zrange(index, 0, -1, withscores=True)
        records: Any = pipe.mget([name for name, _ in known]) if known else []
        live = {
            name: expires
            for (name, expires), kept in zip(known, records, strict=True)
            if kept is not None
        }
        if len(live) >= self._max_sessions:
            raise RuntimeError(f"agent has {self._max_sessions} sessions already")
        live[key] = expiry
        pipe.multi()
        pipe.delete(index)
        pipe.zadd(index, live)
        pipe.pexpireat(index, int(max(live.values())))
        pipe.set(key, record, pxat=expiry)
        pipe.execute()

    def delete(self, session_id: str) -> bool:
        """Revoke one session.

        Args:
            session_id: Its token.

        Returns:
            Whether there was one.

        Raises:
            redis.RedisError: Redis did not answer: the session may still be valid.
        """
        return bool(self._client.delete(self._token_key(session_id)))

    def revoke_agent(self, agent_id: str) -> int:
        """Revoke every session of *agent_id*, whichever process made it.

        Args:
            agent_id: Exactly as the sessions were created with.

        Returns:
            How many sessions were revoked. One that is being created meanwhile may survive: stop
            creating them first.

        Raises:
            redis.RedisError: Redis did not answer: repeat it until it returns.
        """
        # Not in MULTI: a full Redis refuses even deletions there. Dead names leave the index later.
        names: Any = self._client.zrange(self._agent_key(agent_id), 0, -1)
        return int(self._client.delete(*names)) if names else 0

    def _token_key(self, token: str) -> str:
        return f"{self._prefix}:token:{self._mac('token', token)}"

    def _agent_key(self, agent_id: str) -> str:
        return f"{self._prefix}:agent:{_digest(agent_id)}"

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()

    def _seal(self, key: str, session: MCPSession) -> str:
        fields = {
            "agent_id": session.agent_id,
            "user_id": session.user_id,
            "created_at": session.created_at.isoformat(),
            "expires_at": _expiry(session).isoformat(),
            "rate_limit_key": session.rate_limit_key,
        }
        return json.dumps({**fields, "seal": self._fields_mac(key, fields)})

    def _fields_mac(self, key: str, fields: dict[str, Any]) -> str:
        return self._mac("record", key + json.dumps(fields, sort_keys=True))

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


class RedisRateLimiter:
    """A sliding window that is exact across processes; give it to the guard as ``limiter``.

    It has the ``try_acquire`` of MCPSlidingRateLimiter and folds the case of agent ids as that one
    does. Each decision is one atomic step on the server, made by the library ``limits``.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        max_calls_per_window: int = 100,
        window_size: int = 300,
        prefix: str = "mcp:rate",
    ) -> None:
        """Keep windows below *prefix*.

        Args:
            client: From ``make_client``.
            max_calls_per_window: Calls of one agent within any window.
            window_size: Length of the window, in whole seconds.
            prefix: What every key has after the ``LIMITS:`` of the library. Limiters with other
                limits or windows have other keys even below the same prefix.

        Raises:
            ValueError: A number is not a positive integer.
        """
        self._limiter = MovingWindowRateLimiter(_limits_storage(client))
        self._window = RateLimitItemPerSecond(
            _positive("max_calls_per_window", max_calls_per_window),
            _positive("window_size", window_size),
            namespace=prefix,
        )

    def try_acquire(self, agent_id: str) -> bool:
        """Take one call from *agent_id*'s window.

        Args:
            agent_id: A verified identity.

        Returns:
            Whether there was one left. Calls that were refused are not counted.

        Raises:
            ValueError: *agent_id* is blank.
            redis.RedisError: Redis did not answer, or has no room: a denial.
        """
        if not agent_id.strip():
            raise ValueError("agent_id must not be empty")
        return self._limiter.hit(self._window, _digest(agent_id.casefold()))


class RedisBudgetStore(MCPRateLimitStore):
    """The call budget of MCPGateway, exact across processes.

    The gateway reads a count, compares it, and sets it one higher; other processes do the same in
    between. So ``set_bucket`` does not store the gateway's number: it counts one call in one atomic
    step, and raises if that is more than the policy allows. The gateway then denies the call with
    "Internal gateway error — access denied (fail closed)" and logs an error with a traceback. That
    happens to calls that race for the last places only; later ones get the usual "exceeded call
    budget". No lock is held while a human decides.
    """

    def __init__(
        self,
        client: redis.Redis,
        policy: GovernancePolicy,
        *,
        period: int = 86_400,
        prefix: str = "mcp:budget",
    ) -> None:
        """Keep counts below *prefix*.

        Args:
            client: From ``make_client``.
            policy: The gateway's own policy; its ``max_tool_calls`` is the budget, as it is now.
            period: Seconds after an agent's first call when its budget starts again. A gateway in
                memory has no such period: its budget ends with the process.
            prefix: What every key has after the ``LIMITS:`` of the library.

        Raises:
            ValueError: *period* is not a positive integer.
        """
        self._storage = _limits_storage(client)
        self._prefix = prefix
        self._max_calls = policy.max_tool_calls
        self._period = _positive("period", period)

    def get_bucket(self, agent_id: str) -> int:
        """Return how many calls *agent_id* has made.

        Args:
            agent_id: Exactly as the gateway was given it.

        Returns:
            The count, claims above the budget included.

        Raises:
            ValueError: What is stored is not a count.
            redis.RedisError: Redis did not answer.
        """
        count = self._storage.get(self._key(agent_id))
        if count < 0:
            raise ValueError("the stored count is negative")
        return count

    def set_bucket(self, agent_id: str, bucket: int) -> None:
        """Count one call, or start again.

        Args:
            agent_id: Exactly as the gateway was given it.
            bucket: 0 to start again; any other count counts one call, whatever it is.

        Raises:
            RuntimeError: The budget is spent.
            ValueError: *bucket* is not a count.
            redis.RedisError: Redis did not answer, or has no room.
        """
        if bucket == 0:
            self._storage.clear(self._key(agent_id))
            return
        _positive("bucket", bucket)
        if self._storage.incr(self._key(agent_id), self._period) > self._max_calls:
            raise RuntimeError("call budget is spent")

    def _key(self, agent_id: str) -> str:
        return f"{self._prefix}:{_digest(agent_id)}"


class RedisWindowStore(MCPRateLimitStore):
    """The buckets of one MCPSlidingRateLimiter, so that they survive a restart of its process.

    Not exact across processes: two limiters read the same bucket and both add to it, and four that
    ran at once let through more than twice the limit. Use ``RedisRateLimiter`` unless there is one
    process only. The limiter needs ``clock=time.time``: its default clock starts anew at each boot.
    """

    def __init__(
        self, client: redis.Redis, *, window_size: float, prefix: str = "mcp:window"
    ) -> None:
        """Keep buckets below *prefix*.

        Args:
            client: From ``make_client``.
            window_size: The limiter's own, in seconds. An idle bucket is removed after it.
            prefix: What every key begins with.
        """
        self._client = client
        self._keep = timedelta(seconds=window_size)
        self._prefix = prefix

    def get_bucket(self, agent_id: str) -> list[float] | None:
        """Return the times of *agent_id*'s calls.

        Args:
            agent_id: As the limiter gives it, case folded.

        Returns:
            Seconds of the limiter's clock, oldest first, or None.

        Raises:
            ValueError: What is stored is not that.
            redis.RedisError: Redis did not answer.
        """
        raw = self._client.get(self._key(agent_id))
        return None if raw is None else _check_bucket(json.loads(raw))

    def set_bucket(self, agent_id: str, bucket: list[float]) -> None:
        """Replace the times of *agent_id*'s calls.

        Args:
            agent_id: As the limiter gives it, case folded.
            bucket: Seconds of the limiter's clock, oldest first.

        Raises:
            ValueError: *bucket* is not a sorted list of finite numbers; a gateway's is not.
            redis.RedisError: Redis did not answer, or has no room.
        """
        self._client.set(self._key(agent_id), json.dumps(_check_bucket(bucket)), px=self._keep)

    def _key(self, agent_id: str) -> str:
        return f"{self._prefix}:{_digest(agent_id)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _positive(name: str, value: int) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")
    return value


def _limits_storage(client: redis.Redis) -> RedisStorage:
    # The URL only says which client library it is; the pool brings address and timeouts.
    return RedisStorage("redis://", connection_pool=client.connection_pool)


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


def _check_bucket(bucket: Any) -> list[float]:
    if type(bucket) is not list or not all(
        type(time) in (int, float) and math.isfinite(time) for time in bucket
    ):
        raise ValueError("a bucket must be a list of finite numbers")
    if bucket != sorted(bucket):
        raise ValueError("a bucket must be sorted")
    return bucket
