"""The first use of any part of the kernel gives what it gives without us."""

import pytest
from support.isolated import KERNEL, LET_WARN, OURS, run_isolated

# Each is the first use of the kernel in its program, after an import of both of its packages. What
# it prints must not depend on us.
PACKAGES = "import agent_os, agent_os.integrations\n"
FIRST_USES = {
    "every name that dir lists": """
for package in (agent_os, agent_os.integrations):
    for name in dir(package):
        value = getattr(package, name)
        # The two helpers that the __init__ defines carry its name, which is accepted.
        home = getattr(value, "__module__", "").replace(".__init__", "")
        if name[:2] != "__":
            print(package.__name__, name, type(value), home, getattr(value, "__qualname__", ""))
""",
    "star import": r'exec("from agent_os import *\nprint(*sorted(vars()))", {})',
    # It fails: one of the adapters needs a package that the kernel does not declare.
    "star import of integrations": """
names = {}
try:
    exec("from agent_os.integrations import *", names)
except ModuleNotFoundError as error:
    print(error)
print(*sorted(names))
""",
    "import": """
import importlib.resources, importlib.util, inspect
for package in (agent_os, agent_os.integrations):
    print(package.__name__, package.__package__, package.__file__, *package.__path__)
    print(importlib.util.find_spec(package.__name__).origin, package.__spec__.cached)
    print(importlib.resources.files(package), len(inspect.getsource(package)))
""",
    "attribute": "print(agent_os.KernelSpace)",
    "from import": "from agent_os import KernelSpace as k, integrations as i\nprint(k, i)",
    "version": """
print(agent_os.__version__, agent_os.__author__, agent_os.__license__, agent_os.__all__)
""",
    "private name": "print(agent_os._CONTROL_PLANE_AVAILABLE)",
    "missing name": """
print(hasattr(agent_os, "missing"), getattr(agent_os, "missing", "default"))
try:
    from agent_os import missing
except ImportError as error:
    print(type(error), error.name, error.path)
try:
    import agent_os.missing
except ModuleNotFoundError as error:
    print(error, error.name)
""",
    "submodule": "print(agent_os.stateless, agent_os.KernelSpace)",
    "submodule by from": "from agent_os import mcp_cve_feed as m, policies as p\nprint(m, p)",
    "subpackage": "import agent_os.policies as policies\nprint(policies, sorted(policies.__all__))",
    "integrations": """
print(agent_os.integrations.RateLimiter, agent_os.integrations.base, agent_os.integrations.logging)
""",
    "lazy adapters": """
from agent_os.integrations import OpenAIKernel
print(OpenAIKernel, agent_os.integrations.LangChainKernel)
print(agent_os.integrations.OpenAIKernel is OpenAIKernel)
""",
    "patched top-level name": """
from unittest.mock import patch
with patch("agent_os.KernelSpace") as fake:
    print(agent_os.KernelSpace is fake)
print(agent_os.KernelSpace)
""",
    "reload": """
import importlib, sys
for package in (agent_os, agent_os.integrations, agent_os):
    print(importlib.reload(package) is package is sys.modules[package.__name__])
print(agent_os.KernelSpace, agent_os.mcp_gateway, agent_os.integrations.RateLimiter)
print(agent_os.integrations.LangChainKernel, hasattr(agent_os, "missing"), agent_os.__version__)
""",
}


@pytest.mark.parametrize("use", FIRST_USES)
def test_a_first_use_of_the_kernel_is_as_without_us(use: str) -> None:
    printed = run_isolated(OURS + PACKAGES + FIRST_USES[use])
    assert printed
    assert printed == run_isolated(KERNEL + PACKAGES + FIRST_USES[use])


@pytest.mark.parametrize("reader", [LET_WARN, OURS], ids=["without us", "with us"])
def test_a_cloudpickled_function_finds_the_kernel(reader: str) -> None:
    make = """
import agent_os, agent_os.integrations, cloudpickle
def use():
    return agent_os.KernelSpace, agent_os.mcp_gateway.MCPGateway, agent_os.integrations.RateLimiter
print(cloudpickle.dumps((use, agent_os)).hex())
"""
    pickled = run_isolated(OURS + make).strip()
    read = f"""
import pickle
use, package = pickle.loads(bytes.fromhex("{pickled}"))
import agent_os
print(package is agent_os, *(cls.__name__ for cls in use()))
"""
    assert run_isolated(reader + read) == "True KernelSpace MCPGateway RateLimiter\n"
