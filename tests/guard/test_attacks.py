"""The corpus of attacks and of ordinary traffic, run against the recipes.

A file of tests/attacks holds one case a line: ``id``, ``what`` it is, ``kind`` (a method of
``Case``), ``input``, what to ``expect``, and where it says so the ``guard`` settings, the ``stage``
that refuses and the ``threats`` that are named. Expected is one of

* refuse, redact, contain, bounded: an attack that is stopped, and how: contained is what may run
  or be returned without what the attacker put in, bounded is what costs no more than its size
* missed: an attack that gets through
* pass: ordinary traffic that passes
* false_positive: ordinary traffic that is refused

Who makes a miss or a false positive better has to change its mark: the tests are strict about it.
envelopes.jsonl is run by test_signed_messages.py.
"""

import asyncio
import base64
import codecs
import concurrent.futures
import dataclasses
import datetime
import decimal
import enum
import gzip
import html
import json
import pathlib
import re
import types
import urllib.parse
import uuid
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import guard as recipe
import pytest
from guard import Guard, Limits, PoisonedToolError, refuse_poisoned_tools
from support import ROOT

from agent_mcp_governance import (
    ApprovalStatus,
    CredentialPattern,
    CredentialRedactor,
    GovernancePolicy,
    InMemoryAuditSink,
    MCPResponseScanner,
    MCPResponseScanResult,
    PatternType,
    ResponsePolicy,
)

CORPUS = pathlib.Path(__file__).parent / "attacks"
README = ROOT / "README.md"
STOPPED = {"refuse", "redact", "contain", "bounded"}
LET_THROUGH = {"missed", "pass"}
ATTACKS = {
    "parameters": ("Patterns in arguments, plain and encoded", 153),
    "identities": ("Caller ids and tool names", 145),
    "structures": ("Deep, circular, huge and non-JSON arguments and responses", 97),
    "regex_cost": ("Text that regular expressions are slow on", 73),
    "approvals": ("Approval results", 95),
    "secrets": ("Secrets in responses", 157),
    "audit": ("Secrets and personal data in the audit log", 180),
    "responses": ("Instructions in responses", 231),
    "tool_definitions": ("Poisoned tool definitions", 130),
}
BENIGN = {
    "benign_calls": ("Calls", 157),
    "benign_responses": ("Responses", 140),
    "benign_tools": ("Tool definitions", 27),
}
# The one policy that all cases meet, ordinary calls included.
POLICY = GovernancePolicy(
    name="corpus",
    allowed_tools=["run", "read_note", "transfer", "straße"],
    blocked_patterns=[
        "../",
        "/etc/passwd",
        "<script",
        "rm -rf",
        (r"\bdrop\s+table\b", PatternType.REGEX),
        (r"\bunion\s+(?:all\s+)?select\b", PatternType.REGEX),
        (r"'\s*or\s+'?\d+'?\s*=\s*'?\d+", PatternType.REGEX),
        (r"^--[a-z]", PatternType.REGEX),
        (r"\bjavascript\s*:", PatternType.REGEX),
        ("*.pem", PatternType.GLOB),
        '"force": true',  # JSON text, as the kernel's gateway matches it
    ],
    max_tool_calls=10,
)


# --- input that JSON cannot spell, or that no scanner of repositories should find


def text_class(text: str) -> Any:
    return type("Text", (str,), {})(text)


def nested(kind: str, depth: int, leaf: Any = "x") -> Any:
    for _ in range(depth):
        leaf = [leaf] if kind == "list" else {"k": leaf}
    return leaf


def wide(kind: str, count: int) -> Any:
    return list(range(count)) if kind == "list" else {str(number): 0 for number in range(count)}


def circular(kind: str) -> Any:
    ring: Any
    if kind == "list":
        ring = []
        ring.append(ring)
    elif kind == "dict":
        ring = {}
        ring["self"] = ring
    else:
        ring = {"list": [{}]}
        ring["list"][0]["up"] = ring["list"]
    return ring


def shared(depth: int) -> Any:
    """Return a few objects that print as two to the power of *depth*."""
    value: Any = "x"
    for _ in range(depth):
        value = [value, value]
    return value


