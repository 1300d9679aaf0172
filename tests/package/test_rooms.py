"""The rules of the tests' tree: rooms shadow nothing, no test imports a test, no file is long."""

import ast
import sys
from collections import Counter
from pathlib import Path

from support import ROOT
from support.isolated import run_isolated
from support.tools import run_tool

TESTS = ROOT / "tests"
PYTHON_FILES = sorted([*TESTS.rglob("*.py"), *(ROOT / "src").rglob("*.py")])
IMPORTED_BY_NAME = {"support", "mcp_guard"}
ROOMS = sorted({test.parent for test in TESTS.rglob("test_*.py")})


def test_no_python_file_has_over_500_lines() -> None:
    assert len(PYTHON_FILES) > 30
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PYTHON_FILES
    }
    assert {path: count for path, count in lines.items() if count > 500} == {}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}


def test_no_test_is_imported() -> None:
    tests = Counter(path.stem for path in TESTS.rglob("test_*.py"))
    assert len(tests) > 15
    assert [name for name, count in tests.items() if count > 1] == [], "the same name twice"
    names = {path: {name.split(".")[-1] for name in imported(path)} for path in PYTHON_FILES}
    assert "pytest" in names[Path(__file__).with_name("test_surface.py")]
    assert {path: found for path in names if (found := names[path] & {*tests, "conftest"})} == {}


IMPORT_ROOMS = """
import importlib, sys
*rooms, libraries = {paths}
sys.path = [*rooms, libraries, *sys.path]
for room in {rooms}:
    print(importlib.import_module(room).__file__)
"""


def test_a_room_named_like_a_library_does_not_shadow_it(tmp_path: Path) -> None:
    rooms = [room.name for room in ROOMS]
    assert {"guard", "kernel", "package", "servers"} <= set(rooms)
    assert not IMPORTED_BY_NAME & set(rooms)
    libraries = [tmp_path / room / "__init__.py" for room in rooms]
    for library in libraries:
        library.parent.mkdir()
        library.touch()
    paths = [str(folder) for folder in (ROOT, TESTS, TESTS / "recipes", tmp_path)]
    printed = run_isolated(IMPORT_ROOMS.format(paths=paths, rooms=rooms))
    assert printed.split() == [str(library) for library in libraries]
    paths = [path for room in rooms if room in sys.modules for path in sys.modules[room].__path__]
    assert [path for path in paths if path.startswith(str(TESTS))] == [], "pytest imported a room"


def test_one_test_starts_one_worker() -> None:
    one = f"{__file__}::{test_no_test_is_imported.__name__}"
    done = run_tool("pytest", "-p", "no:cacheprovider", one)
    assert "1 worker [1 item]" in done.stdout, done.stdout
