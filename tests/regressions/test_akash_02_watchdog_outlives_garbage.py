"""Defect 2: any PUT cleared the watchdog, even one that was refused.

Seen failing when ``Acceptance.submit`` does not raise for failed checks: the refused manifests
count as received and nobody closes the bid.
"""

from __future__ import annotations

import contextlib

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.manifest.testing import OTHER, OWNER, changed, simple, world


def test_refused_manifests_do_not_disarm(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            for sender, sent in (
                (OWNER, b"garbage"),
                (OWNER, b"[]"),
                (OWNER, changed(body, image="other")),
                (OWNER, changed(body, count=1)),
                (OTHER, body),
            ):
                await virtual.sleep(10)
                with contextlib.suppress(LeaseholdError):
                    await service.submit(sender, 1, sent)
            await virtual.sleep(300)
            assert w.market.closes == [(lease, 10003)]

    virtual.run(main)
