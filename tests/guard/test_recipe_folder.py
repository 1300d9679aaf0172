"""The guard is a folder to copy anywhere, documented, typed, linted and no longer than it says."""

import ast
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mcp_guard
import pytest
from support import ROOT
from support.tools import run_tool

import agent_mcp_governance

FOLDER = ROOT / "tests" / "recipes" / "mcp_guard"
MODULES = sorted(FOLDER.glob("*.py"))
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
ORIGIN = (
    "# SPDX-License-Identifier: MIT. From agent-mcp-governance "
    f"{agent_mcp_governance.__version__}, recipe mcp_guard {mcp_guard.__version__}."
)
REDIS_AND_SIGNING = {
    "live_nonces",
    "redis_sessions",
    "redis_stores",
    "signed_envelopes",
    "signed_messages",
}
# The package itself does not import these: not everybody has what they need.
IMPORTED_BY_USERS = {
    "definitions",
    "fastmcp_sdk",
    "mcp_sdk",
    "redis_sessions",
    "redis_stores",
    "signed_messages",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


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


def imported_from(folder: Path, package: str) -> set[str]:
    """Import every module of the copy; return what came from *folder*."""
    names = [f".{module.stem}" for module in MODULES if module.stem != "__init__"]
    done = run_tool(
        "python", "-I", "-W", "error::ImportWarning", "-c", IMPORT, folder, package, *names
    )
    assert done.returncode == 0, done.stderr
    assert f"{package}.guard" in done.stdout.split()
    return set(done.stdout.split()) - {package, *(package + name for name in names)}


def test_it_works_in_a_package_of_ones_own(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "yourapp" / "mcp_guard")
    (tmp_path / "yourapp" / "__init__.py").touch()
    assert imported_from(tmp_path, "yourapp.mcp_guard") == {"yourapp"}


def test_it_works_from_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "app.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for module in MODULES:
            file.write(module, f"mcp_guard/{module.name}")
    assert imported_from(archive, "mcp_guard") == set()


def test_it_takes_no_module_that_stands_beside_it(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "mcp_guard")
    for name in ("guard", "mcp_server", *(module.stem for module in MODULES)):
        # `secrets` is of the standard library, which others import by that name.
        if name not in {"__init__", *sys.stdlib_module_names}:
            (tmp_path / f"{name}.py").write_text("raise ImportError(__name__)\n")
    assert imported_from(tmp_path, "mcp_guard") == set()


@each_module
def test_a_file_says_where_it_is_from_and_its_licence(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text.splitlines()[tree.body[0].end_lineno or 0] == ORIGIN


def test_it_is_as_short_as_it_says() -> None:
    lines = {module.stem: len(module.read_text("utf-8").splitlines()) for module in MODULES}
    assert len(lines) > 12
    assert {name: count for name, count in lines.items() if count > 300} == {}
    assert set(lines) > REDIS_AND_SIGNING
    assert sum(lines[name] for name in set(lines) - REDIS_AND_SIGNING) <= 2_600


def public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Yield public classes, functions and methods, ``__init__`` included, with their names."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node.name, node
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                # Those that begin with on_ are hooks, which an SDK calls.
                if isinstance(part, Function) and not re.match(r"on_|_(?!_init__)", part.name):
                    yield f"{node.name}.{part.name}", part


def of_the_body(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of *function* that are not of a function inside it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def undocumented(function: Function) -> list[str]:
    """Return what the docstring leaves out. Prose may name arguments, as *name*, and say Return."""
    text = ast.get_docstring(function) or ""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
    missing = [name for name in names if not re.search(rf"\n +{name}: |\*{name}\*", text)]
    nodes = list(of_the_body(function))
    is_property = any(ast.unparse(item) == "property" for item in function.decorator_list)
    returns = any(isinstance(node, ast.Return) and node.value for node in nodes)
    said = "eturn " in text.partition("\n\n")[0] or "\nReturns:" in text
    if returns and not is_property and not said:
        missing.append("Returns")
    if any(isinstance(node, ast.Raise) for node in nodes) and "\nRaises:" not in text:
        missing.append("Raises")
    return missing


def test_what_a_docstring_leaves_out_is_noticed() -> None:
    sample = ast.parse(
        'def bare(a, *, b):\n    """Add."""\n    if a: raise ValueError\n    return a + b\n'
        'def full(a):\n    """Return *a*."""\n    return a\n'
    )
    bare, full = sample.body
    assert undocumented(bare) == ["a", "b", "Returns", "Raises"]
    assert undocumented(full) == []


def listed(tree: ast.Module) -> set[str]:
    """Return the module's ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_everything_that_users_call_is_documented() -> None:
    trees = {module.stem: ast.parse(module.read_text(encoding="utf-8")) for module in MODULES}
    exported = set().union(*map(listed, trees.values()))
    found = {
        f"{stem}.{name}": node
        for stem, tree in trees.items()
        for name, node in public(tree)
        if name.partition(".")[0] in exported or (stem in IMPORTED_BY_USERS and not listed(tree))
    }
    assert {"Guard", "ToolRules", "Limits", "Decision"} <= exported
    assert len(found) > 40
    assert [name for name, node in found.items() if not ast.get_docstring(node)] == []
    lacks = {name: undocumented(node) for name, node in found.items() if isinstance(node, Function)}
    assert {name: missing for name, missing in lacks.items() if missing} == {}


def test_it_is_strictly_typed(cache: pytest.Cache) -> None:
    folder = cache.mkdir("mypy-recipe")  # without it the SDKs are analysed anew each time
    result = run_tool("mypy", "--strict", "--cache-dir", folder, FOLDER)
    assert result.returncode == 0, result.stdout
    assert f"no issues found in {len(MODULES)} source files" in result.stdout


def test_it_is_linted_and_formatted() -> None:
    checked = run_tool("ruff", "check", "--no-cache", FOLDER)
    assert checked.returncode == 0, checked.stdout
    formatted = run_tool("ruff", "format", "--no-cache", "--check", FOLDER)
    assert formatted.returncode == 0, formatted.stdout
    assert f"{len(MODULES)} files already formatted" in formatted.stdout
