"""An ordinary server in front of ordinary callers and others, over stdio."""

import json
from pathlib import Path

from support.clients import each_sdk_and_mode, over_stdio, run_ordinary_calls
from support.servers import SHOP_TOOLS, TOKEN


@each_sdk_and_mode
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
        told = await call("search", query=TOKEN)
        assert told.result.structured_content["result"][0] == "[REDACTED] 0"
    assert not (tmp_path / "deleted").exists()
    audited = (tmp_path / "audit.jsonl").read_text()
    entries = [json.loads(line) for line in audited.splitlines()]
    calls = [entry["allowed"] for entry in entries if entry["direction"] == "call"]
    assert (len(calls), sum(calls)) == (207, 201)
    assert {entry["agent_id"] for entry in entries} == {"stdio"}
    assert TOKEN not in audited
