"""What is built holds what it must, and works in environments that hold nothing else."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support import ROOT
from support.isolated import KERNEL_MODULES, PLACEHOLDERS, loaded_by_our_import, run_isolated

import agent_mcp_governance

VERSION = agent_mcp_governance.__version__
DIST_INFO = f"agent_mcp_governance-{VERSION}.dist-info"
MODULE_FILES = {"agent_mcp_governance/__init__.py", "agent_mcp_governance/py.typed"}


class Environment(NamedTuple):
    """A virtual environment with nothing in it but what was asked for, pip included."""

    python: Path
    site_packages: Path

    def run(self, code: str) -> str:
        return run_isolated(code, self.python)


class Built(NamedTuple):
    wheel: Path
    sdist: Path


def run_tool(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own tools
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "VALIDATE_PYPROJECT_NO_NETWORK": "1"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=600,
        check=False,
    )


def run(*command: str | Path) -> str:
    """Run a tool and return what it printed; fail with it if the tool fails."""
    done = run_tool(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_environment(folder: Path, *requirements: str | Path) -> Environment:
    run("venv", "--without-pip", folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run("pip", "--python", python, "install", *requirements)
    where = run_isolated("import sysconfig; print(sysconfig.get_path('purelib'))", python)
    return Environment(python, Path(where.strip()))


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where pip reaches no package index; once it does, a failure is a failure."""
    options = ["--no-deps", "--retries", "0", "--timeout", "20"]
    folder = tmp_path_factory.mktemp("index")
    done = run_tool("pip", "download", *options, "--dest", folder, "hatchling", "agent-os-kernel")
    if done.returncode:
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def built(
    index: None,  # noqa: ARG001 - skips
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """Return the sdist made from the tree and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--outdir", folder, ROOT)
    [wheel] = folder.glob("*.whl")
    [sdist] = folder.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="session")
def clean(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with the wheel and what it declares."""
    return make_environment(tmp_path_factory.mktemp("clean"), built.wheel)


@pytest.fixture(scope="session")
def from_tree(
    index: None,  # noqa: ARG001 - skips
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    """Return an environment made with ``pip install .`` alone."""
    return make_environment(tmp_path_factory.mktemp("from-tree"), ROOT)


@pytest.fixture(scope="session", params=["clean", "from_tree"])
def environment(request: pytest.FixtureRequest) -> Environment:
    made: Environment = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="session")
def wheel_files(built: Built) -> dict[str, bytes]:
    with zipfile.ZipFile(built.wheel) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.fixture(scope="session")
def metadata(wheel_files: dict[str, bytes]) -> RawMetadata:
    parsed, not_understood = parse_email(wheel_files[f"{DIST_INFO}/METADATA"])
    assert not_understood == {}
    return parsed


def test_the_wheel_holds_the_two_files_metadata_and_licence(wheel_files: dict[str, bytes]) -> None:
    about = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    assert set(wheel_files) == MODULE_FILES | {f"{DIST_INFO}/{name}" for name in about}
    for name in MODULE_FILES:
        assert wheel_files[name] == (ROOT / "src" / name).read_bytes()
    licence = (ROOT / "LICENSE").read_bytes()
    assert wheel_files[f"{DIST_INFO}/licenses/LICENSE"] == licence
    assert b"agent-mcp-governance contributors" in licence


def test_the_wheel_is_for_every_python_3_and_platform(built: Built) -> None:
    assert built.wheel.name == f"agent_mcp_governance-{VERSION}-py3-none-any.whl"


def test_the_metadata_is_exact(metadata: RawMetadata) -> None:
    described = dict(metadata)
    assert Version(str(described.pop("metadata_version"))) >= Version("2.4")  # PEP 639 licences
    assert (
        str(described.pop("description")).strip()
        == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    )
    del described["requires_dist"]  # has a test of its own
    assert described == {
        "name": "agent-mcp-governance",
        "version": VERSION,
        "summary": "Typed re-exports of agent-os-kernel's governance classes for MCP servers",
        "description_content_type": "text/markdown",
        "author": "agent-mcp-governance contributors",
        "license_expression": "MIT",
        "license_files": ["LICENSE"],
        "requires_python": ">=3.10",
        "keywords": ["agents", "governance", "mcp", "model-context-protocol", "security"],
        "provides_extra": ["otel", "test"],
        "classifiers": [
            "Development Status :: 4 - Beta",
            "Intended Audience :: Developers",
            "Intended Audience :: System Administrators",
            "Operating System :: OS Independent",
            "Programming Language :: Python :: 3",
            "Programming Language :: Python :: 3 :: Only",
            "Programming Language :: Python :: 3.10",
            "Programming Language :: Python :: 3.11",
            "Programming Language :: Python :: 3.12",
            "Programming Language :: Python :: 3.13",
            "Topic :: Security",
            "Topic :: Software Development :: Libraries :: Python Modules",
            "Typing :: Typed",
        ],
    }


def test_the_kernel_and_pyyaml_are_all_that_is_required(metadata: RawMetadata) -> None:
    requirements = [Requirement(text) for text in metadata["requires_dist"]]
    assert {
        (canonicalize_name(requirement.name), requirement.specifier)
        for requirement in requirements
        if requirement.marker is None
    } == {
        ("agent-os-kernel", Requirement("x>=3.7.0,<4.0.0").specifier),
        ("pyyaml", Requirement("x>=6.0").specifier),
    }
    # Everything else has to be asked for with an extra.
    others = [requirement for requirement in requirements if requirement.marker is not None]
    assert len(others) > 15
    assert not any(other.marker and other.marker.evaluate({"extra": ""}) for other in others)
    assert [
        str(other) for other in others if other.marker and other.marker.evaluate({"extra": "otel"})
    ] == ['opentelemetry-api>=1.20; extra == "otel"']


def files_to_ship() -> Iterator[str]:
    yield from (".gitignore", "LICENSE", "README.md", "pyproject.toml")
    for folder in ("src", "tests"):
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            left_by_a_run = any(part.startswith((".", "__pycache__")) for part in parts)
            if path.is_file() and not left_by_a_run:
                yield "/".join(parts)


def test_the_sdist_holds_the_project_with_its_tests(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = sdist.getnames()
    top = f"agent_mcp_governance-{VERSION}/"
    shipped = {name.removeprefix(top) for name in names}
    assert shipped == {*files_to_ship(), "PKG-INFO"}
    assert {"tests/conftest.py", "tests/support/isolated.py", "tests/recipes/guard.py"} < shipped
    assert any(name.endswith(".jsonl") for name in shipped), "the attack corpus is missing"


def test_a_wheel_from_the_tree_is_the_one_from_the_sdist(
    from_tree: Environment, wheel_files: dict[str, bytes]
) -> None:
    installed = {
        path.relative_to(from_tree.site_packages).as_posix(): path.read_bytes()
        for folder in ("agent_mcp_governance", DIST_INFO)
        for path in (from_tree.site_packages / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    added_by_pip = {f"{DIST_INFO}/{name}" for name in ("INSTALLER", "REQUESTED", "direct_url.json")}
    assert set(installed) == set(wheel_files) | added_by_pip
    for name in set(wheel_files) - {f"{DIST_INFO}/RECORD"}:
        assert installed[name] == wheel_files[name], name


def test_twine_accepts_both(built: Built) -> None:
    assert run("twine", "--no-color", "check", "--strict", *built).count("PASSED") == 2


def test_check_wheel_contents_accepts_the_wheel(built: Built) -> None:
    assert run("check_wheel_contents", built.wheel).strip().endswith(": OK")


def test_validate_pyproject_accepts_the_settings() -> None:
    assert run("validate_pyproject", "pyproject.toml").startswith("Valid file:")


def test_an_environment_holds_what_is_declared_and_nothing_else(environment: Environment) -> None:
    code = """
import importlib.metadata, json
print(json.dumps({d.name: [d.version, d.requires] for d in importlib.metadata.distributions()}))
"""
    found: dict[str, tuple[str, list[str] | None]] = {
        canonicalize_name(name): about for name, about in json.loads(environment.run(code)).items()
    }
    declared = ["agent-mcp-governance"]
    for name in declared:
        for requirement in map(Requirement, found[name][1] or []):
            needed = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and needed not in declared:
                declared.append(needed)
    assert sorted(found) == sorted(declared)
    assert found["agent-mcp-governance"][0] == VERSION
    assert Version("3.7.0") <= Version(found["agent-os-kernel"][0]) < Version("4.0.0")


def test_pip_check_finds_nothing_broken(environment: Environment) -> None:
    assert run("pip", "--python", environment.python, "check") == "No broken requirements found.\n"


def test_the_import_loads_twelve_kernel_modules_and_no_third_party(
    environment: Environment,
) -> None:
    assert environment.run("from agent_mcp_governance import MCPGateway; print(MCPGateway)") == (
        "<class 'agent_os.mcp_gateway.MCPGateway'>\n"
    )
    expected = {"agent_mcp_governance"} | KERNEL_MODULES | PLACEHOLDERS
    assert loaded_by_our_import(environment.python) == expected


def test_the_quick_start_prints_what_it_says(environment: Environment) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(
        r"^## Quick start\n.*?^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE
    )
    assert block
    code = block[1]
    said = re.findall(r"^ *#> ?(.*)$", code, re.MULTILINE)
    assert len(said) >= 4
    assert environment.run(code).splitlines() == said
