"""A consumer's code: type checkers read it, nothing runs it.

The kernel's contract pins each signature. This shows what only a type checker can: that the types
arrive, that one's own classes fit the protocols, and that the callbacks which would approve
everything are errors.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from typing_extensions import assert_type

import agent_mcp_governance as mcp


class OwnSink:
    """Satisfies the protocol without a base class, as a user's own sink does."""

    def record(self, entry: dict[str, Any]) -> None: ...


class OwnRecorder:
    def record_decision(
        self, *, allowed: bool, agent_id: str, tool_name: str, stage: str
    ) -> None: ...

    def record_threats_detected(self, count: int, *, tool_name: str, server_name: str) -> None: ...
    def record_rate_limit_hit(self, *, agent_id: str, tool_name: str) -> None: ...
    def record_scan(self, *, operation: str, tool_name: str, server_name: str) -> None: ...


sinks: list[mcp.MCPAuditSink] = [OwnSink(), mcp.InMemoryAuditSink()]
sessions: mcp.MCPSessionStore = mcp.InMemorySessionStore()
nonces: mcp.MCPNonceStore = mcp.InMemoryNonceStore(max_entries=10)
buckets: mcp.MCPRateLimitStore = mcp.InMemoryRateLimitStore()
recorders: list[mcp.MCPMetricsRecorder] = [OwnRecorder(), mcp.MCPMetrics()]


def gateway(approve: Callable[[str, str, dict[str, Any]], mcp.ApprovalStatus]) -> mcp.MCPGateway:
    policy = mcp.GovernancePolicy(
        allowed_tools=["read_note"], blocked_patterns=["a", (r"\.\./", mcp.PatternType.REGEX)]
    )
    assert_type(policy.blocked_patterns, list[str | tuple[str, mcp.PatternType]])
    assert_type(mcp.GovernancePolicy.load("policy.yaml"), mcp.GovernancePolicy)
    assert_type(mcp.MCPGateway.wrap_mcp_server({}, policy, denied_tools=[]), mcp.GatewayConfig)
    return mcp.MCPGateway(
        policy,
        sensitive_tools=["share_note"],
        approval_callback=approve,
        metrics=OwnRecorder(),
        rate_limit_store=buckets,
        audit_sink=OwnSink(),
        response_policy=mcp.ResponsePolicy.SANITIZE,
    )


def callbacks_that_approve_everything_or_raise(
    boolean: Callable[[str, str, dict[str, Any]], bool],
    coroutine: Callable[[str, str, dict[str, Any]], Awaitable[mcp.ApprovalStatus]],
) -> None:
    gateway(boolean)  # type: ignore[arg-type]
    gateway(coroutine)  # type: ignore[arg-type]


def what_arrives(
    made: mcp.MCPGateway,
    entry: mcp.AuditEntry,
    limiter: mcp.MCPSlidingRateLimiter,
    authenticator: mcp.MCPSessionAuthenticator,
    signer: mcp.MCPMessageSigner,
    responses: mcp.MCPResponseScanner,
) -> None:
    assert_type(made.intercept_tool_call("agent", "read_note", {"path": "a"}), tuple[bool, str])
    assert_type(made.intercept_tool_response("agent", "read_note", {}), mcp.MCPResponseDecision)
    assert_type(entry.approval_status, mcp.ApprovalStatus | None)
    assert_type(limiter.try_acquire("agent"), bool)
    assert_type(authenticator.validate_session("a", "b"), mcp.MCPSession | None)
    envelope = assert_type(signer.sign_message("hello", "alice"), mcp.MCPSignedEnvelope)
    assert_type(envelope.timestamp, datetime)
    assert_type(signer.verify_message(envelope), mcp.MCPVerificationResult)
    config = assert_type(mcp.load_mcp_security_config("rules.yaml"), mcp.MCPSecurityConfig)
    scanner = mcp.MCPSecurityScanner(OwnRecorder(), audit_sink=OwnSink(), config=config)
    assert_type(scanner.register_tool("a", "b", {}, "c"), mcp.ToolFingerprint)
    assert_type(scanner.scan_server("c", [{"name": "a"}]), mcp.ScanResult)
    threats = assert_type(scanner.scan_tool("a", "b"), list[mcp.MCPThreat])
    assert_type(threats[0].severity, mcp.MCPSeverity)
    assert_type(threats[0].threat_type, mcp.MCPThreatType)
    result = assert_type(responses.scan_response("text"), mcp.MCPResponseScanResult)
    assert_type(result.threats, list[mcp.MCPResponseThreat])
    assert_type(mcp.CredentialRedactor.find_matches("text"), list[mcp.CredentialMatch])
    assert_type(mcp.CredentialRedactor.PATTERNS, tuple[mcp.CredentialPattern, ...])


assert_type(mcp.__version__, str)
