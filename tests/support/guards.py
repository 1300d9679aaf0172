"""A guard with everything set that a test does not care about, and its audit log."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from mcp_guard import Decision, Guard

from agent_mcp_governance import GovernancePolicy

T = TypeVar("T")

SECRET = "ghp_" + "aB3dE5gH" * 5  # invented, in the form of a token of GitHub's

_POLICY = {field.name for field in dataclasses.fields(GovernancePolicy)}


class Entries(list[dict[str, Any]]):
    """An audit sink that never waits: the list of its entries."""

    blocking = False
    record = list.append


def make_guard(**options: Any) -> tuple[Guard, Any]:
    """Return a guard, and its sink: ``Entries`` unless *options* has another ``audit_sink``.

    *options* are those of the guard and of its policy, by name. Unless they say otherwise, the
    tools "search" and "refund" are allowed, and a caller may call them 10,000 times.
    """
    policy = {"name": "desk", "allowed_tools": ["search", "refund"], "max_tool_calls": 10_000}
    policy |= {name: options.pop(name) for name in _POLICY & options.keys()}
    options.setdefault("audit_sink", Entries())
    if "limiter" not in options:
        options = {"max_calls_per_window": 10_000, "window_size": 60.0, **options}
    if "budget" not in options:
        options.setdefault("budget_period", None)
    return Guard(GovernancePolicy(**policy), **options), options["audit_sink"]


def make_guard_with(
    option: str, part: Callable[..., Any], **options: Any
) -> tuple[Guard, Any, str]:
    """Return a guard that calls *part* as its *option*, its sink, and which check does so."""
    blocking = getattr(part, "blocking", True)
    methods = SimpleNamespace(try_acquire=part, record=part, blocking=blocking)
    given = {"approver": part, "detectors": [part], "redact": part}.get(option, methods)
    options |= {option: given, "require_human_approval": option == "approver"}
    return *make_guard(**options), "response" if option == "detectors" else "call"


def run(awaitable: Awaitable[T]) -> T:
    """Return what *awaitable* returns, in an event loop of its own; a minute is too long."""

    return asyncio.run(asyncio.wait_for(awaitable, 60))


async def cancelled(*_: object) -> Any:
    """Wait for an answer whose future is cancelled, as a chat library does that disconnects."""
    answer = asyncio.get_running_loop().create_future()
    answer.cancel()
    return await answer


class Sync:
    """The guard's sync form."""

    call = staticmethod(Guard.check_call)
    response = staticmethod(Guard.check_response)


class Async:
    """The guard's async form, in an event loop of its own for each check."""

    @staticmethod
    def call(guard: Guard, *args: Any, **options: Any) -> Decision:
        return run(guard.acheck_call(*args, **options))

    @staticmethod
    def response(guard: Guard, *args: Any, **options: Any) -> Decision:
        return run(guard.acheck_response(*args, **options))


in_both_forms = pytest.mark.parametrize("check", [Sync, Async])
