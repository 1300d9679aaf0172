"""What every test of this room uses."""

import logging
from collections.abc import Iterator

import pytest
from support.signing import BODY, KEYS, Reasons


@pytest.fixture(autouse=True)
def logs_are_clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test makes the kernel log, and no log holds a payload or a key."""
    caplog.set_level(logging.DEBUG)
    yield
    records = caplog.get_records("call")
    assert [r.getMessage() for r in records if r.name.startswith("agent_os")] == []
    text = "\n".join(f"{record.getMessage()} {record.args} {record.exc_info}" for record in records)
    for secret in (BODY, *map(str, KEYS), *(key.hex() for key in KEYS)):
        assert secret not in text


@pytest.fixture
def reasons(caplog: pytest.LogCaptureFixture) -> Reasons:
    return lambda: [text.removeprefix("signed message refused: ") for text in caplog.messages]
