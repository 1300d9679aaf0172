"""The guard: its options, and its four methods."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any

from agent_mcp_governance import GovernancePolicy, MCPAuditSink, MCPMetricsRecorder, ResponsePolicy

from .audit import Check, Meter, Trail
from .checks import Checks, Refused, Validate
from .decisions import Approver, Decision, Detector, Limits, RateLimiter
from .flow import Failed, Part, Pool, Steps, adrive, drive
from .options import ToolRules, check_options, rules_by_tool
from .patterns import Patterns
from .secrets import redact
from .windows import Budget, Window

logger = logging.getLogger("mcp_guard")


class Guard:
    """Decides whether a tool call may run and whether its response may be returned.

    It takes the kernel's ``GovernancePolicy``, approval status, audit sinks and recorders, and
    counts and matches as the kernel does. Its ``MCPGateway`` and limiter it does not call: of
    these, two look-ups, two counts and a question are left once their limits are closed.

    Attributes:
        tools: The names on the allow list.
        limits: The caps.
        audit: Its ``failures`` are the entries that the sink did not take, ``unrecorded`` the last
            hundred of them.
        metrics: Its ``failures`` are those of the recorder.
    """

    def __init__(
        self,
        policy: GovernancePolicy,
        *,
        audit_sink: MCPAuditSink,
        max_calls_per_window: int | EllipsisType = ...,
        window_size: float | EllipsisType = ...,
        budget_period: float | EllipsisType | None = ...,
        tools: Mapping[str, ToolRules] | None = None,
        approver: Approver | None = None,
        detectors: Sequence[Detector] = (),
        on_finding: ResponsePolicy = ResponsePolicy.BLOCK,
        limiter: RateLimiter | None = None,
        budget: RateLimiter | None = None,
        redact: Callable[[str], str] = redact,
        metrics: MCPMetricsRecorder | None = None,
        caller_label: Callable[[str], str] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        observe: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the options. An option whose default is ``...`` has to be given.

        Args:
            policy: Its name, allowed_tools, blocked_patterns, max_tool_calls and
                require_human_approval count. Its max_tool_calls is 10 if you do not set it.
            audit_sink: Gets one entry for each decision. If it fails, the call is refused.
            max_calls_per_window: Calls of one caller in any *window_size*, refused ones included.
            window_size: Seconds.
            budget_period: Seconds after which a caller's max_tool_calls are whole again; None:
                never, for the life of this guard. What is refused before approval spends none.
            tools: Rules of single tools, by name.
            approver: Asked where approval is needed, the approval_callback of the kernel.
            detectors: Look at each response, after secrets are cut out.
            on_finding: What happens when a detector finds something or fails: BLOCK or LOG.
            limiter: Counts instead of the two window options, for instance in Redis.
            budget: Counts instead of max_tool_calls and *budget_period*.
            redact: Cuts secrets out of a text: of responses, and of audit entries.
            metrics: Counts decisions.
            caller_label: The metric label of a caller id. None: all have the label "any".
            limits: Caps on size, shape, memory and threads.
            observe: Whether what the policy would refuse is let through, with "would_refuse" in
                the audit entry, and nobody asked. Unknown callers, what is too large or no plain
                JSON and what cannot be audited are refused all the same, and secrets cut out.
            clock: What gives the time of window and budget, in seconds.

        Raises:
            ValueError: An option is missing or wrong; the sentence says which.
        """
        given: dict[str, Any] = locals()
        check_options(given)
        rules = rules_by_tool(policy, tools)
        if approver is None and (
            policy.require_human_approval or any(rule.needs_approval for rule, _ in rules.values())
        ):
            raise ValueError("a tool needs approval, and there is no approver to ask")
        counted = clock, limits.max_callers
        if limiter is None:
            limiter = Window(given["max_calls_per_window"], given["window_size"], *counted)
        if budget is None:
            budget = Budget(policy.max_tool_calls, given["budget_period"], *counted)
        threads = Pool(limits.max_threads)
        self.limits, self.tools = limits, frozenset(rules)
        self._checks = Checks(
            rules=rules,
            other=(ToolRules(), Patterns(policy.blocked_patterns)),
            limiter=Part(limiter, threads, "try_acquire"),
            budget=Part(budget, threads, "try_acquire"),
            approver=None if approver is None else Part(approver, Pool(limits.max_approvals)),
            approve_all=policy.require_human_approval,
            detectors=tuple(Part(detector, threads) for detector in detectors),
            on_finding=on_finding,
            redact=redact,
            limits=limits,
            observe=observe,
        )
        self.audit = Trail(audit_sink, redact, limits.max_audit_chars, threads)
        self.metrics = Meter(metrics, caller_label, policy.name, self.tools)

    def may_call(self, caller: str, tool: str) -> bool:
        """Return whether the allow list and the tool's rules let *caller* call *tool*.

        It is for lists of tools: it counts nothing, and audits nothing.
        """
        named = bool(caller) and type(tool) is str
        return named and (self._checks.observe or not self._checks.denied(caller, tool))

    def check_call(
        self,
        caller: str,
        tool: str,
        params: dict[str, Any],
        *,
        extra: Mapping[str, Any] | None = None,
        validate: Validate | None = None,
    ) -> Decision:
        """Decide whether a tool call may run.

        Args:
            caller: Who calls: an identity that somebody verified. Two spellings are two callers.
            tool: The tool's name.
            params: Its arguments, plain JSON.
            extra: What the client sends besides them, by name. It is checked alike, and the
                approver and the audit log see it among the params.
            validate: Says before budget and approval what the tool makes of its checked arguments.
                It returns them, or raises ValueError with a sentence for the caller.

        Returns:
            The decision. When it is allowed, run the tool with ``decision.params``. What ends the
            process, such as ``KeyboardInterrupt``, is raised once it is audited.
        """
        return drive(self._audited(Check("call"), caller, tool, params, extra, validate))

    async def acheck_call(
        self,
        caller: str,
        tool: str,
        params: dict[str, Any],
        *,
        extra: Mapping[str, Any] | None = None,
        validate: Validate | None = None,
    ) -> Decision:
        """Decide in an event loop of asyncio as ``check_call`` does, and return the decision.

        *caller*, *tool*, *params*, *extra* and *validate* are as there. The loop never stands still
        for a part that may wait. What ends the task, such as ``CancelledError``, is raised once it
        is audited; budget that was being taken meanwhile may be spent.
        """
        return await adrive(self._audited(Check("call"), caller, tool, params, extra, validate))

    def check_response(
        self, caller: str, tool: str, content: Any, *, blobs: Sequence[str] = ()
    ) -> Decision:
        """Decide on a response of *tool* to *caller*, or an error text, and return the decision.

        *content* is plain JSON. *blobs* are images, audio and files of it in base64, which are
        measured and not looked into. Return ``decision.content`` if the decision allows it. What
        ends the process is raised once it is audited.
        """
        return drive(self._audited(Check("response"), caller, tool, content, blobs))

    async def acheck_response(
        self, caller: str, tool: str, content: Any, *, blobs: Sequence[str] = ()
    ) -> Decision:
        """Decide in an event loop of asyncio as ``check_response`` does, and return the decision.

        *caller*, *tool*, *content* and *blobs* are as there, and the rest as in ``acheck_call``.
        """
        return await adrive(self._audited(Check("response"), caller, tool, content, blobs))

    def _audited(self, check: Check, *args: Any) -> Steps[Decision]:
        """Check *args* and write down once what is decided, whatever happens meanwhile."""
        entry = None
        try:
            try:
                decision = yield from getattr(self._checks, check.direction)(check, *args)
            except Refused as refusal:
                check.detail = refusal.detail
                decision = Decision(False, refusal.stage, refusal.reason)
            except Exception as error:  # noqa: BLE001 - a guard that breaks has to refuse
                # The text of an exception can hold a secret: only its type is said.
                logger.error("the guard failed: %s", type(error).__name__)
                check.detail = type(error).__name__
                decision = Decision(False, "error", "The guard failed.")
            decision, entry = self.audit.entry(check, decision)
            written = yield self.audit.sink, (entry,)
            if type(written) is Failed and decision.allowed:
                decision = Decision(False, "audit", "It could not be written to the audit log.")
        except BaseException as error:
            if entry is None:
                decision = Decision(False, "cancelled", "The check was interrupted.")
                self.metrics.count(check, decision)
                yield self.audit.sink, (self.audit.entry(check, decision)[1],)
            elif not isinstance(error, (CancelledError, GeneratorExit)):  # or the sink goes on
                self.audit.failed(error, entry)
            raise
        self.metrics.count(check, decision)
        return decision
