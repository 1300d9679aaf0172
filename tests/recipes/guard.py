"""One guard in front of every tool call of an MCP server, and behind every tool response.

It composes MCPGateway, MCPSlidingRateLimiter, MCPResponseScanner and CredentialRedactor and adds
what they lack. Copy this file; it needs only ``agent_mcp_governance`` and the standard library::

    guard = Guard(
        GovernancePolicy(allowed_tools=["read_note"], max_tool_calls=1_000),
        audit_sink=JsonLinesAuditSink("audit.jsonl"),
    )
    decision = guard.check_call(caller, "read_note", {"path": "todo.txt"})
    if decision.allowed:
        answer = guard.check_response(caller, "read_note", read_note(**decision.params))

``caller`` has to be an identity that you verified (the subject of an access token, or a constant
over stdio), never something that the caller wrote into the request.

A call is checked in this order, and the first refusal ends it: caller, rate limit, tool name,
params, policy patterns, built-in patterns, then by the gateway: deny list, allow list, call budget,
approval. Every decision is audited, denied ones included.
"""

import asyncio
import copy
import hashlib
import html
import inspect
import json
import logging
import math
import os
import re
import threading
import time
import unicodedata
import warnings
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, cast
from urllib.parse import unquote

from agent_mcp_governance import (
    ApprovalStatus,
    CredentialPattern,
    CredentialRedactor,
    GovernancePolicy,
    MCPAuditSink,
    MCPGateway,
    MCPMetricsRecorder,
    MCPRateLimitStore,
    MCPResponseScanner,
    MCPResponseThreat,
    MCPSecurityScanner,
    MCPSeverity,
    MCPSlidingRateLimiter,
    PatternType,
    ResponsePolicy,
)

logger = logging.getLogger(__name__)

Stage = Literal[
    "caller",  # the caller id is not usable, or no room is left to track one more caller
    "rate_limit",  # the sliding window is spent, or the limiter failed
    "tool_name",
    "params",  # not plain JSON, or over a cap
    "policy_pattern",
    "builtin_pattern",
    "deny_list",
    "allow_list",
    "budget",  # policy.max_tool_calls is spent
    "approval_pending",
    "approval_denied",
    "approval_error",
    "approval_granted",
    "cancelled",  # whoever waited for the approver gave up
    "audit",  # the audit sink failed
    "response",  # of check_response, whatever it decided
    "allowed",
    "error",  # anything unexpected: refused
]
Approver = Callable[[str, str, dict[str, Any]], ApprovalStatus | Awaitable[ApprovalStatus]]

PLACEHOLDER = "[REDACTED]"

# The kernel's expressions are quadratic on hostile text. In pieces of this size (characters) their
# cost is linear; the overlap is longer than any match that has to be seen whole.
_PIECE = 1_024
_OVERLAP = 256

# Default_Ignorable_Code_Point of the Unicode Character Database: what a reader never sees.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)

# What is read as ASCII although it is not: Cyrillic and Greek look-alikes (confusable in Unicode's
# UTS #39), slashes, strokes over letters, and tag characters, which only models see.
_LOOK_ALIKES = str.maketrans(
    "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0455\u0456\u0458\u04bb\u0501\u051b\u051d\u04cf\u0131\u0261"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408"
    "\u03b1\u03b9\u03bd\u03bf\u03c1\u03c5\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4"
    "\u03a5\u03a7\u2044\u2215",
    "aceopxysijhdqwligABEKMHOPCTYXSIJaivopuABEZHIKMNOPTYX//",
    "\u0334\u0335\u0336\u0337\u0338",
) | {0xE0000 + code: chr(code) for code in range(32, 127)}

# JSON and source code spell characters so; half of a UTF-16 pair stays as it is.
_ESCAPE = re.compile(r"\\(?:u(?![Dd][89A-Fa-f])([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2}))")

# Half of a UTF-16 pair: JSON can spell it, no encoder can write it.
_SURROGATE = re.compile("[\ud800-\udfff]")

# A payment card number begins with what ISO/IEC 7812 gives to card issuers. Years, times in
# microseconds and the digits of a fraction do not.
_CARD = r"(?<!\d)(?<!\d\.)(?:[4-6]\d|3[0568]|2[2-7])\d\d(?:[- ]?\d{4}){3}(?!\d)"

# What the gateway's own built-in patterns look for. It looks in JSON text, where an escape can hide
# it and where its expressions are quadratic; these look in decoded strings and are linear.
_DANGEROUS = re.compile(
    r"(?P<social_security_number>(?<!\d)\d{3}-\d{2}-\d{4}(?!\d))"
    rf"|(?P<payment_card>{_CARD})"
    r"|(?P<destructive_command>;\s*(?:rm|del|format|mkfs)\b)"
    r"|(?P<command_substitution>\$\(|`[^`]+`)",
    re.IGNORECASE,
)


def _credential(name: str, expression: str) -> CredentialPattern:
    return CredentialPattern(name, re.compile(expression))


class ExtraCredentials(CredentialRedactor):
    """Credential formats that the kernel's redactor does not know.

    A subclass with its own ``PATTERNS`` is how patterns are added: the kernel's tuple is shared by
    the whole process. Formats are those that the issuers document.
    """

    PATTERNS = (
        # One expression for all that begin alike: eighteen would cost five times as much.
        _credential(
            "Issued token",
            r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
            r"|gl(?:pat|ptt|dt|rt|soat)-[\w-]{16,}"  # GitLab
            r"|x(?:ox[a-z]|app)-[A-Za-z0-9-]{10,}"  # Slack
            r"|AIza[\w-]{30,}|ya29\.[\w-]{10,}|GOCSPX-[\w-]{16,}"  # Google
            r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{16,}"  # Stripe
            r"|ASIA[A-Z0-9]{16}\b"  # AWS
            r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|hf_[A-Za-z0-9]{20,}"
            r"|SG\.[\w-]{16,}\.[\w-]{16,}"  # SendGrid
            r"|do[opr]_v1_[a-f0-9]{32,}|dapi[a-f0-9]{32}"  # DigitalOcean, Databricks
            r"|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|dckr_pat_[\w-]{20,}"  # Shopify, Docker Hub
            r"|hvs\.[\w-]{24,}|[A-Za-z0-9]{14}\.atlasv1\.[\w-]{40,}"  # Vault, Terraform
            r"|SK[a-f0-9]{32}|key-[a-f0-9]{32}|lin_api_\w{32,}"  # Twilio, Mailgun, Linear
            r"|\d{8,10}:AA[\w-]{32,}|AGE-SECRET-KEY-1[A-Z0-9]{50,}"  # Telegram, age
            r"|eyJ[\w-]{8,}\.eyJ[\w.-]*)",  # a JSON web token, cut off or not
        ),
        # To its end, or to the end of the text when that was cut off.
        _credential(
            "Private key",
            r"-----BEGIN[A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?s:.*?)-----END[A-Z ]{0,20}PRIVATE KEY(?: BLOCK)?-----|(?s:.*))",
        ),
        _credential(
            "Labelled secret",
            r"(?i)\b(?:bearer\s{1,4}[a-z0-9._\-+/=]{16,}"
            r"|pass(?:wd|phrase)\s{0,4}=\s{0,4}(?!\[REDACTED)[^\s;]{4,}"
            r"|login\s{1,4}\S{1,60}\s{1,4}password\s{1,4}(?!\[REDACTED)\S{4,}"  # .netrc
            r"|(?:set-)?cookie:\s{0,4}[^\s=;]{1,40}=(?!\[REDACTED)[^\s;]{8,}"
            r"|aws.{0,20}?(?:secret|key).{0,24}?[:=]\W{0,3}[a-z0-9/+]{40})"
            r"|--(?:password|token|secret|api-key)[ =](?!\[REDACTED)(?=\S{0,40}\d)\S{6,}"
            r"|\$(?:apr1|2[aby]|[156y])\$[\w./$=,]{20,}",  # a password hash of crypt(3)
        ),
        # With a digit: that tells a password from prose on passwords.
        _credential(
            "Assigned secret",
            r"(?i)(?:passw(?:or)?d|pwd|secret|(?:api|access)_?key|(?<!page)(?<!page_)token)"
            r"\s{0,4}[:=]\s{0,4}[\"']?(?!\[REDACTED)(?=[^\s\"';]{0,40}\d)[^\s\"';]{8,}",
        ),
        _credential(
            "JSON-quoted secret",
            r"(?i)[\"'](?:\w{0,24}[_-])?(?:passw(?:or)?d|passphrase|pwd|secret|(?<!page_)token|api[_-]?key"
            r"|access[_-]?key|private[_-]?key)\\?[\"']\s{0,4}:\s{0,4}\\?[\"'](?!\[REDACTED)[^\"']{4,}",
        ),
    )


