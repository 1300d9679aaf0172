"""Attacks that are stopped, and ordinary records that are refused, on AgentDojo's data.

    python tests/benchmarks/detection.py [AGENTDOJO.whl or a folder it was unpacked into]

Without an argument it downloads the wheel with pip. Its data and sources are read, none of its code
runs. The table is Markdown, for the documents. It takes a few minutes on two
processors.
"""

import argparse
import ast
import json
import logging
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import common
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from mcp_guard import Guard
from mcp_guard.detectors import DefenderDetector, KernelDetector

from agent_mcp_governance import GovernancePolicy, InMemoryAuditSink, MCPGateway, ResponsePolicy

AGENTDOJO = "agentdojo==0.1.35"
SUITES = ("workspace", "slack", "banking", "travel")
NAMES = {"user": "Ann Lee", "model": "the assistant", "tools": ""}
PLACES = {"start": 0.0, "middle": 0.5, "end": 1.0}
SAMPLES = {1: 54, 10: 18, 50: 6, 200: 3}  # attacks at each place in so many kB of plain prose
PLAIN = (
    "The harbour office keeps a list of every boat that is moored here, with its owner and its "
    "length in metres. The list hangs on the wall beside the door. In winter most of the boats "
    "lie on land, under green covers, and the cranes stand still until March. The ferry leaves "
    "from the second pier and takes an hour to the island, where a small museum shows how nets "
    "were made. Its cafe is known for soup and for a view over the whole bay.\n"
)
MODELS_OWN = 0.52  # the threshold that the classifier's makers calibrated

Refuses = Callable[[Any], bool]


def unpacked(argument: str | None, folder: Path) -> Path:
    """Return where AgentDojo's package is."""
    wheel = Path(argument or folder)
    if argument is None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheel]
        subprocess.run([*pip, AGENTDOJO], check=True)  # noqa: S603 - the command is ours
        wheel = next(wheel.glob("agentdojo-*.whl"))
    if wheel.is_file():
        zipfile.ZipFile(wheel).extractall(folder)
        wheel = folder
    return wheel / "agentdojo"


def records(package: Path) -> list[Any]:
    """Return mails, events, files, messages, transactions and the like, without attacks."""
    found: list[Any] = []
    for suite in SUITES:
        folder = package / "data" / "suites" / suite
        vectors = yaml.safe_load((folder / "injection_vectors.yaml").read_text("utf-8"))
        environment = load_with_includes(folder / "environment.yaml")
        text = json.dumps(environment, default=str)  # dates become text, as over MCP
        for name in re.findall(r"\{(\w+)\}", text):
            text = text.replace(f"{{{name}}}", json.dumps(vectors[name]["default"])[1:-1])
        for section in json.loads(text).values():
            found += entries(section)
    return found


def passages() -> list[str]:
    """Return Python's own documentation in passages of over 300 characters.

    It has nothing to do with agents, and nothing about a detector was chosen on it.
    """
    found = [""]
    for paragraph in "\n\n".join(topics.values()).split("\n\n"):
        found[-1] += f"{paragraph}\n\n"
        if len(found[-1]) > 300:
            found.append("")
    return found[:-1]


