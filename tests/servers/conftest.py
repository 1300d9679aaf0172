"""The servers' tests run on asyncio, as both SDKs do."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
