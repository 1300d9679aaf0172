"""Limits of MCPGateway: approval, budget, names, parts."""

import enum
import inspect
from collections.abc import Callable
from typing import Any

from support.limits import limit, raises, refused
from support.parts import KEY, SECRET, OpenStore, gateway, meanwhile, refuses, scanner

from agent_mcp_governance import (
    ApprovalStatus,
    GovernancePolicy,
    MCPGateway,
    MCPMessageSigner,
    MCPSessionAuthenticator,
    MCPSlidingRateLimiter,
)

Foreign = enum.Enum("Foreign", {"DENIED": "denied"})


def asking(review: Callable[..., Any], **options: Any) -> MCPGateway:
    return gateway(require_human_approval=True, approval_callback=review, **options)


@limit("falsy answers", ApprovalStatus.DENIED, [False, None, 0, "", {}, Foreign.DENIED])
def test_only_an_approval_approves(answer: Any) -> bool:
    return refuses(asking(lambda *_: answer))


async def ask_later() -> ApprovalStatus:
    return ApprovalStatus.DENIED


@limit("truthy answers", lambda: ApprovalStatus.DENIED, [lambda: True, lambda: "no", ask_later])
def test_an_answer_that_is_no_status_denies(answer: Callable[[], Any]) -> bool:
    given = answer()
    if inspect.iscoroutine(given):
        given.close()
    governed = asking(lambda *_: given)
    escapes = raises(AttributeError, lambda: refuses(governed))
    return not escapes or governed.get_agent_call_count("a") == 0


@limit("what approvers see", {"q": "fine"}, [{"q": SECRET}])
def test_the_approver_sees_no_secret(params: dict[str, Any]) -> bool:
    seen: list[str] = []
    refuses(asking(lambda *call: seen.append(str(call))), params)
    return len(seen) == 1 and SECRET not in seen[0]


@limit(
    "what approvers change", lambda params: params.copy().clear(), [lambda params: params.clear()]
)
def test_the_approver_cannot_change_what_was_checked(change: Callable[..., Any]) -> bool:
    params = {"q": "fine"}
    refuses(asking(lambda _agent, _tool, params: change(params)), params)
    return params == {"q": "fine"}


@limit("floods of questions", ApprovalStatus.APPROVED, [ApprovalStatus.DENIED])
def test_a_caller_cannot_flood_the_approver(answer: ApprovalStatus) -> bool:
    asked: list[object] = []
    governed = asking(lambda *call: asked.append(call) or answer, max_tool_calls=3)
    for _ in range(10):
        refuses(governed)
    return len(asked) == 3


@limit("budget for life", "reset", ["wait"])
def test_a_call_budget_renews(how: str) -> bool:
    now = [0.0]
    governed = gateway(clock=lambda: now[-1])
    for _ in range(11):
        refuses(governed)
    now.append(1e9)
    if how == "reset":
        governed.reset_all_budgets()
    return not refuses(governed)


@limit("denied calls", [], [["tool"]])
def test_every_call_counts(denied_tools: list[str]) -> bool:
    governed = gateway(denied_tools=denied_tools)
    refuses(governed)
    return governed.get_agent_call_count("a") == 1


@limit("two gateways, one store", "one after the other", ["at once"])
def test_two_gateways_over_one_store_keep_to_one_budget(second_comes: str) -> bool:
    store = OpenStore()
    one, two = (gateway(max_tool_calls=1, rate_limit_store=store) for _ in range(2))
    refused: list[bool] = []
    if second_comes == "at once":  # between the second read, which decides, and the write
        store.after_read = [lambda: None, lambda: refused.append(refuses(two))]
    refused += [refuses(one), refuses(two)]
    return refused.count(False) == 1


@limit("reset of all budgets", "old", ["new"])
def test_all_budgets_can_be_reset_while_a_new_agent_calls(agent: str) -> bool:
    store = OpenStore()
    governed = gateway(rate_limit_store=store)
    refuses(governed, agent="old")
    refuses(governed, agent="older")
    store.after_write = [lambda: meanwhile(lambda: refuses(governed, agent=agent))]
    return not raises(RuntimeError, governed.reset_all_budgets)


