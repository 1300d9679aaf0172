r"""Cut out secrets: the formats that an issuer documents, and nothing that only looks like one.

Left out, because they are guesses: ``Bearer`` and ``Authorization:`` with whatever follows,
``password=`` and other labels in text, hexadecimal keys without a prefix, and personal data. A
secret that is split, or encoded in another way than JSON's escapes, is not found either.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

PLACEHOLDER = "[REDACTED]"


class Format(NamedTuple):
    """One issuer's format.

    A secret is one of ``starts`` and then what ``secret`` matches. With ``kept``, an expression,
    the start and what ``kept`` matches are a label that stays, and only the rest is cut out.
    Examples are invented, and in parts, so that scanners of source code pass over them.
    """

    issuer: str
    starts: str  # separated by spaces
    secret: str
    tail: str  # what follows a start in an example
    near: tuple[str, ...] = ()  # what is no secret, though it looks like one
    kept: str | None = None
    before: str = ""  # what comes before a start in an example

    @property
    def examples(self) -> list[str]:
        """One example for each start."""
        return [self.before + start + self.tail for start in self.starts.split()]


_MIXED = "aB3dE5gH" * 12
_HEX = "0a1b2c3d4e5f6789" * 4
_END = "(?![A-Za-z0-9])"

# What is unbounded on the right takes all of a run of its characters. No expression takes over 60
# characters of a run that may hold another start, so that time grows with the text and no faster.
FORMATS = (
    # "About authentication to GitHub"; a ghs_ of 2026 holds a JSON web token, which has its own row.
    Format("GitHub", "ghp_ gho_ ghu_ ghs_ ghr_", "[A-Za-z0-9]{36,}", _MIXED[:36]),
    Format("GitHub", "github_pat_", r"\w{40,}", f"{_MIXED[:22]}_{_MIXED[:59]}"),
    # "GitLab token overview", section on prefixes.
    Format(
        "GitLab",
        "glpat- gloas- gldt- glrt- glrtr- glcbt- glptt- glft- glimt- glagent- glsoat- glffct-",
        r"[\w-]{20,}(?:(?:\.[0-9a-z]{2})?\.[0-9a-z]{9})?",
        f"{_MIXED[:27]}.01.{_HEX[:9]}",
    ),
    # "Tokens" and "Sending messages using incoming webhooks".
    Format(
        "Slack",
        "xoxb- xoxp- xoxa- xoxr- xoxs- xoxo- xoxe- xapp- xwfp-",
        r"\d[A-Za-z0-9-]{19,}",
        "1234567890-1234567890-" + _MIXED[:24],
        near=("xoxb-your-bot-token-comes-here",),
    ),
    Format(
        "Slack",
        "hooks.slack.com/services/ hooks.slack.com/workflows/ hooks.slack.com/triggers/",
        r"[TE]\w{8,}/\w{8,}/\w{20,}",
        f"T0123ABCD/B0123ABCD/{_MIXED[:24]}",
        kept="",
    ),
    # "Using OAuth 2.0", "API keys": an access token, a refresh token, a client's secret.
    Format("Google", "AIza", r"[\w-]{35}(?![\w-])", _MIXED[:35], near=("AIza" + _MIXED[:36],)),
    Format("Google", "ya29.", r"(?:[a-z]\.)?[\w-]{20,}", "a0" + _MIXED[:60]),
    Format("Google", "GOCSPX-", r"[\w-]{28}", _MIXED[:28]),
    Format(
        "Google", "1//0", r"(?=[\w-]{0,20}[A-Z])[\w-]{40,}", _MIXED[:60], near=("1//0" + "-" * 60,)
    ),
    # "API keys" and "Webhooks": publishable keys (pk_) are no secret.
    Format(
        "Stripe",
        "sk_live_ rk_live_ sk_test_ rk_test_",
        "[A-Za-z0-9]{20,}",
        _MIXED[:24],
        near=("pk_live_" + _MIXED[:24], "risk_live_" + _MIXED[:24]),
    ),
    Format("Stripe", "whsec_", "[A-Za-z0-9+/]{32,}={0,2}", _MIXED[:32]),
    # "IAM identifiers": other prefixes are users, roles and the like. Base 32, so no 0, 1, 8 or 9.
    Format(
        "AWS",
        "AKIA ASIA ABIA ACCA",
        "[A-Z2-7]{16}" + _END,
        "Q2W3E4R5T6Y7U2I3",
        near=("AROAQ2W3E4R5T6Y7U2I3", "ASIA2024010112345678", "AKIAQ2W3E4R5T6Y7U2I3A"),
    ),
    # "Configuration and credential file settings", and what AssumeRole returns.
    Format(
        "AWS",
        "secret_access_key SECRET_ACCESS_KEY SecretAccessKey secretAccessKey",
        "[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
        f" = {_MIXED[:38]}/+",
        near=("secret_access_key = " + _HEX,),
        kept=r"[^A-Za-z0-9/+]{1,8}",
    ),
    # "Configure connection strings" and "Create a service SAS".
    Format("Azure", "AccountKey=", "[A-Za-z0-9+/]{86}==", _MIXED[:86] + "==", kept=""),
    Format("Azure", "SharedAccessKey=", "[A-Za-z0-9+/]{43}=", _MIXED[:43] + "=", kept=""),
    Format(
        "Azure",
        "sig=",
        "[A-Za-z0-9%+/]{43,60}(?:%3[Dd]|=)",
        _MIXED[:43] + "%3D",
        near=("sig=" + _HEX,),
        kept="",
    ),
    Format(
        "OpenAI",
        "sk-proj- sk-svcacct- sk-admin-",
        r"(?=[\w-]{0,30}[A-Z])[\w-]{40,}",
        _MIXED[:80],
        near=("desk-proj-" + _MIXED[:80], "sk-proj-" + "alpha-planning-" * 4),
    ),
    Format(
        "OpenAI",
        "sk-",
        "(?=[a-z0-9]{0,30}[A-Z])[A-Za-z0-9]{32,}",
        _MIXED[:48],
        near=("task-" + _HEX[:32], "disk-" + _MIXED[:32], "doc-sk-" + _HEX[:32]),
    ),
    Format("Anthropic", "sk-ant-", r"[a-z]{3,5}\d\d-[\w-]{32,}", f"api03-{_MIXED[:93]}AA"),
    Format("npm", "npm_", "[A-Za-z0-9]{36}" + _END, _MIXED[:36], near=("npm_config_registry",)),
    # A macaroon: its first bytes name the index.
    Format("PyPI", "pypi-AgE", r"[\w-]{50,}", "IcHlwaS5vcmc" + _MIXED[:80]),
    Format("Hugging Face", "hf_", "[A-Za-z0-9]{34}" + _END, _MIXED[:34]),
    Format("SendGrid", "SG.", r"[\w-]{22}\.[\w-]{43}(?![\w-])", f"{_MIXED[:22]}.{_MIXED[:43]}"),
    Format("DigitalOcean", "dop_v1_ doo_v1_ dor_v1_", "[a-f0-9]{64}" + _END, _HEX),
    Format("Databricks", "dapi", r"[a-f0-9]{32}(?:-\d)?" + _END, _HEX[:32], near=("dapi" + _HEX,)),
    Format("Shopify", "shpat_ shpca_ shppa_ shpss_", "[a-fA-F0-9]{32}" + _END, _HEX[:32]),
    Format("Docker", "dckr_pat_ dckr_oat_", r"[\w-]{27,}", _MIXED[:27]),
    Format("HashiCorp Vault", "hvs. hvb. hvr.", r"[\w-]{24,}", _MIXED[:90]),
    Format("Notion", "ntn_", "[A-Za-z0-9]{40,}", _MIXED[:46]),
    Format("Grafana", "glsa_", "[A-Za-z0-9]{32}_[a-f0-9]{8}" + _END, f"{_MIXED[:32]}_{_HEX[:8]}"),
    Format("Linear", "lin_api_", "[A-Za-z0-9]{32,}", _MIXED[:40]),
    # RFC 7519: signed claims. The header before them names an algorithm only, and stays.
    Format(
        "JSON web token",
        ".eyJ",
        r"(?<=[\w-]{16}\.eyJ)[\w-]+\.[\w-]{20,}",
        f"zdWIiOiIxIn0.{_MIXED[:43]}",
        near=("eyJhbGciOiJIUzI1NiJ9.eyJzdWIi", "a.eyJzdWIiOiIxIn0." + _MIXED[:43]),
        before="eyJhbGciOiJIUzI1NiJ9",
    ),
    # RFC 7468, RFC 9580, OpenSSH's PROTOCOL.key. As far as the text goes if the end was cut off.
    Format(
        "Private key",
        "-----BEGIN",
        r"[A-Z0-9 ]{0,20} PRIVATE KEY(?: BLOCK)?-----"
        r"(?=(?:[^-]|-(?!----)){0,300}?[A-Za-z0-9+/\\]{40})"
        r"[^-]*(?:-(?!----)[^-]*)*(?:-----END[A-Z0-9 ]{1,40}-----)?",
        f" RSA PRIVATE KEY-----\n{_MIXED[:64]}\n-----END RSA PRIVATE KEY-----",
        near=(
            "begins with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----",
            f"-----BEGIN PUBLIC KEY-----\n{_MIXED[:64]}\n-----END PUBLIC KEY-----",
        ),
    ),
    # RFC 3986, section 3.2.1: user and password before the host. Variables and asterisks are none.
    Format(
        "URL",
        r"://  :\/\/",
        r"(?!\$\w+@|\*+@|\d{1,5}[,;|)\]])[^\s/?#\"'<>{}\\\x7f-\U0010ffff]+(?=@(?!sha\d))",
        "app:hunter22@db.internal/app",
        near=(
            "https://example.org:8443/@app",
            "ssh://git@example.org:22/app",
            "docker://alpine:3.19@sha256:0a1b",
            "https://example.org:8080,mail@example.org",
            "https://${USER}:${PASSWORD}@example.org",
            "https://app:$PASSWORD@example.org and https://app:****@example.org",
        ),
        kept=r"[^\s/:?#\"'<>{}\\\x7f-\U0010ffff]*:",
        before="postgres",
    ),
)


def _expression(form: Format, start: str) -> re.Pattern[str]:
    # The literal comes first, because a search for it is fast; what may stand before it comes then:
    # no letter and no digit, unless they end an escape of JSON or of a URL.
    found = literal = re.escape(start)
    if start[0].isalnum():
        escapes = (r"\\[bfnrt]", r"\\u[0-9A-Fa-f]{4}", "%[0-9A-Fa-f]{2}")
        after_escape = "".join(f"|(?<={escape}{literal})" for escape in escapes)
        found += f"(?:(?<![A-Za-z0-9]{literal}){after_escape})"
    if form.kept is not None:
        found = f"({found}{form.kept})"
    return re.compile(found + form.secret, re.ASCII)


_SEARCHES = [
    (start, _expression(form, start), PLACEHOLDER if form.kept is None else rf"\1{PLACEHOLDER}")
    for form in FORMATS
    for start in form.starts.split()
]
_SHORTEST = 20  # characters of a secret; only that of a URL can be shorter, and has an @ after it

# A string of JSON; one that has no end, too, so that the rest is not read again from each quote.
_QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# The last word of a key, or its last two: "db_password", "x-api-key", "clientSecret".
_SECRET_NAMES = frozenset(
    "password passwords passwd pwd passphrase passcode secret secrets token bearer credential"
    " credentials authorization cookie cookies apikey apikeys privatekey accesskey secretkey signingkey"
    " encryptionkey accountkey masterkey accesstoken authtoken refreshtoken clientsecret secretstring"
    " secretvalue connectionstring".split()
)
# A place in a list or in a text, and the words that a language model's tokenizer adds.
_PLACES = frozenset(
    "page next previous prev continuation continue sync resume skip start cursor delta"
    " bos eos pad unk sep cls mask stop special".split()
)


def redact(text: str) -> str:
    """Cut out secrets of the known formats.

    Args:
        text: Any text. Time grows with its length and no faster, whatever it holds.

    Returns:
        The text with the placeholder for each secret. The rest is as it was, character for
        character, and so is a text without secrets.
    """
    if len(text) < _SHORTEST and "@" not in text:
        return text
    for start, expression, replacement in _SEARCHES:
        if start in text:
            text = expression.sub(replacement, text)
    return text


def redact_tree(value: Any, redact: Callable[[str], str] = redact, *, by_key: bool = False) -> Any:
    """Copy plain JSON with the secrets cut out of every key and string.

    A secret that JSON's escapes hide inside a string is cut out as well: the quoted string that
    holds it is written anew, and nothing else of the text.

    Args:
        value: Dicts, lists, strings, numbers, booleans and None, at most 64 levels deep.
        redact: What is done to a text. It may cut out more, such as personal data.
        by_key: Also put the placeholder for each string and number under a key that names a secret,
            in JSON inside strings too, and for the value of a name-and-value pair with such a name.

    Returns:
        The copy. Keys that have become equal are numbered, so no entry is lost.
    """
    return _tree(value, redact, by_key, hide=False)


def _tree(value: Any, redact: Callable[[str], str], by_key: bool, hide: bool) -> Any:
    if isinstance(value, dict):
        return _entries(value, redact, by_key, hide)
    if isinstance(value, list):
        return [_tree(item, redact, by_key, hide) for item in value]
    if hide and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return PLACEHOLDER
    return _text(value, redact, by_key) if isinstance(value, str) else value


def _entries(
    value: dict[str, Any], redact: Callable[[str], str], by_key: bool, hide: bool
) -> dict[str, Any]:
    copy: dict[str, Any] = {}
    numbers = count(2)
    named = by_key and any(
        _names_a_secret(value.get(key)) for key in ("name", "key", "Name", "Key")
    )
    for key, item in value.items():
        shown = name = _text(key, redact, by_key=False)
        while name in copy:
            name = f"{shown} {next(numbers)}"
        hidden = hide or by_key and (_names_a_secret(key) or named and key in ("value", "Value"))
        copy[name] = _tree(item, redact, by_key, hidden)
    return copy


def _text(text: str, redact: Callable[[str], str], by_key: bool) -> str:
    text = redact(text)
    if '"' in text and ("\\u" in text or "\\/" in text):  # the escapes that can hide a letter
        text = _QUOTED.sub(lambda quoted: _unescaped(quoted[0], redact), text)
    if by_key and text.lstrip()[:1] in ("{", "["):
        try:
            opened = json.loads(text)
            shown = _tree(opened, redact, by_key, hide=False)
            return text if shown == opened else json.dumps(shown)
        except RecursionError:
            return PLACEHOLDER
        except ValueError:
            pass
    return text


def _unescaped(quoted: str, redact: Callable[[str], str]) -> str:
    try:
        opened = json.loads(quoted, strict=False)
    except ValueError:
        return quoted
    shown = _text(opened, redact, by_key=False)
    return quoted if shown == opened else json.dumps(shown)


def _names_a_secret(key: Any) -> bool:
    return isinstance(key, str) and _ends_in_a_secret_name(key[-64:])


@lru_cache(maxsize=1024)
def _ends_in_a_secret_name(key: str) -> bool:
    *_, before, last = ["", "", *(word.lower() for word in _WORD.findall(key))]
    if last == "token" and before in _PLACES:
        return False
    return last in _SECRET_NAMES or before + last in _SECRET_NAMES
