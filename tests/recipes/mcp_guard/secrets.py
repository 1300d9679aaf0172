r"""Cut out secrets: the formats that an issuer documents, and nothing that only looks like one.

Left out as guesses: ``Authorization:`` and ``Bearer`` with whatever follows, ``password=`` and the
like in text, keys without a prefix, personal data. A secret in parts, or in another encoding than
JSON's escapes, is not found.
"""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from .plain import NOTHING, opened

PLACEHOLDER = "[REDACTED]"


class Format(NamedTuple):
    """One issuer's format: a start, and then what the expression ``secret`` matches.

    Examples are invented, and in parts, so that scanners of source code pass over them.
    """

    issuer: str
    starts: str  # separated by spaces
    secret: str
    tail: str  # follows a start in an example
    near: str = ""  # looks like secrets and holds none
    kept: str | None = None  # follows a start, and stays with it
    before: str = ""  # comes before a start in an example


_MIX = "aB3dE5gH" * 12
_HEX = "0a1b2c3d4e5f6789" * 4
_END = "(?![A-Za-z0-9])"

# From one start, no expression reads far into text that can hold another start: it takes all of a
# run, or gives up after a few characters. So time grows with the text and no faster.
# fmt: off
FORMATS = (
    # "About authentication to GitHub". An installation token of 2026 ends in a JSON web token.
    Format("GitHub", "ghp_ gho_ ghu_ ghs_ ghr_", "[A-Za-z0-9]{36,}", _MIX[:36]),
    Format("GitHub", "github_pat_", r"\w{40,}", f"{_MIX[:22]}_{_MIX[:59]}"),
    # "GitLab token overview", token prefixes.
    Format("GitLab",
           "glpat- gloas- gldt- glrt- glrtr- glcbt- glptt- glft- glimt- glagent- glsoat- glffct-",
           r"[\w-]{20,}(?:(?:\.[0-9a-z]{2})?\.[0-9a-z]{9})?", f"{_MIX[:27]}.01.{_HEX[:9]}"),
    # "Tokens", "Sending messages using incoming webhooks".
    Format("Slack", "xoxb- xoxp- xoxa- xoxr- xoxs- xoxo- xoxe- xapp- xwfp-", r"\d[A-Za-z0-9-]{19,}",
           "1234567890-" + _MIX[:24], near="xoxb-your-bot-token-comes-here"),
    Format("Slack", "hooks.slack.com/services/ hooks.slack.com/workflows/",
           r"[TE]\w{8,}/\w{8,}/\w{20,}", f"T0123ABCD/B0123ABCD/{_MIX[:24]}", kept=""),
    # "Manage API keys", "Using OAuth 2.0": an access token, a client's secret, a refresh token.
    Format("Google", "AIza", r"[\w-]{35}(?![\w-])", _MIX[:35], near=f"AIza{_MIX[:36]}"),
    Format("Google", "ya29.", r"(?:[a-z]\.)?[\w-]{20,}", "a0" + _MIX[:60]),
    Format("Google", "GOCSPX-", r"[\w-]{28}", _MIX[:28]),
    Format("Google", "1//0", r"(?=[\w-]{0,20}[A-Z])[\w-]{40,}", _MIX[:60], near="1//0" + "-" * 60),
    # "API keys", "Webhooks". Publishable keys (pk_) are no secret.
    Format("Stripe", "sk_live_ rk_live_ sk_test_ rk_test_", "[A-Za-z0-9]{20,}", _MIX[:24],
           near=f"pk_live_{_MIX[:24]} risk_live_{_MIX[:24]}"),
    Format("Stripe", "whsec_", "[A-Za-z0-9+/]{32,}={0,2}", _MIX[:32]),
    # "IAM identifiers": other prefixes name users and roles. Base 32, so without 0, 1, 8 and 9.
    Format("AWS", "AKIA ASIA ABIA ACCA", "[A-Z2-7]{16}" + _END, "Q2W3E4R5T6Y7U2I3",
           near="AROAQ2W3E4R5T6Y7U2I3 ASIA2024010112345678 AKIAQ2W3E4R5T6Y7U2I3A"),
    # "Configuration and credential file settings", and as AssumeRole spells it.
    Format("AWS", "secret_access_key SECRET_ACCESS_KEY SecretAccessKey secretAccessKey",
           "[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])", f" = {_MIX[:38]}/+",
           near=f"secret_access_key = {_HEX}", kept=r"\s{0,60}[^A-Za-z0-9/+]{1,8}"),
    # "Configure connection strings", "Create a service SAS". Base64 of 64 or 32 bytes.
    Format("Azure", "AccountKey= SharedAccessKey=", "[A-Za-z0-9+/]{43}(?:[A-Za-z0-9+/]{43}=)?=",
           _MIX[:86] + "==", kept=""),
    Format("Azure", "sig=", "[A-Za-z0-9%+/]{43,60}(?:%3[Dd]|=)", _MIX[:43] + "%3D",
           near=f"sig={_HEX}", kept=""),
    # "API key safety" and the help centres. A locale (sk) in front of an id has no capital letter.
    Format("OpenAI", "sk-proj- sk-svcacct- sk-admin-", r"(?=[\w-]{0,30}[A-Z])[\w-]{40,}", _MIX[:80],
           near=f"desk-proj-{_MIX[:80]} sk-proj-" + "alpha-planning-" * 4),
    Format("OpenAI", "sk-", "(?=[a-z0-9]{0,30}[A-Z])[A-Za-z0-9]{32,}", _MIX[:48],
           near=f"task-{_HEX[:32]} disk-{_MIX[:32]} doc-sk-{_HEX[:32]}"),
    Format("Anthropic", "sk-ant-", r"[a-z]{3,5}\d\d-[\w-]{32,}", f"api03-{_MIX[:93]}AA"),
    Format("npm", "npm_", "[A-Za-z0-9]{36}" + _END, _MIX[:36],
           near=f"npm_config_registry npm_{_MIX[:37]}"),
    Format("PyPI", "pypi-AgE", r"[\w-]{50,}", "IcHlwaS5vcmc" + _MIX[:80]),  # a macaroon
    Format("Hugging Face", "hf_", "[A-Za-z0-9]{34}" + _END, _MIX[:34], near=f"hf_{_MIX[:35]}"),
    Format("SendGrid", "SG.", r"[\w-]{22}\.[\w-]{43}(?![\w-])", f"{_MIX[:22]}.{_MIX[:43]}"),
    Format("DigitalOcean", "dop_v1_ doo_v1_ dor_v1_", "[a-f0-9]{64}" + _END, _HEX,
           near=f"dop_v1_{_HEX}0"),
    Format("Databricks", "dapi", r"[a-f0-9]{32}(?:-\d)?" + _END, f"{_HEX[:32]}-2",
           near=f"dapi{_HEX}"),
    Format("Shopify", "shpat_ shpca_ shppa_ shpss_", "[a-fA-F0-9]{32}" + _END, _HEX[:32],
           near=f"shpat_{_HEX}"),
    Format("Docker", "dckr_pat_ dckr_oat_", r"[\w-]{27,}", _MIX[:27]),
    Format("HashiCorp Vault", "hvs. hvb. hvr.", r"[\w-]{24,}", _MIX[:90],
           near=f"hvs. hvs-{_MIX}"),
    # RFC 7519: the signed claims. The header before them says how they are signed, and stays.
    Format("JSON web token", ".eyJ", r"(?<=[\w-]{16}\.eyJ)[\w-]+\.[\w-]{20,}",
           f"zdWIiOiIx.{_MIX[:43]}", near=f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIi a.eyJzdWIi.{_MIX[:43]}",
           before="eyJhbGciOiJIUzI1NiJ9"),
    # RFC 7468, RFC 9580, OpenSSH's PROTOCOL.key. Without its end, a key is cut out up to a quote
    # or the end of the text. A line that only names one is none.
    Format("private key", "-----BEGIN", r"[A-Z0-9 ]{0,20} PRIVATE KEY(?: BLOCK)?-----"
           r"(?=(?:[^-]|-(?!----)){0,300}?[A-Za-z0-9+/\\]{40})"
           r'(?:(?=((?s:.*?)-----))\1END[A-Z0-9 ]{1,40}-----|[^"]*?(?="|-----|\Z))',
           f" RSA PRIVATE KEY-----\n{_MIX[:64]}\n-----END RSA PRIVATE KEY-----",
           near="from -----BEGIN PRIVATE KEY----- to -----END PRIVATE KEY-----"),
    # RFC 3986, section 3.2.1: the password before a host. Variables and asterisks are none.
    Format("URL", "://",
           r"(?!\$\w+@|\*+@|\d{1,5}(?:[,;|)\]]|&\w+=))[^\s/?#\"'<>{}\\\x7f-\U0010ffff]+(?=@(?!sha\d+:[0-9a-f]{32}))",
           "app:hunter22@db.internal/app", before="postgres",
           near=f"http://a.example:8443/@app ssh://git@a.example:22/app docker://a:3@sha256:{_HEX} "
           "http://a.example:80&to=b@a.example http://b:$PASS@a.example http://${USER}:${PASS}@a.example",
           kept=r"[^\s/:?#\"'<>{}\\\x7f-\U0010ffff]*:"),
)
# fmt: on


