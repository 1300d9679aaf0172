"""The servers' tests run on asyncio, as both SDKs do."""

import pytest


@pytest.fixture(autouse=True)  # so anyio runs each test that is async
def anyio_backend() -> str:
    return "asyncio"
