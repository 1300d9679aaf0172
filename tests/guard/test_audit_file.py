"""The file sink: one line for each entry, whatever happens to the file."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp_guard import JsonLinesAuditSink
from support import ROOT
from support.guards import make_guard

on_posix = pytest.mark.skipif(os.name != "posix", reason="it moves, or limits, an open file")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def entries(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_each_entry_is_a_line_of_ascii_that_only_the_owner_reads(path: Path) -> None:
    params = {"q": "two\nlines \u2028 世界"}
    for _ in range(2):
        guard, sink = make_guard(audit_sink=JsonLinesAuditSink(str(path)))
        guard.check_call("alice", "search", params)
        sink.close()
    assert [entry["parameters"] for entry in entries(path)] == [params] * 2
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert JsonLinesAuditSink.blocking is False


@on_posix
@pytest.mark.parametrize("how", ["move", "delete", "truncate", "replace"])
def test_a_file_that_logrotate_took_away_is_made_anew(path: Path, how: str) -> None:
    sink = JsonLinesAuditSink(path)
    sink.record({"n": 1})
    if how == "move":
        path.rename(path.with_suffix(".1"))
    elif how == "truncate":
        os.truncate(path, 0)
    else:
        path.unlink()
        path.touch() if how == "replace" else None
    sink.record({"n": 2})
    sink.record({"n": 3})
    sink.close()
    assert entries(path) == [{"n": 2}, {"n": 3}]
    if how == "move":
        assert entries(path.with_suffix(".1")) == [{"n": 1}]


def test_a_relative_path_means_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sink = JsonLinesAuditSink("audit.jsonl")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    sink.record({"n": 1})
    sink.close()
    assert entries(tmp_path / "audit.jsonl") == [{"n": 1}]


@on_posix
def test_after_a_torn_line_or_a_short_write_the_next_entry_starts_its_own_line(path: Path) -> None:
    import resource

    path.write_bytes(b'{"torn": ')  # by another process, say
    guard, sink = make_guard(audit_sink=JsonLinesAuditSink(path))
    assert guard.check_call("alice", "search", {"n": "first"}).allowed
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        short = guard.check_call("alice", "search", {"n": "short"})
        full = guard.check_call("alice", "search", {"n": "none"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert short.stage == full.stage == "audit"
    assert guard.audit.failures == 2
    assert guard.check_call("alice", "search", {"n": "last"}).allowed
    sink.close()
    _, first, torn, last = path.read_text().splitlines()
    assert len(torn) == 20
    found = [json.loads(line)["parameters"]["n"] for line in (first, last)]
    assert found == ["first", "last"]


@on_posix
def test_a_folder_that_is_gone_denies_until_it_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "audit.jsonl"
    with pytest.raises(OSError, match="folder"):
        JsonLinesAuditSink(path)
    path.parent.mkdir()
    guard, sink = make_guard(audit_sink=JsonLinesAuditSink(path))
    path.parent.rename(tmp_path / "moved")
    with (tmp_path / "other").open("w") as other:
        for _ in range(2):  # nobody else's file is closed in place of the sink's
            assert guard.check_call("alice", "search", {}).stage == "audit"
        other.write("mine")
    path.parent.mkdir()
    assert guard.check_call("alice", "search", {}).allowed
    sink.close()
    assert len(entries(path)) == 1


def test_a_sink_that_was_closed_denies_and_touches_no_file_of_others(path: Path) -> None:
    guard, sink = make_guard(audit_sink=JsonLinesAuditSink(path))
    sink.close()
    with path.with_suffix(".other").open("w+") as other:  # it has the sink's number now
        assert guard.check_call("alice", "search", {}).stage == "audit"
        assert other.read() == ""
        other.write("mine")
    assert path.read_text() == ""


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from mcp_guard import JsonLinesAuditSink
sink = JsonLinesAuditSink(sys.argv[2])
print(end="ready", flush=True)
sys.stdin.read(1)
for number in range(300):
    sink.record({"entry": [int(sys.argv[3]), number], "long": "x" * 15_000})
sink.close()
"""


def test_lines_of_four_processes_never_mix(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, ROOT / "tests" / "recipes", path]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen([*command, f"{number}"], **pipes) for number in range(4)]  # noqa: S603
    assert [writer.stdout.read(5) for writer in writers] == [b"ready"] * 4
    for writer in writers:
        writer.stdin.write(b"!")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
    assert [writer.returncode for writer in writers] == [0] * 4
    found = sorted(tuple(entry["entry"]) for entry in entries(path))
    assert found == [(process, number) for process in range(4) for number in range(300)]