@limit("lost resets", "after the call", ["during the call"])
def test_a_reset_during_a_call_is_not_lost(reset_comes: str) -> bool:
    store = OpenStore()
    governed = gateway(rate_limit_store=store)
    resetting = []

    def reset() -> None:
        resetting.append(meanwhile(lambda: governed.reset_agent_budget("a")))

    for _ in range(4):
        refuses(governed)
    if reset_comes == "during the call":
        store.after_read = [lambda: None, reset]
    refuses(governed)
    if reset_comes == "after the call":
        reset()
    resetting[0].join()
    return governed.get_agent_call_count("a") <= 1


@limit("gateway and limiter", "apart", ["over one store"])
def test_a_store_can_be_shared(stores: str) -> bool:
    store = OpenStore()
    refuses(gateway(rate_limit_store=store))
    other = OpenStore() if stores == "apart" else store
    window = MCPSlidingRateLimiter(rate_limit_store=other)
    return not raises(TypeError, lambda: window.try_acquire("a"))


SPELLINGS = ("Delete_File", "delete_file ", "files/delete_file", "d\u0435lete_file")


@limit(
    "spellings of tools",
    {"denied_tools": "delete_file"},
    [{names: tool} for names in ("denied_tools", "sensitive_tools") for tool in SPELLINGS],
)
def test_a_tool_is_denied_however_it_is_spelled(case: dict[str, str]) -> bool:
    [(names, tool)] = case.items()
    return refuses(gateway(**{names: ["delete_file"]}), tool=tool)


@limit("empty allow list", ["other"], [[]])
def test_an_allow_list_allows_what_is_on_it(allowed: list[str]) -> bool:
    return refuses(gateway(allowed_tools=allowed))


@limit("text for a list", ["delete_file"], ["delete_file"])
def test_a_deny_list_denies_no_other_tool(denied: Any) -> bool:
    return not refuses(gateway(denied_tools=denied), tool="file")


@limit("spellings of agents", "alice", ["Alice", "alice ", "alice\u200b", "\u0430lice"])
def test_a_spelling_of_an_agent_has_no_budget_of_its_own(agent: str) -> bool:
    governed = gateway(max_tool_calls=1)
    refuses(governed, agent="alice")
    return refuses(governed, agent=agent)


@limit("empty ids", ["not hashable"], ["", "  ", None, 0])
def test_an_agent_id_that_is_no_id_is_refused(agent: Any) -> bool:
    return refuses(gateway(), agent=agent)


@limit(
    "settings of a gateway",
    lambda: MCPGateway(),
    [
        lambda: MCPGateway(None),
        lambda: gateway(response_policy="log"),
        lambda: gateway(denied_tools=5),
    ],
)
def test_a_gateway_that_cannot_work_is_not_made(make: Callable[[], object]) -> bool:
    return refused(make)


class Part(list[str]):
    """Any store, sink or recorder that is false while it is empty."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: self.append(name)


USES: list[Callable[[Part], object]] = [
    lambda part: refuses(gateway(audit_sink=part)),
    lambda part: refuses(gateway(rate_limit_store=part)),
    lambda part: refuses(gateway(metrics=part)),
    lambda part: MCPSlidingRateLimiter(rate_limit_store=part).try_acquire("a"),
    lambda part: MCPMessageSigner(KEY, nonce_store=part).cleanup_nonce_cache(),
    lambda part: MCPSessionAuthenticator(session_store=part).create_session("a"),
    lambda part: scanner(audit_sink=part).scan_tool("tool", "Reads."),
]


@limit("falsy parts", (USES[0], Part(["full"])), [(use, Part()) for use in USES])
def test_a_part_that_is_empty_is_used(case: tuple[Callable[[Part], object], Part]) -> bool:
    use, part = case
    entries = len(part)
    use(part)
    return len(part) > entries


@limit("wrap_mcp_server", MCPGateway, [lambda policy: MCPGateway.wrap_mcp_server({}, policy)])
def test_a_wrapped_server_is_governed(wrap: Callable[[GovernancePolicy], object]) -> bool:
    return hasattr(wrap(GovernancePolicy()), "intercept_tool_call")


UNREAD = ("max_tokens", "timeout_seconds", "confidence_threshold", "drift_threshold")
UNREAD += ("checkpoint_frequency", "max_concurrent", "backpressure_threshold")


@limit("unread fields", "max_tool_calls", UNREAD)
def test_the_gateway_reads_the_fields_of_its_policy(field: str) -> bool:
    read: set[str] = set()

    class Watched(GovernancePolicy):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    governed = MCPGateway(Watched())
    read.clear()
    refuses(governed)
    governed.intercept_tool_response("a", "tool", "<system>")
    return field in read
