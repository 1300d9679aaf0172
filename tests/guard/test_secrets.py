"""Secrets are cut out by the formats that issuers document, and nothing else changes."""

import json

import pytest
from mcp_guard.secrets import FORMATS, PLACEHOLDER, Format, redact, redact_tree

TOKEN = "ghp_" + "aB3d" * 9
HIDDEN = "\\u0067hp_" + "aB3d" * 9  # in JSON text the same as TOKEN
SLASHED = "a\\/" * 43  # 86 characters once JSON is parsed


def left(form: Format, start: str) -> str:
    if form.issuer == "URL":
        return f"{form.before}{start}app:{PLACEHOLDER}@db.internal/app"
    kept = "" if form.kept is None else start + (" = " if form.kept else "")
    return form.before + kept + PLACEHOLDER


EXAMPLES = [
    pytest.param(start, form.before + start + form.tail, left(form, start), id=start)
    for form in FORMATS
    for start in form.starts.split()
]
WORDS = [row for row in EXAMPLES if str(row.id)[0].isalnum()]  # those that could end a word


def test_the_formats_are_those_of_twenty_issuers_and_more():
    assert len({form.issuer for form in FORMATS}) >= 20
    assert len(WORDS) >= 60


@pytest.mark.parametrize(("start", "example", "shown"), EXAMPLES)
class TestEachFormat:
    def test_is_cut_out_and_nothing_else(self, start, example, shown):
        assert start in example
        assert redact(example) == shown
        assert redact(f"The key ({example}) is new.") == f"The key ({shown}) is new."
        assert redact(shown) == shown

    def test_is_cut_out_of_json_text(self, start, example, shown):
        text = redact_tree(json.dumps({start: f"first\n{example}\nlast\t{example}"}))
        assert json.loads(text) == {start: f"first\n{shown}\nlast\t{shown}"}

    def test_is_not_cut_out_where_it_ends_too_soon(self, start, example, shown):
        short = example[: example.index(start) + len(start) + 9]
        assert redact(short) == short != shown


@pytest.mark.parametrize(("start", "example", "shown"), WORDS)
class TestEachFormatThatCouldEndAWord:
    BEFORE = ("密钥是", "é", "_", "-", "=", ":", '"', "'", "/", "\\/", "\\n", "\\r", "\\t", "\\\\n")
    COLOURS = ("\x1b[m", "\x1b[1;32m", "\x1b[38:5:1m", "\x1b[K", "\\u001b[1m", "\\\\u001B[1m")
    AFTER = ("密钥", "\\n", '"', "'", ",", ")", " ", "&", "<", "\\u5bc6")

    def test_is_cut_out_beside_what_is_no_word(self, start, example, shown):
        for before in (*self.BEFORE, "\\x00", "\\u5bc6", f"{start}%3D"):
            assert redact(before + example) == before + shown
        for before in self.COLOURS:
            assert redact(f"x{before}{example}{before}") == f"x {shown} "
        for after in self.AFTER:
            assert redact(example + after) == shown + after

    def test_is_no_part_of_a_word(self, start, example, shown):
        assert example.startswith(start)
        for before in ("x", "X", "7", "[32m", "x00"):
            assert redact(before + example) == before + example != shown


GUESSES = [
    "Authorization: Bearer 8a7b6c5d4e3f2a1b8a7b6c5d4e3f2a1b",
    "password=correct-horse-battery",
    "api_key: 0123456789abcdef0123456789abcdef",
    "4111 1111 1111 1111, 078-05-1120, mail@example.org, 192.0.2.1",
    "6f1ed002ab5595859014ebf0951522d9 and 123e4567-e89b-12d3-a456-426614174000",
]
PUBLIC = [
    f"-----BEGIN {kind}-----\n{'aB3d' * 16}\n-----END {kind}-----\n"
    for kind in ("PUBLIC KEY", "CERTIFICATE", "PGP MESSAGE")
]


@pytest.mark.parametrize("text", [*[form.near for form in FORMATS if form.near], *GUESSES, *PUBLIC])
def test_what_only_looks_like_a_secret_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "DSA ", "ENCRYPTED ", "OPENSSH ", "PGP "])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\\n", "\\\\n", " "])
def test_each_kind_of_private_key_is_cut_out_to_its_end(kind, newline):
    name = f"{kind}PRIVATE KEY" + (" BLOCK" if kind == "PGP " else "")
    lines = [f"-----BEGIN {name}-----", "aB3/" * 16, "aB3+" * 4 + "=", f"-----END {name}-----"]
    if kind == "RSA ":
        lines[1:1] = ["Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-256-CBC,0A1B2C3D", ""]
    text = newline.join(lines)
    assert redact(f"a {text} b {text}.") == f"a {PLACEHOLDER} b {PLACEHOLDER}."


