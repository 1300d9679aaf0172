"""A consumer's code: type checkers read it, nothing runs it."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from re import Pattern
from typing import Any

from typing_extensions import assert_type

from agent_mcp_governance import (
    ApprovalStatus,
    AuditEntry,
    CredentialMatch,
    CredentialPattern,
    CredentialRedactor,
    GatewayConfig,
    GovernancePolicy,
    InMemoryAuditSink,
    InMemoryNonceStore,
    InMemoryRateLimitStore,
    InMemorySessionStore,
    MCPAuditSink,
    MCPGateway,
    MCPMessageSigner,
    MCPMetrics,
    MCPMetricsRecorder,
    MCPNonceStore,
    MCPRateLimitStore,
    MCPResponseDecision,
    MCPResponseScanner,
    MCPResponseScanResult,
    MCPResponseThreat,
    MCPSecurityConfig,
    MCPSecurityScanner,
    MCPSession,
    MCPSessionAuthenticator,
    MCPSessionStore,
    MCPSeverity,
    MCPSignedEnvelope,
    MCPSlidingRateLimiter,
    MCPThreat,
    MCPThreatType,
    MCPVerificationResult,
    PatternType,
    ResponsePolicy,
    ScanResult,
    ToolFingerprint,
    __version__,
    load_mcp_security_config,
)


def version() -> str:
    return __version__


class JsonLinesSink:
    """Satisfies MCPAuditSink without a base class, as a user's own sink does."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def record(self, entry: dict[str, Any]) -> None:
        self.lines.append(str(entry))


class DictSessions:
    def __init__(self) -> None:
        self._sessions: dict[str, MCPSession] = {}

    def get(self, session_id: str) -> MCPSession | None:
        return self._sessions.get(session_id)

    def set(self, session: Any) -> None:
        self._sessions[session.token] = session

    def delete(self, session_id: str) -> bool:
        return self._sessions.pop(session_id, None) is not None


class DictNonces:
    def __init__(self) -> None:
        self._nonces: dict[str, datetime] = {}

    def has(self, nonce: str) -> bool:
        return nonce in self._nonces

    def add(self, nonce: str, expires_at: datetime) -> None:
        self._nonces[nonce] = expires_at

    def cleanup(self) -> int:
        return 0


class DictBuckets:
    def __init__(self) -> None:
        self._buckets: dict[str, Any] = {}

    def get_bucket(self, agent_id: str) -> Any | None:
        return self._buckets.get(agent_id)

    def set_bucket(self, agent_id: str, bucket: Any) -> None:
        self._buckets[agent_id] = bucket


class DecisionLog:
    def __init__(self) -> None:
        self.decisions: list[tuple[bool, str, str, str]] = []

    def record_decision(self, *, allowed: bool, agent_id: str, tool_name: str, stage: str) -> None:
        self.decisions.append((allowed, agent_id, tool_name, stage))

    def record_threats_detected(self, count: int, *, tool_name: str, server_name: str) -> None:
        """Threats are not counted here."""

    def record_rate_limit_hit(self, *, agent_id: str, tool_name: str) -> None:
        """Rate limits are not counted here."""

    def record_scan(self, *, operation: str, tool_name: str, server_name: str) -> None:
        """Scans are not counted here."""


def protocols_take_the_users_own_and_the_kernels() -> None:
    sinks: list[MCPAuditSink] = [JsonLinesSink(), InMemoryAuditSink()]
    sessions: list[MCPSessionStore] = [DictSessions(), InMemorySessionStore()]
    nonces: list[MCPNonceStore] = [DictNonces(), InMemoryNonceStore(max_entries=10)]
    buckets: list[MCPRateLimitStore] = [DictBuckets(), InMemoryRateLimitStore()]
    recorders: list[MCPMetricsRecorder] = [DecisionLog(), MCPMetrics()]
    print(sinks, sessions, nonces, buckets, recorders)


