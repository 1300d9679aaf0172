"""The audit log: a file of JSON lines, and what writes one entry for each decision."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent_mcp_governance import MCPAuditSink, MCPMetricsRecorder

from .decisions import Decision
from .flow import Lock, Part, Pool
from .secrets import redact, redact_tree

logger = logging.getLogger("mcp_guard")


class JsonLinesAuditSink:
    """An audit sink that appends each entry to a file, as one line of ASCII JSON.

    Several processes may append to one file. A file that was moved or deleted, as logrotate does,
    is made anew at the next entry. Nothing is flushed to the disk by force: what the operating
    system has taken survives the process and not a power cut.
    """

    blocking = False  # a line for the page cache takes less than a thread would

    def __init__(self, path: str | Path) -> None:
        """Open *path* for appending; a new file is readable by its owner only.

        Raises:
            OSError: The file cannot be opened, or its folder does not exist.
        """
        self._path = Path(path).absolute()
        self._lock = Lock()
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._file).st_size
        os.lseek(self._file, max(0, size - 1), os.SEEK_SET)
        self._torn = os.read(self._file, 1) not in (b"", b"\n")

    def record(self, entry: dict[str, Any]) -> None:
        """Write *entry*.

        Raises:
            OSError: The file cannot be written, or the entry was cut short; the next one starts a
                line of its own.
            TimeoutError: Another thread left the lock taken.
        """
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            if not self._is_current():
                moved = self._file
                self._open()
                os.close(moved)
            line = b"\n" * self._torn + line
            # One write, so that the lines of several threads and processes never mix.
            self._torn = os.write(self._file, line) != len(line)
            if self._torn:
                raise OSError("the audit entry was cut short")

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file. What is recorded later is refused."""
        with self._lock:
            os.close(self._file)
            self._file = -1  # the number may soon be another file's


@dataclass
class Check:
    """What is known so far of one call or response."""

    direction: Literal["call", "response"]
    caller: str | None = None
    tool: str | None = None
    params: dict[str, Any] | None = None
    detail: str = ""
    findings: list[str] = field(default_factory=list)
    approval: str | None = None
    would_refuse: list[str] = field(default_factory=list)


class Trail:
    """Writes one entry for each decision, and counts those that could not be written."""

    def __init__(
        self, sink: MCPAuditSink, redact: Callable[[str], str], max_chars: int, pool: Pool
    ) -> None:
        """Write to *sink*, in *pool* if it blocks, what *redact* leaves, in *max_chars* each."""
        self._redact, self._max_chars = redact, max_chars
        self.sink = Part(sink, pool, "record", self.failed)
        self.failures = 0
        self.unrecorded: deque[dict[str, Any]] = deque(maxlen=100)

    def entry(self, check: Check, decision: Decision) -> tuple[Decision, dict[str, Any]]:
        """Return *decision* and its entry, which shares nothing with what the tool gets.

        If *redact* fails, the decision is a refusal and the entry has no params.
        """
        try:
            return decision, self._entry(check, decision, self._redact)
        except Exception as error:  # noqa: BLE001 - it is the operator's own
            logger.error("redact failed: %s", type(error).__name__)
            withheld = Check(check.direction, check.caller, check.tool, detail="redact failed")
            decision = Decision(False, "error", "The guard failed.")
            return decision, self._entry(withheld, decision, redact)

    def _entry(
        self, check: Check, decision: Decision, redact: Callable[[str], str]
    ) -> dict[str, Any]:
        said: dict[str, Any] = {
            "agent_id": check.caller and redact(check.caller),
            "tool_name": check.tool and redact(check.tool),
            "parameters": redact_tree(check.params, redact, by_key=True),
            "findings": [*check.findings],
            "would_refuse": [redact(refusal) for refusal in check.would_refuse],
            "detail": redact(check.detail),
            "reason": redact(decision.reason),
        }
        entry = {
            "timestamp": time.time(),
            "direction": check.direction,
            "allowed": decision.allowed,
            "stage": decision.stage,
            "approval_status": check.approval,
            **said,
        }
        # JSON has twelve characters for one at most, and under 500 for what is not said in words.
        if 12 * len(repr(said)) + 500 > self._max_chars:
            _cut_short(entry, self._max_chars)
        return entry

    def failed(self, error: BaseException, entry: dict[str, Any]) -> None:
        """Keep *entry*, which the sink did not take, as far as is known."""
        logger.error("the audit sink failed: %s", type(error).__name__)
        self.unrecorded.append(entry)
        self.failures += 1


def _cut_short(entry: dict[str, Any], max_chars: int) -> None:
    """Shorten *entry*, its params first, until it has *max_chars* as JSON."""
    for name in ("parameters", "findings", "would_refuse", "detail", "reason"):
        text = json.dumps(entry[name])[:max_chars]
        while text and len(json.dumps(entry)) > max_chars:
            entry[name] = {"cut_short": text}  # which escapes it once more
            text = text[: len(text) * 7 // 8]


@dataclass
class Meter:
    """Counts decisions by caller, server and tool. A recorder that fails decides nothing."""

    _metrics: MCPMetricsRecorder | None
    _label: Callable[[str], str] | None  # of a caller; without it all have the label "any"
    _server: str
    _tools: Collection[str]  # which have labels of their own
    failures: int = 0

    def count(self, check: Check, decision: Decision) -> None:
        """Count *decision*."""
        if self._metrics is None:
            return
        try:
            tool = str(check.tool) if check.tool in self._tools else "other"  # labels are few
            agent = self._label(check.caller or "") if self._label else "any"
            who = {"agent_id": agent, "tool_name": tool}
            self._metrics.record_decision(allowed=decision.allowed, stage=decision.stage, **who)
            if decision.stage in ("rate_limit", "budget"):
                self._metrics.record_rate_limit_hit(**who)
            if check.direction == "response":
                where = {"tool_name": tool, "server_name": self._server}
                self._metrics.record_scan(operation="scan_response", **where)
                self._metrics.record_threats_detected(len(check.findings), **where)
        except Exception as error:  # noqa: BLE001
            logger.error("the metrics recorder failed: %s", type(error).__name__)
            self.failures += 1
