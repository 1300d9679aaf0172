"""Settings of the whole suite."""

import os
import sys
from collections.abc import Iterator

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start one worker for one test (``::``): starting more takes longer than the test."""
    return 1 if len(config.args) == 1 and "::" in config.args[0] else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest: at the end it would keep one worker busy alone."""
    items.sort(key=lambda item: item.path.stem != "test_ordinary_calls")


def may_be_left_out(skipped: pytest.TestReport | pytest.CollectReport) -> bool:
    """Say whether it needs a package that has no release for this Python."""
    file = skipped.nodeid.partition("::")[0]
    _, _, reason = skipped.longrepr
    return (
        sys.version_info[:2] in ((3, 10), (3, 15))
        and file == "tests/guard/test_detectors.py"
        and "stackone-defender" in reason
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that skipped a test although the run was to be complete (FAIL_ON_SKIP)."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # not in a xdist worker
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("FAIL_ON_SKIP") and not all(map(may_be_left_out, skipped)):
        reporter.write_line("FAIL_ON_SKIP is set and tests were skipped", red=True)
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    """Let a thread run for a microsecond before the next one's turn, so that races show."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)