def encoded(text: str, ways: list[str]) -> str:
    """Apply each encoding in turn."""
    for way in ways:
        text = ENCODINGS[way](text)
    return text


def each(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: "".join(change(letter) for letter in text)


def wider(letter: str) -> str:
    return chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter


def bold(letter: str) -> str:
    return chr(0x1D41A + ord(letter) - ord("a")) if "a" <= letter <= "z" else letter


LOOK_ALIKES = str.maketrans("aeopcyxiABEHKMOPCTX", "аеорсухіАВЕНКМОРСТХ")  # noqa: RUF001 - on purpose
LEET = str.maketrans("aeios", "43105")
ENCODINGS: dict[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base32": lambda text: base64.b32encode(text.encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "gzip": lambda text: base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode(),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "reverse": lambda text: text[::-1],
    "upper": str.upper,
    "title": str.title,
    "json": json.dumps,
    "quoted": lambda text: json.dumps({"result": text}),
    "json_escapes": each(lambda letter: f"\\u{ord(letter):04x}"),
    "hex_escapes": each(lambda letter: f"\\x{ord(letter):02x}"),
    "percent": urllib.parse.quote,
    "percent_all": each(lambda letter: f"%{ord(letter):02x}"),
    "entities": html.escape,
    "entities_all": each(lambda letter: f"&#{ord(letter)};"),
    "entities_hex": each(lambda letter: f"&#x{ord(letter):x};"),
    "spaced": " ".join,
    "dotted": ".".join,
    "dashed": "-".join,
    "lines": "\n".join,
    "zero_width": "\u200b".join,
    "joiners": "\u200d".join,
    "soft_hyphens": "\u00ad".join,
    "marked": "\u0335".join,  # a combining stroke over each letter
    "tagged": lambda text: "x " + each(lambda letter: chr(0xE0000 + ord(letter)))(text),
    "fullwidth": each(wider),
    "bold": each(bold),
    "look_alikes": lambda text: text.translate(LOOK_ALIKES),
    "leet": lambda text: text.translate(LEET),
    "double_space": lambda text: text.replace(" ", "  "),
    "tabs": lambda text: text.replace(" ", "\t"),
    "newlines": lambda text: text.replace(" ", "\n"),
    "no_break_spaces": lambda text: text.replace(" ", "\u00a0"),
    "comments": lambda text: text.replace(" ", "/**/"),
    "underscores": lambda text: text.replace(" ", "_"),
    "no_spaces": lambda text: text.replace(" ", ""),
}


class Verdict(enum.Enum):
    """An enum that is not the kernel's, with the same names and values."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"


class Agreeable:
    """Equals everything, and says that it is what is asked for."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return True

    @property
    def value(self) -> str:
        return "approved"


class Impostor:
    """Passes isinstance, as a mock with a specification does."""

    __class__ = ApprovalStatus  # type: ignore[assignment]
    value = "approved"


def awaitable(answer: Any) -> Any:
    async def decide() -> Any:
        return answer

    return decide()


def future(answer: Any) -> Any:
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()
    done.set_result(answer)
    return done


class CustomError(Exception):
    pass


ERRORS = {
    error.__name__: error
    for error in (ValueError, KeyError, RuntimeError, TimeoutError, OSError, RecursionError)
} | {"CustomError": CustomError, "StopIteration": StopIteration, "MemoryError": MemoryError}

BUILDERS: dict[str, Callable[..., Any]] = {
    "join": lambda parts: "".join(parts),
    "repeat": lambda text, times: text * times,
    "encode": encoded,
    "nested": nested,
    "wide": wide,
    "circular": circular,
    "shared": shared,
    "pairs": lambda items: {key: value for key, value in items},  # noqa: C416 - keys of any type
    "tuple": lambda items: tuple(items),
    "set": lambda items: set(items),
    "frozenset": lambda items: frozenset(items),
    "deque": lambda items: deque(items),
    "range": lambda stop: range(stop),
    "bytes": lambda text: text.encode("latin-1"),
    "bytearray": lambda text: bytearray(text.encode("latin-1")),
    "memoryview": lambda text: memoryview(text.encode("latin-1")),
    "number": lambda text: float(text),
    "integer": lambda bits: 1 << bits,
    "complex": lambda: 1j,
    "decimal": lambda text: decimal.Decimal(text),
    "date": lambda: datetime.date(2030, 1, 1),
    "datetime": lambda: datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc),
    "uuid": lambda: uuid.UUID(int=1),
    "path": lambda text: pathlib.PurePosixPath(text),
    "object": object,
    "function": lambda: len,
    "type": lambda: dict,
    "module": lambda: json,
    "ellipsis": lambda: ...,
    "generator": lambda: (number for number in range(3)),
    "namespace": lambda: types.SimpleNamespace(a=1),
    "pattern": lambda: re.compile("a"),
    "dataclass": lambda: Limits(),
    "text_class": text_class,
    "int_class": lambda: enum.IntEnum("Number", "ONE")(1),
    "dict_class": lambda: OrderedDict(a=1),
    "default_dict": lambda: defaultdict(list),
    "user_dict": lambda: UserDict(a=1),
    "mapping_proxy": lambda: types.MappingProxyType({"a": 1}),
    "list_class": lambda: type("Items", (list,), {})([1]),
    "named_tuple": lambda: Counter("a").most_common(1)[0],
    # answers of approvers
    "status": ApprovalStatus,
    "verdict": Verdict,
    "response_policy": ResponsePolicy,
    "status_class": lambda: ApprovalStatus,
    "agreeable": Agreeable,
    "impostor": Impostor,
    "awaitable": awaitable,
    "future": future,
    "raise": lambda error: ERRORS[error]("approved"),
}


