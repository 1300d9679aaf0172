"""The table of limits and the tests that pin them, row by row."""

import ast
import re
from pathlib import Path

from support.documents import KERNEL, README, section, table

HEAD = ["Limit", "What", "What you can do"]


def pins() -> list[tuple[str, str]]:
    """Return each file's title, from its docstring, with the name of each limit that it pins."""
    found = []
    for path in Path(__file__).parent.glob("test_*_limits.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        title = (ast.get_docstring(module) or "").removeprefix("Limits of ").removesuffix(".")
        for test in ast.walk(module):
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                assert test.decorator_list, f"{path.name}: {test.name} pins no limit"
                for pin in test.decorator_list:
                    assert ast.unparse(pin.func) == "limit", f"{path.name}: {test.name}"
                    found.append((title, ast.literal_eval(pin.args[0])))
    return found


def rows() -> list[tuple[str, list[str]]]:
    """Return the rows of the tables of limits, each with the heading above it."""
    headings = re.findall(r"^### (.+)$", section(KERNEL, "Limits"), re.MULTILINE)
    tables = {heading: table(KERNEL, heading) for heading in headings}
    assert [head for head, *_ in tables.values()] == [HEAD] * len(headings)
    found = [(heading, row) for heading, (_, *body) in tables.items() for row in body]
    assert [row for _, row in found if not all(row)] == []
    return found


def test_each_row_has_one_test_and_each_test_one_row() -> None:
    tabled, pinned = [(heading, row[0]) for heading, row in rows()], pins()
    assert {*tabled} ^ {*pinned} == set()
    for pairs in (tabled, pinned):
        assert len({name for _, name in pairs}) == len(pairs), "two limits have one name"


def test_the_ten_worst_of_the_readme_are_rows_of_the_table() -> None:
    _, *worst = table(README, "Limits")
    every = [row[1:] for _, row in rows()]
    assert len(worst) == 10
    assert [row for row in worst if row not in every] == []
