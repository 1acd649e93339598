"""B8: no expiry, no periodic ping, no other worker, no cancel, no queue, partial dispatch.

Seen failing: without ``self._beat()`` in ``Session.run`` the partitioned worker is never noticed;
with ``Manager._lost`` finishing the task at once nothing is given to another worker; without
``_send_control(CANCEL, …)`` the handler runs on; with ``queue_limit=0`` the busy pool refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.dispatch.task import Call
from leasehold.dispatch.testing import cluster
from leasehold.dispatch.worker import Job, Reply

running = 0


async def slow(job: Job) -> AsyncIterator[Reply]:
    global running
    running += 1
    try:
        await asyncio.sleep(float(job.payload))
        yield Reply("Done", str(job.attempt).encode(), final=True)
    finally:
        running -= 1


def test_a_killed_workers_task_goes_to_another_at_once(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({"Slow": slow}, workers=2, clock=virtual) as c:
            calls = [asyncio.create_task(c.manager.call(c.call("Slow", b"10"))) for _ in range(2)]
            await virtual.sleep(1.0)
            began = virtual.monotonic()
            await c.net.kill("w1")
            got = sorted(int(r[0].payload) for r in await asyncio.gather(*calls))
            assert got == [1, 2]  # one of them ran again, as a second attempt
            assert virtual.monotonic() - began <= 11.0  # 10 s of work, at most 1 s to notice

    virtual.run(main)


def test_a_partitioned_worker_is_noticed_by_missed_heartbeats(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({"Slow": slow}, workers=2, clock=virtual) as c:
            c.net.partition("w1")
            began = virtual.monotonic()
            calls = [c.manager.call(c.call("Slow", b"1")) for _ in range(4)]
            assert len(await asyncio.gather(*calls)) == 4
            assert virtual.monotonic() - began <= 4 * c.manager.settings.heartbeat + 2

    virtual.run(main)


def test_a_caller_that_leaves_cancels_the_work(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({"Slow": slow}, clock=virtual) as c:
            async with c.manager.submit(c.call("Slow", b"1000")):
                await virtual.sleep(1.0)
                assert running == 1
            await virtual.sleep(0.1)
            assert running == 0

    virtual.run(main)


def test_busy_workers_make_tasks_wait_in_a_bounded_queue(virtual: VirtualClock) -> None:
    async def main() -> None:
        limits = {"concurrency": 1, "prefetch": 0, "queue_limit": 3}
        async with cluster({"Slow": slow}, clock=virtual, **limits) as c:
            calls = [asyncio.create_task(c.manager.call(c.call("Slow", b"1"))) for _ in range(4)]
            await virtual.sleep(0.1)
            with pytest.raises(LeaseholdError) as busy:
                await c.manager.call(c.call("Slow", b"1"))
            assert busy.value.code == "busy"
            assert len(await asyncio.gather(*calls)) == 4
            with pytest.raises(LeaseholdError) as nobody:
                c.manager.submit(Call(network="other", chain_id="c", type="Slow"))
            assert nobody.value.code == "no_workers"

    virtual.run(main)


def test_a_silent_record_expires(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({}, clock=virtual) as c:
            await c.net.kill("w1")
            await virtual.sleep(
                c.manager.settings.worker_expiry + c.manager.settings.worker_grace + 5
            )
            assert not c.manager.registry.workers

    virtual.run(main)
