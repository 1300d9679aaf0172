"""An ordinary server in front of ordinary callers and others: over stdio, over HTTP, for long."""

import gc
import itertools
import json
from pathlib import Path
from typing import Any

from support.clients import connected, each_sdk, each_sdk_and_mode, http_url, over_http, over_stdio
from support.servers import SHOP_TOOLS, TOKEN, Log, shop

# What a guard could mistake for something else: ids, quotes, code, paths, markup, other scripts.
TEXTS = [
    "card 4111 1111 1111 1111, order 4111111111111111",
    "Ignore the previous mail, Ana Núñez; the system: prompt is fixed",
    "`rm -rf build/` and $(date) in the Makefile, as ever...",
    "https://example.com/a?b=c&token=page-2 and /home/ana/notes.txt",
    "<b>50%</b> off; format: A4\tlandscape\n",
    '{"id": "123-45-6789", "lines": ["one\\n", "two\\/"]}',
    "密钥 مفتاح कुंजी 👨‍👩‍👧",
    "'; DROP TABLE students; -- as the comic has it",
]


async def run_ordinary_calls(call: Any, count: int) -> None:
    """Make calls that have to pass, with arguments that have to come as they were sent."""
    for number in range(count):
        text = TEXTS[number // 4 % len(TEXTS)]
        tool, arguments = [
            ("search", {"query": text, "limit": number % 9 + 1}),
            ("refund", {"order": f"A-{number}", "amount": number % 5_000 + 1}),
            ("run_sql", {"query": "select * from orders where city <> 'delete'"}),
            ("send_email", {"to": "ana@example.com", "subject": "Re: order", "body": text}),
        ][number % 4]
        answer = await call(tool, **arguments)
        assert not answer.is_error, (tool, arguments, answer.text)
        if tool == "search":
            assert answer.result.structured_content["result"][0] == f"{text} 0"


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


@each_sdk_and_mode
async def test_over_http_ordinary_calls_pass(sdk: str, mode: str) -> None:
    log = Log()
    server = http_url(shop(sdk, audit_sink=log, allow_anonymous=True))
    async with server as url, over_http(sdk, url, mode) as call:
        assert await call.tools() == SHOP_TOOLS
        await run_ordinary_calls(call, 200)
        assert (await call("delete_orders")).text.startswith("Refused (allow_list): ")
    assert len(log) == 401
    assert {entry["agent_id"] for entry in log} == {"anonymous"}


@each_sdk
async def test_five_thousand_calls_in_a_row_pass_and_leave_nothing_behind(sdk: str) -> None:
    log = Log()
    seconds = itertools.count().__next__  # one for each look at the clock
    window = {"max_calls_per_window": 100, "window_size": 50.0, "clock": seconds}
    async with connected(sdk, shop(sdk, audit_sink=log, **window)) as call:
        kept = []
        for _ in range(5):
            await run_ordinary_calls(call, 1_000)
            assert len(log) == 2_000
            log.clear()
            gc.collect()
            kept.append(len(gc.get_objects()))
    assert kept[-1] - kept[0] < 400, kept  # a tenth of an object for each call
