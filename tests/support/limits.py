"""The form of a test of a limit: what a user would wish, which fails until the kernel is mended."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest


class NotMendedError(Exception):
    """The wish came true for none of the examples. No mistake in a test raises this."""


def limit(
    name: str, control: Any, examples: Sequence[Any]
) -> Callable[[Callable[[Any], bool]], Callable[[], None]]:
    """Make a strict expected failure of a function that says whether a wish holds for a case.

    It fails as expected only if the wish holds for the control and for none of the examples. It
    fails outright if the control does not hold, if the function raises, and as soon as the kernel
    is mended for one example.

    Args:
        name: The name of the row of the table of limits.
        control: A case that shows that the wish can be met, and that the function notices.
        examples: The cases of the limit.
    """

    def decorate(wish: Callable[[Any], bool]) -> Callable[[], None]:
        @pytest.mark.xfail(strict=True, raises=NotMendedError, reason=name)
        @functools.wraps(wish)
        def test() -> None:
            __tracebackhide__ = True
            assert wish(control) is True, "the control does not hold"
            outcomes = [wish(example) for example in examples]
            assert outcomes
            assert {*outcomes} <= {True, False}
            if True not in outcomes:
                raise NotMendedError(name)
            print("mended:", [case for case, met in zip(examples, outcomes, strict=True) if met])

        test.__signature__ = inspect.Signature()  # type: ignore[attr-defined] # no fixtures
        return test

    return decorate


def raises(error: type[Exception] | tuple[type[Exception], ...], action: Callable[[], Any]) -> bool:
    """Say whether *action* raises *error*."""
    try:
        action()
    except error:
        return True
    return False


def refused(make: Callable[[], object]) -> bool:
    """Say whether something is refused when it is made."""
    return raises((TypeError, ValueError), make)
