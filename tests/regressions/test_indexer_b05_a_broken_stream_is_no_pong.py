"""B5: a ping outstanding at the end of a stream counted as answered; a dead stream went Online.

Seen failing: with ``waiting.cancel()`` in ``Session._lose_all`` replaced by
``waiting.set_result(None)``, the ping returns a latency and the worker is Online.
"""

from __future__ import annotations

import asyncio

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.dispatch.registry import WorkerState
from leasehold.dispatch.testing import cluster
from leasehold.dispatch.transport import LinkClosed


def test_a_ping_on_a_stream_that_ends_fails(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({}, clock=virtual) as c:
            worker = c.manager.registry.get(c.workers["w1"].id)
            assert worker.session is not None
            c.net.partition("w1")
            ping = asyncio.create_task(worker.session.ping(4.0))
            await virtual.sleep(0.1)
            await c.net.kill("w1")
            with pytest.raises(LinkClosed):
                await ping
            await virtual.sleep(1.0)
            assert worker.state in (WorkerState.ERROR, WorkerState.RECONNECTING)
            assert not c.manager.pool(worker.pool).members

    virtual.run(main)
