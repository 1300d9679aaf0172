"""The reader of the documents finds what is in them and refuses what it does not understand."""

from pathlib import Path

import pytest
from support import documents

SAMPLE = """\
# A `thing`, twice

See [there](#a-thing-twice), [`this`](other.md#part) and `[not](this)`.

```python
print("# no heading")  # [no](link)
#> # no heading
```

- In a list:

  <!-- not run: it needs a network -->
  ```sh
  # first
  one --that \\
    goes on && two  # after it
  three '#4'
  ```

## Table

| Name | Default |
|---|--:|
| `a \\| b` | 1 |

### A `thing`, twice

| Other |
|---|
| 1 |
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    path = tmp_path / "SAMPLE.md"
    path.write_text(SAMPLE, encoding="utf-8")
    return path


def test_blocks_have_a_place_a_language_and_the_reason_why_they_cannot_run(sample: Path) -> None:
    python, shell = documents.blocks(sample)
    assert (str(python), python.language, python.not_run) == ("SAMPLE.md:5", "python", None)
    assert python.said == ["# no heading"]
    assert (str(shell), shell.language, shell.not_run) == (
        "SAMPLE.md:13",
        "sh",
        "it needs a network",
    )
    assert documents.blocks(sample, "sh") == [shell]
    assert documents.commands(sample) == ["one --that   goes on && two", "three '#4'"]


def test_headings_and_links_are_those_outside_code(sample: Path) -> None:
    assert documents.headings(sample) == ["A `thing`, twice", "Table", "A `thing`, twice"]
    assert documents.anchors(sample) == {"a-thing-twice", "table", "a-thing-twice-1"}
    assert documents.links(sample) == ["#a-thing-twice", "other.md#part"]


def test_a_table_is_its_head_and_its_rows_under_its_own_heading(sample: Path) -> None:
    assert documents.table(sample, "Table") == [["Name", "Default"], ["`a | b`", "1"]]


@pytest.mark.parametrize(
    ("text", "heading"),
    [
        ("## Table\n\nNone.\n", "Table"),
        ("## Table\n\n| a |\n|---|\n| 1 | 2 |\n", "Table"),
        ("## Table\n\n| a |\n|---|\n", "Table"),
        ("## Table\n\n| a |\n|---|\n| 1 |\n\n| a |\n|---|\n| 1 |\n", "Table"),
        ("## Table\n\n| a |\n|---|\n| 1 |\n", "Missing"),
        ("## Table\n\n| a |\n|---|\n| 1 |\n\n```python title\n1\n```\n", "Table"),
    ],
)
def test_what_it_does_not_understand_fails(tmp_path: Path, text: str, heading: str) -> None:
    path = tmp_path / "ODD.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError):
        documents.table(path, heading)
