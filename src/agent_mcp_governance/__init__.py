"""Typed re-exports of the MCP governance classes of agent-os-kernel."""

# Every name in __all__ is the kernel's own object, so isinstance checks, pickles and docstrings
# are the kernel's too. No behaviour lives here; what users need on top is in tests/recipes.

import importlib.machinery as _machinery
import sys as _sys
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import Any as _Any

_DEFERRED = ("agent_os", "agent_os.integrations")
_DUNDERS = ("__all__", "__author__", "__license__", "__version__")  # of their __init__ files


class _Deferring(_machinery.SourceFileLoader):
    """Finds and loads those two packages, and leaves their ``__init__`` files for the first use.

    These import all of the kernel, pydantic and YAML; the modules that we need use none of that.
    Each runs when a name that it defines is first read (PEP 562), as the submodule
    ``package.__init__``: the import system then locks it and runs it once.
    """

    @classmethod
    def find_spec(cls, name: str, path: _Any, target: _Any = None) -> _machinery.ModuleSpec | None:
        if name not in _DEFERRED or target is not None:  # the target of a reload
            return None
        spec = _machinery.PathFinder.find_spec(name, path)
        if spec is None or not isinstance(spec.loader, _machinery.SourceFileLoader):
            return None  # a frozen program or an archive might not find the submodule
        spec.loader = cls(name, spec.loader.path)
        return spec

    def exec_module(self, module: _ModuleType) -> None:
        namespace, init_name = vars(module), f"{self.name}.__init__"

        def __getattr__(name: str) -> _Any:
            # Code that walks sys.modules probes for dunders such as __wrapped__: that is not a use.
            if name[:2] == "__" and name not in _DUNDERS:
                raise AttributeError(f"module {self.name!r} has no attribute {name!r}")
            init = _import_module(init_name)
            # Running it may have bound a submodule of that name here, which then comes first.
            return namespace[name] if name in namespace else getattr(init, name)

        def __dir__() -> list[str]:
            names = {*dir(_import_module(init_name)), *namespace}  # in this order: it binds here
            return sorted(name for name in names if hasattr(module, name))

        namespace.update(__getattr__=__getattr__, __dir__=__dir__)


if "agent_os" not in _sys.modules:
    _sys.meta_path.insert(0, _Deferring)  # for good: another thread may be walking this
for _package in _DEFERRED:
    _import_module(_package)  # by name: this waits for a thread that is importing it already

from agent_os._mcp_metrics import MCPMetrics, MCPMetricsRecorder
from agent_os.credential_redactor import CredentialMatch, CredentialPattern, CredentialRedactor
from agent_os.integrations.base import GovernancePolicy, PatternType
from agent_os.mcp_gateway import (
    ApprovalStatus,
    AuditEntry,
    GatewayConfig,
    MCPGateway,
    MCPResponseDecision,
    ResponsePolicy,
)
from agent_os.mcp_message_signer import MCPMessageSigner, MCPSignedEnvelope, MCPVerificationResult
from agent_os.mcp_protocols import (
    InMemoryAuditSink,
    InMemoryNonceStore,
    InMemoryRateLimitStore,
    InMemorySessionStore,
    MCPAuditSink,
    MCPNonceStore,
    MCPRateLimitStore,
    MCPSessionStore,
)
from agent_os.mcp_response_scanner import (
    MCPResponseScanner,
    MCPResponseScanResult,
    MCPResponseThreat,
)
from agent_os.mcp_security import (
    MCPSecurityConfig,
    MCPSecurityScanner,
    MCPSeverity,
    MCPThreat,
    MCPThreatType,
    ScanResult,
    ToolFingerprint,
    load_mcp_security_config,
)
from agent_os.mcp_session_auth import MCPSession, MCPSessionAuthenticator
from agent_os.mcp_sliding_rate_limiter import MCPSlidingRateLimiter

__version__ = "3.8.0"

__all__ = [
    "ApprovalStatus",
    "AuditEntry",
    "CredentialMatch",
    "CredentialPattern",
    "CredentialRedactor",
    "GatewayConfig",
    "GovernancePolicy",
    "InMemoryAuditSink",
    "InMemoryNonceStore",
    "InMemoryRateLimitStore",
    "InMemorySessionStore",
    "MCPAuditSink",
    "MCPGateway",
    "MCPMessageSigner",
    "MCPMetrics",
    "MCPMetricsRecorder",
    "MCPNonceStore",
    "MCPRateLimitStore",
    "MCPResponseDecision",
    "MCPResponseScanResult",
    "MCPResponseScanner",
    "MCPResponseThreat",
    "MCPSecurityConfig",
    "MCPSecurityScanner",
    "MCPSession",
    "MCPSessionAuthenticator",
    "MCPSessionStore",
    "MCPSeverity",
    "MCPSignedEnvelope",
    "MCPSlidingRateLimiter",
    "MCPThreat",
    "MCPThreatType",
    "MCPVerificationResult",
    "PatternType",
    "ResponsePolicy",
    "ScanResult",
    "ToolFingerprint",
    "load_mcp_security_config",
]
