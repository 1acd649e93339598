"""Defect 3: one watchdog per deployment, and a stray one after a lease was served by itself.

Seen failing (first test) when the activity is folded from the deployment's first lease only, as
with ``lease.won`` ignored for ``gseq`` above 1: the second lease stays open. Seen failing (second
test) when ``Acceptance.serve`` returns False at once: the second lease is closed although its
manifest was known.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.manifest.testing import OWNER, two_groups, world


def test_every_lease_has_its_own(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up():
            await w.deploy(two_groups())
            east = await w.win(gseq=1)
            await virtual.sleep(100)
            west = await w.win(gseq=2)
            await virtual.sleep(201)
            assert w.market.closes == [(east, 10003)]
            await virtual.sleep(100)
            assert w.market.closes == [(east, 10003), (west, 10003)]

    virtual.run(main)


def test_a_lease_served_by_itself_is_not_closed(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(two_groups())
            await w.win(gseq=1)
            await service.submit(OWNER, 1, body)
            west = await w.win(gseq=2)
            await virtual.sleep(10)
            assert len(await w.received(west)) == 1
            await virtual.sleep(1000)
            assert w.market.closes == []

    virtual.run(main)
