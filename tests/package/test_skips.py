"""A complete run fails if it left a test out, but for those that their Python rules out."""

import shutil
import sys

import pytest
from support import ROOT

pytest_plugins = ["pytester"]

DETECTORS = "tests/guard/test_detectors.py"
NO_RELEASE = "stackone-defender has no release for this Python"
RULED_OUT = sys.version_info[:2] in ((3, 10), (3, 15))


@pytest.mark.parametrize(
    ("file", "statement", "passes"),
    [
        (DETECTORS, f"pytest.skip('{NO_RELEASE}')", RULED_OUT),
        (DETECTORS, "pytest.skip('no network')", False),
        ("tests/guard/test_guard.py", f"pytest.skip('{NO_RELEASE}')", False),
        ("tests/package/test_detectors.py", f"pytest.skip('{NO_RELEASE}')", False),
        (DETECTORS, "pass", True),
    ],
)
def test_a_complete_run_fails_on_any_skip_but_these(
    file: str,
    statement: str,
    passes: bool,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test = pytester.path / file
    test.parent.mkdir(parents=True)
    test.write_text(f"import pytest\ndef test_it():\n    {statement}\n", encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", pytester.path / "tests")
    pytester.makepyprojecttoml("[tool.pytest]\n")
    monkeypatch.setenv("FAIL_ON_SKIP", "1")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # which would take seconds
    done = pytester.runpytest_inprocess("tests")
    assert done.ret == (pytest.ExitCode.OK if passes else pytest.ExitCode.TESTS_FAILED)
