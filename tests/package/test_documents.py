"""Every block of the documents runs or says why not, and what a test can check is checked."""

import datetime
import inspect
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import anyio
import mcp_guard
import pytest
from mcp import Client, StdioServerParameters
from mcp_guard import decisions, fastmcp_sdk, mcp_sdk, secrets
from support import ROOT, documents
from support.documents import DOCUMENTS, README, RECIPES, Block
from support.redis_server import DURABLE, Server, find_server
from support.tools import run_tool

import agent_mcp_governance

REDIS_URL = "redis://127.0.0.1:6379"
FOLDER = RECIPES.with_name("mcp_guard")
BLOCKS = [block for path in DOCUMENTS for block in documents.blocks(path)]
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def is_server(block: Block) -> bool:
    return bool(re.search(r"\.run\((\"stdio\"|\))", block.code))


def each(language: str, servers: bool = False) -> pytest.MarkDecorator:
    """Parametrise a test with the blocks that run: those that serve, or the others."""
    blocks = [block for block in BLOCKS if block.language == language and not block.not_run]
    found = [block for block in blocks if is_server(block) == servers]
    return pytest.mark.parametrize("block", found, ids=str)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of somebody's own, with a copy of the guard."""
    shutil.copytree(FOLDER, tmp_path / FOLDER.name)
    return tmp_path


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server = Server(find_server() or pytest.skip("no redis-server"), tmp_path, *DURABLE)
    yield server.url
    server.kill()


@each("python")
def test_a_python_block_prints_what_it_says(
    block: Block, folder: Path, request: pytest.FixtureRequest
) -> None:
    code = block.code
    if REDIS_URL in code:
        code = code.replace(REDIS_URL, request.getfixturevalue("redis_url"))
    if "server.py" in code:
        before = [other for other in BLOCKS if other.path == block.path and other.line < block.line]
        server = [other for other in before if is_server(other)][-1]
        (folder / "server.py").write_text(server.code, encoding="utf-8")
    assert run_tool("python", "-c", code, cwd=folder).stdout.splitlines() == block.said


@each("python", servers=True)
def test_a_server_serves_its_tools_and_refuses_others(block: Block, folder: Path) -> None:
    (folder / "server.py").write_text(block.code, encoding="utf-8")
    server = StdioServerParameters(command=sys.executable, args=["server.py"], cwd=folder)

    async def use() -> tuple[int, Any]:
        async with Client(server) as client:
            listed = await client.list_tools()
            return len(listed.tools), await client.call_tool("not_a_tool", {})

    tools, refused = anyio.run(use)
    assert tools
    assert refused.is_error
    [audit] = folder.glob("*.jsonl")
    assert json.loads(audit.read_text(encoding="utf-8"))["allowed"] is False


@each("sh")
def test_a_shell_block_runs_in_a_copy_of_the_tree(block: Block, tmp_path: Path) -> None:
    assert "pip install" not in block.code, f"{block} would change the environment of the tests"
    left_by_runs = shutil.ignore_patterns("__pycache__", ".git", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=left_by_runs)
    run_tool("bash", "-euc", block.code, cwd=tmp_path / "tree")


def test_a_block_that_does_not_run_says_why_and_most_run() -> None:
    running = [block.language for block in BLOCKS if not block.not_run]
    assert set(running) <= {"python", "sh", "text"}
    assert running.count("python") > 15
    assert all(len(block.not_run.split()) > 3 for block in BLOCKS if block.not_run)


@each_document
def test_every_internal_link_leads_somewhere_and_every_named_file_exists(path: Path) -> None:
    named = re.findall(r"`((?:tests|src|\.ci|\.github)/[\w./-]+)`", documents.prose(path))
    assert [file for file in named if not (ROOT / file).exists()] == []
    links = documents.links(path)
    assert links
    for link in links:
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


# What the documents call by its name, and each SDK's govern.
NAMES = vars(datetime) | vars(agent_mcp_governance)
for path in FOLDER.glob("[a-z]*.py"):
    NAMES |= vars(import_module(f"mcp_guard.{path.stem}"))
NAMES |= {"time": time, "mcp_sdk.govern": mcp_sdk.govern, "fastmcp_sdk.govern": fastmcp_sdk.govern}


@pytest.mark.parametrize(
    ("heading", "parts"),
    [
        ("Guard options", "Guard"),
        ("Per-tool rules", "ToolRules"),
        ("Limits", "Limits"),
        ("Put it in front of a server", "mcp_sdk.govern"),
        ("Put it in front of a server", "fastmcp_sdk.govern"),
        ("Who is calling", "verified_caller bucket_label"),
        ("Audit log", "JsonLinesAuditSink"),
        ("Detectors", "KernelDetector DefenderDetector"),
        ("Definitions of others' servers", "refuse_poisoned_tools"),
        ("Redis", "make_client check_server RedisRateLimiter RedisBudget RedisNonceStore"),
        ("Sessions in Redis", "RedisSessionStore"),
        ("Signed messages", "SignedChannel LiveNonceStore"),
    ],
)
def test_every_option_is_documented_with_its_true_default(heading: str, parts: str) -> None:
    head, *rows = documents.table(RECIPES, heading)
    assert head[-3:] == ["Option", "Default", "What it does"]
    options = [
        ([f"`{part.split('.')[-1]}`", f"`{option.name}`"], option.default)
        for part in parts.split()
        for option in inspect.signature(NAMES[part]).parameters.values()
    ]
    assert [row[:-2] for row in rows] == [names[4 - len(head) :] for names, _ in options]
    for (names, default), (*_, said, effect) in zip(options, rows, strict=True):
        assert effect, names
        if default in (inspect.Parameter.empty, ...):  # the second: unless it is replaced
            assert said == "required", names
        else:
            assert said == f"`{said[1:-1]}`", names
            assert eval(said[1:-1], NAMES) == default, names  # noqa: S307 - our own document


def test_the_readme_names_every_stage_that_can_refuse_and_the_caps_at_it() -> None:
    head, *rows = documents.table(README, "Govern a server")
    assert head == ["Stage", "Refuses", "Default", "Change it with"]
    stages = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))
    assert sorted(stages) == sorted({*get_args(decisions.Stage)} - {"allowed"})
    caps = mcp_guard.Limits()
    numbers = {row[0].strip("`"): re.findall(r"\d+", row[2].replace(",", "")) for row in rows}
    params = [caps.max_params_chars, caps.max_depth, caps.max_items]
    assert numbers["params"] == list(map(str, params))
    assert numbers["response"] == [f"{caps.max_response_chars}", f"{caps.max_blob_chars}"]
    policy = agent_mcp_governance.GovernancePolicy()
    assert numbers["budget"][0] == f"{policy.max_tool_calls}"


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


@each_document
def test_it_promises_nothing_absolute(path: Path) -> None:
    words = r"\b(?:guarantee|bulletproof|unbreakable|impossible|100 ?%|fully secure|all attacks)\w*"
    assert re.findall(words, documents.prose(path), re.IGNORECASE) == []


def test_every_owasp_section_is_there_and_has_a_verdict() -> None:
    head, *rows = documents.table(RECIPES, "OWASP mapping")
    assert len(head) == 4
    assert [row[0].split()[0] for row in rows] == [str(number) for number in range(1, 13)]
    for section, helps, missing, verdict in rows:
        assert missing, section
        assert verdict in {"partial", "mostly no", "no"}, section
        assert (verdict == "no") == (len(helps) < 2), section
