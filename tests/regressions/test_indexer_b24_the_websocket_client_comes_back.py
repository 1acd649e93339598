"""B24: after the first drop the client was stuck, and a late answer ended the process.

Seen failing: with ``self._socket = None`` removed from ``RpcClient._read``, every call after the
first drop fails; with the check of ``waiting.done()`` removed, the late answer is an exception.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from leasehold.core.clock import SystemClock
from leasehold.core.errors import LeaseholdError
from leasehold.schedule.rpc import RpcClient


async def test_drops_and_late_answers() -> None:
    release = asyncio.Event()

    async def handler(socket: ServerConnection) -> None:
        async for message in socket:
            request: dict[str, Any] = json.loads(message)
            if request["method"] == "drop":
                await socket.close()
                return
            if request["method"] == "slow":
                await release.wait()
            answer = {"id": request["id"], "result": request["params"]}
            await socket.send(json.dumps(answer))
            await socket.send(json.dumps(answer))  # twice: the second finds nobody
            await socket.send("not json")
            await socket.send(json.dumps({"id": 12345, "result": 1}))

    async with serve(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = RpcClient(f"127.0.0.1:{port}", SystemClock())
        for i in range(3):
            assert await client.call("echo", i, timeout=5.0) == [i]
            with pytest.raises(LeaseholdError) as dropped:
                await client.call("drop", timeout=5.0)
            assert dropped.value.code == "connection_closed"
        with pytest.raises(LeaseholdError) as slow:
            await client.call("slow", timeout=0.1)
        assert slow.value.code == "rpc_timeout"
        release.set()
        assert await client.call("echo", "after", timeout=5.0) == ["after"]
        assert client._pending == {}
        await client.close()
    with pytest.raises(LeaseholdError) as away:
        await client.call("echo", timeout=5.0)
    assert away.value.code in ("rpc_unreachable", "connection_closed")
