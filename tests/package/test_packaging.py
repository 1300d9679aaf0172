"""What is built holds what it must, and works in an environment that holds nothing else.

The package index has to be reachable: building and installing ask it.
"""

import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import Requirement
from packaging.version import Version
from support import ROOT, documents
from support.documents import README
from support.isolated import LOADED, loaded_by_us, run_isolated
from support.tools import run_tool

import agent_mcp_governance

VERSION = agent_mcp_governance.__version__
WHEEL = f"agent_mcp_governance-{VERSION}-py3-none-any.whl"
SDIST = f"agent_mcp_governance-{VERSION}.tar.gz"
DIST_INFO = f"agent_mcp_governance-{VERSION}.dist-info"
MODULE_FILES = {"agent_mcp_governance/__init__.py", "agent_mcp_governance/py.typed"}


def run(*command: str | Path) -> str:
    return run_tool("python", "-m", *command, VALIDATE_PYPROJECT_NO_NETWORK="1").stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the sdist made from the tree and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="session")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the wheel and what it declares, without even pip."""
    folder = tmp_path_factory.mktemp("clean")
    run("venv", "--without-pip", folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run("pip", "--python", python, "install", built / WHEEL)
    return python


@pytest.fixture(scope="session")
def wheel_files(built: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(built / WHEEL) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.fixture(scope="session")
def metadata(wheel_files: dict[str, bytes]) -> RawMetadata:
    parsed, not_understood = parse_email(wheel_files[f"{DIST_INFO}/METADATA"])
    assert not_understood == {}
    return parsed


def test_the_wheel_holds_two_files_metadata_and_licence(wheel_files: dict[str, bytes]) -> None:
    about = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    assert set(wheel_files) == MODULE_FILES | {f"{DIST_INFO}/{name}" for name in about}
    for name in MODULE_FILES:
        assert wheel_files[name] == (ROOT / "src" / name).read_bytes()
    licence = wheel_files[f"{DIST_INFO}/licenses/LICENSE"]
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert b"agent-mcp-governance contributors" in licence


def test_the_metadata_says_what_it_is_for_whom_and_on_which_pythons(metadata: RawMetadata) -> None:
    assert Version(metadata["metadata_version"]) >= Version("2.4")  # PEP 639 licences
    assert (metadata["name"], metadata["version"]) == ("agent-mcp-governance", VERSION)
    assert metadata["description"].strip() == documents.text(README).strip()
    assert metadata["description_content_type"] == "text/markdown"
    assert metadata["license_expression"] == "MIT"
    assert metadata["requires_python"] == ">=3.10"
    assert metadata["provides_extra"] == ["otel", "test"]
    assert "Typing :: Typed" in metadata["classifiers"]
    pythons = [f"3.{minor}" for minor in range(10, 16)]
    assert re.findall(r"Python :: (3\.\d+)", "\n".join(metadata["classifiers"])) == pythons
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"^ +(3\.\d+)$", workflow, re.MULTILINE) == pythons
    compatibility = documents.section(README, "Compatibility")
    assert f"Python {pythons[0]} to {pythons[-1]}" in compatibility
    links = documents.links(README)
    assert metadata["project_urls"]
    assert [url for url in metadata["project_urls"].values() if url not in links] == []


def test_the_kernel_and_pyyaml_are_all_that_is_required(metadata: RawMetadata) -> None:
    requirements = [Requirement(text) for text in metadata["requires_dist"]]
    assert len(requirements) > 15
    required = [str(each) for each in requirements if "extra" not in str(each.marker)]
    assert required == ["agent-os-kernel<4.0.0,>=3.7.0", "pyyaml>=6.0"]
    compatibility = documents.section(README, "Compatibility")
    assert "`agent-os-kernel>=3.7.0,<4.0.0`" in compatibility
    otel = [str(each) for each in requirements if '"otel"' in str(each.marker)]
    assert otel == ['opentelemetry-api>=1.20; extra == "otel"']


def files_to_ship() -> set[str]:
    """Return what a checkout holds, without what runs leave in it."""
    shipped = [".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "LICENSE", "README.md"]
    paths = [ROOT / name for name in (*shipped, "pyproject.toml", "src", "tests")]
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    names = {file.relative_to(ROOT).as_posix() for file in files}
    return {name for name in names if not re.search(r"/\.|__pycache__", name)}


def test_the_sdist_holds_the_project_with_its_tests_and_documents(built: Path) -> None:
    with tarfile.open(built / SDIST) as sdist:
        names = sdist.getnames()
    shipped = {name.removeprefix(f"agent_mcp_governance-{VERSION}/") for name in names}
    assert shipped == {*files_to_ship(), "PKG-INFO"}
    assert {"README.md", ".ci/run", ".github/workflows/ci.yml", "tests/kernel/README.md"} < shipped


def test_twine_and_the_checkers_accept_them(built: Path) -> None:
    checked = run("twine", "--no-color", "check", "--strict", built / WHEEL, built / SDIST)
    assert checked.count("PASSED") == 2
    assert run("check_wheel_contents", built / WHEEL).strip().endswith(": OK")
    assert run("validate_pyproject", "pyproject.toml").startswith("Valid file:")


def test_zizmor_finds_nothing_in_the_workflow() -> None:
    done = run_tool("zizmor", "--offline", "--pedantic", ".github")
    assert "completed" in done.stderr
    assert "ci.yml" in done.stderr


def test_the_import_works_with_what_is_declared_and_loads_nothing_else(python: Path) -> None:
    assert run("pip", "--python", python, "check") == "No broken requirements found.\n"
    assert loaded_by_us(python) == LOADED


def test_the_quick_start_prints_what_it_says(python: Path) -> None:
    block = next(each for each in documents.blocks(README) if each.language == "python")
    assert len(block.said) >= 3
    assert run_isolated(block.code, python).splitlines() == block.said
