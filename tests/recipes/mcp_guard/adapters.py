"""What the adapters of both SDKs share: arguments, one governed call, blobs, errors."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from fractions import Fraction
from functools import cache, lru_cache, partial
from itertools import count
from math import inf
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]
from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped, unused-ignore]
from jsonschema.validators import extend, validator_for  # type: ignore[import-untyped, unused-ignore]
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped, unused-ignore]
from mcp import MCPError
from pydantic_core import SchemaError, SchemaValidator, core_schema

from .checks import Validate
from .guard import Guard
from .options import require
from .secrets import redact

logger = logging.getLogger("mcp_guard")

_MAX_STEPS = 100_000  # keywords of a schema that are looked at for the arguments of one call
_steps: ContextVar[Iterator[int]] = ContextVar("_steps")


class ToolFailure(Exception):  # noqa: N818 - it never leaves the adapters
    """What the client gets as a tool error, which a model may read: a text, and its stage."""


def validator(schema: Any, *, opens_json: bool = False) -> Validate:
    """Return what checks arguments against a tool's input schema; None refuses them all.

    If the SDK opens JSON in a string, for parameters that are no strings, it is opened here first,
    so that the tool gets what was checked.
    """

    @cache
    def checker() -> Any:  # when it is needed: what is wrong with the schema refuses the call then
        kind = _bounded(validator_for(schema, Draft202012Validator))
        return kind(schema, registry=REGISTRY)  # which never fetches a schema

    def validate(arguments: dict[str, Any]) -> dict[str, Any]:
        if schema is None:
            raise ValueError("The server has no such tool now.")
        if opens_json:
            arguments = _opened(arguments, schema.get("properties", {}))
        _steps.set(count())
        for error in checker().iter_errors(arguments):
            raise ValueError(f"The arguments are not valid: {_said(error)}.")
        return arguments

    return validate


no_such_tool = validator(None)


def _bounded(kind: Any) -> Any:
    """Return *kind* of validator, but for what takes too long in it or refuses cents."""
    own: dict[str, Any] = {
        "pattern": _pattern,
        "uniqueItems": _unique,
        "anyOf": _any_of,
        "oneOf": _one_of,
    }
    own |= {"patternProperties": _pattern_properties, "additionalProperties": _additional}
    own["multipleOf"] = _multiple_of
    known = kind.VALIDATORS
    own["items"] = partial(_items, known.get("items"))
    return extend(kind, {key: _counted(own.get(key, known[key])) for key in known})


def _counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
    def check(*args: Any) -> Any:
        if next(_steps.get()) >= _MAX_STEPS:
            raise ValueError("The arguments take too many steps to check.")
        return keyword(*args)

    return check


def _items(otherwise: Any, validator: Any, items: Any, instance: Any, schema: Any) -> Any:
    # A long list of plain values, as of numbers, is looked at in one step.
    kind = items.get("type") if type(items) is dict and items.keys() <= {"type", "title"} else None
    plain = type(kind) is str and type(instance) is list
    if plain and all(validator.is_type(item, kind) for item in instance):
        return ()
    return otherwise(validator, items, instance, schema)


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _search(pattern)(instance):
        yield ValidationError("")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    others = schema.get("additionalProperties", True)
    for name in instance:
        matching = [pattern for pattern in patterns if _search(pattern)(name)]
        for pattern in matching:
            yield from validator.descend(instance[name], patterns[pattern], path=name)
        if matching or name in schema.get("properties", ()):
            continue
        if others is False:
            yield ValidationError("")
        else:
            yield from validator.descend(instance[name], others, path=name)


def _additional(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if "patternProperties" not in schema:  # it goes by these, and is looked at with them
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](
            validator, others, instance, schema
        )


@lru_cache
def _search(pattern: str) -> Callable[[str], Any]:
    """Return a search with pydantic's engine, whose time is linear and whose $ is the very end."""
    try:
        schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
        return SchemaValidator(schema).isinstance_python
    except SchemaError:  # it has no look-around
        with suppress(re.error):
            search = re.compile(pattern).search
            # pydantic 2.12 gives every Decimal this one, which takes the cube of its zeros.
            if pattern.startswith(r"^(?!^[-+.]*$)[+-]?0*"):
                return lambda text: len(text) <= 100 and search(text)
            return search
        return lambda _: True  # no expression of either: the tool has to check it


def _multiple_of(validator: Any, divisor: Any, instance: Any, _: Any) -> Iterator[Any]:
    # As decimal text, which JSON is: binary fractions make 19.99 no multiple of 0.01.
    finite = validator.is_type(instance, "number") and abs(instance) < inf
    if finite and Fraction(str(instance)) % Fraction(str(divisor)):
        yield ValidationError("")


def _unique(validator: Any, unique: bool, instance: Any, _: Any) -> Iterator[Any]:
    # The SDK's sets name it. jsonschema compares each item with each, unless they can be sorted.
    if not (unique and validator.is_type(instance, "array")):
        return
    if len({json.dumps(item, sort_keys=True) for item in instance}) < len(instance):
        yield ValidationError("")


def _valid(validator: Any, schemas: list[Any], instance: Any) -> Iterator[bool]:
    # Up to the first error of each. jsonschema collects them all: in a tree of tagged unions that
    # takes time and memory in two to the power of its depth.
    return (next(validator.descend(instance, schema), None) is None for schema in schemas)


def _any_of(validator: Any, schemas: list[Any], instance: Any, _: Any) -> Iterator[Any]:
    if not any(_valid(validator, schemas, instance)):
        yield ValidationError("")


def _one_of(validator: Any, schemas: list[Any], instance: Any, _: Any) -> Iterator[Any]:
    if sum(_valid(validator, schemas, instance)) != 1:
        yield ValidationError("")


def _opened(arguments: dict[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    opened = dict(arguments)
    for name in arguments.keys() & properties.keys():
        if type(arguments[name]) is str and properties[name].get("type") != "string":
            with suppress(ValueError, RecursionError):
                inner = json.loads(arguments[name])
                if inner is None or type(inner) in (dict, list):
                    opened[name] = inner
    return opened


def _said(error: Any) -> str:
    """Say what is wrong without repeating the value, which may be long or a secret."""
    if error.validator in ("required", "additionalProperties"):
        return redact(error.message)[:200]
    where = ".".join(map(str, error.absolute_path)) or "they"
    return f"{redact(where)[:100]} must have {error.validator} {error.validator_value!r:.100}"


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
    blobs: dict[int, str] = {}
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
        key, holder = _blob_of(decision.content["content"][place])
        holder[key] = blob
    return decision.content


def _text(error: Exception) -> dict[str, Any]:
    """Return what is sent of *error*."""
    if isinstance(error, MCPError):
        return {"message": error.error.message, "data": error.error.data}
    try:
        return {"message": str(error)}
    except Exception:  # noqa: BLE001 - no plain JSON, so the guard refuses it
        return {"message": error}


def _without_blobs(result: Any) -> tuple[Any, dict[int, str]]:
    """Return *result* without the base64 in blocks that the SDK typed, and that by its place."""
    blobs: dict[int, str] = {}
    # The SDK does not look into a result of an extension's own type.
    if type(result) is not dict or result.get("resultType", "complete") != "complete":
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