# A name of this kind redacts the whole value in the audit log, whatever it looks like.
_SECRET_KEY = re.compile(
    r"pass(?:w|[\W_]?(?:word|phrase|code))|pwd|token|secret|credential|bearer|cookie|authoriz|authenticat"
    r"|(?:api|access|private|signing|encryption|master|ssh)[\W_]?key|session[\W_]?id"
    r"|connection[\W_]?string|^(?:pw|pin|otp|auth)$"
    r"|kennwort|mot[\W_]de[\W_]passe|contrase|senha|парол|密码|密碼|パスワード|비밀번호",
    re.IGNORECASE,
)


@lru_cache(maxsize=256)
def _names_a_secret(key: str) -> bool:
    # Decoded, Cyrillic letters have become Latin ones.
    return any(_SECRET_KEY.search(form) for form in (key, _decoded(key)))


_SCANNER = MCPResponseScanner()

# One short word, or almost nothing: no expression for secrets, personal data or instructions
# matches it. Most keys and many values are such, and looking at them is most of a scan's cost.
_PLAIN = re.compile(r"[A-Za-z]{1,19}|[A-Za-z_]{1,13}|.{0,5}", re.DOTALL)

# Four of the kernel's expressions match much that is harmless: "a basic understanding", "Token:
# expires soon", any sixteen digits, and each address with "data" in its path, though it carries
# none. What they find counts if these agree.
_SURE = {
    "Basic auth secret": re.compile(
        r"(?i:\bbasic\s+)(?=[A-Za-z]*(?:[0-9=]|[a-z][A-Z][a-z]*[A-Z]))[A-Za-z0-9+/=]{8,}"
        r"|://[^/\s:@]+:[^@\s/]+@"
    ),
    "Generic API secret": re.compile(
        r"(?i:key|secret|token)\s*(?:=|:\s*['\"]?(?=[^\s'\";]*\d))\s*['\"]?[^\s'\";]{6}"
    ),
    "Credit card number": re.compile(_CARD),
    "data_exfiltration": re.compile(
        r"[?=]|/[\w%+]{20,}|webhook\.site|requestbin|pastebin|ngrok|transfer\.sh|exfil",
        re.IGNORECASE,
    ),
}

# Instructions that the kernel's response scanner does not know, for text in small letters: ignoring
# case would cost three times as much. Gaps are bounded and hold no letter, so that no text is slow.
_GAP = r"[\s_*,]{1,4}"
_WORDS = rf"(?:[^\W_]{{1,12}}{_GAP}){{0,4}}?"
_INSTRUCTIONS = re.compile(
    "|".join(
        (
            rf"(?:ignore|disregard|forget|override){_GAP}{_WORDS}"
            r"(?:previous|prior|above|earlier|preceding|system|safety|original)"
            rf"{_GAP}{_WORDS}(?:instructions?|rules?|prompts?|guidelines?|messages?|context)",
            rf"(?:ignore|disregard|forget){_GAP}{_WORDS}(?:your{_GAP}{_WORDS}(?:instructions|prompt"
            r"|guidelines|training)|everything (?:above|before)(?! \d)|the above(?= and\b|[.;:!])"
            r"|you were told)",
            rf"(?:reveal|print|repeat|show|output){_GAP}{_WORDS}your{_GAP}"
            r"(?:system|initial|hidden|original) (?:prompt|instructions)",
            rf"(?:do not|don\W?t|never|without){_GAP}{_WORDS}(?:tell|mention|inform|notif|reveal"
            rf"|alert)\w{{0,4}}{_GAP}{_WORDS}users?\b|(?:hidden|secret) from the user",
            rf"(?:act as|pretend){_GAP}{_WORDS}{_WORDS}(?:no|without){_GAP}{_WORDS}"
            r"(?:restrictions|rules|limits|limitations|filters|guidelines)",
            rf"bypass{_GAP}{_WORDS}(?:safety|content){_GAP}(?:filters?|restrictions?|checks?)",
            r"\bdon\W?t (?:follow|obey) |\bnew (?:instructions|directives|orders) ?:",
            r"(?:jailbreak|\bdan) mode|\bif you are an? (?:ai|llm|language model|ai assistant) ?,",
            r"\bnote to (?:the |any |all )?(?:ai|llm|language model|assistant)s?\b",
            # Markers of chat templates, and tags.
            r"<\|[a-z_]{2,24}\|>|<\|\s?[a-z]+[_\u2581][a-z_\u2581]{1,24}\s?\|>|\[/?inst\]|<</?sys>>",
            r"</?(?:start_of_turn|end_of_turn|tool_result|function_results|function_calls)\b",
            r"<invoke name=|\n\n(?:human|assistant):|\[\s(?:system|admin|instructions?)\s\]",
            r"^#{1,4} (?:system|instructions?):?\s*$",
            r"<\s{0,4}/?\s{0,4}(?:important|system|instructions?|hidden|admin|override)\b[^<>]{0,200}>",
            # A tag too long for one piece.
            r"<(?:important|system|instructions?|hidden|inject|admin|override|prompt|context|role)\b"
            r"[^>]{200}",
            # "Ignore the previous instructions" in German and its neighbours, the Romance and the
            # Slavic languages, Chinese, Japanese, Korean and Arabic.
            rf"(?:ignorier|ignorera|vergiss|vergess|missacht|negeer|vergeet)\w{{0,3}}{_GAP}{_WORDS}"
            rf"(?:vorher|bisher|vorig|früher|obig|eerder|tidigare)\w{{0,4}}{_GAP}"
            r"(?:anweisung|regel|instru[ck]|vorgabe|befehl)",
            rf"(?:ignor|oubli|olvid|dimentic|esque[cç])\w{{1,4}}{_GAP}{_WORDS}"
            rf"(?:instru|istru|consigne|r[eè]gl|regol|regra|directiv)\w{{1,8}}{_GAP}"
            r"(?:pr[eé]c|prev|anterior|antérieur)",
            rf"(?:ignoruj|игнориру|забуд|ігнору)\w{{0,5}}{_GAP}{_WORDS}"
            rf"(?:poprzedni|předchoz|предыдущ|прежн|попередн)\w{{0,4}}{_GAP}"
            r"(?:instruk|poleceni|pokyn|инструкц|указан|інструкц|вказівк)",
            r"(?:忽略|无视|無視|忘记|忘記)[^。\n]{0,12}?(?:之前|以前|先前|上述|以上)[^。\n]{0,8}?(?:指令|指示|规则|規則)",
            r"(?:以前|上記|これまで)の[^。\n]{0,8}?(?:指示|命令|ルール)[^。\n]{0,8}?(?:無視|忘れ)",
            r"(?:이전|앞선|위의)[^.\n]{0,10}?(?:지시|명령|지침|규칙)[^.\n]{0,8}?(?:무시|잊)",
            r"(?:تجاهل|انس)[^.\n]{0,20}?(?:التعليمات|الأوامر|القواعد)[^.\n]{0,4}?السابقة",
        )
    ),
    re.MULTILINE,
)

