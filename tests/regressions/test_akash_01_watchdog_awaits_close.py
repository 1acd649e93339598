"""Defect 1: the watchdog cancelled its own close-bid, so the bid stayed open.

Seen failing with ``close_bid`` under a timeout of 0 instead of the broadcast timeout in
``manifest/intake.py``: nothing is closed, however long one waits.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.manifest.testing import simple, world


def test_a_close_that_takes_its_time_is_awaited(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        w.market.close_failures = [20.0] * 1000  # seconds the market takes, each time
        async with w.up():
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(321)
            assert w.market.closes == [(lease, 10003)]
            assert len(await w.events("lease", lease, "manifest.bid_closed")) == 1

    virtual.run(main)
