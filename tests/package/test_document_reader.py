"""The reader of the documents finds what is in them and refuses what it does not understand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    goes on  # after it
  ```

## Table

| Name | Default |
|---|--:|
| `a \\| b` | 1 |

### A `thing`, twice
"""


def read(folder: Path, text: str, part: Callable[..., Any], *arguments: str) -> Any:
    documents.text.cache_clear()
    (folder / "SAMPLE.md").write_text(text, encoding="utf-8")
    return part(folder / "SAMPLE.md", *arguments)


def test_it_finds_what_is_there(tmp_path: Path) -> None:
    python, shell = read(tmp_path, SAMPLE, documents.blocks)
    assert (python.line, python.language, python.not_run) == (5, "python", None)
    assert (shell.line, shell.language, shell.not_run) == (13, "sh", "it needs a network")
    assert python.said == ["# no heading"]
    assert read(tmp_path, SAMPLE, documents.commands) == ["one --that   goes on"]
    assert read(tmp_path, SAMPLE, documents.links) == ["#a-thing-twice", "other.md#part"]
    anchors = {"a-thing-twice", "table", "a-thing-twice-1"}
    assert read(tmp_path, SAMPLE, documents.anchors) == anchors
    rows = read(tmp_path, SAMPLE, documents.table, "Table")
    assert rows == [["Name", "Default"], ["`a | b`", "1"]]


def test_it_refuses_what_it_does_not_understand(tmp_path: Path) -> None:
    good = "| a |\n|---|\n| 1 |\n"
    assert len(read(tmp_path, f"## Table\n{good}", documents.table, "Table")) == 2
    for bad in ("", "| a |\n|---|\n| 1 | 2 |", "| a |\n|---|", f"{good}\n{good}", f"{good}```py x"):
        with pytest.raises(AssertionError):
            read(tmp_path, f"## Table\n{bad}", documents.table, "Table")