# Files that a tool's definition has no reason to name.
_LURES = re.compile(
    r"~/\.(?:ssh|aws|cursor|kube|gnupg|docker|netrc)\b|\bid_(?:rsa|ed25519|ecdsa)\b|\bmcp\.json\b"
    r"|(?<!\w)\.env\b|/etc/(?:passwd|shadow)\b",
    re.IGNORECASE,
)

DEFAULT_BLOCKED_PII = frozenset({"US SSN", "Credit card number"})
"""Kinds of personal data that block a response. The kernel's other kinds (email address, IPv4
address, US phone number) also match versions, timestamps and most business data."""


class RateLimiter(Protocol):
    """What the guard asks of a limiter: MCPSlidingRateLimiter and the Redis recipe have it."""

    def try_acquire(self, agent_id: str) -> bool:
        """Take one call from *agent_id*'s window; return whether there was one."""


@dataclass(frozen=True)
class Limits:
    """Caps on what one call, one response and one process may cost.

    Attributes:
        max_params_chars: Characters of one call's params, keys and punctuation included.
        max_response_chars: The same for one response. A response over it is refused.
        max_depth: Levels of nesting, at most 100: some steps recurse.
        max_items: Keys and list elements, in all.
        max_callers: Callers whose windows and budgets are kept. One more is refused unless one has
            been idle for ``forget_after``.
        forget_after: Seconds without a call after which a caller may be forgotten when room is
            needed; its next call starts a new budget.
        max_wait: Seconds that a call waits for the budget checks of others before it is refused.

    Raises:
        ValueError: A cap is not a positive number, or max_depth is over 100.
    """

    max_params_chars: int = 16_384
    max_response_chars: int = 50_000
    max_depth: int = 32
    max_items: int = 5_000
    max_callers: int = 10_000
    forget_after: float = 86_400.0
    max_wait: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number")
        if self.max_depth > 100:
            raise ValueError("max_depth must be at most 100")


@dataclass(frozen=True)
class Decision:
    """What the guard decided.

    Attributes:
        allowed: Whether the call may run, or the response may be returned.
        reason: One sentence that may be shown to the caller.
        stage: Where it was decided.
        params: The checked copy of an allowed call's params: run the tool with these.
        content: The checked copy of an allowed response, in its original structure.
    """

    allowed: bool
    reason: str
    stage: Stage
    params: dict[str, Any] = field(default_factory=dict, repr=False)
    content: Any = field(default=None, repr=False)

    @property
    def refusal(self) -> str:
        """What to tell the caller of a refused call or response."""
        return f"Blocked by policy: {self.reason}"


class PoisonedToolError(Exception):
    """A tool definition carries instructions, a secret or a hidden character, or has changed."""


