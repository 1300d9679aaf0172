"""What this package, its recipes and its documents rely on in the kernel, name by name.

contract.json holds the kernel as it was when somebody last looked. A kernel that differs fails
here, and the message says what changed and what to do.
"""

import dataclasses
import difflib
import enum
import inspect
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import agent_mcp_governance

PATH = Path(__file__).with_name("contract.json")
CONTRACT = json.loads(PATH.read_text(encoding="utf-8"))
WHAT_TO_DO = (
    f"agent-os-kernel {version('agent-os-kernel')} is not the kernel that this package was checked "
    "against. Mend what each difference touches: .github/CONTRIBUTING.md, Take a kernel release. "
    "Then pin the new kernel: python tests/kernel/test_contract.py --write"
)


def signature(function: Any) -> str:
    """Return the signature, written alike by every Python and in every process."""
    return re.sub(r"'| at 0x\w+", "", str(inspect.signature(function)))


def field(field: "dataclasses.Field[Any]") -> str:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return str(field.type) + ("" if default is dataclasses.MISSING else f" = {default!r}")


def attribute(value: Any) -> Any:
    """Return what a method or a constant of a class is; of patterns their names and texts."""
    if isinstance(value, property):
        return f"property {signature(value.fget)}"
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} {signature(value.__func__)}"
    if isinstance(value, tuple):
        return {item.name: item.pattern.pattern for item in value}
    return signature(value) if inspect.isfunction(value) else repr(value)


def kind(value: Any) -> str:
    if getattr(value, "_is_protocol", False):
        return "a protocol"
    if dataclasses.is_dataclass(value):
        return "a frozen record" if vars(value)["__dataclass_params__"].frozen else "a record"
    return "an enumeration" if issubclass(value, enum.Enum) else "a class"


def describe(value: Any) -> dict[str, Any]:
    """Return what can be relied on in an exported name."""
    if inspect.isfunction(value):
        return {"module": value.__module__, "is": "a function", "function": signature(value)}
    described: dict[str, Any] = {"module": value.__module__, "is": kind(value)}
    if issubclass(value, enum.Enum):
        return described | {"members": {member.name: member.value for member in value}}
    if dataclasses.is_dataclass(value):
        described["fields"] = {f.name: field(f) for f in dataclasses.fields(value)}
    attributes = {
        name: attribute(found)
        for owner in reversed(value.__mro__)
        if owner.__module__.startswith("agent_os.")
        for name, found in vars(owner).items()
        if not name.startswith("_") or (name == "__init__" and described["is"] == "a class")
    }
    for name in described.get("fields", {}):
        attributes.pop(name, None)  # its default, which stands there already
    return described | ({"attributes": dict(sorted(attributes.items()))} if attributes else {})


def kernel() -> dict[str, Any]:
    """Return what the installed kernel is, in the shape of the contract."""
    return {
        name: describe(getattr(agent_mcp_governance, name)) for name in agent_mcp_governance.__all__
    }


@pytest.mark.parametrize("name", CONTRACT)
def test_the_kernel_is_what_we_rely_on(name: str) -> None:
    before, now = (
        json.dumps(entry, indent=1).splitlines() for entry in (CONTRACT[name], kernel().get(name))
    )
    difference = difflib.ndiff(before, now)
    found = [line for line in difference if not line.startswith(" ")]
    assert not found, "\n".join([WHAT_TO_DO, *found])


def test_the_contract_holds_every_name_and_nothing_else() -> None:
    assert list(CONTRACT) == agent_mcp_governance.__all__, WHAT_TO_DO
    # and of each more than where it is
    assert [name for name, entry in CONTRACT.items() if not {*entry} - {"module", "is"}] == []
    features = {feature for entry in CONTRACT.values() for feature in entry}
    assert features == {"module", "is", "function", "members", "fields", "attributes"}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/kernel/test_contract.py --write")
    PATH.write_text(json.dumps(kernel(), indent=1) + "\n", encoding="utf-8")
