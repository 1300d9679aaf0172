"""Every block of the documents runs or says why not, and what a test can check is checked."""

import datetime
import inspect
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, get_args

import anyio
import mcp_guard
import pytest
from mcp import Client, StdioServerParameters
from mcp_guard import (
    decisions,
    definitions,
    detectors,
    fastmcp_sdk,
    mcp_sdk,
    redis_sessions,
    redis_stores,
    secrets,
    signed_messages,
)
from mcp_guard.live_nonces import now
from packaging.requirements import Requirement
from support import ROOT, documents
from support.documents import DOCUMENTS, README, RECIPES, Block
from support.redis_server import DURABLE, Server, find_server
from support.tools import run_tool

import agent_mcp_governance

REDIS_URL = "redis://127.0.0.1:6379"
FOLDER = RECIPES.with_name("mcp_guard")
BLOCKS = [block for path in DOCUMENTS if path.exists() for block in documents.blocks(path)]
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def is_server(block: Block) -> bool:
    return bool(re.search(r"\.run\((\"stdio\"|\))", block.code))


def needs_redis(block: Block) -> bool:
    return REDIS_URL in block.code


def needs_server(block: Block) -> bool:
    return '"server.py"' in block.code


def each(language: str, special: Callable[[Block], bool] | None = None) -> pytest.MarkDecorator:
    """Parametrise a test with the blocks that run: those of a special kind, or those of none."""
    kinds = (is_server, needs_redis, needs_server)
    wanted = special or (lambda block: not any(kind(block) for kind in kinds))
    found = [block for block in BLOCKS if block.language == language and not block.not_run]
    return pytest.mark.parametrize("block", list(filter(wanted, found)), ids=str)


def run(block: Block, folder: Path, *command: str) -> str:
    done = run_tool(*command, cwd=folder, PYTHONPATH=str(FOLDER.parent))
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    return done.stdout


@each("python")
def test_a_python_block_prints_what_it_says(block: Block, tmp_path: Path) -> None:
    assert run(block, tmp_path, "python", "-c", block.code).splitlines() == block.said


@each("python", is_server)
def test_a_server_serves_its_tools_and_refuses_others(block: Block, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "mcp_guard")
    (tmp_path / "server.py").write_text(block.code, encoding="utf-8")
    server = StdioServerParameters(command=sys.executable, args=["server.py"], cwd=tmp_path)

    async def use() -> tuple[int, Any]:
        async with Client(server) as client:
            listed = await client.list_tools()
            return len(listed.tools), await client.call_tool("not_a_tool", {})

    tools, refused = anyio.run(use)
    assert tools
    assert refused.is_error
    [audit] = tmp_path.glob("*.jsonl")
    [entry] = map(json.loads, audit.read_text(encoding="utf-8").splitlines())
    assert entry["allowed"] is False


@each("python", needs_server)
def test_a_client_prints_what_it_says_of_the_server_before_it(block: Block, tmp_path: Path) -> None:
    before = [other for other in BLOCKS if other.path == block.path and other.line < block.line]
    server = [other for other in before if is_server(other)][-1]
    (tmp_path / "server.py").write_text(server.code, encoding="utf-8")
    shutil.copytree(FOLDER, tmp_path / "mcp_guard")
    assert run(block, tmp_path, "python", "-c", block.code).splitlines() == block.said


@each("python", needs_redis)
def test_a_block_with_redis_prints_what_it_says(block: Block, tmp_path: Path) -> None:
    server = Server(find_server() or pytest.skip("no redis-server"), tmp_path, *DURABLE)
    try:
        code = block.code.replace(REDIS_URL, server.url)
        assert run(block, tmp_path, "python", "-c", code).splitlines() == block.said
    finally:
        server.kill()


@each("sh")
def test_a_shell_block_runs_in_a_copy_of_the_tree(block: Block, tmp_path: Path) -> None:
    assert "pip install" not in block.code, f"{block} would change the environment of the tests"
    left_by_runs = shutil.ignore_patterns("__pycache__", ".git", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=left_by_runs)
    run(block, tmp_path / "tree", "bash", "-euc", block.code)