def test_a_private_key_without_its_end_is_cut_out_up_to_a_quote():
    head = "-----BEGIN PRIVATE KEY-----\\n" + "aB3d" * 16
    assert redact(head) == PLACEHOLDER
    assert redact(f'{{"key": "{head}", "user": "app"}}') == '{"key": "[REDACTED]", "user": "app"}'


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter22@cache:6379/0", "redis://:[REDACTED]@cache:6379/0"),
        ("smtp://me@a.example:x@mail.a.example", "smtp://me@a.example:[REDACTED]@mail.a.example"),
        ("http://u:p@ss@a.example", "http://u:[REDACTED]@a.example"),
        ("http:\\/\\/u:hunter22@a.example\\/x", "http://u:[REDACTED]@a.example/x"),
        ("x://u:p@h", "x://u:[REDACTED]@h"),
        ("https://u:42$kJq9@sha256.example/x", "https://u:[REDACTED]@sha256.example/x"),
    ],
)
def test_only_the_password_of_a_url_is_cut_out(url, shown):
    assert redact(url) == shown


def test_what_stands_under_the_issuers_own_key_is_cut_out():
    secret, account = "aB3dE5gH/+" * 4, "aB3dE5gH" * 10 + "aB3dE5=="
    assert redact(f"secret_access_key        = {secret}").endswith(f"= {PLACEHOLDER}")
    keys = {"AccessKeyId": "x", "SecretAccessKey": secret, "aws_secret_access_key": secret, "a": 1}
    shown = {**keys, "SecretAccessKey": PLACEHOLDER, "aws_secret_access_key": PLACEHOLDER}
    assert redact_tree([keys, {"AccountKey": account}]) == [shown, {"AccountKey": PLACEHOLDER}]
    text = json.dumps(keys).replace("/", "\\/")
    assert json.loads(redact_tree(text)) == shown
    others = {"SecretAccessKey": "0" * 39, "SecretAccessKeyId": secret, "name": secret}
    others |= {
        "aws_secret_access_key": int("7" * 40),
        "AccountKey": [account],
        "secret_access_key": {"of": "alice"},
    }
    assert redact_tree(others) == others
    sentence = {"AccountKey": f"The old key {TOKEN} is revoked."}
    assert redact_tree(sentence) == {"AccountKey": f"The old key {PLACEHOLDER} is revoked."}


def test_keys_that_become_one_lose_no_entry():
    tree = {TOKEN: 1, "[REDACTED] 2": 2, TOKEN + "a": 3, TOKEN + "b": 4}
    assert list(redact_tree(tree).values()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f'"{HIDDEN}"', '"[REDACTED]"'),
        (f' {{"a": ["\n{HIDDEN}"]}}', ' {"a": ["\n[REDACTED]"]}'),
        (json.dumps([f'["{HIDDEN}"]']), json.dumps(['["[REDACTED]"]'])),
        (f'{{"{HIDDEN}": 1}}', '{"[REDACTED]": 1}'),
        (f'{{"a": "{HIDDEN}", "a": 1e400}}', '{"a": "[REDACTED]", "a": 1e400}'),
        ("\\" * 7 + HIDDEN, PLACEHOLDER),  # JSON in JSON in JSON in JSON
        (f"log {json.dumps(json.dumps([HIDDEN]))}", f"log {json.dumps(json.dumps([PLACEHOLDER]))}"),
        ('"x:\\/\\/u:p\\u0040h"', '"x://u:[REDACTED]@h"'),
        (f'{{"a": 1}}\n{{"b": "{HIDDEN}"}}', '{"a": 1}\n{"b": "[REDACTED]"}'),
        (f'```json\n["{HIDDEN}"]\n```', '```json\n["[REDACTED]"]\n```'),
        (f'5" pipe: {{"a": "{HIDDEN}"}}', '5" pipe: {"a": "[REDACTED]"}'),
        (f'{{"a": "{HIDDEN}",}}', '{"a": "[REDACTED]",}'),
        (f'{{"a": "b\\\\{HIDDEN}"}}', '{"a": "b\\\\[REDACTED]"}'),
        (f'[{"1" * 5_000}, "{HIDDEN}"]', f'[{"1" * 5_000}, "[REDACTED]"]'),
        (f'{{"a": "\\"caf\\u00e9\\"\\n{HIDDEN}"}};', '{"a": "\\"caf\\u00e9\\"\\n[REDACTED]"};'),
        ("x AccountKey\\u003d" + SLASHED + "\\u003d" * 2, "x AccountKey=[REDACTED]"),
        (f'{{"key": "AccountKey={SLASHED}=="}}', '{"key": "AccountKey=[REDACTED]"}'),
    ],
)
def test_a_secret_that_escapes_hide_in_json_is_cut_out(text, shown):
    assert redact_tree([text, {text: text}]) == [shown, {shown: shown}]


