"""The rules of the tests' tree: rooms shadow nothing, no test imports a test, no file is long."""

import ast
from collections import Counter
from pathlib import Path

from support import ROOT

TESTS = ROOT / "tests"
PYTHON_FILES = sorted([*TESTS.rglob("*.py"), *(ROOT / "src").rglob("*.py")])


def test_no_python_file_has_over_500_lines() -> None:
    assert len(PYTHON_FILES) > 30
    long = [path for path in PYTHON_FILES if len(path.read_text("utf-8").splitlines()) > 500]
    assert long == []


def imported(path: Path) -> set[str]:
    """Return the last part of each module that *path* imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    plain += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[-1] for name in plain}


def test_no_test_is_imported() -> None:
    tests = Counter(path.stem for path in TESTS.rglob("test_*.py"))
    assert len(tests) > 15
    assert [name for name, count in tests.items() if count > 1] == [], "the same name twice"
    assert "pathlib" in imported(Path(__file__))
    assert [path for path in PYTHON_FILES if imported(path) & {*tests, "conftest"}] == []


def test_a_room_named_like_a_library_does_not_shadow_it() -> None:
    rooms = {test.parent for test in TESTS.rglob("test_*.py")}
    assert {"guard", "kernel", "package", "servers"} <= {room.name for room in rooms}
    # Python prefers a package with this file anywhere on its path to a folder without it.
    assert [room for room in rooms if (room / "__init__.py").exists()] == []
    assert not {"support", "mcp_guard"} & {room.name for room in rooms}
    assert __name__ == "tests.package.test_rooms", "pytest imports by the path from the root"
