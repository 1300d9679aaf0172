"""Programs of the environment that the tests run in."""

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT


def run_tool(
    *command: str | Path, cwd: Path = ROOT, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that this Python's environment has, and nobody answers its questions.

    Fail with what it printed if it fails and *check* does not say that it may.
    """
    # basedpyright looks for the environment of the first `python` on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(  # noqa: S603 - the tests' own tools and documents
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=600,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done
