"""Each recipe is a file to copy, alone or with guard.py beside it, documented, typed and linted."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

RECIPES = sorted(ROOT.glob("tests/recipes/*.py"))
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own tools
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_recipes_are_these() -> None:
    assert [recipe.stem for recipe in RECIPES] == [
        "fastmcp_server",
        "guard",
        "mcp_server",
        "redis_stores",
        "signed_messages",
    ]


NEED_THE_GUARD = {"fastmcp_server", "mcp_server"}
IMPORT = """
import sys
folder, recipe = sys.argv[1:]
sys.path.insert(0, folder)
__import__(recipe)
for name, module in sys.modules.items():
    if (getattr(module, "__file__", None) or "").startswith(folder):
        print(name)
"""


@each_recipe
def test_a_recipe_works_with_at_most_the_guard_beside_it(recipe: Path, tmp_path: Path) -> None:
    needed = {recipe.stem, "guard"} if recipe.stem in NEED_THE_GUARD else {recipe.stem}
    for name in needed:
        shutil.copy(recipe.with_stem(name), tmp_path)
    result = run("-I", "-c", IMPORT, tmp_path, recipe.stem)
    assert result.stderr == ""
    assert set(result.stdout.split()) == needed


def public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Yield public classes, functions and methods, ``__init__`` included, with their names."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node.name, node
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, Function) and not re.match(r"_(?!_init__)", part.name):
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
    """Return what the docstring leaves out. A single line has to name arguments, as *name*."""
    text = ast.get_docstring(function) or ""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
    missing = [name for name in names if not re.search(rf"\n +{name}: |\*{name}\*", text)]
    nodes = list(of_the_body(function))
    is_property = any(ast.unparse(item) == "property" for item in function.decorator_list)
    returns = any(isinstance(node, ast.Return) and node.value for node in nodes)
    if returns and not is_property and ("\nReturns:" if "\n" in text else "eturn ") not in text:
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


@each_recipe
def test_everything_public_is_documented(recipe: Path) -> None:
    tree = ast.parse(recipe.read_text())
    assert ast.get_docstring(tree)
    found = dict(public(tree))
    assert len(found) >= 4
    for name, node in found.items():
        assert ast.get_docstring(node), f"{name} has no docstring"
        if isinstance(node, Function):
            assert not undocumented(node), f"{name} lacks {undocumented(node)}"


def test_the_recipes_are_strictly_typed(cache: pytest.Cache) -> None:
    folder = cache.mkdir("mypy")  # without it the SDKs are analysed anew each time
    result = run("-m", "mypy", "--strict", "--cache-dir", folder, *RECIPES)
    assert result.returncode == 0, result.stdout
    assert f"no issues found in {len(RECIPES)} source files" in result.stdout


def test_the_recipes_are_linted_and_formatted() -> None:
    checked = run("-m", "ruff", "check", "--no-cache", *RECIPES)
    assert checked.returncode == 0, checked.stdout
    formatted = run("-m", "ruff", "format", "--no-cache", "--check", *RECIPES)
    assert formatted.returncode == 0, formatted.stdout
    assert f"{len(RECIPES)} files already formatted" in formatted.stdout
