"""The form of a test of a limit: what a user would wish, which fails until the kernel is mended."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest


class NotMendedError(Exception):
    """The wish came true for none of the examples. No mistake in a test raises this."""


def limit(
    name: str, control: Any, examples: Sequence[Any]
) -> Callable[[Callable[..., bool]], Callable[..., None]]:
    """Make a strict expected failure of a function that says whether a wish holds for a case.

    It fails as expected only if the wish holds for the control and for none of the examples. It
    fails outright if the control does not hold, if the function raises, and as soon as the kernel
    is mended for one example. A case that is a tuple is several arguments. Limits that one wish
    would lift stand above one function, and each is a test of its own.

    Args:
        name: The name of the row of the table of limits.
        control: A case that shows that the wish can be met, and that the function notices.
        examples: The cases of the limit.
    """
    mark = pytest.mark.xfail(strict=True, raises=NotMendedError, reason=name)
    row = pytest.param(name, control, examples, id=name, marks=mark)

    def decorate(wish: Any) -> Any:
        test = wish if hasattr(wish, "rows") else _test_of(wish)
        test.rows.insert(0, row)
        return test

    return decorate


def _test_of(wish: Callable[..., bool]) -> Any:
    rows: list[Any] = []

    def holds(case: Any) -> bool:
        return wish(*case) if isinstance(case, tuple) else wish(case)

    @pytest.mark.parametrize(("name", "control", "examples"), rows)
    def test(name: str, control: Any, examples: Sequence[Any]) -> None:
        __tracebackhide__ = True
        assert holds(control) is True, "the control does not hold"
        outcomes = [holds(example) for example in examples]
        assert outcomes
        assert {*outcomes} <= {True, False}
        if True not in outcomes:
            raise NotMendedError(name)
        print("mended:", [case for case, met in zip(examples, outcomes, strict=True) if met])

    test.rows = rows  # type: ignore[attr-defined] # those above add themselves
    return test


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
