"""A plain-JSON copy of a value, and every text in it, JSON inside strings opened."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import json
import math
import re
from collections.abc import Callable
from typing import Any

from .decisions import Limits

NOTHING = object()

_MAY_BE_JSON = re.compile(r'[ \t\n\r]*[{["]')  # few do, and to look at all takes no call of Python
_WORDS = {None: "null", True: "true", False: "false"}
_ENDS = {"{": "}", "[": "]", '"': '"'}


class Copy:
    """A value that nobody else has, its texts, and how many keys and elements it has.

    The texts are its keys, and its leaves as JSON has them; a string without its quotes.
    """

    def __init__(self, value: Any, as_text: Callable[[Any], str], limits: Limits) -> None:
        """Copy *value*. Raise ValueError if it is over the *limits*, and what *as_text* raises."""
        self.texts: list[str] = []
        self.items = 0
        self._as_text, self._limits = as_text, limits
        self.value = self._copy(value, 1)

    def _copy(self, node: Any, level: int) -> Any:
        if type(node) is not dict and type(node) is not list:
            self.texts.append(self._as_text(node))
            return node
        if level > self._limits.max_depth:
            raise ValueError(f"over {self._limits.max_depth} levels")
        if self.items + len(node) > self._limits.max_items:
            raise ValueError(f"over {self._limits.max_items} keys and elements")
        copied = node.copy()  # look at the copy only: another thread may be changing the original
        self.items += len(copied)
        for slot, child in copied.items() if type(copied) is dict else enumerate(copied):
            if type(slot) is str:
                self.texts.append(slot)
            elif type(copied) is dict:
                raise _no_json(slot)
            copied[slot] = self._copy(child, level + 1)
        return copied


def plain_copy(value: Any, max_chars: int, limits: Limits) -> Copy:
    """Return a copy of *value* that shares nothing with it.

    Raises:
        ValueError: It is no plain JSON, has over *max_chars* characters, keys and punctuation
            included, or is over the *limits*; the sentence says which.
    """
    copy = Copy(value, _plain_leaf, limits)
    if copy.items + sum(map(len, copy.texts)) > max_chars:
        raise ValueError(f"over {max_chars} characters")
    try:
        "".join(copy.texts).encode()
    except UnicodeEncodeError:
        raise ValueError("no plain JSON, for half of a surrogate pair in it") from None
    return copy


def _leaf(leaf: Any) -> str:
    return str(leaf) if type(leaf) in (str, int) else json.dumps(leaf)


def _plain_leaf(leaf: Any) -> str:
    if leaf is None or type(leaf) is bool:
        return _WORDS[leaf]
    if type(leaf) is int and leaf.bit_length() > 1_024:
        raise ValueError("a number of over 1024 bits")
    if type(leaf) is str or type(leaf) is int:
        return str(leaf)
    if type(leaf) is float and math.isfinite(leaf):
        return repr(leaf)
    raise _no_json(leaf)


def _no_json(node: Any) -> ValueError:
    return ValueError(f"no plain JSON, for a {type(node).__name__} in it")


def add_inner(texts: list[str], max_chars: int, limits: Limits) -> None:
    """Add those of JSON inside them to *texts*, and so on.

    Raises:
        ValueError: It cannot be opened fully, together they have over four times *max_chars*
            characters, or it is over the *limits*; the sentence says which.
    """
    outer = [*texts]
    while inner := [opened(text) for text in filter(_MAY_BE_JSON.match, outer)]:
        whole = [value for value in inner if value is not NOTHING]
        outer = Copy(whole, _leaf, limits).texts
        texts += outer
        if sum(map(len, texts)) > 4 * max_chars:  # so deep is JSON in JSON in JSON
            raise ValueError(f"over {4 * max_chars} characters, with JSON inside strings")


def place(wanted: str | None, value: Any, redact: Callable[[str], str]) -> str:
    """Return in words where *wanted*, one of its texts, stands in *value*: ``to[0].name``.

    That is 200 characters long at most. Keys come through *redact* before they are cut short: half
    a secret is no longer known as one.
    """
    todo: list[tuple[Any, Any]] = [(value, ())]  # with a step and those before it
    while todo:
        node, path = todo.pop()
        if isinstance(node, dict):
            for key, item in node.items():
                todo += [(item, (path, key)), (key, (path, key))]
        elif isinstance(node, list):
            todo += [(item, (path, number)) for number, item in enumerate(node)]
        elif _leaf(node) == wanted:
            return _in_words(path, redact)
        elif isinstance(node, str) and (inner := opened(node)) is not NOTHING:
            todo.append((inner, (path, "(JSON)")))
    return "a key and its value"


def _in_words(path: Any, redact: Callable[[str], str]) -> str:
    words = ""
    while path:
        path, step = path
        words = (f"[{step}]" if isinstance(step, int) else f".{redact(step)[:60]}") + words
    return words[:200].lstrip(".") or "the whole"


def opened(text: str) -> Any:
    """Return what JSON parsing makes of *text*, or ``NOTHING`` if that holds nothing more.

    Raises:
        ValueError: It is JSON that the parser gives up on, too deep or with too long a number.
    """
    inner = text.strip(" \t\n\r")
    if len(inner) < 3 or _ENDS.get(inner[0]) != inner[-1]:
        return NOTHING
    try:
        value, end = _DECODER.raw_decode(inner)
    except json.JSONDecodeError:
        return NOTHING
    except (ValueError, RecursionError):
        raise ValueError("JSON inside a string that cannot be opened") from None
    return value if end == len(inner) else NOTHING


def _with_all_pairs(pairs: list[tuple[str, Any]]) -> Any:
    """Return a JSON object's *pairs* as a dict, or as several if a key stands twice."""
    entries = dict(pairs)
    return entries if len(entries) == len(pairs) else [{key: item} for key, item in pairs]


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_with_all_pairs)
