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
        require("ToolRules.refuse_secrets", self.refuse_secrets, bool)
        require("ToolRules.blocked_patterns", self.blocked_patterns, list, tuple)
        Patterns(self.blocked_patterns)
        for name in ("max_params_chars", "max_response_chars"):
            if (value := getattr(self, name)) is not None:
                require_number(f"ToolRules.{name}", value, whole=True)
        if self.on_finding is not None:
            require_block_or_log("ToolRules.on_finding", self.on_finding)
        if self.callers is not None:
            require_function("ToolRules.callers", self.callers)


def require(name: str, value: object, *kinds: type) -> None:
    """Raise ValueError unless *value* of the option *name* is one of *kinds*; name the first."""
    if not isinstance(value, kinds):
        raise ValueError(f"{name} must be a {kinds[0].__name__}, not {value!r:.80}")


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


def require_block_or_log(name: str, value: object) -> None:
    """Raise ValueError unless *value* of the option *name* can be done about a finding."""
    if value not in (ResponsePolicy.BLOCK, ResponsePolicy.LOG):  # it says not what to cut out
        raise ValueError(f"{name} must be ResponsePolicy.BLOCK or LOG, not {value!r:.80}")


def check_options(given: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the options *given* to a guard is missing or of the wrong kind."""
    kinds = {"policy": GovernancePolicy, "limits": Limits, "observe": bool, "detectors": Sequence}
    for name, kind in kinds.items():
        require(name, given[name], kind)
    for detector in given["detectors"]:
        require_callable("each of detectors", detector)
    require_block_or_log("on_finding", given["on_finding"])
    require_callable("audit_sink", given["audit_sink"], "record")
    optional = {"limiter": "try_acquire", "budget": "try_acquire", "metrics": "record_decision"}
    for name, method in {**optional, "approver": ""}.items():
        if given[name] is not None:
            require_callable(name, given[name], method)
    require_function("redact", given["redact"])
    require_function("clock", given["clock"])
    if given["caller_label"] is not None:
        require_function("caller_label", given["caller_label"])
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
