"""B7: after a batch over several workers only the last stream forgot its ids.

Seen failing: with ``attempt.session.drop(...)`` in ``Manager._ended`` called for every second task
only, ids stay behind on the streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from leasehold.core.clock import VirtualClock
from leasehold.dispatch.testing import cluster
from leasehold.dispatch.worker import Job, Reply


async def wait(job: Job) -> AsyncIterator[Reply]:
    await asyncio.sleep(int(job.payload) % 7)
    yield Reply("Done", job.payload, final=True)


def test_batch(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({"Wait": wait}, workers=4, clock=virtual) as c:
            got = await asyncio.gather(
                *(c.manager.call(c.call("Wait", str(i).encode())) for i in range(500))
            )
            assert [int(responses[0].payload) for responses in got] == list(range(500))
            assert c.manager._open == set()
            for worker in c.manager.registry.workers.values():
                assert worker.session is not None
                assert worker.session.attempts == {}
                assert worker.session.sent > 100  # all four took part
            for running in c.workers.values():
                assert all(stream._jobs == {} for stream in running._streams)

    virtual.run(main)
