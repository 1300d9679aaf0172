"""The audit log: one entry for each decision, and the file that holds them."""

import json
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mcp_guard import JsonLinesAuditSink, Limits, ToolRules, flow
from support import processes
from support.guards import SECRET, in_both_forms, make_guard
from support.parts import Down
from support.threads import THREADS, together

from agent_mcp_governance import ApprovalStatus

on_posix = pytest.mark.skipif(os.name != "posix", reason="it moves, or limits, an open file")


@in_both_forms
def test_an_entry_says_who_called_what_with_which_params_and_what_was_decided(check: Any) -> None:
    rules = {"refund": ToolRules(needs_approval=True)}
    guard, log = make_guard(tools=rules, approver=lambda *_: ApprovalStatus.APPROVED)
    params = {"order": "4929384756102938", "to": "bob@example.com"}
    before = time.time()
    check.call(guard, "alice", "refund", params)
    check.response(guard, "alice", "refund", "refunded 123-45-6789")
    assert before <= log[0].pop("timestamp") <= log[1].pop("timestamp") <= time.time()
    common: dict[str, Any] = {"agent_id": "alice", "tool_name": "refund", "stage": "allowed"}
    common |= {"allowed": True, "detail": "", "findings": [], "would_refuse": []}
    call = {"direction": "call", "reason": "Allowed.", "parameters": params}
    response = {"direction": "response", "reason": "Returned.", "parameters": None}
    assert log == [
        {**common, **call, "approval_status": "approved"},
        {**common, **response, "approval_status": None},
    ]


@in_both_forms
@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize("shift", [0, 25, 75, 105])
def test_no_half_of_a_secret_is_left_in_any_part_of_an_entry(
    check: Any, observe: bool, shift: int
) -> None:
    text, cut = f"{'x' * shift} {SECRET}", f"{'x' * shift} [REDACTED]"

    def validate(_: object) -> Any:
        raise ValueError(text)

    rules = {"refund": ToolRules(refuse_secrets=True)}
    options = {"blocked_patterns": [f"pattern {SECRET}"], "detectors": [lambda *_: text]}
    guard, log = make_guard(observe=observe, tools=rules, **options)
    check.call(guard, text, "search", {"q": text, "password": "hunter22", "a": {"secret": 7}})
    check.call(guard, "alice", text, {})
    check.call(guard, "alice", "search", {text: f"pattern {SECRET}"})
    check.call(guard, "alice", "refund", {text: {"a": SECRET}})
    check.response(guard, "alice", "search", "text")
    check.call(guard, "alice", "search", {}, validate=validate)
    hidden = {"password": "[REDACTED]", "a": {"secret": "[REDACTED]"}}
    assert log[0]["parameters"] == {"q": cut, **hidden}
    stages = ["allow_list", "pattern", "secret", "detector"]
    stages = ["allowed"] * 4 if observe else stages
    assert [entry["stage"] for entry in log] == ["allowed", *stages, "params"]
    assert SECRET[:8] not in json.dumps(log)


@pytest.mark.parametrize("text", ["x", '"', "\\", "世", "\U0001f600", "\n"])
@pytest.mark.parametrize("cap", [16_000, 1_000])
def test_what_is_over_the_cap_is_cut_off_the_params(text: str, cap: int) -> None:
    guard, log = make_guard(limits=Limits(max_audit_chars=cap))
    params = {"q": text * 30_000}
    assert guard.check_call("alice", "search", params).params == params
    assert cap // 2 < len(json.dumps(log[0])) <= cap
    assert json.dumps(params).startswith(log[0]["parameters"]["cut_short"])


@pytest.mark.parametrize(("text", "chars"), [("x", 1), ("\U0001f600", 12)])
def test_an_entry_that_fits_is_not_cut(text: str, chars: int) -> None:
    guard, log = make_guard(limits=Limits(max_audit_chars=60_000))
    guard.check_call("alice", "search", {"q": ""})
    room = (60_000 - len(json.dumps(log[0]))) // chars
    for more in range(-9, 12):  # digits of the time come and go
        guard.check_call("alice", "search", {"q": text * (room + more)})
        assert len(json.dumps(log[-1])) <= 60_000
    assert [list(log[at]["parameters"]) for at in (1, -1)] == [["q"], ["cut_short"]]


