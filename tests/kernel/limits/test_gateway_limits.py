"""Limits of MCPGateway: approval, budget, names, parts."""

import asyncio
import enum
from itertools import product

from support.limits import limit, raises, refused
from support.parts import KEY, SECRET, OpenStore, gateway, meanwhile, refuses, scanner

import agent_mcp_governance as g

APPROVED, DENIED = g.ApprovalStatus.APPROVED, g.ApprovalStatus.DENIED
Foreign = enum.Enum("Foreign", {"DENIED": "denied"})
COROUTINE = asyncio.sleep(0)
COROUTINE.close()  # nobody awaits it
STORE = OpenStore()
SPELLINGS = ["Delete_File", "delete_file ", "files/delete_file", "d\u0435lete_file"]
DENIED_LIST, SENSITIVE = {"denied_tools": ["delete_file"]}, {"sensitive_tools": ["delete_file"]}
SPELLED = [*product([DENIED_LIST, SENSITIVE], SPELLINGS)]
SETTINGS = [{"policy": None}, {"response_policy": "log"}, {"denied_tools": 5}]
UNREAD = ("max_tokens", "timeout_seconds", "confidence_threshold", "drift_threshold")
UNREAD += ("checkpoint_frequency", "max_concurrent", "backpressure_threshold")
USES = [
    lambda part: refuses(gateway(audit_sink=part)),
    lambda part: refuses(gateway(rate_limit_store=part)),
    lambda part: refuses(gateway(metrics=part)),
    lambda part: g.MCPSlidingRateLimiter(rate_limit_store=part).try_acquire("a"),
    lambda part: g.MCPMessageSigner(KEY, nonce_store=part).cleanup_nonce_cache(),
    lambda part: g.MCPSessionAuthenticator(session_store=part).create_session("a"),
    lambda part: scanner(audit_sink=part).scan_tool("tool", "Reads."),
]


def asking(review, **options):
    return gateway(require_human_approval=True, approval_callback=review, **options)


@limit("falsy answers", DENIED, [False, None, 0, "", {}, Foreign.DENIED])
@limit("truthy answers", DENIED, [True, "no", COROUTINE])
def test_an_answer_that_is_no_approval_lets_no_call_count(answer):
    governed = asking(lambda *_: answer)
    raises(AttributeError, lambda: refuses(governed))
    return governed.get_agent_call_count("a") == 0


@limit("what approvers see", {"q": "fine"}, [{"q": SECRET}])
def test_the_approver_sees_no_secret(params):
    seen = []
    refuses(asking(lambda *call: seen.append(str(call))), params)
    return len(seen) == 1 and SECRET not in seen[0]


@limit("what approvers change", lambda params: params.copy().clear(), [dict.clear])
def test_the_approver_cannot_change_what_was_checked(change):
    params = {"q": "fine"}
    refuses(asking(lambda _agent, _tool, params: change(params)), params)
    return params == {"q": "fine"}


@limit("floods of questions", APPROVED, [DENIED])
def test_a_caller_cannot_flood_the_approver(answer):
    asked = []
    governed = asking(lambda *call: asked.append(call) or answer, max_tool_calls=3)
    for _ in range(10):
        refuses(governed)
    return len(asked) == 3


@limit("budget for life", g.MCPGateway.reset_all_budgets, [lambda _: "only time goes by"])
def test_a_call_budget_renews(renew):
    now = [0.0]
    governed = gateway(clock=lambda: now[-1])
    for _ in range(11):
        refuses(governed)
    now.append(1e9)
    renew(governed)
    return not refuses(governed)


@limit("denied calls", [], [["tool"]])
def test_every_call_counts(denied_tools):
    governed = gateway(denied_tools=denied_tools)
    refuses(governed)
    return governed.get_agent_call_count("a") == 1


