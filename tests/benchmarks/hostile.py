"""Texts that make expressions for secrets slow, if anything does."""

from collections.abc import Iterator

from mcp_guard.secrets import FORMATS, Format


def hostile_texts(size: int) -> Iterator[tuple[str, str]]:
    """Yield names and texts of *size* characters: what each format begins with, over and over.

    Each is a start again and again, a secret that lacks its end again and again, or one start and
    then a run of one character. Twice the size is twice the same.
    """
    for form in FORMATS:
        for start in form.starts.split():
            for unit in units(form, start):
                yield f"{form.issuer}: {unit[:40]!r} repeated", filled(unit, size)
            for character in "aA0_-./@=:% \\\n":
                head = form.before + start + form.tail[: len(form.tail) // 2]
                yield f"{form.issuer}: {start} and {character!r}", filled(character, size, head)


def units(form: Format, start: str) -> list[str]:
    example = form.before + start + form.tail
    half = example[: len(form.before + start) + len(form.tail) // 2]
    separated = [f"{separator}{start}" for separator in ("", "_", "-", ".", "/", "\\n")]
    return [*separated, example, example[:-1], half, half + "-", half + "_", f'{half}"', f"{half} "]


def filled(unit: str, size: int, head: str = "") -> str:
    return (head + unit * (size // len(unit) + 1))[:size]
