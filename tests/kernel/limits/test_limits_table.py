"""The table of limits and the tests that pin them, row by row."""

import ast
import re
from pathlib import Path

from support.documents import KERNEL, README, section, table

HEAD = ["Limit", "What", "What you can do"]


def pins() -> dict[str, list[str]]:
    """Return the names of the limits of each file, by the title in its docstring."""
    found = {}
    for path in Path(__file__).parent.glob("test_*_limits.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        decorators = [
            test.decorator_list
            for test in ast.walk(module)
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_")
        ]
        calls = [call for [call] in decorators if isinstance(call, ast.Call)]
        assert {ast.unparse(call.func) for call in calls} == {"limit"}, path.name
        assert len(calls) == len(decorators), path.name
        title = (ast.get_docstring(module) or "").removeprefix("Limits of ").removesuffix(".")
        found[title] = [ast.literal_eval(call.args[0]) for call in calls]
    return found


def rows() -> dict[str, list[list[str]]]:
    """Return the rows of the tables of limits, by the heading above each."""
    headings = re.findall(r"^### (.+)$", section(KERNEL, "Limits"), re.MULTILINE)
    assert headings
    tables = {heading: table(KERNEL, heading) for heading in headings}
    assert [head for head, *_ in tables.values()] == [HEAD] * len(headings)
    return {heading: body for heading, (_, *body) in tables.items()}


def test_each_row_has_one_test_and_each_test_one_row() -> None:
    tabled = [(heading, row[0]) for heading, body in rows().items() for row in body]
    pinned = [(heading, name) for heading, names in pins().items() for name in names]
    assert {*tabled} ^ {*pinned} == set()
    for pairs in (tabled, pinned):
        assert len({name for _, name in pairs}) == len(pairs), "two limits have one name"


def test_every_row_says_what_happens_and_what_can_be_done() -> None:
    assert [row for body in rows().values() for row in body if not all(row)] == []


def test_the_ten_worst_of_the_readme_are_rows_of_the_table() -> None:
    _, *worst = table(README, "Limits")
    every = [row[1:] for body in rows().values() for row in body]
    assert len(worst) == 10
    assert [row for row in worst if row not in every] == []
