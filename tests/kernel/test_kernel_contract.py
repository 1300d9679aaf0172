"""What this package, its recipes and its README rely on in the kernel, name by name.

kernel_contract.json holds what the kernel was when it was last looked at. A kernel that differs
fails here, and the message says what changed. Once README, recipes and tests fit the new kernel,
write the file anew:

    python tests/test_kernel_contract.py --write
"""

import dataclasses
import difflib
import enum
import functools
import inspect
import json
import logging
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import agent_mcp_governance
from agent_mcp_governance import (
    ApprovalStatus,
    CredentialRedactor,
    GovernancePolicy,
    MCPGateway,
    MCPMetrics,
)

PATH = Path(__file__).with_name("contract.json")
CONTRACT = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}


PARAMETERS = re.compile(r", (?=\w+:|\*)")


class Verbatim(str):
    """Text that stands in a signature as it is, without quotes."""

    __repr__ = str.__str__


def default_text(value: object) -> str:
    if not inspect.isroutine(value):
        return repr(value)
    private = value.__name__.startswith("_")
    return "(private)" if private else f"{value.__module__}.{value.__qualname__}"


def signature_text(function: Any) -> str:
    """Return the signature, written alike by every Python."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(
            annotation=parameter.annotation
            if parameter.annotation is parameter.empty
            else Verbatim(parameter.annotation),
            default=parameter.default
            if parameter.default is parameter.empty
            else Verbatim(default_text(parameter.default)),
        )
        for parameter in signature.parameters.values()
    ]
    returned = signature.return_annotation
    if returned is not signature.empty:
        returned = Verbatim(returned)
    return str(signature.replace(parameters=parameters, return_annotation=returned))


def field_value(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return {"type": field.type, "default_factory": field.default_factory()}
    if field.default is not dataclasses.MISSING:
        return f"{field.type} = {default_text(field.default)}"
    return field.type


def method_text(attribute: object) -> str | None:
    if isinstance(attribute, property):
        return f"property {signature_text(attribute.fget)}"
    if isinstance(attribute, classmethod | staticmethod):
        return f"{type(attribute).__name__} {signature_text(attribute.__func__)}"
    return signature_text(attribute) if inspect.isfunction(attribute) else None


def describe(value: Any) -> dict[str, Any]:
    """Return what can be relied on in an exported name."""
    described: dict[str, Any] = {"module": value.__module__}
    if inspect.isfunction(value):
        return described | {"function": signature_text(value)}
    if issubclass(value, enum.Enum):
        return described | {"members": {member.name: member.value for member in value}}
    described["protocol"] = getattr(value, "_is_protocol", False)
    hidden_init = dataclasses.is_dataclass(value) or described["protocol"]
    if dataclasses.is_dataclass(value):
        described["frozen"] = vars(value)["__dataclass_params__"].frozen
        described["fields"] = {
            field.name: field_value(field) for field in dataclasses.fields(value)
        }
    attributes: dict[str, object] = {}
    for owner in reversed(value.__mro__):
        if owner.__module__.startswith("agent_os."):
            attributes.update(vars(owner))
    described["methods"] = {
        name: text
        for name, attribute in sorted(attributes.items())
        if not name.startswith("_") or (name == "__init__" and not hidden_init)
        if (text := method_text(attribute)) is not None
    }
    return described


def describe_modules() -> dict[str, Any]:
    """Return the kernel modules that our import runs, each with the name of its logger."""
    program = """
