"""B3: 400 unread responses of one call blocked the stream's reader, pongs and all.

Seen failing: with the bound in ``Task._put`` removed, the old worker's task is buffered without
end (no ``caller_too_slow``); with ``_may_send`` of the worker skipping credits, the new one's too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.dispatch.testing import cluster
from leasehold.dispatch.wire import FEATURES
from leasehold.dispatch.worker import Job, Reply

sent = 0


async def flood(job: Job) -> AsyncIterator[Reply]:
    global sent
    for n in range(5000):
        sent = n
        yield Reply("Drop", b"x")


async def echo(job: Job) -> AsyncIterator[Reply]:
    yield Reply("Echo", job.payload, final=True)


@pytest.mark.parametrize("features", [FEATURES, frozenset[str]()], ids=["credits", "old"])
def test_a_caller_that_does_not_read(virtual: VirtualClock, features: frozenset[str]) -> None:
    async def main() -> None:
        handlers = {"Flood": flood, "Echo": echo}
        async with cluster(handlers, clock=virtual, features=features) as c:
            session = next(iter(c.manager.registry.workers.values())).session
            assert session is not None
            async with c.manager.submit(c.call("Flood")) as slow:
                await virtual.sleep(1.0)
                for i in range(50):  # everybody else goes on
                    (answer,) = await c.manager.call(c.call("Echo", str(i).encode()))
                    assert answer.payload == str(i).encode()
                assert await session.ping(1.0) < 1.0
                got = 0
                if features:
                    # The worker waits with what the caller does not take, and nothing is lost.
                    assert sent <= c.manager.settings.task_window
                    async for response in slow:
                        assert response.type == "END" or response.order == got
                        got += 1
                    assert got == 5000
                else:
                    with pytest.raises(LeaseholdError) as failed:
                        async for _ in slow:
                            got += 1
                    assert failed.value.code == "caller_too_slow"
                    assert got == c.manager.settings.task_buffer
            assert session.attempts == {}

    virtual.run(main)
