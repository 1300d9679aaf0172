"""What the guard adds to a tool call of a real MCP server, and what hostile input costs it.

    python tests/benchmarks/tool_call.py [--check] [--rounds N]

Client and server are the MCP SDK's own, joined in memory, so no network hides the difference. The
limits are on elapsed time, which means little while other programs keep every processor busy.
"""

import asyncio
import json
import logging
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import common
from mcp import Client
from mcp.server.mcpserver import MCPServer

from agent_mcp_governance import GovernancePolicy, PatternType

sys.path.append(str(Path(__file__).parents[1] / "recipes"))

from hostile import hostile_texts
from mcp_guard import Guard, Limits, ToolRules
from mcp_guard.mcp_sdk import govern

ADDED, SECONDS, MEGABYTES, GROWTH = 0.30, 0.1, 100, 2.5
BLOCK = 5  # calls of one arm before the other has its turn: a slow moment is shared
MODES = {"auto": "newest protocol", "legacy": "protocol 2025-11-25"}
UNGOVERNED, GOVERNED, IN_THREADS = "ungoverned", "governed", "with a thread for each entry"


class RecentAudit:
    """An audit sink that costs next to nothing: what is measured is the guard."""

    def __init__(self, blocking: bool = False) -> None:
        self.blocking = blocking
        self.record = deque(maxlen=1_000).append


def guard(sink: RecentAudit) -> Guard:
    policy = GovernancePolicy(
        name="benchmark",
        allowed_tools=["add"],
        blocked_patterns=["../", "rm -rf", ("*.env", PatternType.GLOB)],
        max_tool_calls=10**9,
    )
    # The limiter keeps the time of each call of its window: a short window keeps about as many as
    # sixty a minute would.
    return Guard(
        policy,
        audit_sink=sink,
        max_calls_per_window=10**6,
        window_size=0.1,
        budget_period=None,
        tools={"add": ToolRules(refuse_secrets=True)},
    )


async def server(arm: str) -> MCPServer:
    made = MCPServer("benchmark", log_level="ERROR")

    @made.tool()
    def add(a: int, b: int) -> int:
        """Add two integers."""
        return a + b

    if arm != UNGOVERNED:
        govern(made, guard(RecentAudit(blocking=arm == IN_THREADS)))
    return made


async def timed_calls(client: Client, count: int) -> list[float]:
    taken = []
    for number in range(count):
        start = time.perf_counter()
        result = await client.call_tool("add", {"a": number, "b": 1})
        taken.append(time.perf_counter() - start)
        if result.is_error or result.structured_content != {"result": number + 1}:
            sys.exit(f"the call failed: {result}")
    return taken


