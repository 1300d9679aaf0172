"""The guard is a folder to copy anywhere, documented and no longer than it says.

.ci/run checks its types, its lint and that every part has a docstring.
"""

import ast
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import mcp_guard
import pytest
from support import ROOT
from support.tools import run_tool

import agent_mcp_governance

FOLDER = ROOT / "tests" / "recipes" / "mcp_guard"
MODULES = sorted(FOLDER.glob("*.py"))
ORIGIN = (
    "# SPDX-License-Identifier: MIT. From agent-mcp-governance "
    f"{agent_mcp_governance.__version__}, recipe mcp_guard {mcp_guard.__version__}."
)
IMPORT = """
import importlib, sys
folder, package, *modules = sys.argv[1:]
sys.path.insert(0, folder)
for module in ["", *modules]:
    importlib.import_module(package + module)
for name, module in sys.modules.items():
    if (getattr(module, "__file__", None) or "").startswith(folder):
        print(name)
"""


def imported_from(folder: Path | str, package: str) -> set[str]:
    """Import every module of the copy; return what came from *folder*."""
    names = [f".{module.stem}" for module in MODULES if module.stem != "__init__"]
    options = ["-I", "-W", "error::ImportWarning", "-c", IMPORT]
    found = run_tool("python", *options, folder, package, *names).stdout.split()
    assert f"{package}.guard" in found
    return {*found} - {package, *(package + name for name in names)}


def test_it_works_in_a_package_of_ones_own(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "yourapp" / "mcp_guard")
    (tmp_path / "yourapp" / "__init__.py").touch()
    assert imported_from(tmp_path, "yourapp.mcp_guard") == {"yourapp"}


def test_it_works_from_an_archive(tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "app"), "zip", FOLDER.parent, FOLDER.name)
    assert imported_from(archive, "mcp_guard") == set()


def test_it_takes_no_module_that_stands_beside_it(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "mcp_guard")
    for name in ("guard", "mcp_server", *(module.stem for module in MODULES)):
        # `secrets` is of the standard library, which others import by that name.
        if name not in {"__init__", *sys.stdlib_module_names}:
            (tmp_path / f"{name}.py").write_text("raise ImportError(__name__)\n")
    assert imported_from(tmp_path, "mcp_guard") == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_file_says_where_it_is_from_and_its_licence(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text.splitlines()[tree.body[0].end_lineno or 0] == ORIGIN


def test_it_is_as_short_as_it_says() -> None:
    lines = {module.stem: len(module.read_text("utf-8").splitlines()) for module in MODULES}
    assert len(lines) > 12
    assert {name: count for name, count in lines.items() if count > 300} == {}
    without = [name for name in lines if not re.match("redis_|signed_|live_nonces", name)]
    assert sum(lines[name] for name in without) <= 2_455


def functions_of_users(module: ModuleType) -> Iterator[FunctionType]:
    """Yield what *module* exports, or else defines: functions, and methods of its classes."""
    own = [name for name, value in vars(module).items() if inspect.getmodule(value) is module]
    for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
        value = getattr(module, name)
        for member in vars(value).values() if isinstance(value, type) else [value]:
            written = inspect.isfunction(member) and member.__code__.co_filename != "<string>"
            # Those that begin with on_ are hooks, which an SDK calls.
            if written and re.match(r"__init__|(?!_|on_)", member.__name__):
                yield member


def undocumented(function: FunctionType) -> list[str]:
    """Return what the docstring leaves out. Prose may name arguments, as *name*, and say Return."""
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    names = [name for name in signature.parameters if name != "self"]
    missing = [name for name in names if not re.search(rf"\n +{name}: |\*{name}\*", text)]
    said = "eturn " in text.partition("\n\n")[0] or "\nReturns:" in text
    if signature.return_annotation is not None and not said:
        missing.append("Returns")
    raises = re.search(r"^ +raise\b", inspect.getsource(function), re.MULTILINE)
    if raises and "\nRaises:" not in text:
        missing.append("Raises")
    return missing


def bare(argument: int) -> int:
    raise ValueError(argument)


def test_everything_that_users_call_says_what_it_takes_returns_and_raises() -> None:
    assert undocumented(bare) == ["argument", "Returns", "Raises"]
    # The package itself does not import these: not everybody has what they need.
    others = "definitions|fastmcp_sdk|mcp_sdk|redis_.*|signed_messages"
    names = [f"mcp_guard.{module.stem}" for module in MODULES if re.fullmatch(others, module.stem)]
    found = {
        f"{module.__name__}.{function.__qualname__}": undocumented(function)
        for module in (mcp_guard, *map(import_module, names))
        for function in functions_of_users(module)
    }
    assert len(found) > 45
    assert {name: missing for name, missing in found.items() if missing} == {}
