"""A plain-JSON copy of a value, and every text in it, JSON inside strings opened."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import json
import math
import re
from collections.abc import Callable
from typing import Any

from .decisions import Limits

Link = tuple[Any, Any] | None
"""Where a text stands: the link of what holds it, and its key or index. The whole is None."""

JSON = "(JSON)"  # the step into JSON inside a string
NOTHING = object()

_SURROGATE = re.compile("[\ud800-\udfff]")
_ENDS = {"{": "}", "[": "]", '"': '"'}


def plain_copy(value: Any, max_chars: int, limits: Limits) -> tuple[Any, list[str]]:
    """Return a copy of *value* that shares nothing with it, and all keys and strings in it.

    Raises:
        ValueError: It is no plain JSON, has over *max_chars* characters, keys and punctuation
            included, or is over the *limits*; the sentence says which.
    """
    top = [value]
    todo: list[tuple[Any, int]] = [(top, 0)]  # copies whose children are still the caller's
    strings: list[str] = []
    chars = items = 0
    while todo:
        parent, depth = todo.pop()
        for slot, node in parent.items() if type(parent) is dict else enumerate(parent):
            kind = type(node)
            if kind is str:
                strings.append(node)
            elif kind is dict or kind is list:
                if items + len(node) > limits.max_items:
                    raise ValueError(f"over {limits.max_items} keys and elements")
                if depth >= limits.max_depth:
                    raise ValueError(f"over {limits.max_depth} levels")
                # Look at the copy only: another thread may be changing the original.
                parent[slot] = copied = node.copy()
                items += len(copied)
                strings += copied if kind is dict else ()
                todo.append((copied, depth + 1))
            else:
                chars += _size(node)
    _check_strings(strings)
    if chars + items + sum(map(len, strings)) > max_chars:
        raise ValueError(f"over {max_chars} characters")
    return top[0], strings


def _check_strings(strings: list[Any]) -> None:
    for kind in {*map(type, strings)} - {str}:  # a key's
        raise ValueError(f"no plain JSON, for a {kind.__name__} in it")
    if any(_SURROGATE.search(text) for text in strings if not text.isascii()):
        raise ValueError("no plain JSON, for half of a surrogate pair in it")


def _size(leaf: Any) -> int:
    if leaf is None or type(leaf) is bool or (type(leaf) is float and math.isfinite(leaf)):
        return 4
    if type(leaf) is int and leaf.bit_length() <= 1_024:
        return 1 + leaf.bit_length() // 3
    raise ValueError(f"no plain JSON, for a {type(leaf).__name__} in it")


def texts(value: Any, limits: Limits) -> list[tuple[str, Link]]:
    """Return every key and leaf of *value*, a plain copy, as JSON has it, and where it stands.

    A string comes without its quotes, and JSON inside it is opened.

    Raises:
        ValueError: It cannot be opened fully, or is over the *limits* then; the sentence says why.
    """
    found: list[tuple[str, Link]] = []
    todo: list[tuple[Any, Link, int]] = [(value, None, 0)]
    items = 0
    while todo:
        node, link, depth = todo.pop()
        if depth > limits.max_depth:
            raise ValueError(f"over {limits.max_depth} levels, with JSON inside strings")
        kind = type(node)
        if kind is dict:
            found += [(key, (link, key)) for key in node]
            todo += [(item, (link, key), depth + 1) for key, item in node.items()]
        elif kind is list:
            todo += [(item, (link, place), depth + 1) for place, item in enumerate(node)]
        elif kind is str:
            found.append((node, link))
            if (inner := opened(node)) is not NOTHING:
                todo.append((inner, (link, JSON), depth + 1))
        else:
            found.append((str(node) if kind is int else json.dumps(node), link))
        items += 1
        if items + len(todo) > limits.max_items + 2:  # the whole is none, and may be JSON text
            raise ValueError(f"over {limits.max_items} keys and elements, with JSON inside strings")
    return found


def opened(text: str) -> Any:
    """Return what JSON parsing makes of *text*, or ``NOTHING`` if it is no container or string.

    Raises:
        ValueError: It is JSON that the parser gives up on, too deep or with too long a number.
    """
    inner = text.strip(" \t\n\r")
    if len(inner) < 2 or _ENDS.get(inner[0]) != inner[-1]:
        return NOTHING
    try:
        return json.loads(inner)
    except json.JSONDecodeError:
        return NOTHING
    except (ValueError, RecursionError):
        raise ValueError("JSON inside a string that cannot be opened") from None


def path(link: Link, redact: Callable[[str], str]) -> str:
    """Return in words where a text stands, such as ``to[0].name``, in 200 characters at most.

    Keys come through *redact* before they are cut short: half a secret is no longer known as one.
    """
    steps: list[str] = []
    while link is not None:
        link, step = link
        steps.append(f"[{step}]" if type(step) is int else f".{redact(step)[:60]}")
    return "".join(reversed(steps))[:200].lstrip(".") or "the whole"