def policy() -> GovernancePolicy:
    made = GovernancePolicy(
        name="notes",
        allowed_tools=["read_note"],
        blocked_patterns=["password", (r"\.\./", PatternType.REGEX)],
        max_tool_calls=100,
    )
    assert_type(made.allowed_tools, list[str])
    assert_type(made.blocked_patterns, list[str | tuple[str, PatternType]])
    assert_type(made.matches_pattern("text"), list[str])
    assert_type(made.detect_conflicts(), list[str])
    assert_type(made.is_stricter_than(made), bool)
    assert_type(GovernancePolicy.from_dict(made.to_dict()), GovernancePolicy)
    assert_type(GovernancePolicy.from_yaml(made.to_yaml()), GovernancePolicy)
    assert_type(GovernancePolicy.load("policy.yaml"), GovernancePolicy)
    return made


def approve(agent_id: str, tool_name: str, params: dict[str, Any]) -> ApprovalStatus:
    known = agent_id == "agent" and tool_name == "share_note" and params
    return ApprovalStatus.APPROVED if known else ApprovalStatus.DENIED


def approval_callbacks(
    typed: Callable[[str, str, dict[str, Any]], ApprovalStatus],
    boolean: Callable[[str, str, dict[str, Any]], bool],
    coroutine: Callable[[str, str, dict[str, Any]], Awaitable[ApprovalStatus]],
) -> None:
    MCPGateway(policy(), approval_callback=typed)
    # These two approve every call or raise at run time: a type checker is what catches them.
    MCPGateway(policy(), approval_callback=boolean)  # type: ignore[arg-type]
    MCPGateway(policy(), approval_callback=coroutine)  # type: ignore[arg-type]


def gateway_calls() -> str:
    gateway = MCPGateway(
        policy(),
        denied_tools=["delete_note"],
        sensitive_tools=["share_note"],
        approval_callback=approve,
        metrics=DecisionLog(),
        rate_limit_store=DictBuckets(),
        audit_sink=JsonLinesSink(),
        clock=lambda: 0.0,
        response_scanner=MCPResponseScanner(),
        response_policy=ResponsePolicy.SANITIZE,
    )
    assert_type(gateway.intercept_tool_call("agent", "read_note", {"path": "a"}), tuple[bool, str])
    allowed, reason = gateway.intercept_tool_call("agent", "read_note", {"path": "a"})
    if not allowed:
        return reason
    decision = gateway.intercept_tool_response("agent", "read_note", {"text": "a"})
    assert_type(decision, MCPResponseDecision)
    assert_type(decision.allowed, bool)
    assert_type(decision.action, str)
    assert_type(decision.threats, list[dict[str, Any]])
    assert_type(gateway.get_agent_call_count("agent"), int)
    if decision.content is None:
        return decision.reason
    return assert_type(decision.content, str)


def audit(gateway: MCPGateway) -> str:
    assert_type(gateway.audit_log, list[AuditEntry])
    entry = gateway.audit_log[-1]
    assert_type(entry.allowed, bool)
    assert_type(entry.parameters, dict[str, Any])
    assert_type(entry.to_dict(), dict[str, Any])
    match entry.approval_status:
        case None:
            return "not asked"
        case ApprovalStatus.PENDING | ApprovalStatus.DENIED:
            return "refused"
        case ApprovalStatus.APPROVED:
            return "granted"


def wrapped_server_config() -> None:
    config = MCPGateway.wrap_mcp_server({"command": "server"}, policy(), denied_tools=[])
    assert_type(config, GatewayConfig)
    assert_type(config.rate_limit, int)
    assert_type(config.builtin_sanitization, bool)