def test_whatever_else_is_long_is_cut_too() -> None:
    smiles = "\U0001f600" * 1_000  # twelve characters each in JSON

    def validate(_: object) -> Any:
        raise ValueError(smiles)

    options: dict[str, Any] = {"blocked_patterns": [smiles], "detectors": [lambda *_: [smiles] * 9]}
    for observe in (False, True):
        guard, log = make_guard(observe=observe, **options)
        guard.check_call(smiles, smiles, {"q": smiles})
        guard.check_call(smiles, "search", {"q": smiles})
        guard.check_call(smiles, "search", {"q": "x"}, validate=validate)
        guard.check_response(smiles, "search", smiles)
        assert [entry["agent_id"] for entry in log] == [smiles] * 4
        assert "error" not in [entry["stage"] for entry in log]
        assert max(len(json.dumps(entry)) for entry in log) <= 16_000


@in_both_forms
def test_a_sink_that_fails_denies_and_the_guard_keeps_the_last_hundred_entries(check: Any) -> None:
    guard, _ = make_guard(audit_sink=SimpleNamespace(record=Down(), blocking=False))
    assert check.call(guard, "alice", "search", {"q": 1}).params == {}
    assert check.response(guard, "alice", "search", "text").content is None
    assert check.call(guard, "alice", "none", {}).stage == "allow_list"
    for number in range(127):
        check.call(guard, f"caller {number}", "search", {})
    callers = [entry["agent_id"] for entry in guard.audit.unrecorded]
    assert callers == [f"caller {number}" for number in range(27, 127)]
    assert (guard.audit.failures, guard.metrics.failures) == (130, 0)


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
@pytest.mark.parametrize("how", ["move", "replace", "truncate"])
def test_a_file_that_logrotate_took_away_is_made_anew(path: Path, how: str) -> None:
    sink = JsonLinesAuditSink(path)
    sink.record({"n": 1})
    if how == "move":
        path.rename(path.with_suffix(".1"))
    elif how == "truncate":
        os.truncate(path, 0)
    else:
        path.unlink()
        path.touch()
    sink.record({"n": 2})
    sink.record({"n": 3})
    sink.close()
    assert entries(path) == [{"n": 2}, {"n": 3}]
    if how == "move":
        assert entries(path.with_suffix(".1")) == [{"n": 1}]


@on_posix
def test_many_threads_make_a_file_that_was_taken_away_anew_once(path: Path) -> None:
    with path.open("w") as first:
        free = first.fileno()
    sink = JsonLinesAuditSink(path)
    for _ in range(20):
        path.unlink()
        together(lambda number: sink.record({"n": number}))
        assert sorted(entry["n"] for entry in entries(path)) == [*range(THREADS)]
    sink.close()
    with path.open() as last:  # every file in between was closed
        assert last.fileno() <= free


def test_a_relative_path_means_the_folder_of_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    sink = JsonLinesAuditSink(path.name)
    monkeypatch.chdir(path.parent.parent)
    sink.record({"n": 1})
    sink.close()
    assert entries(path) == [{"n": 1}]


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


def test_a_sink_that_was_closed_denies_and_touches_no_file_of_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "LOCK_TIMEOUT", 0.01)  # seconds
    guard, sink = make_guard(audit_sink=JsonLinesAuditSink(path))
    with sink._lock, pytest.raises(TimeoutError):  # not while another thread writes
        sink.close()
    sink.close()
    with path.with_suffix(".other").open("w+") as other:  # it has the sink's number now
        assert guard.check_call("alice", "search", {}).stage == "audit"
        assert other.read() == ""
        other.write("mine")
    assert path.read_text() == ""
    path.unlink()  # as if it had been moved
    assert [guard.check_call("alice", "search", {}).stage for _ in "ab"] == ["audit", "audit"]
    assert not path.exists()


def write_300_entries(path: Path) -> None:
    sink = JsonLinesAuditSink(path)
    processes.together.wait()
    for number in range(300):
        sink.record({"entry": [os.getpid(), number], "long": "x" * 15_000})
    sink.close()


def test_lines_of_four_processes_never_mix(path: Path) -> None:
    processes.in_processes(write_300_entries, path)
    found = sorted(entry["entry"] for entry in entries(path))
    writers = sorted({writer for writer, _ in found})
    assert len(writers) == 4
    assert found == [[writer, number] for writer in writers for number in range(300)]
