"""Limits of MCPSlidingRateLimiter."""

import math

from support.limits import limit, raises, refused
from support.parts import Down, OpenStore, meanwhile

from agent_mcp_governance import InMemoryRateLimitStore, MCPSlidingRateLimiter


def limiter(calls=1, **options):
    return MCPSlidingRateLimiter(max_calls_per_window=calls, **options)


@limit("two limiters, one store", "one after the other", ["at once"])
def test_two_limiters_over_one_store_keep_to_one_limit(second_comes):
    store = OpenStore()
    one, two = (limiter(rate_limit_store=store) for _ in range(2))
    admitted = []
    if second_comes == "at once":
        store.after_read = [lambda: admitted.append(two.try_acquire("a"))]
    admitted += [one.try_acquire("a"), two.try_acquire("a")]
    return admitted.count(True) == 1


@limit("clock before lock", "in turn", ["after the clock was read"])
def test_threads_keep_to_the_limit(others_come):
    times = [0.0, 9.0, 10.5, 10.6]
    admitted, others = [], []

    def clock():
        moment = times.pop(0)
        if not moment and others_come == "after the clock was read":
            others.append(meanwhile(acquire))
        return moment

    def acquire():
        moment = times[0]
        if window.try_acquire("a"):
            admitted.append(moment)

    window = limiter(2, window_size=10.0, clock=clock)
    acquire()
    for thread in others:
        thread.join()
    while times:
        acquire()
    return len([moment for moment in admitted if moment > 0.6]) <= 2


@limit("reset during a call", False, [True])
def test_a_reset_during_a_call_admits_no_call_too_many(reset):
    store, resets = OpenStore(), [reset]
    admitted, others = [], []

    def clock():
        # The limiter reads its clock after it fetched the agent's lock and before it takes it.
        if resets and resets.pop():
            meanwhile(lambda: window.reset("a"))
        return 1.0

    def another():
        others.append(meanwhile(lambda: admitted.append(window.try_acquire("a"))))

    window = limiter(rate_limit_store=store, clock=clock)
    store.after_read = [another] if reset else []
    admitted.append(window.try_acquire("a"))
    another()
    for thread in others:
        thread.join()
    return admitted.count(True) == 1


@limit("spaces in ids", "ALICE", ["alice ", "alice\u200b", "\u0430lice"])
def test_a_spelling_of_an_agent_has_no_window_of_its_own(agent):
    window = limiter()
    window.try_acquire("alice")
    return not window.try_acquire(agent)


@limit("case of ids", "00u2", ["00U1"])
def test_two_users_have_a_window_each(other):
    window = limiter()
    window.try_acquire("00u1")
    return window.try_acquire(other)


@limit("ids for good", lambda window: window.reset("a"), [MCPSlidingRateLimiter.cleanup_expired])
def test_cleanup_forgets_an_agent_that_has_gone(forget):
    store, now = OpenStore(), [0.0]
    window = limiter(rate_limit_store=store, clock=lambda: now[-1])
    window.try_acquire("a")
    now.append(1e6)
    forget(window)
    reads = store.reads
    window.cleanup_expired()
    return store.reads == reads


@limit("NaN", {"window_size": 10.0}, [{"window_size": math.nan}, {"clock": lambda: math.nan}])
def test_a_window_that_is_no_number_admits_no_call_too_many(options):
    window = limiter(**options)
    return [window.try_acquire("a") for _ in range(2)] == [True, False]


@limit("settings of a limiter", {"calls": 0}, [{"window_size": math.inf}, {"calls": 1.5}])
def test_a_setting_that_makes_no_sense_is_refused(options):
    return refused(lambda: limiter(**options))


@limit("clock set back", [99.0, 99.5, 101.0, 101.0], [[100.0, 50.0, 101.0, 101.0]])
def test_a_clock_that_is_set_back_admits_no_call_too_many(moments):
    window = limiter(2, window_size=10.0, clock=iter(moments).__next__)
    admitted = [moment for moment in moments if window.try_acquire("a")]
    return len([moment for moment in admitted if moment > 91.0]) <= 2


@limit("clocks of hosts", 500.0, [1e6])
def test_a_bucket_from_another_host_locks_nobody_out(their_clock):
    store = InMemoryRateLimitStore()
    store.set_bucket("a", [their_clock])
    return limiter(rate_limit_store=store, clock=lambda: 1000.0).try_acquire("a")


@limit("errors of the store", InMemoryRateLimitStore(), [Down()])
def test_a_store_that_is_down_makes_nothing_raise(store):
    return not raises(OSError, lambda: limiter(rate_limit_store=store).try_acquire("a"))
