"""What the adapters of both SDKs share: arguments, one governed call, blobs, errors."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from jsonschema_rs import FancyRegexOptions, ValidationError, validator_for
from mcp import MCPError
from pydantic_core import SchemaError, SchemaValidator
from pydantic_core.core_schema import str_schema

from .checks import Validate
from .guard import Guard
from .options import require
from .secrets import redact

logger = logging.getLogger("mcp_guard")


class ToolFailure(Exception):  # noqa: N818 - it never leaves the adapters
    """What the client gets as a tool error, which a model may read: a text, and its stage."""


def validator(schema: Any, *, opens_json: bool = False) -> Validate:
    """Return what checks arguments against a tool's input schema; None refuses them all.

    If the SDK opens JSON in a string, for parameters that are no strings, it is opened here first,
    so that the tool gets what was checked. A schema elsewhere is never fetched.
    """

    @cache
    def compiled() -> Any:  # when it is needed: what is wrong with the schema refuses the call then
        return _compiled(schema), '"uniqueItems"' in json.dumps(schema)

    def validate(arguments: dict[str, Any]) -> dict[str, Any]:
        if schema is None:
            raise ValueError("The server has no such tool now.")
        if opens_json:
            arguments = _opened(arguments, schema.get("properties", {}))
        checker, unique = compiled()
        if unique:
            _check_numbers(arguments)
        if not checker.is_valid(arguments):
            raise ValueError(f"The arguments are not valid: {_wrong(schema, arguments)}.")
        return arguments

    return validate


no_such_tool = validator(None)


# Expressions take linear time, but for those with back references, which have a bound.
_EXPRESSIONS = FancyRegexOptions(backtrack_limit=100_000)


class _Pattern:
    """The keyword ``pattern`` as pydantic has it, and so the tool: a letter is of any language."""

    def __init__(self, _schema: object, pattern: str, _path: object) -> None:
        self._pattern, self._matches = pattern, _matcher(pattern)

    def validate(self, text: object) -> None:
        if isinstance(text, str) and not self._matches(text):
            raise ValueError(f"it does not match {self._pattern!r}")


@lru_cache(maxsize=1_000)
def _matcher(pattern: str) -> Callable[[str], bool]:
    try:
        return SchemaValidator(str_schema(pattern=pattern)).isinstance_python
    except SchemaError:  # it looks around or back, or is too large
        return validator_for({"pattern": pattern}, pattern_options=_EXPRESSIONS).is_valid


def _check_numbers(value: Any) -> None:
    """Refuse many long numbers: to see that they are unique, the library compares them in pairs."""
    todo, many = [value], 0
    while todo:
        node = todo.pop()
        if isinstance(node, (dict, list)):
            todo += node.values() if isinstance(node, dict) else node
        elif isinstance(node, int) and node.bit_length() > 63:
            many += 1
    if many > 200:
        raise ValueError("The arguments are not valid: over 200 numbers of over 63 bits.")


def _compiled(schema: Any) -> Any:
    try:
        return validator_for(
            schema,
            offline=True,
            validate_formats=False,
            mask="it",
            pattern_options=_EXPRESSIONS,
            keywords={"pattern": _Pattern},
        )
    except ValueError as error:
        text = f"{error}".splitlines()[0]
        raise ValueError(f"The tool's input schema cannot be used: {text:.200}.") from None


def _wrong(schema: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Say what is wrong without repeating a value, which may be long or a secret."""
    # Only where nothing refers to another part: where unions hold themselves, collecting the errors
    # of each branch takes time in two to the power of their depth.
    properties = schema.get("properties", {})
    flat = {name: part for name, part in properties.items() if '"$' not in json.dumps(part)}
    others = properties.keys() - flat.keys()
    kept = ("$schema", "required", "additionalProperties")
    shallow = {key: schema[key] for key in kept if key in schema}
    try:
        _compiled({**shallow, "properties": dict.fromkeys(others, True) | flat}).validate(arguments)
    except ValidationError as error:
        where = ".".join(map(str, error.instance_path))
        return redact(f"{where}: {error.message}" if where else error.message)[:300]
    return f"{', '.join(sorted(others & arguments.keys())) or 'they'}: not as the schema says"