def build(spec: Any) -> Any:
    """Return what *spec* describes: ``{"build": name, ...}`` is a call of a builder."""
    if isinstance(spec, list):
        return [build(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    built = {key: build(value) for key, value in spec.items()}
    return BUILDERS[built.pop("build")](**built) if "build" in built else built


# --- running a case


class Measured:
    """An expression that notes the length of the longest text that it was used on."""

    def __init__(self, pattern: re.Pattern[str], longest: list[int]) -> None:
        self.pattern = pattern
        self.longest = longest

    def note(self, text: str) -> None:
        self.longest[0] = max(self.longest[0], len(text))

    def search(self, text: str) -> Any:
        self.note(text)
        return self.pattern.search(text)

    def finditer(self, text: str) -> Any:
        self.note(text)
        return self.pattern.finditer(text)

    def sub(self, replacement: str, text: str) -> str:
        return self.subn(replacement, text)[0]

    def subn(self, replacement: str, text: str) -> tuple[str, int]:
        self.note(text)
        return self.pattern.subn(replacement, text)


def measured(
    patterns: tuple[CredentialPattern, ...], longest: list[int]
) -> tuple[CredentialPattern, ...]:
    return tuple(
        CredentialPattern(credential.name, Measured(credential.pattern, longest))  # type: ignore[arg-type]
        for credential in patterns
    )


class MeasuredScanner(MCPResponseScanner):
    def __init__(self, longest: list[int]) -> None:
        self.longest = longest

    def scan_response(self, text: str | None, tool_name: str = "unknown") -> MCPResponseScanResult:
        self.longest[0] = max(self.longest[0], len(text or ""))
        return super().scan_response(text, tool_name)


class Case:
    """One case. Each kind is a method that returns whether what comes is stopped."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.sink = InMemoryAuditSink()

    def run(self) -> bool:
        kind: Callable[..., bool] = getattr(self, self.record["kind"])
        return kind(**build(self.record["input"]))

    def guard(self, **settings: Any) -> Guard:
        settings |= self.record.get("guard", {})
        policy = dataclasses.replace(POLICY, **settings.pop("policy", {}))
        if "limits" in settings:
            settings["limits"] = Limits(**settings["limits"])
        if "response_policy" in settings:
            settings["response_policy"] = ResponsePolicy(settings["response_policy"])
        return Guard(policy, audit_sink=self.sink, **settings)

    def entry(self) -> dict[str, Any]:
        entries = self.sink.entries()
        assert len(entries) == 1
        return entries[0]

    def call(self, params: Any, caller: Any = "agent-1", tool: Any = "run") -> bool:
        decision = self.guard().check_call(caller, tool, params)
        assert decision.params == (params if decision.allowed else {})
        self.check(decision)
        return not decision.allowed

    def check(self, decision: recipe.Decision) -> None:
        assert decision.allowed is self.entry()["allowed"]
        if "stage" in self.record:
            assert decision.stage == self.record["stage"]

    def response(self, content: Any, tool: str = "run") -> bool:
        decision = self.guard().check_response("agent-1", tool, content)
        assert decision.content == (content if decision.allowed else None)
        assert self.entry()["threats"] == self.record.get("threats", [])
        self.check(decision)
        return not decision.allowed

    def cost(self, content: Any = None, params: Any = None) -> bool:
        """No expression of the kernel, nor a slow one of the recipe, sees more than one piece."""
        longest = [0]
        guard = self.guard()
        with pytest.MonkeyPatch.context() as patch:
            for owner in (CredentialRedactor, recipe.ExtraCredentials):
                patch.setattr(owner, "PATTERNS", measured(owner.PATTERNS, longest))
            pii = measured(CredentialRedactor.PII_PATTERNS, longest)
            patch.setattr(CredentialRedactor, "PII_PATTERNS", pii)
            patch.setattr(recipe, "_SCANNER", MeasuredScanner(longest))
            patch.setattr(recipe, "_INSTRUCTIONS", Measured(recipe._INSTRUCTIONS, longest))
            if params is None:
                decision = guard.check_response("agent-1", "run", content)
            else:
                decision = guard.check_call("agent-1", "run", params)
        self.check(decision)
        if self.record["expect"] == "refuse":
            return not decision.allowed and longest[0] < 200  # the caller and the reason
        return 0 < longest[0] <= 2_000

    def sanitize(self, content: Any, gone: str) -> bool:
        guard = self.guard(response_policy="sanitize")
        decision = guard.check_response("agent-1", "run", content)
        return not decision.allowed or gone not in json.dumps(decision.content)

    def spelling(self, callers: list[str]) -> bool:
        """Two spellings of one caller share its window and its budget."""
        by_window = self.guard(max_calls_per_window=1)
        by_budget = self.guard(policy={"max_tool_calls": 1})
        first, second = (
            [guard.check_call(caller, "run", {}).allowed for guard in (by_window, by_budget)]
            for caller in callers
        )
        assert all(first)
        assert second[0] is second[1]
        return not all(second)

    def configuration(self, policy: dict[str, Any], **settings: Any) -> bool:
        try:
            self.guard(policy=policy, **settings)
        except ValueError:
            return True
        return False

    def approval(self, answer: Any, *, waits: bool = False, tampers: Any = None) -> bool:
        """A tampering approver is stopped when the tool gets what was checked."""
        params = {"amount": 5, "to": {"name": "alice"}}

        def approver(_caller: str, _tool: str, given: dict[str, Any]) -> Any:
            given["to"].update(tampers or {})
            given.update(tampers or {})
            if isinstance(answer, Exception):
                raise answer
            return answer

        guard = self.guard(approver=approver, sensitive_tools=["transfer"])
        if waits:
            decision = asyncio.run(guard.acheck_call("agent-1", "transfer", params))
        else:
            decision = guard.check_call("agent-1", "transfer", params)
        self.check(decision)
        untouched = {"amount": 5, "to": {"name": "alice"}} == params == decision.params
        return not decision.allowed or (tampers is not None and untouched)

    def audit(self, params: Any, secret: list[str], caller: str = "agent-1") -> bool:
        """No part of the secret stands in the audit entry."""
        self.guard().check_call(caller, "run", params)
        written = json.dumps(self.entry(), ensure_ascii=False)
        return not any(json.dumps(part, ensure_ascii=False)[1:-1] in written for part in secret)

    def tools(self, before: Any = None, after: Any = None, server: str = "notes") -> bool:
        scanner = refuse_poisoned_tools(before, server_name="notes") if before else None
        try:
            refuse_poisoned_tools(after, server_name=server, scanner=scanner)
        except PoisonedToolError:
            return True
        return False


# --- the corpus


def read(file: str) -> list[dict[str, Any]]:
    text = (CORPUS / f"{file}.jsonl").read_text(encoding="ascii")
    return [json.loads(line) for line in text.splitlines()]


FILES = {file: read(file) for file in (*ATTACKS, *BENIGN)}
CASES = [
    pytest.param(case, id=f"{file}:{case['id']}") for file, cases in FILES.items() for case in cases
]


@pytest.mark.parametrize("record", CASES)
def test_each_case_ends_as_it_says(record: dict[str, Any]) -> None:
    stopped = Case(record).run()
    ending = "stopped" if stopped else "let through"
    expected = record["expect"]
    assert stopped is (expected not in LET_THROUGH), f"{record['what']}: {ending}, not {expected}"


def test_the_corpus_is_whole() -> None:
    sizes = {file: size for file, (_, size) in (ATTACKS | BENIGN).items()}
    assert {file: len(cases) for file, cases in FILES.items()} == sizes
    assert {path.stem for path in CORPUS.glob("*")} == {*FILES, "envelopes"}
    attacks = [case for file in ATTACKS for case in FILES[file]]
    benign = [case for file in BENIGN for case in FILES[file]]
    assert {case["expect"] for case in attacks} == STOPPED | {"missed"}
    assert {case["expect"] for case in benign} == {"pass", "false_positive"}
    assert len(attacks) >= 300
    by_default = [case for case in benign if case["expect"] == "pass" and "guard" not in case]
    assert len(by_default) >= 100


@pytest.mark.parametrize("file", FILES)
def test_the_cases_of_a_file_have_names_of_their_own(file: str) -> None:
    ids = [case["id"] for case in FILES[file]]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    inputs = {
        json.dumps([case[part] for part in ("kind", "input", "guard") if part in case])
        for case in FILES[file]
    }
    assert len(inputs) == len(ids)


def test_no_secret_stands_whole_in_the_files() -> None:
    """So that no scanner of repositories takes the made-up ones for real."""
    issued = [
        pattern
        for pattern in (*CredentialRedactor.PATTERNS, *recipe.ExtraCredentials.PATTERNS)
        if any(word in pattern.name for word in ("token", "key", "JWT"))
    ]
    assert len(issued) >= 8
    for path in sorted(CORPUS.glob("*.jsonl")):
        text = path.read_text(encoding="ascii")
        assert [pattern.name for pattern in issued if pattern.pattern.search(text)] == []


def row(name: str, cases: list[dict[str, Any]], good: set[str]) -> tuple[str, int, int, int]:
    hits = sum(case["expect"] in good for case in cases)
    return name, len(cases), hits, len(cases) - hits


def table(head: str, rows: list[tuple[str, int, int, int]]) -> str:
    total = ("All", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True)))
    lines = [head, "|---|--:|--:|--:|"]
    lines += [f"| {name} | {size} | {hits} | {rest} |" for name, size, hits, rest in (*rows, total)]
    return "\n".join(lines)


def corpus_table() -> str:
    """Return the two tables of the README."""
    envelopes = read("envelopes")
    forged = [case for case in envelopes if case["expect"] != "accept"]
    genuine = [case for case in envelopes if case["expect"] == "accept"]
    attacks = [row(name, FILES[file], STOPPED) for file, (name, _) in ATTACKS.items()]
    attacks.append(row("Signed envelopes: forged, re-cut, replayed", forged, STOPPED))
    benign = [row(name, FILES[file], {"pass"}) for file, (name, _) in BENIGN.items()]
    benign.append(row("Signed envelopes", genuine, {"accept"}))
    return "\n\n".join(
        (
            table("| Attack | Cases | Stopped | Missed |", attacks),
            table("| Ordinary traffic | Cases | Passed | Refused |", benign),
        )
    )


def test_the_readme_has_the_table_of_the_corpus() -> None:
    text = README.read_text(encoding="utf-8")
    assert "## Attack corpus" not in text or corpus_table() in text, corpus_table()