def _expression(form: Format, start: str) -> re.Pattern[str]:
    # The literal comes first, because a search for it is fast; what may stand before it comes then:
    # no letter and no digit, unless they end an escape: of JSON, of Python, or of a URL.
    found = literal = re.escape(start)
    if start[0].isalnum():
        escapes = [r"\\[bfnrt]", r"\\u[0-9A-Fa-f]{4}", r"\\x[0-9A-Fa-f]{2}", "%[0-9A-Fa-f]{2}"]
        after_escape = "".join(f"|(?<={escape}{literal})" for escape in escapes)
        found += f"(?:(?<![A-Za-z0-9]{literal}){after_escape})"
    if form.kept is not None:
        found = f"({found}{form.kept})"
    return re.compile(found + form.secret, re.ASCII)


# By a character that is in the start, so that most texts are searched for a few of 74 starts only.
_SEARCHES: dict[str, list[tuple[str, re.Pattern[str], str]]] = {}
for form in FORMATS:
    replacement = PLACEHOLDER if form.kept is None else rf"\1{PLACEHOLDER}"
    for start in form.starts.split():
        hint = next((char for char in "_-./=" if char in start), start)
        _SEARCHES.setdefault(hint, []).append((start, _expression(form, start), replacement))

# Of those that come after a name: in JSON the name is a key.
_KEYS: tuple[str, ...] = ("secret_access_key", "SECRET_ACCESS_KEY", "SecretAccessKey")
_KEYS += ("secretAccessKey", "AccountKey", "SharedAccessKey")

