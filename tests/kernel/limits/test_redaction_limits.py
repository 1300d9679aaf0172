"""Limits of CredentialRedactor."""

from support.limits import limit, raises
from support.parts import SECRET, circular, gateway, nested

from agent_mcp_governance import CredentialRedactor

LETTERS = "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8S9t0"
UNKNOWN = [
    "gho_" + LETTERS[:36],
    "glpat-" + LETTERS[:20],
    "xox" + "b-123456789012-123456789012-" + LETTERS[:24],
    "AIza" + LETTERS[:35],
    "sk_live_" + LETTERS[:24],
    "npm_" + LETTERS[:36],
    "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY",
    f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{LETTERS}\n-----END ENCRYPTED PRIVATE KEY-----",
    f"-----BEGIN DSA PRIVATE KEY-----\n{LETTERS}\n-----END DSA PRIVATE KEY-----",
]
KNOWN = "ghp_" + LETTERS[:36]
UNLABELLED = ['{"password": "hunter2x"}', "passwd=hunter2x", "bearer hunter2x" + LETTERS]
LETTERS_BEFORE = [(f"{letters}{SECRET}", SECRET) for letters in ("_", "\u5bc6\u94a5\u662f")]
NOTED = ({"note": "password=hunter2"}, "hunter2")
OWN = [lambda: CredentialRedactor(patterns=()), lambda: gateway(redactor=CredentialRedactor())]


@limit(
    "unknown formats", (f"a {KNOWN} b", KNOWN), [(f"a {secret} b", secret) for secret in UNKNOWN]
)
@limit("unknown labels", ("password=hunter2x", "hunter2x"), [(t, "hunter2x") for t in UNLABELLED])
@limit("letters before a token", (f"key {SECRET}", SECRET), LETTERS_BEFORE)
@limit("names of keys", NOTED, [({"password": "hunter2"}, "hunter2")])
def test_a_secret_is_redacted_wherever_it_stands(value, secret):
    return secret not in str(CredentialRedactor.redact_data_structure(value))


@limit("redacted by mistake", "a string", ["token: string", "Basic understanding"])
def test_ordinary_text_is_not_redacted(text):
    return CredentialRedactor.redact(text) == text


@limit("what is no text", "text", [b"text", 5, None])
def test_what_is_no_text_is_left_alone(value):
    redact = CredentialRedactor.redact
    return not raises(TypeError, lambda: redact(value)) and redact(value) == value


@limit("endless structures", nested(50), [circular(), nested(100_000)])
def test_a_structure_without_end_can_be_redacted(structure):
    redact = CredentialRedactor.redact_data_structure
    return not raises(RecursionError, lambda: redact(structure))


@limit(
    "find_matches", CredentialRedactor.detect_credential_types, [CredentialRedactor.find_matches]
)
def test_a_match_does_not_show_the_secret(find):
    found = find(SECRET)
    return found != [] and SECRET not in repr(found)


@limit("patterns of one's own", lambda: type("Own", (CredentialRedactor,), {"PATTERNS": ()}), OWN)
def test_a_redactor_can_have_patterns_of_its_own(make):
    return not raises(TypeError, make)
