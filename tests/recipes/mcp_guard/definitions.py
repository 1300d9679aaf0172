"""Tool definitions of servers that are not yours: pinned, and scanned."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import hashlib
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from agent_mcp_governance import (
    MCPResponseScanner,
    MCPSecurityConfig,
    MCPSecurityScanner,
    MCPSeverity,
)

from .decisions import Limits
from .plain import add_inner, plain_copy

_LIMITS = Limits()
_MAX_SCANNED = 10_000  # characters: the scanners' time grows with the square


class PoisonedToolError(Exception):
    """A tool definition has changed or was added, or the scan found something in it."""


def refuse_poisoned_tools(
    tools: Iterable[Any],
    *,
    server_name: str,
    pins: Mapping[str, str] | None = None,
    scanner: MCPSecurityScanner | None = None,
    reviewed: Collection[str] = (),
) -> dict[str, str]:
    """Refuse tool definitions that are not those you know, and scan them.

    A model follows definitions, and whoever runs the server writes them. Call this after each
    ``tools/list`` of a server that is not yours, and keep the pins, for instance in a file::

        listed = await client.list_tools()
        pins = refuse_poisoned_tools(listed.tools, server_name="crm", pins=pins)

    The pins are exact. The scan is a guess of the kernel's: its tool scanner, without the rules for
    links and for invisible characters, which are ordinary (joiners, in Persian and in emoji), and
    its response scanner's rule for instruction tags such as ``<IMPORTANT>``. What both miss is
    served until a person reads it.

    Args:
        tools: All definitions of ``tools/list``, as the SDK's models or as JSON. They depend on the
            protocol version, so keep to one.
        server_name: The server that serves them.
        pins: What an earlier call returned; None at the first.
        scanner: Rules of your own. One scanner for several servers also finds names that two of
            them use.
        reviewed: Names of tools that a person has read. They are pinned and not scanned.

    Returns:
        The pin of each tool, by name: the SHA-256 of its whole definition.

    Raises:
        PoisonedToolError: Names each tool that is refused, and why. Use none of them then. One of
            over 10,000 characters takes the scanner too long: read it, and name it in *reviewed*.
    """
    if scanner is None:
        rules = MCPSecurityConfig(exfiltration_patterns=[], invisible_unicode_patterns=[])
        with warnings.catch_warnings():  # that its rules are samples, as the docstring says
            warnings.simplefilter("ignore")
            scanner = MCPSecurityScanner(config=rules)
    found: dict[str, str] = {}
    problems: list[str] = []
    for tool in tools:
        try:
            if hasattr(tool, "model_dump"):
                tool = tool.model_dump(mode="json", by_alias=True, exclude_none=True)
            copy = plain_copy(dict(tool), _LIMITS.max_params_chars, _LIMITS)
            add_inner(copy.texts, _LIMITS.max_params_chars, _LIMITS)
            name = copy.value["name"]
        except (KeyError, TypeError, ValueError) as error:
            raise PoisonedToolError(f"a definition of {server_name!r} is none: {error}") from None
        if type(name) is not str or name in found:
            raise PoisonedToolError(f"a tool of {server_name!r} has no name of its own: {name!r}")
        found[name] = hashlib.sha256(json.dumps(copy.value, sort_keys=True).encode()).hexdigest()
        if pins is not None and pins.get(name) != found[name]:
            problems.append(f"{name!r} {'has changed' if name in pins else 'was added'}")
        if name not in reviewed:
            threats = _threats(scanner, copy.value, "\n".join(copy.texts), server_name)
            problems += [f"{name!r}: {threat}" for threat in threats]
    if problems:
        raise PoisonedToolError("; ".join(problems))
    return found


def _threats(
    scanner: MCPSecurityScanner, definition: dict[str, Any], whole: str, server_name: str
) -> list[str]:
    if len(whole) > _MAX_SCANNED:
        return [f"over {_MAX_SCANNED} characters, and not in reviewed"]
    name, described = definition["name"], definition.get("description") or ""
    parts = (name, described, definition.get("inputSchema"), server_name)
    threats = scanner.scan_tool(*parts)
    critical = [threat.message for threat in threats if threat.severity is MCPSeverity.CRITICAL]
    _, tags = MCPResponseScanner().sanitize_response(whole, name)
    critical += [f"an instruction tag, {tag.matched_pattern!r:.60}" for tag in tags]
    if not critical:
        scanner.register_tool(*parts)
    return critical