def test_a_block_that_does_not_run_says_why_and_most_run() -> None:
    left = [block for block in BLOCKS if block.language not in ("python", "sh", "json", "text")]
    assert [str(block) for block in left if not block.not_run] == []
    assert all(json.loads(block.code) for block in BLOCKS if block.language == "json")
    assert all(len(block.not_run.split()) > 3 for block in BLOCKS if block.not_run)
    running = [block for block in BLOCKS if block.language == "python" and not block.not_run]
    assert len(running) > 15
    assert len(documents.commands(README)) > 2


@each_document
def test_every_internal_link_leads_somewhere_and_every_named_file_exists(path: Path) -> None:
    named = re.findall(r"`((?:tests|src|\.ci|\.github)/[\w./-]+)`", documents.prose(path))
    assert [file for file in named if not (ROOT / file).exists()] == []
    for link in documents.links(path):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in documents.anchors(target), link


def test_the_text_of_the_readme_names_each_file_that_it_links_to() -> None:
    files = {link.partition("#")[0] for link in documents.links(README) if ":" not in link} - {""}
    assert {path.relative_to(ROOT).as_posix() for path in DOCUMENTS} - {"README.md"} <= files
    text = re.sub(r"\]\([^)]+\)", "]", documents.prose(README))
    assert [file for file in files if file not in text] == []


INSTALL = re.compile(
    r"(?:\b(?:install|add|download|uvx)|--with)(?:[ =]+[^\s`;&|]+)*?[ =]+"
    r"[\"']?agent[-_.]mcp[-_.]governance(?!-\d|[\w/])"
)


def test_no_command_installs_by_the_name_that_is_another_release_on_the_index() -> None:
    assert INSTALL.search("uv add 'agent-mcp-governance[otel]'")
    assert INSTALL.search("pip install -U agent_mcp_governance==3.8.0")
    assert not INSTALL.search("pip install ./dist/agent_mcp_governance-3.8.0-py3-none-any.whl")
    assert not INSTALL.search('pip install . && python -c "import agent_mcp_governance"')
    for path in (*DOCUMENTS, *FOLDER.glob("*.py")):
        assert not INSTALL.search(documents.text(path)), path


def test_every_name_is_in_the_table_of_names_once() -> None:
    _, *rows = documents.table(README, "The names")
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))
    assert sorted(named) == agent_mcp_governance.__all__
    assert all(row[-1] for row in rows)


def test_every_public_name_of_the_guard_is_in_its_document() -> None:
    words = set(re.findall(r"\w+", documents.text(RECIPES)))
    assert len(mcp_guard.__all__) > 7
    assert set(mcp_guard.__all__) - words == set()


def check_default(option: inspect.Parameter, said: str) -> None:
    if option.default in (option.empty, ...):  # the second: has to be given unless replaced
        assert said == "required", option
    else:
        known = {**vars(agent_mcp_governance), **vars(mcp_guard), **vars(datetime), "now": now}
        assert said == f"`{said[1:-1]}`", option
        value = eval(said[1:-1], {**known, "time": time})  # noqa: S307 - our own document
        assert value == option.default, option


@pytest.mark.parametrize(
    ("heading", "documented"),
    [
        ("Guard options", mcp_guard.Guard),
        ("Per-tool rules", mcp_guard.ToolRules),
        ("Limits", mcp_guard.Limits),
    ],
)
def test_every_option_is_documented_with_its_true_default(heading: str, documented: Any) -> None:
    head, *rows = documents.table(RECIPES, heading)
    assert head == ["Option", "Default", "What it does"]
    options = inspect.signature(documented).parameters
    assert [row[0] for row in rows] == [f"`{name}`" for name in options]
    for option, (_, said, effect) in zip(options.values(), rows, strict=True):
        assert effect, option
        check_default(option, said)


@pytest.mark.parametrize(
    ("heading", "parts"),
    [
        ("Put it in front of a server", [mcp_sdk.govern]),
        ("Who is calling", [mcp_guard.verified_caller, mcp_guard.bucket_label]),
        ("Audit log", [mcp_guard.JsonLinesAuditSink]),
        ("Detectors", [detectors.KernelDetector, detectors.DefenderDetector]),
        ("Definitions of others' servers", [definitions.refuse_poisoned_tools]),
        (
            "Redis",
            [
                redis_stores.make_client,
                redis_stores.check_server,
                redis_stores.RedisRateLimiter,
                redis_stores.RedisBudget,
                redis_stores.RedisNonceStore,
            ],
        ),
        ("Sessions in Redis", [redis_sessions.RedisSessionStore]),
        ("Signed messages", [signed_messages.SignedChannel, signed_messages.LiveNonceStore]),
    ],
)
def test_every_option_of_a_part_is_documented_too(heading: str, parts: list[Any]) -> None:
    head, *rows = documents.table(RECIPES, heading)
    assert head == ["Part", "Option", "Default", "What it does"]
    options = [
        (part.__name__, option)
        for part in parts
        for option in inspect.signature(part).parameters.values()
    ]
    assert [row[:2] for row in rows] == [
        [f"`{part}`", f"`{option.name}`"] for part, option in options
    ]
    for (_, option), (*_, said, effect) in zip(options, rows, strict=True):
        assert effect, option
        check_default(option, said)


