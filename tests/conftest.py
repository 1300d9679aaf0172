"""Settings of the whole suite."""

import os
import sys
from collections.abc import Iterator

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start one worker for one test (``::``): starting more takes longer than the test."""
    return 1 if len(config.args) == 1 and "::" in config.args[0] else None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that skipped a test although the run was to be complete (FAIL_ON_SKIP)."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # not in a xdist worker
    if os.environ.get("FAIL_ON_SKIP") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("FAIL_ON_SKIP is set and tests were skipped", red=True)
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    """Let a thread run for a microsecond before the next one's turn, so that races show."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)