# What may stand in place of a secret's character, or just before it: an escape of JSON, with more
# backslashes if it is JSON in JSON, or a colour of the terminal.
_LETTER = re.compile(r"(?<!\\)\\+u00(?!22|5[Cc]|7[Ff])([2-7][0-9A-Fa-f])")
_SLASH = re.compile(r"(?<!\\)\\+/")
_COLOUR = re.compile(r"(?:\x1b|(?<!\\)\\+u001[Bb])\[[0-9;:]{0,20}[mK]")

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# The last word of a key, or its last two: "db_password", "x-api-key", "clientSecret".
_SECRET_NAME = re.compile(
    "passwords?|passwd|pwd|passphrase|passcode|secrets?|credentials?|authorization|cookies?|bearer"
    "|(?:api|private|access|secret|signing|encryption|account|master)keys?|secret(?:string|value)"
    "|(?:access|auth|refresh|session)tokens?|token|clientsecret|connectionstring"
)
# Before "token": a place in a list or in a text, or what a language model's tokenizer adds.
_PLACE = re.compile(
    "page|next|prev(?:ious)?|continu(?:e|ation)|sync|resume|skip|start|cursor|delta"
    "|[be]os|pad|unk|sep|cls|mask|stop|special"
)


def redact(text: str) -> str:
    """Return *text* with a placeholder for each secret of the known formats, otherwise unchanged.

    Where an escape of JSON or a colour hides a secret, the text is returned without these. Time
    grows with its length and no faster, whatever it holds.
    """
    if len(text) < 20 and "//" not in text and "\\" not in text:  # only a URL's password is shorter
        return text
    text = _cut(text)
    if "\\u00" in text or "\\/" in text or "\x1b[" in text:
        plain = _LETTER.sub(_letter, _SLASH.sub("/", _COLOUR.sub(" ", text)))
        if (shown := _cut(plain)) != plain:
            return shown
    return text


