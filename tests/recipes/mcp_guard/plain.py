"""A plain-JSON copy of a value, and every text in it, JSON inside strings opened."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .decisions import Limits
from .secrets import with_all_pairs

NOTHING = object()

_SURROGATE = re.compile("[\ud800-\udfff]")
_ENDS = {"{": "}", "[": "]", '"': '"'}
_DECODER = json.JSONDecoder(object_pairs_hook=with_all_pairs)


class Copy(NamedTuple):
    """A plain-JSON value that nobody else has, and what is known of it."""

    value: Any
    strings: list[str]  # its keys, and the strings in it


def plain_copy(value: Any, max_chars: int, limits: Limits) -> Copy:
    """Return a copy of *value* that shares nothing with it.

    Raises:
        ValueError: It is no plain JSON, has over *max_chars* characters, keys and punctuation
            included, or is over the *limits*; the sentence says which.
    """
    top = [value]
    level: list[Any] = [top]  # copies whose children are still the caller's
    strings: list[str] = []
    chars = items = depth = 0
    while level:
        below: list[Any] = []
        for parent in level:
            for slot, node in parent.items() if type(parent) is dict else enumerate(parent):
                kind = type(node)
                if kind is str:
                    strings.append(node)
                elif kind is dict or kind is list:
                    if items + len(node) > limits.max_items:
                        raise ValueError(f"over {limits.max_items} keys and elements")
                    # Look at the copy only: another thread may be changing the original.
                    parent[slot] = copied = node.copy()
                    items += len(copied)
                    below.append(copied)
                else:
                    chars += _size(node)
        for copied in below:
            strings += copied if type(copied) is dict else ()
        level, depth = below, depth + 1
        if depth > limits.max_depth and level:
            raise ValueError(f"over {limits.max_depth} levels")
    _check_strings(strings)
    if chars + items + sum(map(len, strings)) > max_chars:
        raise ValueError(f"over {max_chars} characters")
    return Copy(top[0], strings)


def _check_strings(strings: list[Any]) -> None:
    for kind in {*map(type, strings)} - {str}:  # a key's
        raise ValueError(f"no plain JSON, for a {kind.__name__} in it")
    for text in strings:
        if not text.isascii() and _SURROGATE.search(text):
            raise ValueError("no plain JSON, for half of a surrogate pair in it")


def _size(leaf: Any) -> int:
    if leaf is None or type(leaf) is bool or (type(leaf) is float and math.isfinite(leaf)):
        return 4
    if type(leaf) is int and leaf.bit_length() <= 1_024:
        return 1 + leaf.bit_length() // 3
    raise ValueError(f"no plain JSON, for a {type(leaf).__name__} in it")


def texts(value: Any, limits: Limits) -> list[str]:
    """Return every key and leaf of *value*, a plain copy, as JSON has it.

    A string comes without its quotes, and JSON inside it is opened.

    Raises:
        ValueError: It cannot be opened fully, or is over the *limits* then; the sentence says why.
    """
    found: list[str] = []
    level = [value]
    items = -2  # the whole is none, and may be JSON text
    for _ in range(limits.max_depth + 1):
        items += len(level)
        if items > limits.max_items:
            raise ValueError(f"over {limits.max_items} keys and elements, with JSON inside strings")
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if kind is dict:
                found += node
                below += node.values()
            elif kind is list:
                below += node
            else:
                found.append(_leaf(node))
                if kind is str and (inner := opened(node)) is not NOTHING:
                    below.append(inner)
        if not below:
            return found
        level = below
    raise ValueError(f"over {limits.max_depth} levels, with JSON inside strings")


def places(value: Any, redact: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Yield each of the ``texts`` and in words where it stands, such as ``to[0].name``.

    That is 200 characters long at most. What is in a string comes after it. Keys come through
    *redact* before they are cut short: half a secret is no longer known as one.
    """
    todo: list[tuple[Any, str]] = [(value, "")]
    while todo:
        node, where = todo.pop()
        if isinstance(node, dict):
            for key, item in node.items():
                place = f"{where}.{redact(key)[:60]}"[:200]
                yield key, place.lstrip(".")
                todo.append((item, place))
        elif isinstance(node, list):
            todo += [(item, f"{where}[{place}]"[:200]) for place, item in enumerate(node)]
        else:
            yield _leaf(node), where.lstrip(".") or "the whole"
            if isinstance(node, str) and (inner := opened(node)) is not NOTHING:
                todo.append((inner, f"{where}.(JSON)"[:200]))


def _leaf(node: Any) -> str:
    if type(node) is str:
        return node
    return str(node) if type(node) is int else json.dumps(node)


def opened(text: str) -> Any:
    """Return what JSON parsing makes of *text*, or ``NOTHING`` if it is no container or string.

    Raises:
        ValueError: It is JSON that the parser gives up on, too deep or with too long a number.
    """
    inner = text.strip(" \t\n\r")
    if len(inner) < 2 or _ENDS.get(inner[0]) != inner[-1]:
        return NOTHING
    try:
        value, end = _DECODER.raw_decode(inner)
    except json.JSONDecodeError:
        return NOTHING
    except (ValueError, RecursionError):
        raise ValueError("JSON inside a string that cannot be opened") from None
    return value if end == len(inner) else NOTHING
