"""What applies to each tool, and sentences for a configuration that is wrong."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_mcp_governance import GovernancePolicy, ResponsePolicy

from .decisions import Limits
from .patterns import Pattern, Patterns


@dataclass(frozen=True)
class ToolRules:
    """What applies to one tool, on top of the policy or instead of the guard's own setting.

    Attributes:
        needs_approval: Whether the approver is asked before each call.
        blocked_patterns: More patterns for its params, in the form of the policy's.
        refuse_secrets: Whether params with a secret in a documented format are refused.
        max_params_chars: Characters of its params, instead of the limits'.
        max_response_chars: Characters of its responses, instead of the limits'.
        on_finding: What happens when a detector finds something, instead of the guard's setting.
        callers: Says of a caller id whether it may call the tool. None: everybody may.
    """

    needs_approval: bool = False
    blocked_patterns: Sequence[Pattern] = ()
    refuse_secrets: bool = False
    max_params_chars: int | None = None
    max_response_chars: int | None = None
    on_finding: ResponsePolicy | None = None
    callers: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        require("ToolRules.needs_approval", self.needs_approval, bool)
        require("ToolRules.blocked_patterns", self.blocked_patterns, _LIST)
        Patterns(self.blocked_patterns)
        require("ToolRules.refuse_secrets", self.refuse_secrets, bool)
        require("ToolRules.max_params_chars", self.max_params_chars, _COUNT, None)
        require("ToolRules.max_response_chars", self.max_response_chars, _COUNT, None)
        require("ToolRules.on_finding", self.on_finding, _ON_FINDING, None)
        require("ToolRules.callers", self.callers, _FUNCTION, None)


Kind = tuple[str, Callable[[Any], bool]]  # what an option has to be: in words, and as a test

_LIST: Kind = ("a list", lambda it: isinstance(it, (list, tuple)))
_COUNT: Kind = ("a positive integer", lambda it: type(it) is int and 0 < it <= 1e15)
_SECONDS: Kind = ("a positive number", lambda it: type(it) in (int, float) and 0 < it <= 1e15)
_PART: Kind = ("callable and no class", lambda it: callable(it) and not isinstance(it, type))
_FUNCTION: Kind = (
    "callable and not async",
    lambda it: callable(it) and not inspect.iscoroutinefunction(it),
)
_ON_FINDING: Kind = (
    "ResponsePolicy.BLOCK or LOG",  # a finding does not say what could be cut out
    lambda it: it in (ResponsePolicy.BLOCK, ResponsePolicy.LOG),
)


def _with(method: str) -> Kind:
    words = f"an object with a method {method}()"
    return words, lambda it: callable(getattr(it, method, None)) and not isinstance(it, type)


def require(name: str, value: object, kind: type | Kind, *others: object) -> None:
    """Raise ValueError unless *value* of the option *name* is of *kind*, or one of *others*."""
    if isinstance(kind, type):
        kind = f"a {kind.__name__}", kind.__instancecheck__
    words, fits = kind
    if value not in others and not fits(value):
        raise ValueError(f"{name} must be {words}, not {value!r:.80}")


def check_options(given: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the options *given* to a guard is missing or of the wrong kind."""
    require("policy", given["policy"], GovernancePolicy)
    require("audit_sink", given["audit_sink"], _with("record"))
    require("approver", given["approver"], _PART, None)
    require("detectors", given["detectors"], Sequence)
    for detector in given["detectors"]:
        require("each of detectors", detector, _PART)
    require("on_finding", given["on_finding"], _ON_FINDING)
    require("limiter", given["limiter"], _with("try_acquire"), None)
    require("budget", given["budget"], _with("try_acquire"), None)
    require("redact", given["redact"], _FUNCTION)
    require("metrics", given["metrics"], _with("record_decision"), None)
    require("caller_label", given["caller_label"], _FUNCTION, None)
    require("limits", given["limits"], Limits)
    require("observe", given["observe"], bool)
    require("clock", given["clock"], _FUNCTION)
    window = ("max_calls_per_window", "window_size")
    for replacement, names in (("limiter", window), ("budget", ("budget_period",))):
        if any((given[replacement] is None) is (given[name] is ...) for name in names):
            raise ValueError(f"give either {' and '.join(names)}, in seconds, or a {replacement}")
    require("max_calls_per_window", given["max_calls_per_window"], _COUNT, ...)
    require("window_size", given["window_size"], _SECONDS, ...)
    require("budget_period", given["budget_period"], _SECONDS, ..., None)


def rules_by_tool(
    policy: GovernancePolicy, tools: Mapping[str, ToolRules] | None
) -> dict[str, tuple[ToolRules, Patterns]]:
    """Return the rules and patterns of each tool that *policy* allows.

    Raises:
        ValueError: *policy* cannot be kept or names no tool, or *tools* has rules for another.
    """
    policy.validate()  # assigning to a policy is not validated
    require("policy.require_human_approval", policy.require_human_approval, bool)
    if not policy.allowed_tools:
        raise ValueError("policy.allowed_tools is empty, which would allow every tool: name them")
    for name in policy.allowed_tools:
        if not 0 < len(name) <= 128 or not name.isprintable() or name != name.strip():
            raise ValueError(f"policy.allowed_tools has {name!r}, which is no tool's name")
        if set(name) & set("*?["):
            raise ValueError(f"policy.allowed_tools has {name!r}: tools are named, not matched")
    given = {} if tools is None else tools
    require("tools", given, Mapping)
    for name, rules in given.items():
        if name not in policy.allowed_tools:
            near = difflib.get_close_matches(str(name), policy.allowed_tools, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"tools has rules for {name!r}, which is not on the allow list{hint}")
        require(f"tools[{name!r}]", rules, ToolRules)
    table = {**dict.fromkeys(policy.allowed_tools, ToolRules()), **given}
    return {
        name: (rules, Patterns([*policy.blocked_patterns, *rules.blocked_patterns]))
        for name, rules in table.items()
    }