class JsonLinesAuditSink:
    """An audit sink that appends each entry to a file, as one line of JSON."""

    def __init__(self, path: str | Path) -> None:
        """Open *path* for appending; a new file is readable by its owner only.

        Args:
            path: The file. Its folder has to exist.

        Raises:
            OSError: The file cannot be opened.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "ab", buffering=0)

    def record(self, entry: dict[str, Any]) -> None:
        """Write *entry*.

        Raises:
            OSError: The file cannot be written. The guard counts it and refuses the call.
            ValueError: The sink is closed.
        """
        line = json.dumps(entry).encode() + b"\n"
        # One write, so that the lines of several threads and processes never mix.
        if self._file.write(line) != len(line):
            raise OSError("the audit entry was cut short")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def canonical_caller(caller: object, max_chars: int = 512) -> str:
    """Return the one spelling of a caller id that limiter, budget and audit use.

    Unicode compatibility forms, case and surrounding space are folded (NFKC and case folding, as in
    the caseless matching of the Unicode Standard, section 3.13).

    Args:
        caller: The verified identity.
        max_chars: Longest id accepted, in characters.

    Returns:
        The canonical id: ``canonical_caller`` of it is the same again.

    Raises:
        ValueError: It is not a string, empty, too long, or has invisible or control characters.
    """
    if type(caller) is not str or len(caller) > max_chars:
        raise ValueError(f"the caller id must be a string of at most {max_chars} characters")
    folded = unicodedata.normalize("NFKC", caller).casefold()
    name = unicodedata.normalize("NFKC", folded).strip(" ")
    if not name or len(name) > max_chars or not name.isprintable() or _INVISIBLE.search(name):
        raise ValueError("the caller id is empty, too long or has invisible characters")
    return name


class AccessToken(Protocol):
    """The parts of a verified OAuth access token that name its holder (RFC 9068)."""

    @property
    def client_id(self) -> str:
        """The client that it was issued to."""

    @property
    def subject(self) -> str | None:
        """Whom the client acts for."""

    @property
    def claims(self) -> dict[str, Any] | None:
        """Everything that the token says."""


def verified_caller(token: AccessToken | None, *, remote: bool) -> str:
    """Return a caller id that the caller cannot choose.

    Args:
        token: What the SDK's ``get_access_token()`` gives: the only thing about a remote caller
            that anybody verified. Client names, ``_meta`` and session ids are the caller's words.
        remote: Whether the request came over HTTP. A stdio server has one caller, its parent.

    Returns:
        The client, issuer and subject of the token as JSON, so that no part can pose as another;
        else ``anonymous`` or ``local``.
    """
    if token is None:
        return "anonymous" if remote else "local"
    # A subject is unique for its issuer only (RFC 9068, section 5).
    issuer = (token.claims or {}).get("iss")
    return json.dumps([token.client_id, issuer, token.subject], ensure_ascii=False)


def bucket_label(buckets: int) -> Callable[[str], str]:
    """Return a ``caller_label`` that spreads callers over *buckets* metric labels.

    Labels stay few however many callers come, and name nobody.

    Args:
        buckets: How many labels there may be.

    Returns:
        A function from a caller id to its label.

    Raises:
        ValueError: *buckets* is not a positive integer.
    """
    if type(buckets) is not int or buckets < 1:
        raise ValueError("buckets must be a positive integer")
    return lambda caller: f"caller-{int(_digest(caller), 16) % buckets}"


def redact(text: str) -> str:
    """Replace credentials and personal data in *text* by a placeholder.

    The kernel's patterns, ``ExtraCredentials`` and the kernel's patterns for personal data are
    applied until nothing changes, so that no replacement and no cut leaves a new match behind. What
    only its decoded form shows (percent-encoding, entities, Unicode) is redacted in that form.

    Args:
        text: Any string. Only its first 1,024 characters are kept, which bounds cost and log size.

    Returns:
        The redacted text. Redacting it again changes nothing.
    """
    if _PLAIN.fullmatch(text):
        return text
    longest = _PIECE + _OVERLAP  # a secret that the cut to _PIECE splits is still seen whole
    result = text[:longest]
    for _ in range(8):
        forms = dict.fromkeys((result, _decoded(result)[:longest]))
        changed = (new for form in forms if (new := _redacted_once(form)) != form)
        if redacted := next(changed, None):
            result = redacted[:longest]
        elif len(result) <= _PIECE:
            return result
        else:
            result = result[:_PIECE]
    return PLACEHOLDER


def _redacted_once(text: str) -> str:
    kernels = *CredentialRedactor.PATTERNS, *CredentialRedactor.PII_PATTERNS
    # All look at the same text: one after the other, the first could cut what the next one needs.
    spans = sorted(
        match.span()
        for kind in (*kernels, *ExtraCredentials.PATTERNS)
        for match in kind.pattern.finditer(text)
    )
    shown, end = "", 0
    for start, stop in spans:
        if start >= end:
            shown += text[end:start] + PLACEHOLDER
        end = max(end, stop)
    return shown + text[end:]


def _find_threats(content: Any, blocked_pii: Collection[str] = DEFAULT_BLOCKED_PII) -> list[str]:
    """Return the categories of threats in a checked value, or raise ValueError."""
    found: set[str] = set()
    for text, joined in _scan_texts(content):
        # Numbers that meet only because two values were joined are nobody's card number.
        counted = () if joined else blocked_pii
        for piece in _pieces(text):
            found.update(
                threat.category
                for threat in _SCANNER.scan_response(piece).threats
                if (threat.category != "pii_leak" or threat.matched_pattern in counted)
                and _is_sure(threat, piece)
            )
            if ExtraCredentials.contains_credentials(piece):
                found.add("credential_leak")
            if _INSTRUCTIONS.search(piece.lower()):
                found.add("prompt_injection")
    return sorted(found)


def _is_sure(threat: MCPResponseThreat, piece: str) -> bool:
    found = threat.matched_pattern or ""  # the address itself, or the name of an expression
    if threat.category == "data_exfiltration":
        return _SURE[threat.category].search(found) is not None
    return found not in _SURE or _SURE[found].search(piece) is not None


def refuse_poisoned_tools(
    tools: Iterable[Mapping[str, Any]],
    *,
    server_name: str,
    scanner: MCPSecurityScanner | None = None,
) -> MCPSecurityScanner:
    """Scan tool definitions before they are served, and pin them.

    The kernel's tool scanner reads the description and the top level of the schema; the response
    scanner then reads every string of the whole definition.

    Args:
        tools: Definitions as ``tools/list`` gives them: ``name``, ``description``, ``inputSchema``.
        server_name: The server that serves them.
        scanner: A scanner that knows earlier definitions, or with rules of your own.

    Returns:
        The scanner, with every definition registered: give it back on the next call, and a changed
        definition is refused.

    Raises:
        PoisonedToolError: Names each definition that is refused, and why.
    """
    if scanner is None:
        with warnings.catch_warnings():  # that its rules are samples: ours come on top
            warnings.simplefilter("ignore")
            scanner = MCPSecurityScanner()
    checked: dict[str, tuple[str, str, Any, str]] = {}
    whole: dict[str, tuple[str, str, Any, str]] = {}
    problems = []
    for tool in tools:
        try:
            definition = _plain_copy(dict(tool), 100_000, Limits())
            name, text = definition.get("name"), definition.get("description") or ""
            found = _find_threats(definition)
        except (TypeError, ValueError) as error:
            raise PoisonedToolError(f"a tool definition cannot be scanned: {error}") from None
        if not _is_tool_name(name) or name in checked:
            raise PoisonedToolError(f"no name, or a name given twice: {name!r}")
        checked[name] = parts = name, text, definition.get("inputSchema"), server_name
        found += [
            threat.message
            for threat in scanner.scan_tool(*parts)
            if threat.severity is MCPSeverity.CRITICAL
        ]
        texts = "\n".join(str(part) for leaf in _leaves(definition) for part in leaf)
        found += ["hidden characters"] if _INVISIBLE.search(texts) else []
        lured = _LURES.search(texts) or _LURES.search(_decoded(texts))
        found += ["the name of a file with secrets"] if lured else []
        # The kernel pins description and inputSchema; this pins title, annotations and the rest.
        whole[name] = f"{name} (whole)", "", definition, server_name
        found += ["it has changed"] if scanner.check_rug_pull(*whole[name]) else []
        problems += [f"{name!r}: {problem}" for problem in found]
    if problems:
        raise PoisonedToolError("; ".join(problems))
    for parts in (*checked.values(), *whole.values()):
        scanner.register_tool(*parts)
    return scanner


class _Refused(Exception):  # noqa: N818 - not an error, and it never leaves the guard
    """Ends the checks of one call or response."""

    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(reason)
        self.stage: Stage = stage


@dataclass(slots=True)
class _Check:
    """One call or response on its way through the guard."""

    direction: Literal["call", "response"]
    caller: str = ""
    key: str = "unknown"  # the caller as limiter, budget, audit and metrics see it
    tool: str = "unknown"
    params: dict[str, Any] = field(default_factory=dict)
    content: Any = None
    threats: list[str] = field(default_factory=list)
    allowed: bool = False
    stage: Stage = "error"
    reason: str = ""
    approval: ApprovalStatus | None = None

    def refuse(self, stage: Stage, reason: str) -> None:
        self.allowed, self.stage, self.reason = False, stage, reason


class _GatewayTap:
    """Budget store, approver, audit sink and metrics recorder of the gateway.

    The kernel would replace a store that is false because it is empty, and log the text and the
    variables of whatever a store raises.
    """

    stage: Stage = "error"
    approval = ApprovalStatus.PENDING
    failure = ""

    def __init__(self, store: MCPRateLimitStore, spent: int) -> None:
        self._store = store
        self._spent = spent

    def get_bucket(self, agent_id: str) -> int:
        try:
            count = self._store.get_bucket(agent_id)
        except Exception as error:  # noqa: BLE001 - a store that fails has nothing left to give
            self.failure = type(error).__name__
            return self._spent
        if count is None or (type(count) is int and count >= 0):
            return count or 0
        self.failure = f"a bucket of type {type(count).__name__}"
        return self._spent

    def set_bucket(self, agent_id: str, bucket: int) -> None:
        try:
            self._store.set_bucket(agent_id, bucket)
        except Exception as error:  # noqa: BLE001 - what it has not kept is not granted
            self.failure = type(error).__name__

    def approve(self, *_: object) -> ApprovalStatus:
        return self.approval

    def record(self, entry: dict[str, Any]) -> None:
        """Drop the gateway's own audit entry: it holds personal data in clear."""

    def record_decision(self, *, stage: str, **_: object) -> None:
        # The kernel's name for a spent budget is the guard's for a spent window.
        self.stage = "budget" if stage == "rate_limit" else cast("Stage", stage)

    def record_rate_limit_hit(self, **_: object) -> None: ...
    def record_scan(self, **_: object) -> None: ...
    def record_threats_detected(self, count: int, **_: object) -> None: ...


