"""The one reader of the documents: their blocks, tables, links and headings.

Every function takes the path of a document, from those named below. A block that cannot run has the
reason in the line before it, which no reader of the rendered page sees:

    <!-- not run: .ci/run runs it in an environment of its own -->
"""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from support import ROOT

README = ROOT / "README.md"
RECIPES = ROOT / "tests" / "recipes" / "README.md"
KERNEL = ROOT / "tests" / "kernel" / "README.md"
DOCUMENTS = (README, RECIPES, KERNEL, *sorted((ROOT / ".github").glob("*.md")))


_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<not_run>[^\n]+) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$\n?",
    re.DOTALL | re.MULTILINE,
)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """Fenced code: where it stands, its language and, if it cannot run, the reason."""

    path: Path
    line: int
    language: str
    code: str
    not_run: str | None

    @property
    def said(self) -> list[str]:
        """What it says that it prints: the lines of its ``#>`` comments."""
        return re.findall(r"^ *#> ?(.*)$", self.code, re.MULTILINE)

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> list[Block]:
    whole = text(path)
    return [
        Block(path, whole.count("\n", 0, match.start("code")), **match.groupdict())
        for match in _BLOCK.finditer(whole)
    ]


def prose(path: Path) -> str:
    """Return the text without its blocks, none of which may be written in a way unknown here."""
    rest = _BLOCK.sub("", text(path))
    assert "```" not in rest, f"a block of {path} is not understood"
    return rest


def anchors(path: Path) -> list[str]:
    """Return what ``#…`` of a link may name: each heading in the form that GitHub gives it."""
    titles = [title.lower() for _, title in _HEADING.findall(prose(path))]
    return [re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles]


def links(path: Path) -> list[str]:
    """Return the targets of all links, whatever they lead to."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(path)))


def section(path: Path, heading: str) -> str:
    """Return the prose under *heading*, up to the next one of its level or above."""
    whole = prose(path)
    starts = [match for match in _HEADING.finditer(whole) if match[2] == heading]
    assert len(starts) == 1, f"{path}: {len(starts)} headings {heading!r}"
    rest = whole[starts[0].end() :]
    end = re.search(rf"^#{{1,{len(starts[0][1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(path: Path, heading: str) -> list[list[str]]:
    """Return the one table between *heading* and the next heading: its head, then its rows.

    Cells are without the spaces around them, but keep their markup. Every row has as many as the
    head; a bar inside a cell is written ``\\|``, and comes out as ``|``.
    """
    own = _HEADING.split(section(path, heading), maxsplit=1)[0]
    found = re.findall(r"(?:^ *\|.*\n?)+", own, re.MULTILINE)
    assert len(found) == 1, f"{path}: {len(found)} tables under {heading!r}"
    lines = [line.strip().removeprefix("|").removesuffix("|") for line in found[0].splitlines()]
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    head, rule, *body = [[cell.strip().replace(r"\|", "|") for cell in row] for row in cells]
    assert set("".join(rule)) <= set("-:"), f"{path}: no table under {heading!r}"
    assert body, f"{path}: no rows under {heading!r}"
    assert {len(row) for row in body} == {len(head)}, f"{path}: ragged rows under {heading!r}"
    return [head, *body]
