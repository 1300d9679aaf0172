"""An ordinary server in front of ordinary callers and others, over real transports."""

import json
from pathlib import Path

from support.clients import (
    each_mode,
    each_sdk,
    over_http,
    over_stdio,
    run_ordinary_calls,
    served_over_http,
)
from support.servers import SHOP, SHOP_TOOLS, TOKEN, Log, govern, plain_server, shop_guard


@each_mode
@each_sdk
async def test_over_stdio_ordinary_calls_pass_and_others_are_refused(
    sdk: str, mode: str, tmp_path: Path
) -> None:
    async with over_stdio(sdk, mode, tmp_path) as call:
        assert await call.tools() == SHOP_TOOLS
        await run_ordinary_calls(call, 200)
        for tool, arguments, stage in [
            ("delete_orders", {}, "allow_list"),
            ("no_such_tool", {}, "allow_list"),
            ("search", {"query": "../../etc/passwd"}, "pattern"),
            ("refund", {"order": "A-17", "amount": -500}, "params"),
            ("refund", {"order": "A-17", "amount": 5_001}, "approval"),
            ("send_email", {"to": "a@b.example", "subject": "", "body": TOKEN}, "secret"),
        ]:
            answer = await call(tool, **arguments)
            assert answer.is_error
            assert answer.text.startswith(f"Refused ({stage}): ")
        # SQLite's own read-only mode, not a guess about the query.
        assert (await call("run_sql", query="delete from orders")).is_error
        told = await call("search", query=TOKEN)
        assert told.result.structured_content["result"][0] == "[REDACTED] 0"
    assert not (tmp_path / "deleted").exists()
    audited = (tmp_path / "audit.jsonl").read_text()
    entries = [json.loads(line) for line in audited.splitlines()]
    calls = [entry["allowed"] for entry in entries if entry["direction"] == "call"]
    assert (len(calls), sum(calls)) == (208, 202)
    assert {entry["agent_id"] for entry in entries} == {"stdio"}
    assert TOKEN not in audited


@each_mode
@each_sdk
async def test_over_http_ordinary_calls_pass(sdk: str, mode: str) -> None:
    log, server = Log(), plain_server(sdk, *SHOP)
    govern(server, shop_guard(audit_sink=log), allow_anonymous=True)
    async with served_over_http(lambda _: server) as url, over_http(sdk, url, mode) as call:
        assert await call.tools() == SHOP_TOOLS
        await run_ordinary_calls(call, 200)
        assert (await call("delete_orders")).text.startswith("Refused (allow_list): ")
    assert len(log.entries) == 401
    assert {entry["agent_id"] for entry in log.entries} == {"anonymous"}
