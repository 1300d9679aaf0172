"""Thousands of ordinary calls in a row."""

import gc
import itertools

from support.clients import connected, each_sdk, run_ordinary_calls
from support.servers import Log, shop


@each_sdk
async def test_five_thousand_calls_in_a_row_pass_and_leave_nothing_behind(sdk: str) -> None:
    log = Log()
    seconds = itertools.count().__next__  # one for each look at the clock
    window = {"max_calls_per_window": 100, "window_size": 50.0, "clock": seconds}
    async with connected(sdk, shop(sdk, audit_sink=log, **window)) as call:
        kept = []
        for _ in range(5):
            await run_ordinary_calls(call, 1_000)
            assert len(log) == 2_000
            log.clear()
            gc.collect()
            kept.append(len(gc.get_objects()))
    assert kept[-1] - kept[0] < 400, kept  # a tenth of an object for each call
