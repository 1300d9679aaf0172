"""The operator's blocked patterns, as GovernancePolicy has them."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import fnmatch
import re
import unicodedata
from collections.abc import Sequence

from agent_mcp_governance import GovernancePolicy, PatternType

Pattern = str | tuple[str, PatternType]


class Patterns:
    """Patterns that are matched on each text as it was sent, and on its NFKC form.

    Substrings and regular expressions ignore case and are searched for, as the kernel does. Globs
    mean what they mean there, and take time in proportion to the text, which there they do not. A
    regular expression takes the time that it takes: that is its author's to bound.
    """

    def __init__(self, blocked: Sequence[Pattern]) -> None:
        """Compile *blocked*.

        Raises:
            ValueError: A pattern is none, is empty, or does not compile.
        """
        GovernancePolicy(blocked_patterns=list(blocked))  # says what is wrong with one
        substring = PatternType.SUBSTRING
        kinds = [(item, substring) if isinstance(item, str) else item for item in blocked]
        if not all(text for text, _ in kinds):
            raise ValueError("an empty blocked pattern matches every call")
        # A text's NFKC form has a letter with its accent as one character, which an editor may have
        # written as two. No NFKC here: of a pattern "…" it would make three dots.
        kinds += [
            (composed, kind)
            for text, kind in kinds
            if kind is not PatternType.REGEX
            and (composed := unicodedata.normalize("NFC", text)) != text
        ]
        self._substrings = [(text, text.lower()) for text, kind in kinds if kind is substring]
        self._expressions = [
            (text, re.compile(_expression(text, kind), re.IGNORECASE))
            for text, kind in kinds
            if kind is not substring
        ]

    def find(self, texts: list[str]) -> tuple[str, str] | None:
        """Return a pattern that matches, and in which of *texts*.

        Raises:
            ValueError: A text is far longer in its NFKC form.
        """
        whole = "\0".join(texts)
        forms = {text: text for text in texts}
        if not whole.isascii():
            forms = {_normal(text): text for text in texts if not text.isascii()} | forms
            whole = "\0".join(forms)
        whole = whole.lower()
        for pattern, lowered in self._substrings:
            if lowered in whole:  # which is seldom so
                for form, text in forms.items():
                    if lowered in form.lower():
                        return pattern, text
        for pattern, expression in self._expressions:
            for form, text in forms.items():
                if expression.search(form):
                    return pattern, text
        return None


def _expression(pattern: str, kind: PatternType) -> str:
    if kind is PatternType.REGEX:
        return pattern
    # The kernel searches for what fnmatch makes of it, from each position. With a star before it,
    # one look from the start finds the same.
    return rf"\A{fnmatch.translate(f'*{pattern}')}"


def _normal(text: str) -> str:
    if unicodedata.is_normalized("NFKC", text):
        return text
    if len(text) > 100:
        _check_marks(text)
    length = 0  # of the parts, before the whole: U+FDFA stands for 18 characters, slowly
    for start in range(0, len(text), 5_000):
        length += len(unicodedata.normalize("NFKC", text[start : start + 5_000]))
        if length > 4 * len(text) + 100:
            raise ValueError("with characters that stand for many others")
    return unicodedata.normalize("NFKC", text)


def _check_marks(text: str) -> None:
    """Refuse long runs of combining marks: ordering them takes the square of their number."""
    run = 0  # the Unicode Standard's stream-safe format (annex 15) ends one at 30
    for char in text:
        # The two halfwidth sound marks are letters by category, and marks once normalised.
        run = run + 1 if unicodedata.category(char)[0] == "M" or char in "\uff9e\uff9f" else 0
        if run > 100:
            raise ValueError("over 100 combining marks in a row")
