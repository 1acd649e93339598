"""Defect 4: the linger timer never started, so any tenant could make managers that live for ever.

Seen failing without the ``drop`` in ``Managers.linger``: 50 managers are left after an hour; and
without the eviction in ``Managers.ensure`` the bound is exceeded.
"""

from __future__ import annotations

import contextlib

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.manifest.testing import OWNER, simple, world


def test_managers_of_made_up_deployments_go_away(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual, max_managers=50, owner_burst=1000)
        async with w.up() as service:
            body = await w.deploy(simple())
            for dseq in range(1000, 1200):
                with contextlib.suppress(LeaseholdError):
                    await service.submit(OWNER, dseq, body)
                assert len(service.managers) <= 50
            await virtual.sleep(3600)
            assert len(service.managers) == 0

    virtual.run(main)
