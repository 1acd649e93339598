"""Defect 7: a spell whose clock ended lost its mark, so a later subscribe doubled its events.

Seen failing with ``_clock_ended`` of the bus forgetting the spell whatever else it has: no
connection event arrives after the clock ended.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.node.spells.bus import Bus
from leasehold.node.spells.trigger import ClockConfig, ConnectionConfig, TriggerConfig


def test_one_event_a_connection_after_the_clock_ended(virtual: VirtualClock) -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        bus = Bus(lambda spell, event: seen.append(event.kind), clock=virtual)
        both = TriggerConfig(ClockConfig(1), ConnectionConfig(connect=True))
        async with running(bus):
            bus.open()
            bus.subscribe("s", both, armed_at=virtual.now())
            await virtual.sleep(1)
            bus.connection("p", connected=True)
            bus.subscribe("s", both, armed_at=virtual.now(), last=virtual.now())
            bus.connection("p", connected=True)
            return seen

    assert virtual.run(main) == ["timer", "peer", "peer"]
