"""B19: an unknown method or wrong parameters on the websocket ended the process; closed sessions
were never cancelled.

Seen failing: with the cancellation of ``running`` at the end of ``jsonrpc.serve`` removed, the
handler of a client that left is never cancelled; with the ``except`` of TypeError and ValueError
removed from ``respond``, wrong parameters are an internal error.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.client import connect

from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.testing import MemoryNetwork


async def test_websocket() -> None:
    cancelled = asyncio.Event()

    async def hang(params: list[Any]) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def double(params: list[Any]) -> Any:
        return int(params[0]) * 2

    manager = Manager(settings=DispatchSettings(manager_port=0), dialers=[MemoryNetwork().dialer()])
    manager.method("hang", hang)
    manager.method("double", double)
    async with running(manager):
        url = manager.url.replace("http", "ws") + "/ws"
        async with connect(url) as socket:

            async def ask(text: str) -> Any:
                await socket.send(text)
                return json.loads(await asyncio.wait_for(socket.recv(), 5))

            def request(method: str, *params: Any, version: str = "2.0") -> str:
                return json.dumps({"id": 7, "jsonrpc": version, "method": method, "params": params})

            assert (await ask(request("double", 21)))["result"] == 42
            assert (await ask(request("nope")))["error"]["code"] == -32601
            assert (await ask(request("double", version="1.0")))["error"]["code"] == -32700
            assert (await ask(request("double")))["error"]["code"] == -32602
            assert (await ask(request("double", {"no": "number"})))["error"]["code"] == -32602
            assert (await ask("no json"))["error"]["code"] == -32700
            assert (await ask("[1, 2]"))["error"]["code"] == -32600
            assert (await ask('{"id": 1, "jsonrpc": "2.0", "method": 5}'))["error"]
            assert (await ask(request("get_workers")))["result"] == {}
            await socket.send(request("hang"))
            assert (await ask(request("double", 4)))["result"] == 8  # not held up
        await asyncio.wait_for(cancelled.wait(), 5)
        async with connect(url) as socket:
            await socket.send(json.dumps({"id": 1, "jsonrpc": "2.0", "method": "get_workers"}))
            assert json.loads(await socket.recv())["result"] == {}