@limit("two gateways, one store", "one after the other", ["at once"])
def test_two_gateways_over_one_store_keep_to_one_budget(second_comes):
    store = OpenStore()
    one, two = (gateway(max_tool_calls=1, rate_limit_store=store) for _ in range(2))
    refused = []
    if second_comes == "at once":  # between the second read, which decides, and the write
        store.after_read = [lambda: None, lambda: refused.append(refuses(two))]
    refused += [refuses(one), refuses(two)]
    return refused.count(False) == 1


@limit("reset of all budgets", "old", ["new"])
def test_all_budgets_can_be_reset_while_a_new_agent_calls(agent):
    store = OpenStore()
    governed = gateway(rate_limit_store=store)
    refuses(governed, agent="old")
    refuses(governed, agent="older")
    store.after_write = [lambda: meanwhile(lambda: refuses(governed, agent=agent))]
    return not raises(RuntimeError, governed.reset_all_budgets)


@limit("lost resets", ("after_write", []), [("after_read", [lambda: "the first of two reads"])])
def test_a_reset_during_a_call_is_not_lost(reset_comes, before):
    store = OpenStore()
    governed = gateway(rate_limit_store=store)
    for _ in range(4):
        refuses(governed)
    threads = []

    def reset():
        threads.append(meanwhile(lambda: governed.reset_agent_budget("a")))

    setattr(store, reset_comes, [*before, reset])
    refuses(governed)
    threads[0].join()
    return governed.get_agent_call_count("a") <= 1


@limit("gateway and limiter", (STORE, OpenStore()), [(STORE, STORE)])
def test_a_store_can_be_shared(store, other):
    refuses(gateway(rate_limit_store=store))
    window = g.MCPSlidingRateLimiter(rate_limit_store=other)
    return not raises(TypeError, lambda: window.try_acquire("a"))


@limit("spellings of tools", (DENIED_LIST, "delete_file"), SPELLED)
@limit("empty allow list", ({"allowed_tools": ["other"]}, "t"), [({"allowed_tools": []}, "t")])
def test_a_tool_that_the_lists_rule_out_is_refused(lists, tool):
    return refuses(gateway(**lists), tool=tool)


@limit("text for a list", ["delete_file"], ["delete_file"])
def test_a_deny_list_denies_no_other_tool(denied):
    return not refuses(gateway(denied_tools=denied), tool="file")


@limit("spellings of agents", "alice", ["Alice", "alice ", "alice\u200b", "\u0430lice"])
@limit("empty ids", ["not hashable"], ["", "  ", None, 0])
def test_a_spelling_of_an_agent_or_no_id_has_no_budget_of_its_own(agent):
    governed = gateway(max_tool_calls=1)
    refuses(governed, agent="alice")
    return refuses(governed, agent=agent)


@limit("settings of a gateway", {"no such setting": 5}, SETTINGS)
def test_a_gateway_that_cannot_work_is_not_made(settings):
    return refused(lambda: g.MCPGateway(**{"policy": g.GovernancePolicy(), **settings}))


class Part(list):
    """Any store, sink or recorder that is false while it is empty."""

    def __getattr__(self, name):
        return lambda *_, **__: self.append(name)


@limit("falsy parts", (USES[0], Part(["full"])), [(use, Part()) for use in USES])
def test_a_part_that_is_empty_is_used(use, part):
    entries = len(part)
    use(part)
    return len(part) > entries


@limit("wrap_mcp_server", g.MCPGateway, [lambda policy: g.MCPGateway.wrap_mcp_server({}, policy)])
def test_a_wrapped_server_is_governed(wrap):
    return hasattr(wrap(g.GovernancePolicy()), "intercept_tool_call")


@limit("unread fields", "max_tool_calls", UNREAD)
def test_the_gateway_reads_the_fields_of_its_policy(field):
    read = set()

    class Watched(g.GovernancePolicy):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    governed = g.MCPGateway(Watched())
    read.clear()
    refuses(governed)
    governed.intercept_tool_response("a", "tool", "<system>")
    return field in read
