"""Defect 17: the gauge of watchdogs showed the number of managers.

Seen failing when ``LiveLeases.put`` and ``drop`` set the gauge to the number of live leases.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.core.metrics import REGISTRY
from leasehold.manifest.testing import OWNER, simple, world


def value(name: str) -> float | None:
    return REGISTRY.get_sample_value(name)


def test_watchdogs_and_managers_are_counted_apart(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            bodies = [await w.deploy(simple().replace("ahost", f"h{n}"), dseq=n) for n in (1, 2, 3)]
            for dseq in (1, 2, 3):
                await w.win(dseq=dseq)
            await service.submit(OWNER, 1, bodies[0])
            await virtual.sleep(1)
            assert value("provider_order_watchdog") == 2
            assert value("provider_manifest_manager") == len(service.managers)
            await virtual.sleep(1000)
            assert value("provider_order_watchdog") == 0
            assert value("provider_manifest_manager") == 0

    virtual.run(main)
