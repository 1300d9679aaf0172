"""The surface: 38 names, the kernel's own objects, closed, and the same to people and to tools."""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import jedi
import pytest
from jedi.api.environment import InterpreterEnvironment
from support.isolated import CONTRACT, HOMES
from support.tools import run_tool

import agent_mcp_governance

CONSUMER = Path(__file__).parent / "typing" / "api.py"
NAMES = agent_mcp_governance.__all__


def public(names: Any) -> list[str]:
    return sorted(name for name in names if not name.startswith("_"))


def test_the_surface_is_38_names() -> None:
    assert len(NAMES) == 38
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


def test_every_kernel_type_in_a_signature_or_field_is_exported() -> None:
    words = set(re.findall(r"\w+", json.dumps([*CONTRACT.values()])))
    modules = [vars(import_module(home)) for home in HOMES.values()]
    classes = filter(inspect.isclass, (module.get(word) for module in modules for word in words))
    found = {found.__name__ for found in classes if found.__module__.startswith("agent_os.")}
    assert len(found) >= 26
    assert found <= set(NAMES)


def test_what_the_warning_tells_one_to_call_is_exported(recwarn: pytest.WarningsRecorder) -> None:
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
    settings = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}
    settings["include"] = [str(CONSUMER)]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    report = json.loads(run_tool("basedpyright", "--outputjson", cwd=tmp_path).stdout)
    assert report["generalDiagnostics"] == []
    assert report["summary"]["filesAnalyzed"] == 1


def test_basedpyright_sees_the_names_and_knows_their_types(tmp_path: Path) -> None:
    command = ["basedpyright", "--verifytypes", "agent_mcp_governance", "--outputjson"]
    done = run_tool(*command, cwd=tmp_path, check=False)  # the kernel has an ambiguous type
    report = json.loads(done.stdout)["typeCompleteness"]
    exported = {symbol["name"] for symbol in report["symbols"] if symbol["isExported"]}
    assert exported == {f"agent_mcp_governance.{name}" for name in NAMES}
    for counts in ("exportedSymbolCounts", "otherSymbolCounts"):  # names, and what they have
        assert report[counts]["withUnknownType"] == 0


def test_jedi_completes_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jedi.settings, "cache_directory", str(tmp_path))
    code = "import agent_mcp_governance\nagent_mcp_governance."
    completions = jedi.Script(code, environment=InterpreterEnvironment()).complete()
    assert public(completion.name for completion in completions) == NAMES
