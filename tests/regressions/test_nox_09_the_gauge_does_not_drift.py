"""Defect 9: the gauge rose only on resubscribe and fell on every end, so it went negative.

Seen failing with ``armed.dec()`` in ``Bus.unsubscribe`` whether or not the spell was subscribed.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.core.metrics import REGISTRY
from leasehold.core.service import running
from leasehold.node.spells.bus import Bus
from leasehold.node.spells.trigger import ClockConfig, ConnectionConfig, TriggerConfig


def test_the_gauge_is_the_number_of_subscribed_spells(virtual: VirtualClock) -> None:
    def gauge() -> float:
        return REGISTRY.get_sample_value("leasehold_spells_subscribed") or 0.0

    async def main() -> None:
        start = gauge()
        bus = Bus(lambda spell, event: None, clock=virtual)
        async with running(bus):
            bus.open()
            once = TriggerConfig(ClockConfig(1))
            for turn in range(3):
                for n in range(10):
                    bus.subscribe(f"s{n}", once, armed_at=virtual.now())
                    bus.unsubscribe("nobody")
                peers = TriggerConfig(connections=ConnectionConfig(connect=True))
                bus.subscribe("peers", peers, armed_at=virtual.now())
                bus.subscribe("peers", peers, armed_at=virtual.now())
                assert gauge() - start == 11
                await virtual.sleep(10)
                assert gauge() - start == 1, turn
            bus.unsubscribe("peers")
            bus.unsubscribe("peers")
            assert gauge() == start
        assert gauge() == start

    virtual.run(main)
