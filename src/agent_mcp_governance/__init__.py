"""Typed re-exports of the MCP governance classes of agent-os-kernel."""

# Every name in __all__ is the kernel's own object, so isinstance checks, pickles and docstrings
# are the kernel's too. No behaviour lives here; what users need on top is in tests/recipes.

import sys as _sys
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from importlib.util import module_from_spec as _module_from_spec
from typing import Any as _Any


def _defer_init(package: str) -> bool:
    """Publish *package* with its ``__init__`` yet to run; return whether it is installed.

    The kernel's two ``__init__`` files import all of the kernel, pydantic and YAML. Submodules do
    not need them, so each runs when a name that it defines is first read (PEP 562). It runs as the
    submodule ``package.__init__``: the import system then locks it and runs it once.
    """
    spec = _find_spec(package)
    if spec is None or package in _sys.modules:  # another thread may have published it meanwhile
        return spec is not None
    module = _module_from_spec(spec)
    namespace = vars(module)

    def __getattr__(name: str) -> _Any:
        # Code that walks sys.modules probes for dunders such as __wrapped__: that is not a use.
        if name[:2] == "__" and name not in ("__all__", "__author__", "__license__", "__version__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        real = _import_module(f"{package}.__init__")
        # Running it may have bound a submodule of that name here, which then comes first.
        return namespace[name] if name in namespace else getattr(real, name)

    def __dir__() -> list[str]:
        names = {*dir(_import_module(f"{package}.__init__")), *namespace}  # it binds submodules
        return sorted(name for name in names if hasattr(module, name))

    namespace.update(__getattr__=__getattr__, __dir__=__dir__)
    # Another thread may be importing the package: then its module stays. If it has found it but not
    # published it yet, a spec that is marked as being initialised makes us wait for its lock.
    vars(spec).update(_initializing=True)
    if _sys.modules.setdefault(package, module) is module:
        _import_module(package)
    vars(spec).update(_initializing=False)
    parent, _, child = package.rpartition(".")
    if parent and _sys.modules.get(package) is module:
        setattr(_sys.modules[parent], child, module)
    return True


# A frozen program names its modules at build time, and an imported kernel has paid already.
if "agent_os" not in _sys.modules and not hasattr(_sys, "frozen") and _defer_init("agent_os"):
    _defer_init("agent_os.integrations")

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
