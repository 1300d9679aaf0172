"""Limits of MCPSessionAuthenticator."""

import contextlib
import sys
from datetime import datetime, timedelta, timezone

import pytest
from support.limits import limit, raises, refused

from agent_mcp_governance import InMemorySessionStore, MCPSession, MCPSessionAuthenticator

NOW, DAY = datetime.now(timezone.utc), timedelta(days=1)
KEEPING = type("Keeping", (InMemorySessionStore,), {"delete": lambda *_: False})


@contextlib.contextmanager
def wall_clock():
    """The clock that sessions go by, to be set; the kernel has no parameter for it."""
    now = [NOW]
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[MCPSessionAuthenticator.__module__]
        patch.setattr(module, "_utcnow", lambda: now[0])
        yield now


def opened(**options):
    """Return a store, an authenticator over it, and the token of a session."""
    store = options.setdefault("session_store", InMemorySessionStore())
    authenticator = MCPSessionAuthenticator(**options)
    return store, authenticator, authenticator.create_session("agent")


@limit("wall clock", timedelta(0), [timedelta(hours=5)])
def test_a_session_expires_although_the_clock_was_set_back(back):
    with wall_clock() as now:
        _, authenticator, token = opened(session_ttl=timedelta(seconds=10))
        now[0] += timedelta(seconds=11) - back
        return authenticator.validate_token(token) is None


@limit(
    "expired sessions",
    MCPSessionAuthenticator.cleanup_expired_sessions,
    [lambda authenticator: authenticator.validate_token("another")],
)
def test_expired_sessions_leave_the_store(use):
    with wall_clock() as now:
        store, authenticator, token = opened()
        now[0] += timedelta(hours=2)
        use(authenticator)
    return store.get(token) is None


@limit("sessions without expiry", NOW - DAY, [None])
def test_a_stored_session_without_an_expiry_is_refused(expires_at):
    store, authenticator, _ = opened()
    store.set(MCPSession("token", "admin", None, NOW, expires_at, "admin"))
    return authenticator.validate_token("token") is None


@limit(
    "tokens in clear",
    lambda session, _store: session.rate_limit_key,
    [lambda session, store: store.get(session.token), lambda session, _store: session],
)
def test_a_token_is_not_shown(part):
    store, authenticator, token = opened()
    return token not in repr(part(authenticator.validate_token(token), store))


@limit(
    "validate_token",
    lambda authenticator, token: authenticator.validate_session("thief", token),
    [MCPSessionAuthenticator.validate_token],
)
def test_a_stolen_token_is_worthless_without_its_agent(validate):
    _, authenticator, token = opened()
    return validate(authenticator, token) is None


@limit("rate_limit_key", ("a", "b"), [("a:b", "u"), ("u:a:b", None)])
def test_two_sessions_do_not_share_a_rate_limit_key(agent, user):
    authenticator = MCPSessionAuthenticator()
    tokens = (authenticator.create_session("b", "u:a"), authenticator.create_session(agent, user))
    return len({authenticator.validate_token(token).rate_limit_key for token in tokens}) == 2


@limit("revoke_all_sessions", "the same", ["another"])
def test_all_sessions_are_revoked(revoker):
    store, authenticator, token = opened()
    other = MCPSessionAuthenticator(session_store=store)
    (authenticator if revoker == "the same" else other).revoke_all_sessions("agent")
    return authenticator.validate_token(token) is None


@limit("max_concurrent_sessions", "the same", ["another"])
def test_sessions_are_counted(second):
    store, authenticator, _ = opened(max_concurrent_sessions=1)
    other = MCPSessionAuthenticator(session_store=store, max_concurrent_sessions=1)
    counting = authenticator if second == "the same" else other
    known = counting.active_session_count == 1
    return known or raises(RuntimeError, lambda: counting.create_session("agent"))


@limit("deletes that fail", InMemorySessionStore(), [KEEPING()])
def test_a_revocation_is_reported_as_it_went(store):
    _, authenticator, token = opened(session_store=store)
    return authenticator.revoke_session(token) == (store.get(token) is None)


@limit("weak tokens", " ", ["1", "password"])
def test_a_weak_token_is_refused(token):
    return refused(lambda: MCPSessionAuthenticator().bootstrap_session("admin", token, ttl=DAY))
