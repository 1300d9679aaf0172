"""What this package, its recipes and its documents rely on in the kernel, name by name.

contract.json holds the kernel as it was when somebody last looked. A kernel that differs fails
here, and the message says what changed and what to do.
"""

import dataclasses
import enum
import inspect
import json
import re
import sys
from collections.abc import Iterator
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
FEATURES = {
    "members": "the member",
    "fields": "the field",
    "attributes": "the attribute",
    "function": "its signature",
    "module": "its module",
    "is": "its kind",
}


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


def difference(old: str, new: str) -> str:
    """Say what was lost and what came; long signatures and lists by their differing parts."""
    before, after = (re.split(r", (?=\w+:|\*|')|(?= -> )", text) for text in (old, new))
    lost = [part for part in before if part not in after]
    come = [part for part in after if part not in before]
    if len(before) < 2 or not lost + come:
        return f"was `{old}` and is `{new}`"
    said = [f"lost `{part.strip()}`" for part in lost] + [f"got `{part.strip()}`" for part in come]
    return " and ".join(said)


def changes(name: str, was: dict[str, Any], is_now: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each thing that changed in a name."""
    for feature, word in FEATURES.items():
        old, new = was.get(feature, {}), is_now.get(feature, {})
        if feature in ("function", "module", "is"):
            if old != new:
                yield f"{name}: {word} {difference(old or 'none', new or 'none')}"
            continue
        gone = [key for key in old if key not in new]
        come = [key for key in new if key not in old]
        for key in gone:
            same = [other for other in come if new[other] == old[key]]
            if same:
                come.remove(same[0])
                yield f"{name}: {word} {key} is now called {same[0]}"
            else:
                yield f"{name}: {word} {key} is gone; it was `{old[key]}`"
        yield from (f"{name}: {word} {key} is new: `{new[key]}`" for key in come)
        for key in old:
            if key in new and old[key] != new[key]:
                yield f"{name}: {word} {key} {difference(str(old[key]), str(new[key]))}"


@pytest.mark.parametrize("name", CONTRACT)
def test_the_kernel_is_what_we_rely_on(name: str) -> None:
    found = list(changes(name, CONTRACT[name], kernel().get(name, {})))
    assert not found, "\n".join([WHAT_TO_DO, *found])


def test_the_contract_holds_every_name_and_nothing_else() -> None:
    assert list(CONTRACT) == agent_mcp_governance.__all__, WHAT_TO_DO
    # and of each more than where it is
    assert [name for name, entry in CONTRACT.items() if not {*entry} - {"module", "is"}] == []
    assert {feature for entry in CONTRACT.values() for feature in entry} == set(FEATURES)


def test_a_difference_is_said_in_words() -> None:
    was = {
        "is": "a frozen record",
        "fields": {"parameters": "dict[str, Any]", "reason": "str", "status": "str = 'open'"},
        "attributes": {"call": "(self, agent: str, params: dict[str, Any]) -> bool"},
    }
    is_now = {
        "is": "a record",
        "fields": {"params": "dict[str, Any]", "status": "str = 'new'"},
        "attributes": {"call": "(self, agent: str, params: object) -> bool", "close": "(self)"},
    }
    assert list(changes("Entry", was, is_now)) == [
        "Entry: the field parameters is now called params",
        "Entry: the field reason is gone; it was `str`",
        "Entry: the field status was `str = 'open'` and is `str = 'new'`",
        "Entry: the attribute close is new: `(self)`",
        "Entry: the attribute call lost `params: dict[str, Any])` and got `params: object)`",
        "Entry: its kind was `a frozen record` and is `a record`",
    ]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/kernel/test_contract.py --write")
    PATH.write_text(json.dumps(kernel(), indent=1) + "\n", encoding="utf-8")
