"""The surface: 38 names, the kernel's own objects, closed, and the same to people and to tools."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jedi
import pytest
from jedi.api.environment import InterpreterEnvironment
from support.isolated import HOMES
from support.tools import run_tool

import agent_mcp_governance

CONSUMER = Path(__file__).parent / "typing" / "api.py"
NAMES = agent_mcp_governance.__all__
CLASSES = [
    value for name in NAMES if isinstance(value := getattr(agent_mcp_governance, name), type)
]


def public(names: Any) -> list[str]:
    return sorted(name for name in names if not name.startswith("_"))


def test_the_surface_is_38_names() -> None:
    assert len(NAMES) == 38
    assert sorted(HOMES) == NAMES
    assert public(vars(agent_mcp_governance)) == NAMES
    assert public(dir(agent_mcp_governance)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_kernels_own_object_with_a_docstring_of_its_own(name: str) -> None:
    value = getattr(agent_mcp_governance, name)
    assert value is getattr(import_module(HOMES[name]), name)
    assert (value.__module__, value.__qualname__) == (HOMES[name], name)
    text = vars(value)["__doc__"] if isinstance(value, type) else value.__doc__
    assert text.strip()
    assert not text.startswith(f"{name}("), "written by dataclasses, not by a person"


def is_the_kernels(value: Any) -> bool:
    return isinstance(value, type) and value.__module__.split(".")[0] == "agent_os"


def kernel_types(annotation: Any) -> Iterator[type]:
    """Find the kernel's types in an annotation, however deep they stand in it."""
    if is_the_kernels(annotation):
        yield annotation
    for part in annotation if isinstance(annotation, list) else get_args(annotation):
        yield from kernel_types(part)


def public_functions(cls: type) -> Iterator[FunctionType]:
    """Yield what a user can call or read on *cls*, the kernel's base classes included."""
    for owner in filter(is_the_kernels, cls.__mro__):
        for name, member in vars(owner).items():
            if name.startswith("_") and name != "__init__":
                continue
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if isinstance(function, FunctionType):
                yield function


def test_every_kernel_type_in_a_signature_or_field_is_exported() -> None:
    threat = agent_mcp_governance.MCPThreat
    assert list(kernel_types(Callable[[threat], None])) == [threat]
    functions = {function for cls in CLASSES for function in public_functions(cls)}
    functions.add(agent_mcp_governance.load_mcp_security_config)
    annotations = [hint for function in functions for hint in get_type_hints(function).values()]
    hints = [(name, hint) for cls in CLASSES for name, hint in get_type_hints(cls).items()]
    fields = [hint for name, hint in hints if not name.startswith("_")]
    found = {kernel for hint in (*annotations, *fields) for kernel in kernel_types(hint)}
    assert found - set(CLASSES) == set(), "not exported"
    assert len(annotations) >= 369
    assert len(fields) >= 89
    assert len(found) >= 27


def test_what_the_kernels_warning_tells_a_user_to_call_is_exported(
    recwarn: pytest.WarningsRecorder,
) -> None:
    agent_mcp_governance.MCPSecurityScanner()
    kernel = import_module("agent_os.mcp_security")
    words = re.findall(r"\w+", " ".join(str(warning.message) for warning in recwarn))
    mentioned = {word for word in words if inspect.getmodule(vars(kernel).get(word)) is kernel}
    assert mentioned == {"MCPSecurityScanner", "load_mcp_security_config"}
    assert mentioned <= set(NAMES)


def test_the_consumers_code_uses_every_name() -> None:
    used = re.findall(r"\bmcp\.(\w+)", CONSUMER.read_text(encoding="utf-8"))
    assert set(used) == {*NAMES, "__version__"}


def test_basedpyright_accepts_a_consumers_code(tmp_path: Path) -> None:
    settings = {
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "include": [str(CONSUMER)],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = run_tool("basedpyright", "--outputjson", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["generalDiagnostics"] == []
    assert report["summary"]["filesAnalyzed"] == 1


def test_basedpyright_sees_the_names_and_knows_their_types(tmp_path: Path) -> None:
    command = ["basedpyright", "--verifytypes", "agent_mcp_governance", "--outputjson"]
    done = run_tool(*command, cwd=tmp_path)
    report = json.loads(done.stdout)["typeCompleteness"]
    exported = {symbol["name"] for symbol in report["symbols"] if symbol["isExported"]}
    assert exported == {f"agent_mcp_governance.{name}" for name in NAMES}
    assert report["exportedSymbolCounts"]["withUnknownType"] == 0


def test_jedi_completes_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jedi.settings, "cache_directory", str(tmp_path))
    code = "import agent_mcp_governance\nagent_mcp_governance."
    completions = jedi.Script(code, environment=InterpreterEnvironment()).complete()
    assert public(completion.name for completion in completions) == NAMES
