"""Who a caller is, and what that depends on."""

from typing import Any

import httpx2
import pytest
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from mcp.server.auth.middleware.auth_context import auth_context_var, get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp_guard import mcp_sdk
from mcp_guard.callers import bucket_label, verified_caller
from pydantic import AnyHttpUrl
from support import ROOT
from support.clients import connected, each_sdk, each_sdk_and_mode, http_url, over_http
from support.isolated import run_isolated
from support.servers import SHOP, Log, govern, guard_of, low_level_server, plain_server


def token(client: str = "webapp", subject: str | None = "alice", claims: Any = None) -> AccessToken:
    return AccessToken(token="", client_id=client, subject=subject, scopes=[], claims=claims)


def test_two_holders_are_never_one_caller_and_each_can_call() -> None:
    subjects = ["alice", "Alice", "alice ", "ali\u212be", "ali\u00e5e", None, "null", "x" * 500]
    subjects += ["Ana Núñez", "\x00\n\u202e\ud800", "auth0|5f7c8ec7c33c6c004bbafe82"]
    clients = ["webapp2", 'webapp", null, "alice', "\uff02webapp"]
    holders = [
        *(token(subject=subject) for subject in subjects),
        *(token(client=client) for client in clients),
        *(token(claims={"iss": issuer}) for issuer in ("https://a.example", "https://b.example")),
        token(client='webapp", "x', subject='alice"'),
    ]
    callers = [verified_caller(holder, remote=True) for holder in holders]
    assert verified_caller(None, remote=True) == ""
    others = [verified_caller(None, remote=remote, allow_anonymous=True) for remote in (0, 1)]
    assert others == ["stdio", "anonymous"]
    assert len({*callers, *others}) == len(holders) + 2
    guard = guard_of("a")
    assert all(guard.check_call(caller, "a", {}).allowed for caller in (*callers, *others))


def test_labels_are_few_evenly_used_and_the_same_in_every_process() -> None:
    label = bucket_label(8)
    labels = [label(f"caller {number}") for number in range(4_000)]
    counts = [labels.count(f"caller-{bucket}") for bucket in range(8)]
    assert sum(counts) == 4_000
    assert min(counts) > 400
    assert bucket_label(1)("alice") == "caller-0"
    code = f"import sys; sys.path[:0] = {[str(ROOT / 'tests' / 'recipes')]}\n"
    code += "from mcp_guard.callers import bucket_label; print(bucket_label(8)('Ana \\ud800'))"
    assert run_isolated(code).strip() == label("Ana \ud800")


@pytest.mark.parametrize("buckets", [0, -1, 1.5, True, "8", None])
def test_a_number_of_labels_that_is_none_is_refused(buckets: Any) -> None:
    with pytest.raises(ValueError, match="buckets must be a positive integer"):
        bucket_label(buckets)


SUBJECTS = {"token-1": "00u1AbCdEf", "token-2": "00u1aBcDeF"}


def authorised_shop(sdk: str) -> Any:
    tokens = StaticTokenVerifier(
        {text: {"client_id": "webapp", "sub": SUBJECTS[text], "scopes": []} for text in SUBJECTS}
    )
    if sdk == "fastmcp":
        return plain_server(sdk, *SHOP, auth=tokens)
    nowhere = AnyHttpUrl("http://127.0.0.1:1/")  # these tokens name no resource
    auth = AuthSettings(
        issuer_url=nowhere, resource_server_url=nowhere, validate_token_resource=False
    )
    return plain_server(sdk, *SHOP, token_verifier=tokens, auth=auth)


@each_sdk
async def test_over_http_a_budget_belongs_to_the_subject_of_the_token(sdk: str) -> None:
    log = Log()
    guard = guard_of("search", max_tool_calls=2, audit_sink=log)
    server = govern(authorised_shop(sdk), guard)
    async with http_url(server) as url:
        async with over_http(sdk, url, token="token-1") as call:  # noqa: S106 - of this test
            for _ in range(2):
                assert not (await call("search", query="tea")).is_error
            posing = await call("search", query="tea", meta={"client_id": "x", "subject": "y"})
            assert posing.text.startswith("Refused (budget)")
        for mode in ("auto", "legacy"):  # a new session does not start a new budget
            async with over_http(sdk, url, mode, "token-1") as call:
                assert (await call("search", query="tea")).text.startswith("Refused (budget)")
            async with over_http(sdk, url, mode, "token-2") as call:
                assert not (await call("search", query="tea")).is_error
        entries = len(log)
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer forged"}) as http:
            assert (await http.post(url, json={})).status_code == 401
    assert len(log) == entries
    callers = {entry["agent_id"] for entry in log}
    assert callers == {f'["webapp", null, "{subject}"]' for subject in SUBJECTS.values()}


@each_sdk_and_mode
async def test_over_http_a_caller_without_a_token_is_refused(sdk: str, mode: str) -> None:
    log = Log()
    server = govern(plain_server(sdk, *SHOP), guard_of("search", audit_sink=log))
    async with http_url(server) as url, over_http(sdk, url, mode) as call:
        assert await call.tools() == []
        told = await call("search", query="tea")
        assert told[:2] == (True, "Refused (caller): The caller is not known.")
    assert log.stages() == ["caller"]


async def test_a_caller_is_checked_by_the_schema_that_the_server_lists_for_this_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_sdk, "_MAX_VALIDATORS", 1)
    asked: list[str] = []

    def schema() -> dict[str, Any]:
        asked.append(get_access_token().subject)
        shelves = {"alice": ["open", "closed"], "bob": ["open"]}[asked[-1]]
        return {"properties": {"shelf": {"enum": shelves}}}

    server = low_level_server(lambda params: params.arguments["shelf"], schema)
    govern(server, guard_of("run"))
    for name, told in [("alice", "closed"), ("bob", "Refused (params)"), ("alice", "closed")]:
        auth_context_var.set(AuthenticatedUser(token(subject=name)))
        async with connected("mcp", server) as call:
            assert (await call("run", shelf="closed")).text.startswith(told)
            assert (await call("run", shelf="open")).text == "open"
            assert (await call("drop")).text.startswith("Refused (allow_list)")  # without asking
    assert asked == ["alice", "bob", "bob", "alice"]  # after a refusal, and what was forgotten
