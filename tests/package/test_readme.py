"""Every block of the README runs, and every sentence that a test can check is checked."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import guard
import pytest
import test_redis
from mcp import Client, StdioServerParameters
from pytest_examples import CodeExample, EvalExample, find_examples
from support import ROOT

import agent_mcp_governance
from agent_mcp_governance import CredentialRedactor

TESTS = ROOT / "tests"
RECIPES = TESTS / "recipes"
README = TESTS.parent / "README.md"
REDIS_URL = "redis://127.0.0.1:6379"
LOGGERS = ("", ".credential_redactor", ".mcp_gateway")  # that a block changes
TEXT = README.read_text(encoding="utf-8")
BLOCKS = list(find_examples(README))
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_has_all_its_blocks() -> None:
    assert len(BLOCKS) == 15
    assert all(block.prefix == "python" for block in BLOCKS)
    assert len(re.findall(r"^```sh$", TEXT, re.MULTILINE)) == 2


def is_server(block: CodeExample) -> bool:
    return 'server.run("stdio")' in block.source


def needs_redis(block: CodeExample) -> bool:
    return REDIS_URL in block.source


# The kernel's tool scanner says with a warning that its rules are samples; so does the README.
@pytest.mark.filterwarnings("ignore:.*sample rules:UserWarning")
@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if not is_server(block) and not needs_redis(block)],
    ids=lambda block: f"line {block.start_line}",
)
def test_block_runs_and_prints_what_it_says(
    block: CodeExample,
    eval_example: EvalExample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # a block may write a file
    eval_example.set_config(line_length=100)
    eval_example.run_print_check(block)


@pytest.fixture(autouse=True)
def unchanged_loggers() -> Iterator[None]:
    """Undo what the block on logging sets."""
    loggers = [logging.getLogger(f"agent_os{name}") for name in LOGGERS]
    before = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, disabled, handlers) in zip(loggers, before, strict=True):
        for added in set(logger.handlers) - set(handlers):
            logger.removeHandler(added)
            added.close()
        logger.level, logger.disabled = level, disabled


def test_the_block_on_redis_prints_what_it_says(tmp_path: Path) -> None:
    binary = test_redis.find_server()
    if binary is None:
        pytest.skip("no redis-server was found")
    (block,) = filter(needs_redis, BLOCKS)
    redis = test_redis.Server(binary, tmp_path, *test_redis.DURABLE)
    try:
        code = block.source.replace(REDIS_URL, redis.url)
        printed = run_beside_the_recipes(code, tmp_path)
    finally:
        redis.kill()
    assert printed.splitlines() == re.findall(r"^#> (.*)$", block.source, re.MULTILINE)


def run_beside_the_recipes(code: str, folder: Path) -> str:
    for recipe in RECIPES.glob("*.py"):
        shutil.copy(recipe, folder)
    (folder / "program.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "program.py"]
    return subprocess.run(  # noqa: S603 - our own code
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_the_server_of_the_readme_governs_its_tool(tmp_path: Path) -> None:
    (block,) = filter(is_server, BLOCKS)
    for recipe in ("guard.py", "mcp_server.py"):
        shutil.copy(RECIPES / recipe, tmp_path)
    (tmp_path / "server.py").write_text(block.source, encoding="utf-8")
    server = StdioServerParameters(
        command=sys.executable, args=["server.py"], cwd=tmp_path, env=dict(os.environ)
    )

    async def use() -> list[tuple[bool, str]]:
        async with Client(server) as client:
            calls = [("read_note", {"path": "todo.txt"}), ("wipe", {})]
            results = [await client.call_tool(*call) for call in calls]
        return [(result.is_error, result.content[0].text) for result in results]

    allowed, denied = anyio.run(use)
    assert allowed == (False, "todo.txt: buy milk")
    assert denied[0]
    assert "wipe" in denied[1]
    audit = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [entry["allowed"] for entry in audit] == [True, True, False]


def test_every_name_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", section("The names")))
    missing = set(agent_mcp_governance.__all__) - documented
    assert not missing, f"the README does not say what {sorted(missing)} are for"


def test_the_version_is_the_packages() -> None:
    assert f"This is {agent_mcp_governance.__version__}." in PROSE
    assert f"### {agent_mcp_governance.__version__}" in section("Release notes")


def test_every_internal_link_has_its_heading() -> None:
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    headings = {slug(line) for line in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)}
    assert len(links) > 20
    assert set(links) <= headings


def test_every_section_is_in_the_contents() -> None:
    sections = [name for name in re.findall(r"^## (.+)$", TEXT, re.MULTILINE) if name != "License"]
    contents = TEXT[TEXT.index("**Contents:**") : TEXT.index("## Install")]
    assert len(sections) == 18
    assert [name for name in sections if f"[{name}](#{slug(name)})" not in contents] == []


def test_every_test_and_recipe_that_it_names_exists() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    files = set(re.findall(r"`(?:tests/)?((?:recipes/|benchmarks/)?\w+\.py)`", PROSE))
    names = set(re.findall(r"`(test_\w+|Test\w+)`", PROSE))
    assert len(files) > 8
    assert len(names) > 15
    known = {path.name for path in TESTS.rglob("*.py")}
    assert {file for file in files if Path(file).name not in known} == set()
    assert (
        names - set(re.findall(r"^ *(?:async )?(?:def|class) (\w+)", code, re.MULTILINE)) == set()
    )


def test_every_owasp_section_that_is_helped_names_what_shows_it() -> None:
    rows = table("OWASP mapping", columns=4)
    assert len(rows) == 12
    assert [row[0] for row in rows if row[3] == "no"] == ["3 Sandbox and Isolate MCP Servers"]
    for name, helps, missing, verdict in rows:
        assert verdict in {"partial", "mostly no", "no"}, name
        assert missing, name
        assert (verdict == "no") == ("`test_" not in helps and "](#" not in helps), name


def test_it_promises_nothing_absolute() -> None:
    words = (
        r"\b(?:guarantee\w*|bulletproof|unbreakable|impossible|100 ?%|fully secure|all attacks)\b"
    )
    assert re.findall(words, PROSE, re.IGNORECASE) == []


def test_the_redaction_table_is_true() -> None:
    (_, by_both), (_, by_recipe) = table("What redaction catches", columns=2)
    assert len(SECRETS) == 25
    assert set(by_both.split("; ")) == {
        name for name in SECRETS if redacts(CredentialRedactor, name)
    }
    assert set(by_recipe.split("; ")) == set(SECRETS) - set(by_both.split("; "))
    assert all(redacts(guard, name) for name in SECRETS)


def redacts(redactor: Any, name: str) -> bool:
    return all(secret not in redactor.redact(text) for secret, text in SECRETS[name])


def section(name: str) -> str:
    """Return the text under a heading, up to the next one of the same or a higher level."""
    start = re.search(rf"^(#+) {re.escape(name)}$", TEXT, re.MULTILINE)
    assert start
    rest = TEXT[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(name: str, columns: int) -> list[list[str]]:
    """Return the rows of the first table of a section, without its head."""
    text = section(name)
    lines = text[text.index("\n|") + 1 :].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    assert rows
    assert all(len(row) == columns for row in rows), rows
    return rows


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _labelled(before: str, secret: str, after: str = "") -> list[tuple[str, str]]:
    return [(secret, f"see {before}{secret}{after} there")]


def _tokens(*tokens: str) -> list[tuple[str, str]]:
    return [(token, f"see {token} there") for token in tokens]


def _pem(*kinds: str) -> list[tuple[str, str]]:
    body = "MIIBVgIBADANBgkqhkiG9w0BAQ"
    return [(body, f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----") for kind in kinds]


# Made up, of the length and alphabet that the issuers document.
SECRETS = {
    "OpenAI, Anthropic: `sk-`, `sk-proj-`, `sk-ant-`": _tokens(
        "sk-" + "a1B2" * 6, "sk-proj-" + "a1B2" * 6, "sk-ant-" + "a1B2" * 6
    ),
    "GitHub: `ghp_`, `ghs_`": _tokens("ghp_" + "a1B2" * 9, "ghs_" + "a1B2" * 9),
    "GitHub: `gho_`, `ghu_`, `ghr_`, `github_pat_`": _tokens(
        *(kind + "a1B2" * 9 for kind in ("gho_", "ghu_", "ghr_", "github_pat_"))
    ),
    "GitLab: `glpat-`": _tokens("glpat-" + "a1B2" * 5),
    "Slack: `xoxb-`, `xapp-`": _tokens("xoxb-" + "1234567890-" * 2, "xapp-1-" + "A1B2" * 6),
    "Google: `AIza`, `ya29.`, `GOCSPX-`": _tokens(
        "AIza" + "a1B2c" * 7, "ya29." + "a1B2" * 9, "GOCSPX-" + "a1B2" * 7
    ),
    "Stripe: `sk_live_`, `rk_live_`, `whsec_`": _tokens(
        *(kind + "a1B2" * 6 for kind in ("sk_live_", "rk_live_", "whsec_"))
    ),
    "AWS key id: `AKIA`": _tokens("AKIA" + "Q1W2" * 4),
    "AWS key id: `ASIA`": _tokens("ASIA" + "Q1W2" * 4),
    "AWS secret key, labelled": _labelled("aws_secret_access_key = ", "a1B2/" * 8),
    "npm, PyPI: `npm_`, `pypi-`": _tokens("npm_" + "a1B2" * 9, "pypi-" + "a1B2" * 9),
    "Hugging Face: `hf_`": _tokens("hf_" + "a1B2" * 9),
    "SendGrid: `SG.`": _tokens("SG." + "a1B2" * 6 + "." + "a1B2" * 10),
    "DigitalOcean, Databricks: `dop_v1_`, `dapi`": _tokens(
        "dop_v1_" + "a1b2" * 16, "dapi" + "a1b2" * 8
    ),
    "Azure: `AccountKey=`": _labelled("AccountKey=", "a1B2" * 20 + "=="),
    "JSON web token": _tokens("eyJhbGciOi" + "." + "eyJzdWIiOi" + "." + "c2lnbmF0dXJl"),
    "PEM private key: plain, RSA, EC, OPENSSH": _pem(
        "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"
    ),
    "PEM private key: encrypted, DSA, PGP": _pem(
        "ENCRYPTED PRIVATE KEY", "DSA PRIVATE KEY", "PGP PRIVATE KEY BLOCK"
    ),
    "`Bearer` and a token": _labelled("Bearer ", "a1B2" * 6),
    "`bearer` and a token": _labelled("bearer ", "a1B2" * 6),
    "`api_key=`, `token=`, `secret=`": _labelled("api_key=", "hunter22")
    + _labelled("token=", "hunter22")
    + _labelled("secret=", "hunter22"),
    "`password=`, `pwd=`": _labelled("password=", "hunter22") + _labelled("pwd=", "hunter22"),
    "`passwd=`, `passphrase=`": _labelled("passwd=", "hunter22")
    + _labelled("passphrase=", "hunter22"),
    'JSON label: `"password": "…"`': _labelled('{"password": "', "hunter22", '"}'),
    "URL with a password": _labelled("postgres://app:", "hunter22", "@db/prod"),
}  # fmt: skip
