"""Defect 7: a failed fetch was not retried and answered every waiting request with 500.

Seen failing when ``Manager.data`` raises instead of trying again.
"""

from __future__ import annotations

import asyncio

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.manifest.testing import OWNER, simple, world


def test_all_who_wait_are_served_once_the_market_is_back(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            await w.win()
            await virtual.sleep(1)
            w.market.failures = 6
            async with asyncio.TaskGroup() as tasks:
                sent = [tasks.create_task(service.submit(OWNER, 1, body)) for _ in range(5)]
            assert all(task.result().leases for task in sent)

    virtual.run(main)


def test_at_the_deadline_it_is_503_with_a_time_to_come_back(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual, submit_budget_s=20.0)
        async with w.up() as service:
            body = await w.deploy(simple())
            await virtual.sleep(1)
            w.market.failures = 10**9
            with pytest.raises(LeaseholdError) as caught:
                await service.submit(OWNER, 1, body)
            assert caught.value.kind is Kind.UNAVAILABLE and caught.value.kind.http == 503
            assert caught.value.retry_after is not None

    virtual.run(main)