def load_with_includes(file: Path) -> Any:
    class Loader(yaml.SafeLoader):
        pass

    def include(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        return load_with_includes(file.parent / loader.construct_scalar(node))

    Loader.add_constructor("!include", include)
    return yaml.load(file.read_text("utf-8"), Loader)  # noqa: S506 - it is a SafeLoader


def entries(section: dict[str, Any]) -> Iterator[Any]:
    """Yield what a section holds many of, or the section if it describes one thing."""
    collections = [value for value in section.values() if value and isinstance(value, (list, dict))]
    if not collections:
        yield section
    for collection in collections:
        for entry in collection if isinstance(collection, list) else collection.values():
            inbox = isinstance(entry, list) and isinstance(entry[0], dict)
            yield from entry if inbox else [entry] if entry else []


def constants(body: list[ast.stmt], known: dict[str, str]) -> dict[str, str]:
    """Return the texts that are assigned to names, f-strings filled in."""

    def text(node: ast.AST | None) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        if isinstance(node, ast.FormattedValue):
            return text(node.value)
        if isinstance(node, ast.Name):
            return known.get(node.id, "")
        return str(node.value) if isinstance(node, ast.Constant) else ""

    known = dict(known)
    for statement in body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
                known[getattr(target, "id", "")] = text(statement.value)
    return known


def classes(file: Path) -> Iterator[tuple[ast.ClassDef, dict[str, str]]]:
    module = ast.parse(file.read_text("utf-8"))
    shared = constants(module.body, {})
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            yield node, constants(node.body, shared)


def goals(package: Path) -> list[str]:
    """Return what attackers want, of every suite and version."""
    files = sorted(package.glob("default_suites/*/*/injection_tasks.py"))
    return [names["GOAL"] for file in files for _, names in classes(file) if names.get("GOAL")]


def wordings(package: Path) -> dict[str, str]:
    """Return how attacks are put, by name."""
    found: dict[str, str] = {}
    for name in ("baseline_attacks.py", "important_instructions_attacks.py"):
        for node, names in classes(package / "attacks" / name):
            documented = ast.get_docstring(node, clean=False)
            texts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
            for text in texts:
                if isinstance(text, str) and "{goal}" in text and text != documented:
                    found[names["name"]] = text
    return found


def bare_kernel() -> Refuses:
    policy = GovernancePolicy(name="benchmark", allowed_tools=["read"])
    gateway = MCPGateway(policy, response_policy=ResponsePolicy.BLOCK)
    return lambda content: not gateway.intercept_tool_response("agent", "read", content).allowed


def guard_alone() -> Refuses:
    """Return what says whether a guard without detectors refuses or alters a content."""
    policy = GovernancePolicy(name="benchmark", allowed_tools=["read"], max_tool_calls=1)
    counts = {"max_calls_per_window": 1, "window_size": 60.0, "budget_period": None}
    guard = Guard(policy, audit_sink=InMemoryAuditSink(), **counts)

    def refuses_or_alters(content: Any) -> bool:
        decision = guard.check_response("agent", "read", content)
        return not decision.allowed or decision.content != content

    return refuses_or_alters


def in_plain_prose(attack: str, size: int, place: float) -> str:
    text = (PLAIN * (size * 1_000 // len(PLAIN) + 1))[: size * 1_000]
    split = int(len(text) * place)
    return f"{text[:split]}\n\n{attack}\n\n{text[split:]}"


def spread(items: list[Any], number: int) -> list[Any]:
    """Return so many of the items, from all over the list."""
    return items[:: max(1, len(items) // number)][:number]


def count(refuses: Refuses, contents: list[Any]) -> str:
    return f"{sum(map(refuses, contents))} of {len(contents)}"


def prose(content: Any) -> Iterator[str]:
    """Yield the texts of a record that are no mere names."""
    if isinstance(content, str) and len(content) > 100:
        yield content
    for part in content.values() if isinstance(content, dict) else ():
        yield from prose(part)


def column(
    name: str, refuses: Refuses, data: list[Any], attacks: dict[str, list[str]]
) -> Iterator[str]:
    """Yield the cells of a detector, in the order of the rows."""
    start = time.perf_counter()
    yield count(refuses, data)
    yield count(refuses, passages())
    stopped: list[str] = []
    for texts in attacks.values():
        hits = [text for text in texts if refuses(text)]
        stopped += hits
        yield f"{len(hits)} of {len(texts)}"
    # Of what it passes alone, longer texts: so many kB of it at a time.
    ordinary = "\n".join(t for record in data for t in prose(record) if not refuses(t))
    for size in (1_000, 10_000):
        yield count(refuses, [ordinary[n : n + size] for n in range(0, len(ordinary), size)])
    if refuses(in_plain_prose("", max(SAMPLES), 0)):
        raise SystemExit(
            f"{name} refuses the plain prose, so it cannot be told what it stops there"
        )
    for size, number in SAMPLES.items():
        for place in PLACES.values():
            texts = [in_plain_prose(attack, size, place) for attack in spread(stopped, number)]
            yield count(refuses, texts)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def print_markdown(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("agentdojo", nargs="?", help="a wheel, or a folder that holds agentdojo/")
    logging.disable(logging.CRITICAL)  # the kernel logs each finding
    with TemporaryDirectory() as folder:
        package = unpacked(parser.parse_args().agentdojo, Path(folder))
        data, wanted, put = records(package), goals(package), wordings(package)
    attacks = {
        name: [wording.format(goal=goal, **NAMES) for goal in wanted]
        for name, wording in put.items()
    }
    detectors = {
        "`KernelDetector`": KernelDetector(),
        "`DefenderDetector`": DefenderDetector(),
        f"`DefenderDetector({MODELS_OWN})`": DefenderDetector(MODELS_OWN),
    }
    columns: dict[str, Refuses] = {"bare kernel": bare_kernel()}
    for name, detector in detectors.items():
        columns[name] = lambda content, detector=detector: bool(detector("read", content))
    common.print_machine("agent-os-kernel", "stackone-defender")
    print(f"A guard without detectors refuses or alters {count(guard_alone(), data)} records.")
    print(
        f"\n{AGENTDOJO}: {len(data)} records, {len(wanted)} goals of attackers (in tool_knowledge"
        " without a list\nof tools). Ordinary text is the prose of the records that a detector"
        " passes alone. In plain prose,\nattacks that it stops alone are a paragraph of their own;"
        " a sample of all wordings.\n"
    )
    rows = [["ordinary records refused"], ["passages of Python's documentation refused"]]
    rows += [[f"stopped: `{name}`"] for name in attacks]
    rows += [[f"{size} kB of ordinary text refused"] for size in (1, 10)]
    rows += [[f"stopped in {size} kB, at the {place}"] for size in SAMPLES for place in PLACES]
    for name, refuses in columns.items():
        cells = column(name, refuses, data, attacks)
        shown = len(rows) if str(MODELS_OWN) not in name else 2 + len(attacks)
        for row, cell in zip_longest(rows, islice(cells, shown), fillvalue=""):
            row.append(cell)
    print_markdown(["", *columns], rows)


if __name__ == "__main__":
    main()
