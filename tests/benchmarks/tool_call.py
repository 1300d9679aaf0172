"""What the guard adds to a tool call of a real MCP server, and what hostile input costs.

    python tests/benchmarks/tool_call.py [--check] [--rounds N] [--plot FILE.png]

Client and server are the MCP SDK's own, joined in memory, so no network hides the difference. The
limits are on elapsed time, which means little while other programs keep every processor busy; the
processor time beside it is steadier.
"""

import asyncio
import logging
import sys
import time
from collections import deque
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

import common
from mcp import Client
from mcp.server.mcpserver import MCPServer

from agent_mcp_governance import GovernancePolicy, MCPGateway

sys.path.append(str(Path(__file__).parents[1] / "recipes"))

ADDED_LIMIT, REFUSAL_LIMIT = 0.35, 0.01
BLOCK = 20  # calls of one arm before the other has its turn
MODES = {"auto": "newest protocol", "legacy": "protocol 2025-11-25"}
UNGOVERNED, GOVERNED = "ungoverned", "governed"
GATEWAY_TEXT, GUARD_TEXT = "a." * 8_192, "a." * 32_768


class Sample(NamedTuple):
    """Seconds of one call."""

    elapsed: float
    processor: float


class RecentAudit:
    """An audit sink that costs next to nothing: what is measured is the guard."""

    def __init__(self) -> None:
        self.record = deque(maxlen=1_000).append


def policy() -> GovernancePolicy:
    return GovernancePolicy(
        name="benchmark",
        allowed_tools=["add"],
        blocked_patterns=["../"],
        max_tool_calls=10**9,
        log_all_calls=False,
    )


def guard():
    from guard import Guard

    # The limiter keeps the time of each call of its window: a short window keeps about as many as
    # the default limit of 60 does.
    return Guard(policy(), audit_sink=RecentAudit(), max_calls_per_window=10**6, window_size=0.1)


def server(governed: bool) -> MCPServer:
    extensions = []
    if governed:
        from mcp_server import Governance

        extensions.append(Governance(guard()))
    made = MCPServer("benchmark", extensions=extensions, log_level="ERROR")

    @made.tool()
    def add(a: int, b: int) -> int:
        """Add two integers."""
        return a + b

    return made


async def timed_calls(client: Client, count: int) -> list[Sample]:
    taken = []
    for number in range(count):
        start, processor = time.perf_counter(), time.process_time()
        result = await client.call_tool("add", {"a": number, "b": 1})
        taken.append(Sample(time.perf_counter() - start, time.process_time() - processor))
        if result.is_error or result.structured_content != {"result": number + 1}:
            sys.exit(f"the call failed: {result}")
    return taken


async def measure_calls(mode: str, rounds: int) -> dict[str, list[Sample]]:
    """Return what each call of each arm took."""
    samples: dict[str, list[Sample]] = {UNGOVERNED: [], GOVERNED: []}
    async with AsyncExitStack() as stack:
        clients = {
            arm: await stack.enter_async_context(Client(server(arm == GOVERNED), mode=mode))
            for arm in samples
        }
        for client in clients.values():
            await timed_calls(client, BLOCK)
        for arm in common.turns(list(clients), rounds):
            samples[arm] += await timed_calls(clients[arm], BLOCK)
    return samples


def measure_refusals(rounds: int) -> dict[str, float]:
    """Return the median seconds that each takes for its hostile text."""
    guarded, gateway = guard(), MCPGateway(policy())

    def refuse() -> None:
        if guarded.check_call("local", "add", {"text": GUARD_TEXT}).allowed:
            sys.exit("the guard let the hostile text pass")

    arms = {
        "bare gateway": lambda: gateway.intercept_tool_call("local", "add", {"text": GATEWAY_TEXT}),
        "guard": refuse,
    }
    samples: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in common.turns(list(arms), rounds):
        start = time.perf_counter()
        arms[arm]()
        samples[arm].append(time.perf_counter() - start)
    return {arm: median(taken) for arm, taken in samples.items()}


def medians(samples: dict[str, list[Sample]]) -> dict[str, Sample]:
    return {
        arm: Sample(median(s.elapsed for s in taken), median(s.processor for s in taken))
        for arm, taken in samples.items()
    }


def call_row(mode: str, arms: dict[str, Sample]) -> list[str]:
    plain, governed = arms[UNGOVERNED], arms[GOVERNED]
    return [
        MODES[mode],
        f"{plain.elapsed * 1e6:.0f}",
        f"{governed.elapsed * 1e6:.0f}",
        f"{governed.elapsed / plain.elapsed:.2f}",
        f"{plain.processor * 1e6:.0f}",
        f"{governed.processor * 1e6:.0f}",
        f"{governed.processor / plain.processor:.2f}",
    ]


def refusal_row(arm: str, text: str, refusals: dict[str, float]) -> list[str]:
    ratio = refusals[arm] / refusals["bare gateway"]
    return [arm, f"{len(text) // 1024}", f"{refusals[arm] * 1000:.2f}", f"{ratio:.5f}"]


def plot(file, calls: dict[str, dict[str, Sample]], refusals: dict[str, float]) -> None:
    with common.figure(file, "What governing a tool call costs", 2) as (call_axes, refusal_axes):
        for number, arm in enumerate((UNGOVERNED, GOVERNED)):
            places = [place + 0.4 * number for place in range(len(calls))]
            heights = [arms[arm].elapsed * 1e6 for arms in calls.values()]
            call_axes.bar(places, heights, width=0.38, label=arm)
        call_axes.set_xticks([0.2, 1.2], [MODES[mode] for mode in calls])
        call_axes.set_ylabel("us per tool call, median")
        call_axes.legend(loc="upper left")
        refusal_axes.bar(
            ["gateway, 16 kB", "guard, 64 kB"], [taken * 1000 for taken in refusals.values()]
        )
        refusal_axes.set_yscale("log")
        refusal_axes.set_ylabel("ms to decide on hostile text")


def main() -> None:
    parser = common.options(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help=f"blocks of {BLOCK} calls per arm")
    parser.add_argument("--check", action="store_true", help="fail if a limit is broken")
    chosen = parser.parse_args()
    logging.getLogger("agent_os").setLevel(logging.CRITICAL)
    logging.getLogger("guard").setLevel(logging.CRITICAL)
    common.print_machine("agent-mcp-governance", "agent-os-kernel", "mcp")

    calls = {mode: medians(asyncio.run(measure_calls(mode, chosen.rounds))) for mode in MODES}
    common.print_table(
        f"One tool call, medians of {chosen.rounds * BLOCK} for each arm",
        ["", "ungoverned us", "governed us", "ratio", "processor us", "processor us", "ratio"],
        [call_row(mode, arms) for mode, arms in calls.items()],
    )
    refusals = measure_refusals(rounds=5)
    common.print_table(
        "'a.' repeated, medians of 5",
        ["", "kB", "ms", "ratio"],
        [
            refusal_row("bare gateway", GATEWAY_TEXT, refusals),
            refusal_row("guard", GUARD_TEXT, refusals),
        ],
    )
    if chosen.plot:
        plot(chosen.plot, calls, refusals)
    added = [
        (f"added to a call, {MODES[mode]}", arms[GOVERNED].elapsed / arms[UNGOVERNED].elapsed - 1)
        for mode, arms in calls.items()
    ]
    kept = common.verdict(
        [
            *((name, share, ADDED_LIMIT) for name, share in added),
            ("time to refuse", refusals["guard"] / refusals["bare gateway"], REFUSAL_LIMIT),
        ]
    )
    common.leave(kept, chosen.check)


if __name__ == "__main__":
    main()
