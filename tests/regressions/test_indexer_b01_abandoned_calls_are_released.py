"""B1: the original's close of an abandoned call did nothing, so callers of a dead worker slept on.

Seen failing: with the loop over ``lost`` removed from ``Session._lose_all``, the second caller is
told nothing before its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.dispatch.task import Retry
from leasehold.dispatch.testing import cluster
from leasehold.dispatch.worker import Job, Reply


async def never(job: Job) -> AsyncIterator[Reply]:
    await asyncio.Event().wait()
    yield Reply("Never")


def test_nothing_is_left_of_a_call_that_ended(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({"Never": never}, clock=virtual) as c:
            session = next(iter(c.manager.registry.workers.values())).session
            assert session is not None
            with pytest.raises(LeaseholdError) as late:
                await c.manager.call(c.call("Never", timeout=3.0))
            assert late.value.code == "task_timeout"
            assert (session.attempts, c.manager._open) == ({}, set())

            began = virtual.monotonic()
            waiting = asyncio.create_task(
                c.manager.call(c.call("Never", timeout=900.0, retry=Retry.NEVER))
            )
            await virtual.sleep(1.0)
            await c.net.kill("w1")
            with pytest.raises(LeaseholdError) as lost:
                await waiting
            assert lost.value.code == "worker_lost"
            assert virtual.monotonic() - began < 2.0

    virtual.run(main)
