"""What the guard decides, its caps, and the parts that can be plugged in."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agent_mcp_governance import ApprovalStatus

Stage = Literal[
    "caller", "rate_limit", "allow_list", "params", "pattern", "secret", "budget", "approval",
    "response", "detector", "audit", "cancelled", "error", "allowed",
]  # fmt: skip


class RateLimiter(Protocol):
    """What counts calls: the window and the budget, in memory or elsewhere.

    It may have two more attributes. ``blocking = False`` says that it never waits and may run in
    the event loop; without it a thread runs it. ``allowance`` says in words what it allows, such as
    "60 calls in 60 seconds", for refusals.
    """

    def try_acquire(self, caller: str) -> bool | Awaitable[bool]:
        """Take one call of *caller*. Return whether there was one: only True grants it."""


Detector = Callable[[str, Any], "Sequence[str] | Awaitable[Sequence[str]]"]
"""Takes the tool's name and a response, plain JSON. Returns in a word or two each what it found."""

Approver = Callable[[str, str, dict[str, Any]], "ApprovalStatus | Awaitable[ApprovalStatus]"]
"""Takes the caller, the tool's name and the checked params. Only ``APPROVED`` approves."""


@dataclass(frozen=True)
class Decision:
    """What the guard decided.

    Attributes:
        allowed: Whether the call may run, or the response may be returned.
        stage: Where it was decided; "allowed" if nothing refused it.
        reason: One sentence that may be shown to the caller.
        params: The checked copy of an allowed call's params: run the tool with these.
        content: The checked copy of an allowed response: return this.
    """

    allowed: bool
    stage: Stage
    reason: str
    params: dict[str, Any] = field(default_factory=dict, repr=False)
    content: Any = field(default=None, repr=False)

    @property
    def refusal(self) -> str:
        """What to tell the caller of a refused call or response."""
        return f"Refused ({self.stage}): {self.reason}"


@dataclass(frozen=True)
class Limits:
    """Caps on what one call, one response and one process may cost.

    Attributes:
        max_params_chars: Characters of one call's params, keys and punctuation included; with what
            JSON inside strings opens to, four times as many.
        max_response_chars: The same for one response.
        max_blob_chars: Characters of base64 of the images, audio and files of one response.
        max_depth: Levels of nesting, at most 100; also of JSON inside strings.
        max_items: Keys and elements; also of JSON inside strings.
        max_audit_chars: Characters of an audit entry, besides caller and tool. Params are cut
            first, then what was found.
        max_callers: Callers that are counted at a time. One more is refused unless one of them has
            a window, or a budget's period, that is over.
        max_threads: Steps that wait in a thread at a time, of the async form. One more is refused.
        max_approvals: The same for approvers that are no coroutine functions.

    Raises:
        ValueError: A cap is not a positive integer, or max_depth is over 100.
    """

    max_params_chars: int = 100_000
    max_response_chars: int = 250_000
    max_blob_chars: int = 10_000_000
    max_depth: int = 64
    max_items: int = 50_000
    max_audit_chars: int = 16_000
    max_callers: int = 10_000
    max_threads: int = 64
    max_approvals: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"Limits.{name} must be a positive integer, not {value!r}")
        if self.max_depth > 100:
            raise ValueError("Limits.max_depth must be at most 100: some steps recurse")
