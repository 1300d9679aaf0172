"""Who is calling, in a form that the caller cannot choose."""
# SPDX-License-Identifier: MIT. From agent-mcp-governance 3.8.0, recipe mcp_guard 1.0.

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcp.server.auth.provider import AccessToken


def verified_caller(
    token: AccessToken | None, *, remote: bool, allow_anonymous: bool = False
) -> str:
    """Return a caller id that the caller cannot choose.

    Args:
        token: What the SDK's ``get_access_token()`` gives: the only thing about a remote caller
            that anybody verified. Client names, ``_meta`` and session ids are the caller's words.
        remote: Whether the request came over HTTP. A stdio server has one caller, its parent.
        allow_anonymous: Whether remote callers without a token may call, all of them as one.

    Returns:
        The client, issuer and subject of the token as JSON, so that no part can pose as another;
        without a token "stdio", "anonymous", or the empty id, which the guard refuses.
    """
    if token is not None:
        # A subject is unique for its issuer only, and case-sensitive (RFC 9068, section 5).
        return json.dumps([token.client_id, (token.claims or {}).get("iss"), token.subject])
    if not remote:
        return "stdio"
    return "anonymous" if allow_anonymous else ""


def bucket_label(buckets: int) -> Callable[[str], str]:
    """Return a ``caller_label`` that spreads callers over *buckets* metric labels.

    Labels stay few however many callers come, are the same in every process, and name nobody.

    Raises:
        ValueError: *buckets* is not a positive integer.
    """
    if type(buckets) is not int or buckets < 1:
        raise ValueError(f"buckets must be a positive integer, not {buckets!r}")

    def label(caller: str) -> str:
        digest = hashlib.sha256(caller.encode("utf-8", "surrogatepass")).hexdigest()
        return f"caller-{int(digest, 16) % buckets}"

    return label