async def measure_calls(mode: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of a call of each arm."""
    samples: dict[str, list[float]] = {UNGOVERNED: [], GOVERNED: [], IN_THREADS: []}
    async with AsyncExitStack() as stack:
        clients = {
            arm: await stack.enter_async_context(Client(await server(arm), mode=mode))
            for arm in samples
        }
        for client in clients.values():
            await timed_calls(client, BLOCK)
        for arm in common.turns(list(clients), rounds):
            samples[arm] += await timed_calls(clients[arm], BLOCK)
    return {arm: median(taken) for arm, taken in samples.items()}


def floor(rounds: int) -> float:
    """Return the median seconds of what no guard can do without: copies of what it checks."""
    params, result = {"a": 1, "b": 1}, {"content": [{"type": "text", "text": "2"}]}
    taken = []
    for _ in range(rounds * BLOCK):
        start = time.perf_counter()
        json.loads(json.dumps(params))
        json.loads(json.dumps(result))
        taken.append(time.perf_counter() - start)
    return median(taken)


def nested(text: str, levels: int) -> str:
    """Return *text* as JSON inside JSON strings, so many levels."""
    for _ in range(levels):
        text = json.dumps([text])
    return text


def hostile(size: int) -> dict[str, Any]:
    """Return values of about *size* characters that cost the guard more than prose does."""
    values: dict[str, Any] = dict(hostile_texts(size))
    values["U+FDFA"] = "\ufdfa" * size
    values["combining marks"] = "a" + "\u0301\u0323" * (size // 2)
    values["marks in short runs"] = ("a" + "\u0301\u0323" * 50) * (size // 101)
    values["halfwidth sound marks"] = "\uff9e\u0301" * (size // 2)
    values["open brackets"] = "[" * size
    values["items in a string"] = f"[{'1,' * (size // 4)}1]"
    values["lists in a string"] = f"[{'[],' * (size // 6)}1]"
    values["JSON in JSON"] = nested("x" * size, 3)  # deeper, and as long, it is refused
    values["JSON in JSON, twelve deep"] = nested("x" * (size // 6), 12)
    values["escapes"] = '"' + "\\u0041" * (size // 6) + '"'
    values["short runs with escapes"] = '\\/"' * (size // 3)
    values["slashes before a secret"] = "\\/" * (size // 2 - 20) + " \\u0041KIAQ2W3E4R5T6Y7U2I3"
    values["names beside a secret"] = [*({"name": f"{n}"} for n in range(size // 14)), "x://u:p@h"]
    values["escapes that are none"] = 'x\\n\\u"' * (size // 6)
    values["strings with escapes"] = [f"sk-://AKIA sig= \\u0041{n % 9}" for n in range(size // 26)]
    values["keys with escapes"] = {f"http://u:p{n}@\\u": 1 for n in range(size // 21)}
    values["a long number"] = f"[{'9' * size}]"
    values["items"] = list(range(size // 4))
    values["JSON strings"] = ["[1]"] * (size // 8)
    values["JSON strings with keys"] = ['{"a":1}'] * (size // 9)
    values["empty JSON strings"] = ["[]"] * (size // 3)
    values["dicts"] = [{"a": n} for n in range(size // 8)]
    values["keys"] = {f"{n:x}": n for n in range(size // 12)}
    values["a long key over many items"] = {"k" * (size // 2): [1] * (size // 4)}
    values["long keys in long keys"] = {"k" * (size // 4): {"k" * (size // 4): [1] * (size // 8)}}
    return values


def seconds(check: Callable[[Any], object], values: tuple[Any, Any], times: int) -> list[float]:
    """Return the least seconds of a check of each value, measured in turn so many times."""
    taken: list[list[float]] = [[], []]
    for _ in range(times):
        for value, times_of_it in zip(values, taken, strict=True):
            start = time.perf_counter()
            check(value)
            times_of_it.append(time.perf_counter() - start)
    return [min(times_of_it) for times_of_it in taken]


def cost(check: Callable[[Any], object], value: Any, half: Any) -> tuple[float, float, float]:
    """Return the seconds of a check, its megabytes, and how much longer it takes than *half*.

    There are thousands: one that is far from the limits is measured once, and not for its memory,
    and one that looks slow again and again, since only what is slow always is.
    """
    # Under a millisecond, what does not grow with the text counts most.
    for times in (1, 15, 60):
        whole, part = seconds(check, (value, half), times)
        if whole < SECONDS and whole < GROWTH * max(0.001, part):
            break
    if whole < SECONDS / 2 and times == 1:
        return whole, 0.0, whole / max(0.001, part)
    tracemalloc.start()
    check(value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return whole, peak / 1e6, whole / max(0.001, part)


def measure_hostile() -> list[tuple[str, float, float, float]]:
    """Return each check's name, seconds and megabytes near the cap, and growth when doubled."""
    guarded, limits = guard(RecentAudit()), Limits()
    checks = {
        "call": (lambda value: guarded.check_call("c", "add", {"x": value}), 95_000),
        "response": (lambda value: guarded.check_response("c", "add", value), 240_000),
    }
    rows = []
    for direction, (check, size) in checks.items():
        halves = hostile(size // 2)
        for name, value in hostile(size).items():
            rows.append((f"{direction}: {name}", *cost(check, value, halves[name])))
    assert len(rows) > 2_000
    assert limits.max_params_chars > 95_000
    assert limits.max_response_chars > 240_000
    return sorted(rows, key=lambda row: -row[1])


def main() -> None:
    parser = common.options(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400, help=f"blocks of {BLOCK} calls per arm")
    parser.add_argument("--check", action="store_true", help="fail if a limit is broken")
    chosen = parser.parse_args()
    for name in ("agent_os", "mcp_guard"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    common.print_machine("agent-mcp-governance", "agent-os-kernel", "mcp")

    calls = {mode: asyncio.run(measure_calls(mode, chosen.rounds)) for mode in MODES}
    least = floor(chosen.rounds)
    common.print_table(
        f"One tool call in microseconds, medians of {chosen.rounds * BLOCK} for each arm",
        ["", UNGOVERNED, GOVERNED, IN_THREADS, "adds", "two JSON round trips"],
        [
            [
                MODES[mode],
                *(f"{arms[arm] * 1e6:.0f}" for arm in arms),
                f"{arms[GOVERNED] / arms[UNGOVERNED] - 1:.2f}",
                f"{least * 1e6:.0f}",
            ]
            for mode, arms in calls.items()
        ],
    )
    rows = measure_hostile()
    common.print_table(
        "Hostile input at the caps: the twenty slowest",
        ["", "ms", "MB", "doubled"],
        [[name, f"{s * 1e3:.1f}", f"{mb:.1f}", f"{g:.1f}"] for name, s, mb, g in rows[:20]],
    )
    kept = common.verdict(
        [
            *(
                (f"added to a call, {MODES[mode]}", arms[GOVERNED] / arms[UNGOVERNED] - 1, ADDED)
                for mode, arms in calls.items()
            ),
            ("seconds of a hostile check", max(row[1] for row in rows), SECONDS),
            ("megabytes of a hostile check", max(row[2] for row in rows), MEGABYTES),
            ("growth when doubled", max(row[3] for row in rows), GROWTH),
        ]
    )
    common.leave(kept, chosen.check)


if __name__ == "__main__":
    main()