def _cut(text: str) -> str:
    for hint, searches in _SEARCHES.items():
        for start, expression, replacement in searches if hint in text else ():
            if start in text:
                text = expression.sub(replacement, text)
    return text


def _letter(escape: re.Match[str]) -> str:
    letter, backslashes = chr(int(escape[1], 16)), escape[0].index("u")
    # JSON in JSON has one, two, four and so on: else a backslash of the text comes before it.
    return rf"\\{letter}" if backslashes & (backslashes - 1) else letter


_ours = redact


def may_hold_secrets(texts: list[str], redact: Callable[[str], str]) -> bool:
    """Return whether ``redact_tree`` may change a value that has these *texts*."""
    whole = "\0".join(texts)
    if any(map(whole.__contains__, _KEYS)):
        return True
    if redact is _ours:  # it takes less time for all at once; what stands between them ends a word
        texts = [whole]
    return [redact(text) for text in texts] != texts


def redact_tree(
    value: Any, redact: Callable[[str], str] = redact, *, by_key: bool = False, hide: bool = False
) -> Any:
    """Return a copy of *value*, plain JSON, with what *redact* leaves of every key and string.

    Keys that have become equal are numbered, so that no entry is lost.

    With *by_key*, JSON text is opened, strings and numbers under a key that names a secret are cut
    out too, and the value of a name-and-value pair with such a name. With *hide*, all of them are.
    """
    if isinstance(value, dict):
        return _entries(value, redact, by_key, hide)
    if isinstance(value, list):
        return [redact_tree(item, redact, by_key=by_key, hide=hide) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if hide:
        return PLACEHOLDER
    return _text(value, redact, by_key) if isinstance(value, str) else value


def _entries(
    value: dict[str, Any], redact: Callable[[str], str], by_key: bool, hide: bool
) -> dict[str, Any]:
    copy: dict[str, Any] = {}
    number = 1
    pair = by_key and (_names_a_secret(value.get("name")) or _names_a_secret(value.get("key")))
    for key, item in value.items():
        shown = name = _text(key, redact, by_key)
        while name in copy:
            number += 1
            name = f"{shown} {number}"
        named = by_key and (_names_a_secret(key) or (pair and key == "value"))
        if isinstance(item, str) and key.endswith(_KEYS):
            named = named or redact(f"{key}={item}") == f"{key}={PLACEHOLDER}"
        copy[name] = redact_tree(item, redact, by_key=by_key, hide=hide or named)
    return copy


def _text(text: str, redact: Callable[[str], str], by_key: bool) -> str:
    text = redact(text)
    if by_key and ":" in text:
        try:
            if (value := opened(text)) is not NOTHING:
                shown = redact_tree(value, redact, by_key=True)
                return text if shown == value else json.dumps(shown)
        except (ValueError, RecursionError):
            return PLACEHOLDER
    return text


def _names_a_secret(key: object) -> bool:
    return isinstance(key, str) and _ends_in_a_secret(key[-64:])


@lru_cache(maxsize=1024)
def _ends_in_a_secret(key: str) -> bool:
    before, last = ["", "", *map(str.lower, _WORD.findall(key)[-2:])][-2:]
    if last == "token" and _PLACE.fullmatch(before):
        return False
    return bool(_SECRET_NAME.fullmatch(last) or _SECRET_NAME.fullmatch(before + last))