@pytest.mark.parametrize(
    "text",
    [
        '{"a":  "caf\\u00e9",\n "a": 1e2}',
        '["\\u0067", "https:\\/\\/a.example"]',
        '{"password": "\\u0067"}',
        '"\\u0067',
        "{\\u0067}",
        'in C:\\users\\new, "https:\\/\\/a.example" and \\u0067\n{"a": "\\ud83d\\ude00"}',
        '["\\ud800"]',
    ],
)
def test_json_text_without_a_secret_is_returned_as_it_was(text):
    assert redact_tree([text]) == [text]


NAMES = """password Password passwords password2 DB_PASSWORD dbPassword DBPassword passwd pwd
passphrase passcode secret secrets clientSecret clientsecret secretString secretvalue token
access_token accessToken accesstoken authtoken refreshtoken sessiontoken idToken csrf-token
x-api-key sync_password apiKey apikey APIKey API_KEY api.key privateKey private-key accessKey
secretKey signing_key encryptionKey account-key masterKey credential credentials bearer
Authorization Proxy-Authorization cookie set-cookie cookies connectionString
aws_secret_access_key"""
OTHERS = """max_tokens tokenizer tokenType secretary secret_santa page_token nextPageToken
next_token prev_token previousToken continueToken continuationToken syncToken resume_token skipToken
start_token cursor_token deltaToken bos_token eos_token pad_token unk_token sep_token cls_token
mask_token stop_token special_token cookie_banner keyboard monkey password_policy passport compass
author authorized access_key_id api_key_id primary_key public_key sort_key key"""


@pytest.mark.parametrize("key", [*NAMES.split(), "api key", "Client Secret", "A" * 99 + "_token"])
def test_by_key_cuts_out_what_stands_under_the_name_of_a_secret(key):
    tree = {key: "x", "list": [{key: ["x", {"user": "x", "on": True}, 123, None]}]}
    shown = redact_tree(tree, by_key=True)
    inner = [PLACEHOLDER, {"user": PLACEHOLDER, "on": True}, PLACEHOLDER, None]
    assert shown == {key: PLACEHOLDER, "list": [{key: inner}]}
    assert redact_tree(tree) == tree


@pytest.mark.parametrize("key", OTHERS.split())
def test_by_key_leaves_what_stands_under_another_name(key):
    tree = {key: ["x", 500, {"y": "z"}]}
    assert redact_tree(tree, by_key=True) == tree


def test_by_key_cuts_out_the_value_of_a_pair_with_such_a_name():
    names = [{"name": "DB_PASSWORD"}, {"key": "api_key"}, {"name": "page"}]
    for name, value in zip(names, [PLACEHOLDER, PLACEHOLDER, "x"], strict=True):
        shown = redact_tree([{**name, "value": "x", "on": "yes"}], by_key=True)
        assert shown == [{**name, "value": value, "on": "yes"}]


def test_by_key_opens_json_inside_strings():
    text = json.dumps({"body": json.dumps({"user": "app", "password": "x"})})
    shown = json.loads(redact_tree([text], by_key=True)[0])
    assert json.loads(shown["body"]) == {"user": "app", "password": PLACEHOLDER}
    assert redact_tree('{"a":  1}', by_key=True) == '{"a":  1}'
    lines = ["-----BEGIN PRIVATE KEY-----", "a" * 64, "-----END PRIVATE KEY-----"]
    assert "aaa" not in redact_tree(json.dumps({"source": lines}), by_key=True)
    assert "x" not in redact_tree('{"password": "\nx"}', by_key=True)  # no JSON, to be exact
    for depth in (600, 100_000):
        assert redact_tree('{"a":' * depth + "1" + "}" * depth, by_key=True) == PLACEHOLDER
    assert redact_tree([text]) == [text]