class _Buckets:
    """A rate-limit store that keeps nothing for an empty bucket."""

    def __init__(self) -> None:
        self._buckets: dict[str, Any] = {}

    def get_bucket(self, agent_id: str) -> Any:
        return self._buckets.get(agent_id)

    def set_bucket(self, agent_id: str, bucket: Any) -> None:
        if bucket:
            self._buckets[agent_id] = bucket
        else:
            self._buckets.pop(agent_id, None)


class Guard:
    """Checks tool calls before they run and responses before they are returned.

    One guard serves any number of threads and tasks. Its memory is bounded by its ``Limits``. The
    methods never raise because of what a caller sent, nor because a store, limiter, sink, recorder
    or approver raised: all of that is a denial. What ends a task or the process, such as
    ``CancelledError`` or ``KeyboardInterrupt``, is audited and raised again.

    Attributes:
        audit_failures: How many audit entries the sink refused.
        unrecorded: The last 100 of these entries, to be taken with ``popleft``.
        metrics_failures: How many times the metrics recorder raised.
    """

    def __init__(
        self,
        policy: GovernancePolicy,
        *,
        audit_sink: MCPAuditSink,
        denied_tools: Collection[str] = (),
        sensitive_tools: Collection[str] = (),
        approver: Approver | None = None,
        max_calls_per_window: int = 60,
        window_size: float = 60.0,
        limiter: RateLimiter | None = None,
        budget_store: MCPRateLimitStore | None = None,
        metrics: MCPMetricsRecorder | None = None,
        caller_label: Callable[[str], str] | None = None,
        limits: Limits = Limits(),
        response_policy: ResponsePolicy = ResponsePolicy.BLOCK,
        blocked_pii: Collection[str] = DEFAULT_BLOCKED_PII,
        builtin_patterns: bool = True,
        allow_unaudited: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the configuration and take a copy of the policy.

        Args:
            policy: Its ``allowed_tools`` must not be empty: only what it names, exactly, is
                allowed. ``max_tool_calls`` is a caller's budget while the caller is known.
            audit_sink: Gets one redacted entry, plain JSON, for each decision.
            denied_tools: Refused by name. None may be on the allow list in any spelling.
            sensitive_tools: Need approval. All must be on the allow list.
            approver: ``(caller, tool, params) -> ApprovalStatus``; may be async for
                ``acheck_call``. Anything but an ``ApprovalStatus`` is a denial. Without one,
                sensitive calls stay pending, which is a denial too.
            max_calls_per_window: Calls of one caller per window, denied ones included.
            window_size: Length of the sliding window, in seconds.
            limiter: Replaces the in-memory limiter, and the two settings above.
            budget_store: Replaces the in-memory budgets. Exact across processes only if its
                ``set_bucket`` claims atomically, as the Redis recipe's does.
            metrics: Gets one decision or scan for each check. Tool names off the allow list become
                ``other``.
            caller_label: Makes the metric label of a caller id: ``bucket_label(64)``, for example.
            limits: Caps on size, depth, keys and callers.
            response_policy: BLOCK refuses a response with a threat. SANITIZE strips instruction
                tags and refuses if any threat is left. LOG returns it and names the threats in the
                audit entry.
            blocked_pii: Kinds of personal data that count as a threat, by the kernel's names.
            builtin_patterns: Whether params are also matched against shell and personal-data
                patterns. Tools that take source code need False.
            allow_unaudited: Whether a call may run although the sink raised.
            clock: Seconds, for the window and for ``forget_after``. It must never go back.

        Raises:
            ValueError: The policy is not one that the guard can enforce; the text says why.
        """
        if isinstance(denied_tools, str) or isinstance(sensitive_tools, str):
            raise ValueError("denied_tools and sensitive_tools are collections, not one string")
        if inspect.iscoroutinefunction(audit_sink.record):
            raise ValueError("nobody would wait for an async audit sink")
        self._denied, self._sensitive = list(denied_tools), list(sensitive_tools)
        _check_policy(policy, self._denied, self._sensitive)
        kinds = {pattern.name for pattern in CredentialRedactor.PII_PATTERNS}
        if unknown := set(blocked_pii) - kinds:
            raise ValueError(f"blocked_pii has unknown kinds {sorted(unknown)}, not in {kinds}")
        if type(max_calls_per_window) is not int or not 0 < window_size <= limits.forget_after:
            raise ValueError("a window has a whole number of calls and 0 to forget_after seconds")
        # Its lists can change later.
        self._policy = replace(
            policy,
            allowed_tools=list(policy.allowed_tools),
            log_all_calls=False,  # the gateway would log caller ids as they are
        )
        self._approver = approver
        self._own_limiter = MCPSlidingRateLimiter(
            max_calls_per_window=max_calls_per_window,
            window_size=window_size,
            rate_limit_store=_Buckets(),
            clock=clock,
        )
        self._limiter: RateLimiter = self._own_limiter if limiter is None else limiter
        self._own_budgets = _Buckets()
        self._tap = _GatewayTap(
            self._own_budgets if budget_store is None else budget_store, policy.max_tool_calls
        )
        self._sink = audit_sink
        self._metrics = metrics
        self._caller_label = caller_label
        self._limits = limits
        self._response_policy = response_policy
        self._blocked_pii = frozenset(blocked_pii)
        self._builtin_patterns = builtin_patterns
        self._allow_unaudited = allow_unaudited
        self._callers: OrderedDict[str, float] = OrderedDict()  # last call, oldest first
        self._state_lock = threading.Lock()
        self._gateway_lock = threading.Lock()
        self._gateway_calls_left = 0
        self._clock = clock
        self.audit_failures = 0
        self.metrics_failures = 0
        self.unrecorded: deque[dict[str, Any]] = deque(maxlen=100)

    def check_call(self, caller: str, tool: str, params: dict[str, Any]) -> Decision:
        """Decide whether a tool call may run.

        Args:
            caller: The verified identity of whoever calls.
            tool: The tool's name.
            params: Its arguments: plain JSON, an object at the top.

        Returns:
            The decision. When it is allowed, run the tool with ``decision.params``.

        Raises:
            BaseException: What ends the process, such as ``KeyboardInterrupt``, once it is audited.
        """
        check = _Check("call")
        try:
            self._run(check, self._screen_call, caller, tool, params)
            if self._needs_approver(check):
                try:
                    answer = self._ask_approver(check)
                    if inspect.iscoroutine(answer):
                        answer.close()  # only acheck_call can wait for it
                except Exception as error:  # noqa: BLE001 - whatever it is, it is no approval
                    answer = error
                self._run(check, self._settle, answer)
        except BaseException:
            self._finish_interrupted(check)
            raise
        return self._finish(check)

    async def acheck_call(self, caller: str, tool: str, params: dict[str, Any]) -> Decision:
        """Decide as ``check_call`` does, and wait for an async approver.

        If the wait is cancelled, no budget is spent and the audit entry says so.

        Args:
            caller: As in ``check_call``.
            tool: As in ``check_call``.
            params: As in ``check_call``.

        Returns:
            The decision. When it is allowed, run the tool with ``decision.params``.

        Raises:
            BaseException: What ends the task or the process, such as ``CancelledError``, once it is
                audited.
        """
        check = _Check("call")
        try:
            self._run(check, self._screen_call, caller, tool, params)
            if self._needs_approver(check):
                try:
                    answer = self._ask_approver(check)
                    if inspect.isawaitable(answer):
                        answer = await answer
                except Exception as error:  # noqa: BLE001 - whatever it is, it is no approval
                    answer = error
                self._run(check, self._settle, answer)
        except BaseException:
            self._finish_interrupted(check)
            raise
        return self._finish(check)

    def check_response(self, caller: str, tool: str, content: Any) -> Decision:
        """Decide whether a tool's response may be returned. Error texts are responses too.

        Args:
            caller: The verified identity of whoever called.
            tool: The tool's name.
            content: Plain JSON or a string.

        Returns:
            The decision. When it is allowed, return ``decision.content``: a copy in the structure
            of *content*, without the stripped tags under ``ResponsePolicy.SANITIZE``.

        Raises:
            BaseException: What ends the process, such as ``KeyboardInterrupt``, once it is audited.
        """
        check = _Check("response")
        try:
            self._run(check, self._screen_response, caller, tool, content)
        except BaseException:
            self._finish_interrupted(check)
            raise
        return self._finish(check)

    def _run(self, check: _Check, step: Callable[..., None], *args: Any) -> None:
        try:
            step(check, *args)
        except _Refused as refusal:
            check.refuse(refusal.stage, str(refusal))
        except Exception as error:  # noqa: BLE001 - a guard that breaks has to refuse
            # The text of an exception can hold a secret: only its type is logged.
            logger.error("guard step %s failed: %s", step.__name__, type(error).__name__)
            check.refuse("error", "The guard failed and refused the call")

    def _screen_call(self, check: _Check, caller: object, tool: object, params: object) -> None:
        self._identify(check, caller, tool)
        self._admit(check.key)
        self._take_from_window(check.key)
        _require_tool_name(check, tool)
        if type(params) is not dict:
            raise _Refused("params", "The arguments are refused: they are no JSON object")
        try:
            check.params = _plain_copy(params, self._limits.max_params_chars, self._limits)
            self._match_patterns(check.params)
        except ValueError as error:
            raise _Refused("params", f"The arguments are refused: {error}") from None
        self._ask_gateway(check, ApprovalStatus.PENDING)

    def _screen_response(self, check: _Check, caller: object, tool: object, content: Any) -> None:
        self._identify(check, caller, tool)
        _require_tool_name(check, tool)
        reason = "The response is clean"
        try:
            check.content = _plain_copy(content, self._limits.max_response_chars, self._limits)
            check.threats = left = _find_threats(check.content, self._blocked_pii)
            if left and self._response_policy is ResponsePolicy.SANITIZE:
                reason = "The response is clean after its tags were stripped"
                check.content = _without_tags(check.content)
                left = _find_threats(check.content, self._blocked_pii)
        except ValueError as error:
            raise _Refused("response", f"The response is refused: {error}") from None
        if left:
            reason = f"The response holds {', '.join(left)}"
            if self._response_policy is not ResponsePolicy.LOG:
                raise _Refused("response", f"{reason} and is refused")
        check.allowed, check.stage, check.reason = True, "response", reason

    def _identify(self, check: _Check, caller: object, tool: object) -> None:
        if type(tool) is str and (tool in self._policy.allowed_tools or _is_tool_name(tool)):
            check.tool = tool
        if type(caller) is not str:
            raise _Refused("caller", "Refused: the caller id is no string")
        try:
            check.caller, check.key = _identity(caller)
        except ValueError as error:
            raise _Refused("caller", f"Refused: {error}") from None

    def _admit(self, key: str) -> None:
        """Keep room for every caller that is counted, so that memory is bounded."""
        now = self._clock()
        with self._state_lock:
            if key not in self._callers and len(self._callers) >= self._limits.max_callers:
                idle, last_call = next(iter(self._callers.items()))
                if now - last_call < self._limits.forget_after:
                    raise _Refused("caller", "Refused: too many callers")
                del self._callers[idle]
                self._own_limiter.reset(idle)
                self._own_budgets.set_bucket(idle, 0)
            self._callers[key] = now
            self._callers.move_to_end(key)

    def _take_from_window(self, key: str) -> None:
        try:
            granted = self._limiter.try_acquire(key)
        except Exception as error:  # noqa: BLE001 - a limiter that fails has granted nothing
            logger.error("the rate limiter failed: %s", type(error).__name__)
            raise _Refused("rate_limit", "Refused: the rate limiter failed") from None
        if granted is not True:
            raise _Refused("rate_limit", "The rate limit is spent: try again later")

    def _match_patterns(self, params: dict[str, Any]) -> None:
        leaves = _leaves(params)
        texts = {key for key, _ in leaves}
        # A card can be a number.
        texts |= {str(leaf) for _, leaf in leaves if type(leaf) is str or type(leaf) is int}
        written = _written(params)
        for text in () if _is_bare(written) else list(texts):
            texts |= _forms(text)
        for text in (written, *_joined(leaves), *sorted(texts)):
            if found := self._policy.matches_pattern(text):
                raise _Refused("policy_pattern", f"The arguments match a blocked pattern: {found}")
        # All at once first: there is seldom anything, and one look costs less than many.
        if self._builtin_patterns and _DANGEROUS.search("\0".join(texts)):
            for danger in filter(None, map(_DANGEROUS.search, sorted(texts))):
                kind = str(danger.lastgroup).replace("_", " ")
                raise _Refused("builtin_pattern", f"The arguments look like a {kind}")

    def _ask_gateway(self, check: _Check, approval: ApprovalStatus) -> None:
        """Let the kernel's gateway decide, as if the approver had said *approval*."""
        if not self._gateway_lock.acquire(timeout=self._limits.max_wait):
            raise _Refused("budget", "Refused: too many calls are waiting")
        try:
            if not self._gateway_calls_left:
                self._gateway, self._gateway_calls_left = self._new_gateway(), 100
            self._gateway_calls_left -= 1
            self._tap.approval, self._tap.failure = approval, ""
            # The params have been matched. The gateway would do it again, with expressions that
            # are quadratic, while others wait, and redact them for an audit entry that is dropped.
            allowed, reason = self._gateway.intercept_tool_call(check.key, check.tool, {})
            stage, failure = self._tap.stage, self._tap.failure
        finally:
            self._gateway_lock.release()
        if failure:
            logger.error("the budget store failed: %s", failure)
            raise _Refused("budget", "Refused: the call budget could not be claimed")
        if stage == "budget":
            reason = f"The call budget of {self._policy.max_tool_calls} is spent"
        check.allowed, check.stage, check.reason = allowed, stage, reason

    def _new_gateway(self) -> MCPGateway:
        # A gateway keeps every entry that it ever audited, so none is kept for long. Nothing is
        # lost with it: budgets and audit entries are ours.
        return MCPGateway(
            replace(self._policy, blocked_patterns=[]),
            denied_tools=self._denied,
            sensitive_tools=self._sensitive,
            approval_callback=self._tap.approve,
            enable_builtin_sanitization=False,
            metrics=self._tap,
            rate_limit_store=self._tap,
            audit_sink=self._tap,
        )

    def _needs_approver(self, check: _Check) -> bool:
        return check.stage == "approval_pending" and self._approver is not None

    def _ask_approver(self, check: _Check) -> Any:
        assert self._approver is not None
        # Its own copy: what it changes must not reach the tool.
        return self._approver(check.caller, check.tool, copy.deepcopy(check.params))

    def _settle(self, check: _Check, answer: object) -> None:
        if isinstance(answer, Exception):
            logger.error("the approver failed: %s", type(answer).__name__)
            raise _Refused("approval_error", "Refused: the approver failed")
        # Not isinstance: an object can lie about its class.
        if type(answer) is not ApprovalStatus:
            logger.error("the approver returned %s, which is no approval", type(answer).__name__)
            answer = ApprovalStatus.DENIED
        check.approval = answer
        self._admit(check.key)  # the wait may have been long
        self._ask_gateway(check, answer)

    def _finish_interrupted(self, check: _Check) -> None:
        """Audit a call whose task or process is ending, so that it does not vanish."""
        check.refuse("cancelled", "The check was interrupted")
        self._finish(check)

    def _finish(self, check: _Check) -> Decision:
        if not self._audit(check) and check.allowed and not self._allow_unaudited:
            check.refuse("audit", "Refused: the call cannot be audited")
        self._measure(check)
        if not check.allowed:
            return Decision(False, check.reason, check.stage)
        return Decision(True, check.reason, check.stage, check.params, check.content)

    def _audit(self, check: _Check) -> bool:
        try:
            self._sink.record(self._entry(check))
        except BaseException as error:
            logger.error("the audit sink failed: %s", type(error).__name__)
            entry = self._entry(check)  # anew: the sink had the other one
            with self._state_lock:
                self.audit_failures += 1
                self.unrecorded.append(entry)
            if not isinstance(error, Exception):
                raise
            return False
        return True

    def _entry(self, check: _Check) -> dict[str, Any]:
        return {
            "timestamp": time.time(),
            "direction": check.direction,
            "agent_id": check.key,
            "tool_name": redact(check.tool),
            "parameters": _redacted(check.params),
            "threats": list(check.threats),
            "allowed": check.allowed,
            "stage": check.stage,
            # Only a refusal's reason can quote the caller.
            "reason": check.reason if check.allowed else redact(check.reason),
            "approval_status": check.approval.value if check.approval else None,
        }

    def _measure(self, check: _Check) -> None:
        if self._metrics is None:
            return
        tool = check.tool if check.tool in self._policy.allowed_tools else "other"
        try:
            agent = self._caller_label(check.key) if self._caller_label else check.key
            self._metrics.record_decision(
                allowed=check.allowed, agent_id=agent, tool_name=tool, stage=check.stage
            )
            if check.stage in ("rate_limit", "budget"):
                self._metrics.record_rate_limit_hit(agent_id=agent, tool_name=tool)
            if check.direction == "response":
                server = self._policy.name
                self._metrics.record_scan(
                    operation="scan_response", tool_name=tool, server_name=server
                )
                self._metrics.record_threats_detected(
                    len(check.threats), tool_name=tool, server_name=server
                )
        except Exception as error:  # noqa: BLE001 - a dashboard must not decide
            logger.error("the metrics recorder failed: %s", type(error).__name__)
            with self._state_lock:
                self.metrics_failures += 1


class AsyncGuard:
    """A ``Guard`` in the event loop of a server: what the recipes for both SDKs share."""

    def __init__(self, guard: Guard, *, in_thread: bool = False) -> None:
        """Wrap *guard*.

        Args:
            guard: It decides; one guard may serve several servers.
            in_thread: Whether checks run in a worker thread. Set it when the limiter, the stores or
                the sink wait for a disk or a network. The approver then has to be a plain function,
                and a call that is cancelled meanwhile may still spend budget.
                One that waits for a person is better async, without threads: there are few.
        """
        self._guard = guard
        self._in_thread = in_thread

    async def check_call(
        self, caller: str, tool: str, arguments: Mapping[str, Any], answers: Mapping[str, Any]
    ) -> Decision:
        """Decide whether a tool call may run.

        Args:
            caller: The verified identity of whoever calls.
            tool: The tool's name.
            arguments: Its arguments: plain JSON.
            answers: What the client answers to the tool's questions (``inputResponses`` of MCP
                2026-07-28). The tool reads them as it reads arguments, so they are checked alike;
                an approver finds them under that name, or a longer one if an argument has it.

        Returns:
            The decision. Its ``params`` are the checked arguments.
        """
        key = "inputResponses"
        while key in arguments:
            key += "_"
        params = {**arguments, key: answers} if answers else {**arguments}
        if self._in_thread:
            decision = await asyncio.to_thread(self._guard.check_call, caller, tool, params)
        else:
            decision = await self._guard.acheck_call(caller, tool, params)
        decision.params.pop(key, None)
        return decision

    async def check_response(self, caller: str, tool: str, content: Any) -> Decision:
        """Decide whether a tool's response may be returned.

        Args:
            caller: The verified identity of whoever called.
            tool: The tool's name.
            content: Plain JSON or a string.

        Returns:
            The decision, as ``Guard.check_response`` gives it.
        """
        if self._in_thread:
            return await asyncio.to_thread(self._guard.check_response, caller, tool, content)
        return self._guard.check_response(caller, tool, content)

    async def check_error(
        self, caller: str, tool: str, error: Exception, data: object = None
    ) -> str | None:
        """Decide whether the caller may see what a tool raised.

        Args:
            caller: The verified identity of whoever called.
            tool: The tool's name.
            error: The exception.
            data: What the SDK sends of it besides its text.

        Returns:
            What to say instead, or None if it may be seen.
        """
        seen = {"message": str(error), "data": data}
        decision = await self.check_response(caller, tool, seen)
        if not decision.allowed:
            return decision.refusal
        return None if decision.content == seen else str(decision.content["message"])


def _check_policy(policy: GovernancePolicy, denied: list[str], sensitive: list[str]) -> None:
    policy.validate()  # assigning to a policy is not validated
    allowed = policy.allowed_tools
    if not allowed:
        raise ValueError("policy.allowed_tools is empty, which would allow every tool")
    if type(policy.max_tool_calls) is not int or type(policy.require_human_approval) is not bool:
        raise ValueError("max_tool_calls must be an int and require_human_approval a bool")
    if any(entry in ("", ("", PatternType.REGEX)) for entry in policy.blocked_patterns):
        raise ValueError("an empty blocked pattern matches every call")
    for name in (*allowed, *denied, *sensitive):
        if not _is_tool_name(name):
            raise ValueError(f"{name!r} is no tool name")
    looks = {_skeleton(name): name for name in allowed}
    if len(looks) < len(set(allowed)):
        raise ValueError("two names on the allow list look alike")
    for name in denied:
        if _skeleton(name) in looks:
            raise ValueError(f"{name!r} is denied and {looks[_skeleton(name)]!r} is allowed")
    if unknown := set(sensitive) - set(allowed):
        raise ValueError(f"sensitive tools {sorted(unknown)} are not on the allow list")


def _is_tool_name(tool: object) -> bool:
    return (
        type(tool) is str
        and 0 < len(tool) <= 128  # the length that the MCP specification gives
        and tool == tool.strip()
        and tool.isprintable()
        and not _INVISIBLE.search(tool)
    )


def _require_tool_name(check: _Check, tool: object) -> None:
    if check.tool is not tool:
        raise _Refused("tool_name", "Refused: a tool name has 1 to 128 visible characters")


def _skeleton(name: str) -> str:
    return re.sub(r"[\W_]+", "", _decoded(name).casefold())


# A canonical id has lost the case that some expressions look for.
_IN_ANY_CASE = [
    re.compile(kind.pattern.pattern, kind.pattern.flags | re.IGNORECASE)
    for kind in (*CredentialRedactor.PATTERNS, *ExtraCredentials.PATTERNS)
]


@lru_cache(maxsize=4_096)
def _identity(caller: str) -> tuple[str, str]:
    """Return the canonical id, and what limiter, audit and logs see if it is personal data."""
    name = canonical_caller(caller)
    # An id that looks like a hash is hashed too: it must not pass for somebody else's.
    private = name.startswith("sha256:") or redact(name) != name
    if private or any(pattern.search(name) for pattern in _IN_ANY_CASE):
        return name, f"sha256:{_digest(name)[:32]}"
    return name, name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_copy(value: Any, max_chars: int, limits: Limits) -> Any:
    """Copy a plain JSON value without recursion, or raise ValueError."""
    top = [value]
    todo: list[tuple[Any, int]] = [(top, 0)]  # copies whose children are still the caller's
    chars = items = 0
    while todo:
        parent, depth = todo.pop()
        for slot, node in parent.items() if type(parent) is dict else enumerate(parent):
            if type(node) is not dict and type(node) is not list:
                chars += _cost(node, max_chars)
                continue
            if items + len(node) > limits.max_items or depth >= limits.max_depth:
                raise ValueError(
                    f"over {limits.max_items} keys and elements or {limits.max_depth} levels"
                )
            # Look at the copy only: another thread may be changing the original.
            parent[slot] = copied = node.copy()
            items += len(copied)
            if type(copied) is dict:
                for key in copied:
                    chars += _cost(key, max_chars) if type(key) is str else _not_json(key)
            todo.append((copied, depth + 1))
        if chars + 4 * items > max_chars:  # punctuation included
            raise ValueError(f"over {max_chars} characters")
    return top[0]


def _cost(leaf: Any, max_chars: int) -> int:
    """Return how many characters a leaf of plain JSON takes, or raise ValueError."""
    if type(leaf) is str:
        if leaf.isascii() or len(leaf) > max_chars or not _SURROGATE.search(leaf):
            return len(leaf)
        return _not_json(leaf)
    if leaf is None or type(leaf) is bool or (type(leaf) is float and math.isfinite(leaf)):
        return 4
    if type(leaf) is int and leaf.bit_length() <= 1_024:
        return 1 + leaf.bit_length() // 3
    return _not_json(leaf)


def _not_json(value: object) -> NoReturn:
    raise ValueError(f"a {type(value).__name__} that is not plain JSON")


def _leaves(value: Any) -> list[tuple[str, Any]]:
    """Return each leaf with the key that it stands under, and None under keys of containers."""
    found = []
    todo = [("", value)]
    while todo:
        key, node = todo.pop()
        if type(node) is dict:
            todo += reversed(node.items())
            node = None
        elif type(node) is list:
            todo += [(key, element) for element in reversed(node)]
            node = None
        found.append((key, node))
    return found


def _forms(text: str) -> set[str]:
    """Return *text* as it is and decoded, or raise ValueError."""
    decoded = _decoded(text)
    if len(decoded) > 2 * len(text) + 1_000:  # one character can stand for 18
        raise ValueError("its compatibility characters expand too much")
    return {text, decoded}


def _scan_texts(content: Any) -> list[tuple[str, bool]]:
    """Return what has to be scanned, and whether it was joined from several values."""
    lines: dict[str, None] = {}
    leaves = _leaves(content)
    for key, leaf in leaves:
        lines[key] = None
        if type(leaf) is str or type(leaf) is int:
            lines[f"{key}={leaf}" if _names_a_secret(key) else str(leaf)] = None
    # NUL is no white space, so no expression reaches from one line into the next.
    apart = "\0\n".join([line for line in lines if not _PLAIN.fullmatch(line)])
    texts = [(apart, False)] if apart else []
    texts += [(text, True) for text in _joined(leaves)]
    return [(form, joined) for text, joined in texts for form in _forms(text) if form]


def _joined(leaves: list[tuple[str, Any]]) -> list[str]:
    """Return what strings make together that stand in one list or under one key.

    A command can be a list of words, and a secret can be cut over several blocks.
    """
    groups: dict[str, list[str]] = {}
    for key, leaf in leaves:
        if type(leaf) is str:
            groups.setdefault(key, []).append(leaf)
    several = [parts for parts in groups.values() if len(parts) > 1]
    return [space.join(parts) for parts in several for space in ("", " ")]


def _without_tags(value: Any) -> Any:
    """Copy a checked value with the tags stripped from its strings. Its depth is capped."""
    if type(value) is dict:
        return {key: _without_tags(item) for key, item in value.items()}
    if type(value) is list:
        return [_without_tags(item) for item in value]
    for _ in range(8) if type(value) is str else ():  # stripping one tag can make another
        before, value = value, _SCANNER.sanitize_response(value)[0]
        if value == before:
            break
    return value  # and scanned again, should a tag be left


_written = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each call


def _is_bare(text: str) -> bool:
    return text.isascii() and "%" not in text and "&" not in text and "\\" not in text


def _decoded(text: str) -> str:
    """Return what escapes, percent-encoding, entities and Unicode's other spellings hide."""
    if _is_bare(text):
        return text
    for _ in range(4):  # one encoding can hide another
        before = text
        text = _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), text)
        text = html.unescape(unquote(text))
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text.translate(_LOOK_ALIKES))
            text = _INVISIBLE.sub("", text)
        if text == before:
            break
    return text


def _pieces(text: str) -> list[str]:
    text = re.sub(r"(\s{4})\s+", r"\1", text)  # white space must not move a match out of its piece
    starts = range(0, max(1, len(text) - _OVERLAP), _PIECE - _OVERLAP)
    return [text[start : start + _PIECE] for start in starts]


def _redacted(value: Any, key: str = "") -> Any:
    """Copy a checked value for the audit log. Its depth is capped."""
    if _names_a_secret(key):
        return PLACEHOLDER
    if type(value) is dict:
        copied: dict[str, Any] = {}
        for number, (name, item) in enumerate(value.items()):
            shown = redact(name)
            while shown in copied:  # two keys that become one must not lose an entry
                shown += f" ({number})"
            copied[shown] = _redacted(item, name)
        return copied
    if type(value) is list:
        return [_redacted(item) for item in value]
    text = str(value)
    shown = redact(text)
    return value if shown == text else shown