import json, sys, agent_mcp_governance
modules = [name for name in sys.modules if name.startswith("agent_os.")]
modules.remove("agent_os.integrations")
loggers = {name: getattr(vars(sys.modules[name]).get("logger"), "name", None) for name in modules}
print(json.dumps(loggers, sort_keys=True))
"""
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, check=True
    )
    return {"loggers": json.loads(done.stdout)}


def describe_redaction() -> dict[str, Any]:
    return {
        "placeholder": CredentialRedactor.redact("api_key=abcdef0123"),
        "patterns": {p.name: p.pattern.pattern for p in CredentialRedactor.PATTERNS},
        "pii_patterns": {p.name: p.pattern.pattern for p in CredentialRedactor.PII_PATTERNS},
    }


class Meters:
    """A meter provider, its meter and a counter, and a recorder; keeps what it is told."""

    def __init__(self) -> None:
        self.scope = ""
        self.labels: dict[str, list[str]] = {}
        self.stages: list[str] = []

    def get_meter(self, name: str, **_: str) -> "Meters":
        self.scope = name
        return self

    def create_counter(self, name: str, **_: str) -> Any:
        def add(_amount: int, labels: dict[str, str]) -> None:
            self.labels[name] = sorted(labels)

        counter = Meters()
        vars(counter)["add"] = add
        return counter

    def record_decision(self, *, stage: str, **_: object) -> None:
        self.stages.append(stage)

    def record_rate_limit_hit(self, **_: object) -> None:
        pass


def describe_metrics() -> dict[str, Any]:
    meters = Meters()
    recorder = MCPMetrics(meters)
    recorder.record_decision(allowed=True, agent_id="a", tool_name="t", stage="s")
    recorder.record_rate_limit_hit(agent_id="a", tool_name="t")
    recorder.record_scan(operation="o", tool_name="t", server_name="s")
    recorder.record_threats_detected(1, tool_name="t", server_name="s")
    return {"scope": meters.scope, "labels": meters.labels}


def describe_decisions() -> dict[str, Any]:
    """Return the reason that the gateway gives at each stage."""
    meters = Meters()
    answers: dict[str, Any] = {
        "approve": lambda *_: ApprovalStatus.APPROVED,
        "deny": lambda *_: ApprovalStatus.DENIED,
        "wait": lambda *_: ApprovalStatus.PENDING,
        "fail": lambda *_: 1 / 0,
    }

    def decide(tool: str, value: str, *, budget: int = 1, answer: str | None = None) -> str:
        policy = GovernancePolicy(
            allowed_tools=["tool", "denied"], blocked_patterns=["secret"], max_tool_calls=budget
        )
        gateway = MCPGateway(
            policy,
            denied_tools=["denied"],
            sensitive_tools=["tool"] if answer else [],
            approval_callback=answers.get(answer or ""),
            metrics=meters,  # type: ignore[arg-type]
        )
        return gateway.intercept_tool_call("agent", tool, {"key": value})[1]

    reasons = [
        decide("tool", "fine"),
        decide("denied", "fine"),
        decide("other", "fine"),
        decide("tool", "secret"),
        decide("tool", "$(id)"),
        decide("tool", "fine", budget=0),
        *[decide("tool", "fine", answer=answer) for answer in answers],
    ]
    return dict(zip(meters.stages, reasons, strict=True))


@functools.cache
def kernel() -> dict[str, Any]:
    """Return what the installed kernel is, in the shape of the contract."""
    names = agent_mcp_governance.__all__
    found = {name: describe(getattr(agent_mcp_governance, name)) for name in names} | {
        "(modules)": describe_modules(),
        "(redaction)": describe_redaction(),
        "(metrics)": describe_metrics(),
        "(decisions)": describe_decisions(),
    }
    # What has been through JSON compares equal to what comes from the file.
    result: dict[str, Any] = json.loads(json.dumps(found))
    return result


def flat(value: Any, path: str) -> dict[str, str]:
    """Return each leaf of *value* under the path that leads to it."""
    if not isinstance(value, dict | list):
        return {path: str(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    leaves = {path: "(empty)"} if not value else {}
    for key, item in items:
        leaves |= flat(item, f"{path}.{key}")
    return leaves


def changes(name: str, was: Any, is_now: Any) -> str:
    """Return what changed, a paragraph for each leaf; the empty text if nothing did."""
    before, after = flat(was, name), flat(is_now, name)
    paragraphs = []
    for path in sorted(before | after):
        old, new = before.get(path, "(nothing)"), after.get(path, "(nothing)")
        if old != new:
            # Signatures are long; of their parameters only those that differ are shown.
            parts = difflib.ndiff(PARAMETERS.split(old), PARAMETERS.split(new))
            lines = [f"    {part}" for part in parts if part.startswith(("-", "+"))]
            paragraphs.append("\n".join([path, *lines]))
    if not paragraphs:
        return ""
    heading = (
        f"agent-os-kernel {version('agent-os-kernel')} is not the kernel that this package was "
        "checked against. What to do stands in the README, section Compatibility. "
        "Below, - is how it was and + how it is."
    )
    return "\n".join([heading, *paragraphs])


@pytest.mark.parametrize("name", CONTRACT)
def test_the_kernel_is_what_we_rely_on(name: str) -> None:
    difference = changes(name, CONTRACT[name], kernel().get(name, {}))
    assert not difference, difference


def test_the_contract_holds_every_name_and_nothing_else() -> None:
    assert len(CONTRACT) == 38 + 4
    assert set(CONTRACT) == set(kernel())


def test_the_contract_holds_the_twelve_modules() -> None:
    assert len(CONTRACT["(modules)"]["loggers"]) == 12


def test_the_contract_holds_methods_fields_and_members() -> None:
    counted = {
        part: sum(len(entry.get(part, {})) for entry in CONTRACT.values())
        for part in ("methods", "fields", "members")
    }
    assert counted == {"methods": 100, "fields": 87, "members": 18}


def test_a_difference_says_what_changed_and_where_to_look() -> None:
    was = CONTRACT["MCPGateway"]
    method = "(self, agent_id: str, tool_name: str, params: object) -> tuple[bool, str]"
    methods = was["methods"] | {"intercept_tool_call": method, "close": "(self) -> None"}
    lines = changes("MCPGateway", was, was | {"methods": methods}).splitlines()
    assert "section Compatibility" in lines[0]
    assert lines[1:] == [
        "MCPGateway.methods.close",
        "    - (nothing)",
        "    + (self) -> None",
        "MCPGateway.methods.intercept_tool_call",
        "    - params: dict[str, Any]) -> tuple[bool, str]",
        "    + params: object) -> tuple[bool, str]",
    ]
    assert changes("MCPGateway", was, was) == ""


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_kernel_contract.py --write")
    logging.disable()  # the kernel reports the approval callback that fails on purpose
    PATH.write_text(json.dumps(kernel(), indent=1) + "\n", encoding="utf-8")
