"""Find instructions in tool responses. It is a guess: attacks pass, ordinary text is refused.

How many of each, ``tests/benchmarks/detection.py`` measures on public data, and prints.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import unicodedata
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from typing import Any

from agent_mcp_governance import MCPResponseScanner

UNREAD = "unread_text"  # a finding, too: what a detector could not read may be anything


class KernelDetector:
    """Find instructions with the kernel's expressions.

    Of its categories only the two for instructions count, and its error: the others (addresses,
    numbers, links) find something in most ordinary mails. The expressions are quadratic, so they
    get pieces. An instruction tag of over 1,000 characters may stand in no piece as a whole.
    """

    def __call__(self, tool: str, content: Any) -> list[str]:
        """Return the categories of what is found in *content*. *tool* is for the kernel's log."""
        # One space instead of many: the expressions take any number, and a piece holds more.
        text = " ".join(" ".join(_texts(content)).split())
        found: set[str] = set()
        for piece in _pieces(text, size=4_000, overlap=1_000):
            found.update(threat.category for threat in _SCANNER.scan_response(piece, tool).threats)
        return sorted(found & {"instruction_injection", "prompt_injection", "error"})


class _InstructionScanner(MCPResponseScanner):
    # Without the scans that do not count: they take most of the time, and the kernel logs a warning
    # for what they find.
    _nothing: Any = staticmethod(lambda _: [])
    _scan_credential_leaks = _scan_pii_leaks = _scan_exfiltration_urls = _nothing


_SCANNER = _InstructionScanner()


class DefenderDetector:
    """Find instructions with StackOne Defender's classifier, a model of 22 MB on the CPU.

    Needs ``pip install "stackone-defender[onnx]"`` (Apache 2.0; Python 3.11 to 3.14). The model is
    in the package, and nothing leaves the machine.

    The library reads a part of a long text only, and the classifier 256 tokens, so they get pieces
    of 250 characters, none of which is more than one token. Keys and short strings are put
    together. Fewer than 10 characters are no piece: the library does not read them. The worst piece
    decides, so the longer an ordinary text, the more often it is refused. An instance can be used
    from several threads.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        """Load the model. From the score *threshold* on, a piece is a finding.

        At the model's own, 0.52, more attacks are found and more ordinary text is refused.

        Raises:
            ImportError: The library, or what its extra brings, is not installed.
            ValueError: The threshold is not between 0 and 1.
        """
        if not 0 < threshold < 1:
            raise ValueError(f"the threshold has to be between 0 and 1, not {threshold!r}")
        try:
            # Not an import statement: a type checker would miss the library on other Pythons.
            library = import_module("stackone_defender")
            self._defense = library.create_prompt_defense(enable_tier1=False, require_tier2=True)
            self._defense.warmup_tier2()
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                'DefenderDetector needs StackOne Defender: pip install "stackone-defender[onnx]"'
                " (Python 3.11 to 3.14)"
            ) from error
        self._threshold = threshold

    def __call__(self, tool: str, content: Any) -> list[str]:
        """Return ``["prompt_injection"]`` if a piece of *content* reaches the threshold.

        Return ``["unread_text"]`` if one cannot be read. *tool* is for the library.
        """
        pieces = _readable_pieces(content)
        while batch := list(islice(pieces, 32)):  # as many as the library classifies at once
            # The score of the worst piece, before the library lowers it for a batch of many.
            result = self._defense.defend_tool_result(batch, tool) if None not in batch else None
            if result is None or result.tier2_raw_score is None:
                return [UNREAD]
            if result.tier2_raw_score >= self._threshold:
                return ["prompt_injection"]
        return []


def _readable_pieces(content: Any) -> Iterator[str | None]:
    """Yield pieces for the classifier, None for what would become more than four times as long."""
    texts = dict.fromkeys(_texts(content))  # structured content repeats the text
    short = "\n".join(text for text in texts if len(text) < 40)
    for text in (short, *(text for text in texts if len(text) >= 40)):
        for part in _pieces(text, size=10_000, overlap=250):
            # Decomposed, no character is more than one token: a Korean syllable is up to three.
            readable = unicodedata.normalize("NFKD", part)
            if len(readable) > 4 * len(part):
                yield None
            for piece in _pieces(readable, size=250, overlap=100):
                if len(piece.strip()) >= 10:
                    yield piece


def _pieces(text: str, *, size: int, overlap: int) -> Iterator[str]:
    step = size - overlap
    for start in range(0, max(1, len(text) - overlap), step):
        yield text[start : start + size]


def _texts(content: Any) -> Iterator[str]:
    todo = [content]
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            todo += [part for key in reversed(node) for part in (node[key], key)]
        elif isinstance(node, list):
            todo += reversed(node)