def test_both_sdks_are_governed_with_the_same_options() -> None:
    one, other = (inspect.signature(sdk.govern).parameters for sdk in (mcp_sdk, fastmcp_sdk))
    assert [(o.name, o.default) for o in one.values()] == [
        (o.name, o.default) for o in other.values()
    ]


def test_the_readme_names_every_stage_that_can_refuse_and_the_caps_at_it() -> None:
    head, *rows = documents.table(README, "Govern a server")
    assert head == ["Stage", "Refuses", "Default", "Change it with"]
    stages = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))
    assert sorted(stages) == sorted({*get_args(decisions.Stage)} - {"allowed"})
    caps = mcp_guard.Limits()
    said = {row[0].strip("`"): row[2] for row in rows}
    assert [number.replace(",", "") for number in re.findall(r"[\d,]*\d", said["params"])] == [
        f"{cap}" for cap in (caps.max_params_chars, caps.max_depth, caps.max_items)
    ]
    assert [number.replace(",", "") for number in re.findall(r"[\d,]*\d", said["response"])] == [
        f"{cap}" for cap in (caps.max_response_chars, caps.max_blob_chars)
    ]
    assert said["budget"].startswith(f"{agent_mcp_governance.GovernancePolicy().max_tool_calls},")


def test_the_readme_says_of_detectors_what_the_recipes_say() -> None:
    head, *rows = documents.table(README, "Which detector finds what")
    measured_head, *measured = documents.table(RECIPES, "What detectors find")
    assert head == measured_head
    assert len(rows) > 5
    assert [row for row in rows if row not in measured] == []


def test_every_format_of_a_secret_that_is_cut_out_is_in_the_table() -> None:
    _, *rows = documents.table(RECIPES, "Secrets")
    formats = [
        [form.issuer, " ".join(f"`{start}`" for start in form.starts.split())]
        for form in secrets.FORMATS
    ]
    assert rows == formats


def test_the_readme_is_of_one_sitting_and_of_this_release() -> None:
    assert len(documents.text(README).splitlines()) <= 300
    assert agent_mcp_governance.__version__ in documents.prose(README).partition("\n## ")[0]
    assert f"### {agent_mcp_governance.__version__}" in documents.section(README, "Release notes")


def test_the_readme_says_which_kernels_and_pythons_are_allowed() -> None:
    compatibility = documents.section(README, "Compatibility")
    [kernel] = re.findall(r"`agent-os-kernel([^`]+)`", compatibility)
    declared = metadata("agent-mcp-governance")
    required = [Requirement(each) for each in declared.get_all("Requires-Dist") or ()]
    assert [str(each) for each in required if each.name == "agent-os-kernel"] == [
        str(Requirement(f"agent-os-kernel{kernel}"))
    ]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(declared.get_all("Classifier") or ()))
    assert f"Python {pythons[0]} to {pythons[-1]}" in compatibility


@each_document
def test_it_promises_nothing_absolute(path: Path) -> None:
    words = r"\b(?:guarantee|bulletproof|unbreakable|impossible|100 ?%|fully secure|all attacks)\w*"
    assert re.findall(words, documents.prose(path), re.IGNORECASE) == []


def test_every_owasp_section_is_there_and_has_a_verdict() -> None:
    head, *rows = documents.table(RECIPES, "OWASP mapping")
    assert len(head) == 4
    assert [row[0].split()[0] for row in rows] == [str(number) for number in range(1, 13)]
    for section, helps, missing, verdict in rows:
        assert verdict in {"partial", "mostly no", "no"}, section
        assert missing, section
        assert (verdict == "no") == (len(helps) < 2), section