def sessions() -> str | None:
    authenticator = MCPSessionAuthenticator(
        session_ttl=timedelta(minutes=5), max_concurrent_sessions=2, session_store=DictSessions()
    )
    token = assert_type(authenticator.create_session("agent", "user"), str)
    session = authenticator.validate_session("agent", token)
    assert_type(session, MCPSession | None)
    assert_type(authenticator.validate_token(token), MCPSession | None)
    assert_type(authenticator.revoke_session(token), bool)
    assert_type(authenticator.revoke_all_sessions("agent"), int)
    assert_type(authenticator.active_session_count, int)
    if session is None:
        return None
    assert_type(session.expires_at, datetime | None)
    assert_type(session.is_expired, bool)
    assert_type(session.user_id, str | None)
    return assert_type(session.rate_limit_key, str)


def limits(key: str) -> bool:
    limiter = MCPSlidingRateLimiter(
        max_calls_per_window=5, window_size=1.0, rate_limit_store=DictBuckets(), clock=lambda: 0.0
    )
    assert_type(limiter.get_remaining_budget(key), int)
    return assert_type(limiter.try_acquire(key), bool)


def messages() -> str:
    key = assert_type(MCPMessageSigner.generate_key(), bytes)
    signer = MCPMessageSigner(key, replay_window=timedelta(minutes=1), nonce_store=DictNonces())
    assert_type(MCPMessageSigner.from_base64_key("key"), MCPMessageSigner)
    envelope = assert_type(signer.sign_message("hello", "alice"), MCPSignedEnvelope)
    assert_type(envelope.timestamp, datetime)
    assert_type(envelope.sender_id, str | None)
    result = assert_type(signer.verify_message(envelope), MCPVerificationResult)
    assert_type(result.is_valid, bool)
    assert_type(result.failure_reason, str | None)
    if result.payload is None:
        return "refused"
    return assert_type(result.payload, str)


def responses(text: str) -> str:
    scanner = MCPResponseScanner()
    result = assert_type(scanner.scan_response(text, "read_note"), MCPResponseScanResult)
    assert_type(result.threats, list[MCPResponseThreat])
    for threat in result.threats:
        assert_type(threat.category, str)
        assert_type(threat.matched_pattern, str | None)
        assert_type(threat.details, dict[str, str])
    if assert_type(result.is_safe, bool):
        return text
    clean, stripped = scanner.sanitize_response(text)
    assert_type(stripped, list[MCPResponseThreat])
    return assert_type(clean, str)


def tools(description: str, schema: dict[str, Any]) -> bool:
    config = assert_type(load_mcp_security_config("rules.yaml"), MCPSecurityConfig)
    scanner = MCPSecurityScanner(DecisionLog(), audit_sink=JsonLinesSink(), config=config)
    pinned = scanner.register_tool("read_note", description, schema, "notes")
    assert_type(pinned, ToolFingerprint)
    assert_type(pinned.version, int)
    changed = scanner.check_rug_pull("read_note", description, schema, "notes")
    assert_type(changed, MCPThreat | None)
    if changed is not None:
        return changed.severity is MCPSeverity.INFO
    for threat in scanner.scan_tool("read_note", description, schema):
        assert_type(threat, MCPThreat)
        assert_type(threat.severity, MCPSeverity)
        assert_type(threat.threat_type, MCPThreatType)
        assert_type(threat.message, str)
    result = assert_type(scanner.scan_server("notes", [{"name": "read_note"}]), ScanResult)
    assert_type(result.threats, list[MCPThreat])
    return assert_type(result.safe, bool)


def redaction(text: str) -> str:
    if assert_type(CredentialRedactor.contains_credentials(text), bool):
        assert_type(CredentialRedactor.detect_credential_types(text), list[str])
        assert_type(CredentialRedactor.find_matches(text), list[CredentialMatch])
        assert_type(CredentialRedactor.find_pii_matches(text)[0].matched_text, str)
    pattern = CredentialRedactor.PATTERNS[0]
    assert_type(pattern, CredentialPattern)
    assert_type(pattern.pattern, Pattern[str])
    assert_type(CredentialRedactor.redact_mapping({"key": text}), dict[str, Any])
    return assert_type(CredentialRedactor.redact(text), str)
