"""What the adapters of both SDKs share: arguments, one governed call, blobs, errors."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache, partial
from itertools import repeat
from typing import Any

from jsonschema_rs import FancyRegexOptions, ValidationError, canonical, validator_for
from mcp import MCPError
from pydantic_core import SchemaError, SchemaValidator
from pydantic_core.core_schema import str_schema

from .checks import Validate
from .guard import Guard, logger
from .options import require
from .secrets import redact


class ToolFailure(Exception):  # noqa: N818 - it never leaves the adapters
    """What the client gets as a tool error, which a model may read: a text, and its stage."""


def validator(schema: dict[str, Any], *, opens_json: bool = False) -> Validate:
    """Return what checks arguments against a tool's input schema.

    If the SDK opens JSON in a string, for parameters that are no strings, it is opened here first,
    so that the tool gets what was checked. A schema elsewhere is never fetched.
    """
    # When it is needed: what is wrong with the schema refuses the call then.
    compiled = cache(partial(_compiled, schema))

    def validate(arguments: dict[str, Any]) -> dict[str, Any]:
        if opens_json:
            arguments = _opened(arguments, schema.get("properties", {}))
        if not compiled().is_valid(arguments):
            raise ValueError(f"The arguments are not valid: {_wrong(schema, arguments)}.")
        return arguments

    return validate


def no_such_tool(_arguments: dict[str, Any], /) -> dict[str, Any]:
    """Refuse the arguments, whatever they are."""
    raise ValueError("The server has no such tool now.")


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


class _UniqueItems:
    """The keyword ``uniqueItems`` in linear time: the library compares long numbers in pairs."""

    def __init__(self, _schema: object, unique: bool, _path: object) -> None:
        self._unique = unique

    def validate(self, items: object) -> None:
        listed = items if self._unique and isinstance(items, list) else []
        if len({*map(canonical.json.to_string, listed)}) < len(listed):
            raise ValueError("it has an element twice")


def _compiled(schema: Any) -> Any:
    try:
        return validator_for(
            schema,
            offline=True,
            validate_formats=False,
            mask="it",
            pattern_options=_EXPRESSIONS,
            keywords={"pattern": _Pattern, "uniqueItems": _UniqueItems},
        )
    except ValueError as error:
        text = f"{error}".splitlines()[0]
        raise ValueError(f"The tool's input schema cannot be used: {text:.200}.") from None


def _wrong(schema: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Say what is wrong without repeating a value, which may be long or a secret."""
    # Only where nothing refers to another part: where unions hold themselves, collecting the errors
    # of each branch takes time in two to the power of their depth.
    kept = {"$schema", "required", "additionalProperties"} & schema.keys()
    shallow = {key: schema[key] for key in kept if not _refers(schema[key])}
    properties = schema.get("properties", {})
    unsaid = {name for name, part in properties.items() if _refers(part)}
    shallow["properties"] = {**properties, **{name: {} for name in unsaid}}
    try:
        _compiled(shallow).validate(arguments)
    except ValidationError as error:
        where = ".".join(map(str, error.instance_path))
        return redact(f"{where}: {error.message}" if where else error.message)[:300]
    return f"{', '.join(sorted(unsaid & arguments.keys())) or 'they'}: not as the schema says"


def _refers(part: object) -> bool:
    return '"$' in json.dumps(part)


def _opened(arguments: dict[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    for name, part in properties.items():
        if type(arguments.get(name)) is str and part.get("type") != "string":
            with suppress(ValueError, RecursionError):
                inner = json.loads(arguments[name])
                if inner is None or type(inner) in (dict, list):
                    arguments = {**arguments, name: inner}
    return arguments


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
    try:
        result = await run(decision.params)
        looked_at, blobs = _swapped(result, repeat(""))
        error = None
    except Exception as raised:  # noqa: BLE001 - it is raised again once its text is checked
        error, looked_at, blobs = raised, _text(raised), []
    decision = await guard.acheck_response(caller, tool, looked_at, blobs=blobs)
    if not decision.allowed:
        raise ToolFailure(decision.refusal, decision.stage) from None
    clean = decision.content == looked_at
    if error is None:
        return result if clean else _swapped(decision.content, blobs)[0]
    if clean:
        raise error
    if isinstance(error, MCPError):
        raise MCPError(error.error.code, **decision.content) from None
    raise ToolFailure(decision.content["message"], decision.stage) from None


def _text(error: Exception) -> dict[str, Any]:
    """Return what is sent of *error*."""
    if isinstance(error, MCPError):
        return {"message": error.error.message, "data": error.error.data}
    with suppress(Exception):
        return {"message": str(error)}
    return {"message": error}  # no plain JSON, so the guard refuses it


def _swapped(result: dict[str, Any], blobs: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return *result* with *blobs* in place of its own, and its own.

    Nobody looks into them: base64 in blocks that the SDK typed, and the server's own state, which
    the SDK seals on its way to the client and back. In an extension's own type it types nothing.
    """
    given, taken = iter(blobs), []
    kind = result.get("resultType", "complete")
    if kind == "input_required" and "requestState" in result:
        taken.append(result["requestState"])
        result = {**result, "requestState": next(given)}
    content = []
    for block in result.get("content", ()) if kind == "complete" else ():
        if block["type"] in ("image", "audio") and "data" in block:
            taken.append(block["data"])
            block = {**block, "data": next(given)}
        elif block["type"] == "resource" and "blob" in block["resource"]:
            taken.append(block["resource"]["blob"])
            block = {**block, "resource": {**block["resource"], "blob": next(given)}}
        content.append(block)
    return ({**result, "content": content} if content and taken else result), taken


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
            listed = thread.submit(asyncio.run, list_tools()).result()
        there = {tool.name for tool in listed}
        if missing := sorted(guard.tools - there):
            raise ValueError(f"the policy allows {missing}; {server.name!r} has {sorted(there)}")
    logger.info("%r is governed by mcp_guard, which allows %s", server.name, sorted(guard.tools))
