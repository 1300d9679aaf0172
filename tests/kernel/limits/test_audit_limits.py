"""Limits of MCPGateway: audit, logging, counters."""

import dataclasses
import io
import json
import logging

from support.limits import limit, raises
from support.parts import SECRET, Down, Meter, Own, blocks, gateway, refuses

from agent_mcp_governance import InMemoryAuditSink


@dataclasses.dataclass
class Account:
    token: str


HELD = [{SECRET: 1}, {"q": SECRET.encode()}, {"q": {SECRET}}, {"q": Account(SECRET)}]
PERSONAL = ["bob@example.com", "4111 1111 1111 1111", "123-45-6789"]


def logged(governed, **call):
    """Return what the kernel logs of a call, with its tracebacks."""
    handler, logger = logging.StreamHandler(io.StringIO()), logging.getLogger("agent_os")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    refuses(governed, **call)
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
    return handler.stream.getvalue()


@limit("broken parts", "rate_limit_store", ["audit_sink", "metrics", "clock"])
def test_a_broken_part_makes_nothing_raise(part):
    governed = gateway(**{part: Down()})
    return not raises(OSError, lambda: refuses(governed)) or not governed.get_agent_call_count("a")


@limit("audit log without end", 10, [10_001])
def test_an_audit_log_is_bounded(calls):
    governed = gateway(audit_sink=InMemoryAuditSink(), log_all_calls=False)
    for _ in range(calls):
        refuses(governed)
    governed.audit_log.clear()
    return len(governed.audit_log) <= 10_000


@limit("log_all_calls", logged, [lambda governed: refuses(governed) or governed.audit_log])
def test_a_call_that_is_not_to_be_logged_leaves_no_trace(trace):
    return not trace(gateway(log_all_calls=False))


@limit("entries that are not JSON", "x", [b"x", {"x"}, Account("x")])
def test_an_audit_entry_can_be_written_as_json(value):
    sink = InMemoryAuditSink()
    refuses(gateway(audit_sink=sink), {"q": value})
    return not raises(TypeError, lambda: json.dumps(sink.entries()))


@limit("secrets in keys and objects", ({"q": [SECRET]}, SECRET), [(p, SECRET) for p in HELD])
@limit("personal data", ({"q": SECRET}, SECRET), [({"q": text}, text) for text in PERSONAL])
def test_what_is_private_does_not_reach_the_audit_log(params, text):
    governed = gateway()
    refuses(governed, params)
    return text not in repr(governed.audit_log)


@limit("secrets in names", {"params": {"q": SECRET}}, [{"agent": SECRET}, {"tool": SECRET}])
def test_a_secret_in_a_name_is_redacted(call):
    governed = gateway()
    messages = logged(governed, **call)
    return SECRET not in repr(governed.audit_log) or SECRET not in messages


@limit("forged log lines", "agent forged", ["agent\nforged"])
def test_an_agent_id_cannot_forge_a_log_line(agent):
    return len(logged(gateway(), agent=agent).splitlines()) == 1


@limit("patterns in reasons", "nothing", ["sesame"])
def test_a_pattern_is_not_told_to_the_caller(pattern):
    governed = gateway(blocked_patterns=[pattern])
    return pattern not in governed.intercept_tool_call("a", "tool", {"q": "open sesame"})[1]


@limit(
    "metric labels",
    [{"params": {"q": number}} for number in range(50)],
    [[{name: f"{name}-{number}"} for number in range(50)] for name in ("agent", "tool")],
)
def test_the_number_of_series_does_not_grow_with_the_callers(calls):
    meter = Meter()
    for call in calls:
        refuses(gateway(metrics=meter.metrics), **call)
    return 0 < len(meter.counted()["mcp_decisions"]) <= 20


@limit(
    "uncounted responses",
    lambda own: refuses(gateway(metrics=own)),
    [lambda own: blocks("fine", metrics=own)],
)
def test_a_response_is_counted(use):
    own = Own()
    use(own)
    return own.used != []
