"""An ordinary server in front of ordinary callers, over HTTP."""

from support.clients import each_sdk_and_mode, over_http, run_ordinary_calls, served_over_http
from support.servers import SHOP_TOOLS, Log, shop


@each_sdk_and_mode
async def test_over_http_ordinary_calls_pass(sdk: str, mode: str) -> None:
    log = Log()
    server = served_over_http(shop(sdk, audit_sink=log, allow_anonymous=True))
    async with server as url, over_http(sdk, url, mode) as call:
        assert await call.tools() == SHOP_TOOLS
        await run_ordinary_calls(call, 200)
        assert (await call("delete_orders")).text.startswith("Refused (allow_list): ")
    assert len(log) == 401
    assert {entry["agent_id"] for entry in log} == {"anonymous"}
