"""A guard in front of the tools of an MCP server, to be copied as a whole folder.

To update a copy, compare it with the folder of the newer release (``diff -r``) and read that
release's notes in ``tests/recipes/README.md``. ``__version__`` says which one a copy is.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from .audit import JsonLinesAuditSink
from .callers import bucket_label, verified_caller
from .decisions import Decision, Detector, Limits, RateLimiter
from .detectors import DefenderDetector, KernelDetector
from .guard import Guard
from .options import ToolRules
from .secrets import redact

__version__ = "1.0"

__all__ = [
    "Decision",
    "DefenderDetector",
    "Detector",
    "Guard",
    "JsonLinesAuditSink",
    "KernelDetector",
    "Limits",
    "RateLimiter",
    "ToolRules",
    "bucket_label",
    "redact",
    "verified_caller",
]
