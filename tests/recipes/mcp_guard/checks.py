"""What a call and a response meet, in this order, and nothing else."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from agent_mcp_governance import ApprovalStatus, ResponsePolicy

from .audit import Check
from .decisions import Decision, Limits, Stage
from .flow import Failed, Part, Steps
from .options import ToolRules
from .patterns import Patterns
from .plain import Copy, add_inner, place, plain_copy
from .secrets import may_hold_secrets, redact_tree

Validate = Callable[[dict[str, Any]], dict[str, Any]]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Refused(Exception):  # noqa: N818 - no error, and it never leaves the guard
    """A check says no: at which stage, in words for the caller, and in detail for the log."""

    def __init__(self, stage: Stage, reason: str, detail: str = "") -> None:
        """Keep *stage*, *reason* and *detail*."""
        self.stage, self.reason, self.detail = stage, reason[:1_000], detail


@dataclass(frozen=True)
class Checks:
    """The parts and rules of a guard, and the order in which they are asked."""

    rules: Mapping[str, tuple[ToolRules, Patterns]]
    other: tuple[ToolRules, Patterns]  # for tools that are not allowed, when observing
    limiter: Part
    budget: Part
    approver: Part | None
    approve_all: bool
    detectors: tuple[Part, ...]
    on_finding: ResponsePolicy
    redact: Callable[[str], str]
    limits: Limits
    observe: bool

    def call(
        self,
        check: Check,
        caller: object,
        tool: object,
        params: object,
        extra: Mapping[str, Any] | None,
        validate: Validate | None,
    ) -> Steps[Decision]:
        """Yield the steps of a call; return the decision, or raise what refuses it."""
        self._identify(check, caller, tool)
        yield from self._take(check, "rate_limit", "Too many calls", self.limiter)
        rules, patterns = self._look_up(check, tool)
        copied = self._copy(params, extra or {}, rules)
        check.params = copied.value
        self._match(check, rules, patterns, copied)
        arguments = {key: copied.value[key] for key in copied.value if key not in (extra or ())}
        if validate:
            try:
                valid = validate(arguments)
            except ValueError as error:
                raise Refused("params", f"{error}") from None
            # What JSON in a string opens to may be no plain JSON: NaN, half a surrogate pair.
            arguments = arguments if valid is arguments else self._copy(valid, {}, rules).value
        yield from self._take(check, "budget", "The call budget is spent", self.budget)
        if rules.needs_approval or self.approve_all:
            yield from self._approve(check, {**copied.value, **arguments})
        return Decision(True, "allowed", "Allowed.", params=arguments)

    def response(
        self, check: Check, caller: object, tool: object, content: object, blobs: Iterable[str]
    ) -> Steps[Decision]:
        """Yield the steps of a response; return the decision, or raise what refuses it."""
        self._identify(check, caller, tool)
        rules, _ = self._look_up(check, tool)
        if (size := sum(map(len, blobs))) > self.limits.max_blob_chars:
            over = f"over {self.limits.max_blob_chars} characters of images, audio and files"
            raise Refused("response", f"The response is refused: {over}.", f"{size} of them")
        cap = rules.max_response_chars or self.limits.max_response_chars
        try:
            copy = plain_copy(content, cap, self.limits)
        except ValueError as error:
            raise Refused("response", f"The response is refused: {error}.") from None
        shown = copy.value
        if may_hold_secrets(copy.texts, self.redact):
            shown = redact_tree(copy.value, self.redact)
            check.findings += ["secret"] if shown != copy.value else []
        if self.detectors:
            yield from self._detect(check, rules, str(tool), shown)
        return Decision(True, "allowed", "Returned.", content=shown)

    def denied(self, caller: str, tool: object) -> str:
        """Return why *caller* may not call *tool*, by the allow list and its rules, or nothing."""
        if type(tool) is not str or tool not in self.rules:
            return "not on the allow list"
        allows = self.rules[tool][0].callers
        try:
            return "not for this caller" if allows and allows(caller) is not True else ""
        except Exception as error:  # noqa: BLE001 - it is the operator's own
            return f"callers failed: {type(error).__name__}"

    def _refuse(self, check: Check, stage: Stage, reason: str, detail: str = "") -> None:
        """Raise what the policy refuses, or note it if the guard only observes."""
        if not self.observe:
            raise Refused(stage, reason, detail)
        check.would_refuse.append(f"{stage}: {detail or reason}")

    def _identify(self, check: Check, caller: object, tool: object) -> None:
        name = tool if type(tool) is str else ""
        shown = name if name.isprintable() else ascii(name)
        check.tool = shown if len(shown) <= 128 else f"a name of {len(shown)} characters"
        if type(caller) is not str or not 0 < len(caller) <= 1_024 or _CONTROL.search(caller):
            raise Refused("caller", "The caller is not known.", f"a {type(caller).__name__}")
        check.caller = caller

    def _take(self, check: Check, stage: Stage, reason: str, counter: Part) -> Steps[None]:
        granted = yield counter, (check.caller,)
        if type(granted) is Failed:
            reason = "Calls cannot be counted now: try again later."
            self._refuse(check, stage, reason, granted.error)
        elif granted is not True:
            allowed = f" ({counter.allowance} are allowed)" if counter.allowance else ""
            self._refuse(check, stage, f"{reason}{allowed}: try again later.")

    def _look_up(self, check: Check, tool: object) -> tuple[ToolRules, Patterns]:
        if why := self.denied(check.caller or "", tool):
            self._refuse(check, "allow_list", "This tool is not allowed.", why)
        return self.rules.get(str(tool), self.other)

    def _copy(self, params: object, extra: Mapping[str, Any], rules: ToolRules) -> Copy:
        cap = rules.max_params_chars or self.limits.max_params_chars
        if type(params) is not dict or extra.keys() & params.keys():
            raise Refused("params", "The arguments are no JSON object, or have a reserved name.")
        try:
            copy = plain_copy({**params, **extra}, cap, self.limits)
            add_inner(copy.texts, cap, self.limits)
        except ValueError as error:
            raise Refused("params", f"The arguments are refused: {error}.") from None
        return copy

    def _match(self, check: Check, rules: ToolRules, patterns: Patterns, params: Copy) -> None:
        try:
            match = patterns.find(params.texts)
        except ValueError as error:
            raise Refused("params", f"The arguments are refused: {error}.") from None
        if match:
            detail = f"{place(match[1], params.value, self.redact)} matches {match[0]!r}"
            self._refuse(check, "pattern", "The arguments are not allowed.", detail)
        if rules.refuse_secrets and may_hold_secrets(params.texts, self.redact):
            # The last that changes is what JSON inside strings opens to.
            changed = (text for text in reversed(params.texts) if self.redact(text) != text)
            secret = next(changed, None)
            if secret is not None or redact_tree(params.value, self.redact) != params.value:
                detail = f"at {place(secret, params.value, self.redact)}"
                self._refuse(check, "secret", "The arguments hold a secret.", detail)

    def _approve(self, check: Check, params: dict[str, Any]) -> Steps[None]:
        if self.observe or not self.approver:
            self._refuse(check, "approval", "A person has to approve this.", "nobody was asked")
            return
        # Its own copy: what it changes must not reach the tool.
        answer = yield self.approver, (check.caller, check.tool, deepcopy(params))
        if type(answer) is Failed:
            raise Refused("approval", "The approver failed.", answer.error)
        # Not isinstance: an object can lie about its class.
        if type(answer) is not ApprovalStatus:
            detail = f"a {type(answer).__name__}, no ApprovalStatus"
            raise Refused("approval", "The approver gave no answer.", detail)
        check.approval = answer.value
        if answer is not ApprovalStatus.APPROVED:
            raise Refused("approval", f"A person has to approve this: {answer.value}.")

    def _detect(self, check: Check, rules: ToolRules, tool: str, content: Any) -> Steps[None]:
        found: list[str] = []
        for detector in self.detectors:
            said = yield detector, (tool, content)
            if type(said) is Failed:
                said = f"a detector failed: {said.error}"
            elif not isinstance(said, (str, list, tuple)):
                said = f"a detector returned a {type(said).__name__}, no list"
            found += [said] if isinstance(said, str) else [f"{finding}" for finding in said]
        check.findings += [self.redact(finding)[:100] for finding in found[:20]]
        if found and (rules.on_finding or self.on_finding) is ResponsePolicy.BLOCK:
            reason = "The response was withheld: a detector found something in it."
            self._refuse(check, "detector", reason, ", ".join(check.findings))
