"""Defect 6: an update or a lease change during a fetch let the stale answer count as fresh.

Seen failing without the comparison of generations in ``Manager._run`` and ``Manager.data``: the
manifest is judged by leases of before the change, and the lease won meanwhile is not served.
"""

from __future__ import annotations

import asyncio

from leasehold.core.clock import VirtualClock
from leasehold.manifest.testing import OWNER, two_groups, world


def test_what_changed_during_a_fetch_is_fetched_again(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(two_groups())
            east = await w.win(gseq=1)
            await virtual.sleep(1)
            w.market.delay = 10.0
            sending = asyncio.ensure_future(service.submit(OWNER, 1, body))
            # The leases are read after 10 s; this one is won while that answer is on its way.
            await virtual.sleep(15)
            west = await w.win(gseq=2)
            accepted = await sending
            assert accepted.leases == [east, west]
            data = await service.managers.ensure(west.deployment).data()
            assert {lease.id for lease in data.leases} == {east, west}

    virtual.run(main)
