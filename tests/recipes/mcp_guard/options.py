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
        for name in ("needs_approval", "refuse_secrets"):
            require(f"ToolRules.{name}", getattr(self, name), bool)
        for name in ("max_params_chars", "max_response_chars"):
            if (value := getattr(self, name)) is not None:
                require_number(f"ToolRules.{name}", value, whole=True)
        given = self.blocked_patterns
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"ToolRules.blocked_patterns must be a list, not {given!r:.80}")
        object.__setattr__(self, "blocked_patterns", tuple(given))  # a list may be changed later
        Patterns(given)
        if self.on_finding is not None:
            check_on_finding("ToolRules.on_finding", self.on_finding)
        if self.callers is not None:
            require_function("ToolRules.callers", self.callers)


def require(name: str, value: object, kind: type) -> None:
    """Raise ValueError unless *value* of the option *name* is a *kind*."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, not {value!r:.80}")


def require_callable(name: str, value: object, method: str = "") -> None:
    """Raise ValueError unless *value* of the option *name*, or its *method*, can be called."""
    call = getattr(value, method, None) if method else value
    if not callable(call) or isinstance(value, type):
        wanted = f"an object with a method {method}()" if method else "callable and no class"
        raise ValueError(f"{name} must be {wanted}, not {value!r:.80}")


def require_function(name: str, value: object) -> None:
    """Raise ValueError unless *value* of the option *name* can be called and not awaited."""
    if not callable(value) or inspect.iscoroutinefunction(value):
        raise ValueError(f"{name} must be callable and not async, not {value!r:.80}")


def require_number(name: str, value: object, *, whole: bool = False) -> None:
    """Raise ValueError unless *value* of the option *name* is a positive number."""
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 < value <= 1e15:  # type: ignore[operator]
        kind = "integer" if whole else "number"
        raise ValueError(f"{name} must be a positive {kind}, not {value!r:.80}")


def check_on_finding(name: str, value: object) -> None:
    """Raise ValueError unless *value* of the option *name* says what to do with a finding."""
    require(name, value, ResponsePolicy)
    if value is ResponsePolicy.SANITIZE:
        raise ValueError(f"{name} must be BLOCK or LOG: a finding says not what could be cut out")


def check_policy(policy: GovernancePolicy) -> None:
    """Raise ValueError unless *policy* can be kept, and names the tools that may be called."""
    require("policy", policy, GovernancePolicy)
    policy.validate()  # assigning to a policy is not validated
    if type(policy.max_tool_calls) is not int or type(policy.require_human_approval) is not bool:
        raise ValueError("policy.max_tool_calls must be an int, require_human_approval a bool")
    if not policy.allowed_tools:
        raise ValueError("policy.allowed_tools is empty, which would allow every tool: name them")
    for name in policy.allowed_tools:
        if not 0 < len(name) <= 128 or not name.isprintable() or name != name.strip():
            raise ValueError(f"policy.allowed_tools has {name!r}, which is no tool's name")
        if set(name) & set("*?["):
            raise ValueError(f"policy.allowed_tools has {name!r}: tools are named, not matched")


def check_options(given: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the options *given* to a guard is missing or of the wrong kind."""
    check_policy(given["policy"])
    check_on_finding("on_finding", given["on_finding"])
    for name, kind in {"limits": Limits, "observe": bool, "detectors": Sequence}.items():
        require(name, given[name], kind)
    for detector in given["detectors"]:
        require_callable("each of detectors", detector)
    require_callable("audit_sink", given["audit_sink"], "record")
    require_function("redact", given["redact"])
    require_function("clock", given["clock"])
    if given["caller_label"] is not None:
        require_function("caller_label", given["caller_label"])
    optional = {"limiter": "try_acquire", "budget": "try_acquire", "metrics": "record_decision"}
    for name, method in {**optional, "approver": ""}.items():
        if given[name] is not None:
            require_callable(name, given[name], method)
    window = ("max_calls_per_window", "window_size")
    for replacement, names in (("limiter", window), ("budget", ("budget_period",))):
        if any((given[replacement] is None) is (given[name] is ...) for name in names):
            raise ValueError(f"give either {' and '.join(names)}, in seconds, or a {replacement}")
    if given["limiter"] is None:
        require_number("max_calls_per_window", given["max_calls_per_window"], whole=True)
        require_number("window_size", given["window_size"])
    if given["budget"] is None and given["budget_period"] is not None:
        require_number("budget_period", given["budget_period"])


def rules_by_tool(
    policy: GovernancePolicy, tools: Mapping[str, ToolRules] | None
) -> dict[str, tuple[ToolRules, Patterns]]:
    """Return the rules and patterns of each tool that *policy* allows.

    Raises:
        ValueError: *tools* has rules for a tool that is not allowed, or that are none.
    """
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