def _opened(arguments: dict[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    opened = arguments
    for name in arguments.keys() & properties.keys():
        if type(arguments[name]) is str and properties[name].get("type") != "string":
            with suppress(ValueError, RecursionError):
                inner = json.loads(arguments[name])
                if inner is None or type(inner) in (dict, list):
                    opened = {**opened, name: inner}
    return opened


async def governed(
    guard: Guard,
    caller: str,
    tool: str,
    arguments: Any,
    extra: Mapping[str, Any],
    validate: Validate | None,
    run: Callable[[dict[str, Any]], Awaitable[Any]],
) -> Any:
    """Check a call, run the tool with the checked arguments, check what it returns or raises.

    Return what *run* returned, the result as plain JSON, or a copy without the secrets in it.

    Raises:
        ToolFailure: The call, the result or the error is refused, or the error held a secret.
        Exception: What the tool raised, if its text is clean.
    """
    decision = await guard.acheck_call(caller, tool, arguments, extra=extra, validate=validate)
    if not decision.allowed:
        raise ToolFailure(decision.refusal, decision.stage)
    error: Exception | None = None
    blobs: _Blobs = {}
    try:
        result = await run(decision.params)
        looked_at, blobs = _without_blobs(result)
    except Exception as raised:  # noqa: BLE001 - it is raised again once its text is checked
        error, looked_at = raised, _text(raised)
    decision = await guard.acheck_response(caller, tool, looked_at, blobs=list(blobs.values()))
    if not decision.allowed:
        raise ToolFailure(decision.refusal, decision.stage) from None
    if decision.content == looked_at:
        if error:
            raise error
        return result
    if isinstance(error, MCPError):
        raise MCPError(error.error.code, **decision.content) from None
    if error:
        raise ToolFailure(decision.content["message"], decision.stage) from None
    for place, blob in blobs.items():
        block = decision.content if place is None else decision.content["content"][place]
        key, holder = _blob_of(block)
        holder[key] = blob
    return decision.content


_Blobs = dict[int | None, str]


def _text(error: Exception) -> dict[str, Any]:
    """Return what is sent of *error*."""
    if isinstance(error, MCPError):
        return {"message": error.error.message, "data": error.error.data}
    try:
        return {"message": str(error)}
    except Exception:  # noqa: BLE001 - no plain JSON, so the guard refuses it
        return {"message": error}


def _without_blobs(result: dict[str, Any]) -> tuple[Any, _Blobs]:
    """Return *result* without what nobody looks into, and that by its place.

    That is the base64 in blocks that the SDK typed, and the server's own state, which the SDK seals
    on its way to the client and back.
    """
    blobs: _Blobs = {}
    if result.get("resultType") == "input_required" and result.get("requestState"):
        blobs[None], result = result["requestState"], {**result, "requestState": ""}
    # The SDK does not look into a result of an extension's own type.
    if result.get("resultType", "complete") != "complete":
        return result, blobs
    content = list(result.get("content", ()))
    for place, block in enumerate(content):
        key, holder = _blob_of(block)
        if key in holder:
            blobs[place] = holder[key]
            emptied = {**holder, key: ""}
            content[place] = emptied if holder is block else {**block, "resource": emptied}
    return ({**result, "content": content} if blobs else result), blobs


def _blob_of(block: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if "requestState" in block:
        return "requestState", block
    if block["type"] == "resource":
        return "blob", block["resource"]
    return "data" if block["type"] in ("image", "audio") else "", block


def prepare(
    server: Any,
    kinds: tuple[Any, ...],
    governance: type,
    guard: Guard,
    list_tools: Callable[[], Coroutine[Any, Any, Iterable[Any]]] | None,
) -> None:
    """Raise ValueError unless *guard* can govern *server*; log what is governed.

    It has to be one of *kinds*, not to have *governance*, and to have the tools that are allowed.
    """
    require("guard", guard, Guard)
    if not isinstance(server, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"server must be a {expected}, not a {type(server).__name__}")
    if any(isinstance(part, governance) for part in server.middleware):
        raise ValueError(f"{server.name!r} is governed already")
    if list_tools is not None:
        with ThreadPoolExecutor(1) as thread:  # since this one may be running an event loop
            listed = thread.submit(lambda: asyncio.run(list_tools())).result()
        there = {tool.name for tool in listed}
        if missing := sorted(guard.tools - there):
            raise ValueError(f"the policy allows {missing}; {server.name!r} has {sorted(there)}")
    logger.info("%r is governed by mcp_guard, which allows %s", server.name, sorted(guard.tools))
