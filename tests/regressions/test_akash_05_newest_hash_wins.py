"""Defect 5: a hash seen in an event outranked a newer one on the chain until a restart.

Seen failing when ``checks.expected_hash`` prefers the event's hash whenever there is one: the new
manifest is refused because the lost update's hash is unknown.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.manifest.checks import expected_hash
from leasehold.manifest.testing import OWNER, changed, simple, world


def test_a_lost_update_event_does_not_pin_the_old_hash(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            await w.win()
            second = changed(body, image="nginx:2")
            await w.update(second)
            await service.submit(OWNER, 1, second)
            w.feed = False
            third = changed(body, image="nginx:3")
            await w.update(third)
            accepted = await service.submit(OWNER, 1, third)
            assert accepted.repeated == []

    virtual.run(main)


def test_a_node_that_lags_behind_its_events_does_not_refuse_the_new_manifest(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            await service.submit(OWNER, 1, body)
            old = dict(w.market.deployments)
            second = changed(body, image="nginx:2")
            await w.update(second)
            w.market.deployments = old  # the event came from another node than the answers
            accepted = await service.submit(OWNER, 1, second)
            assert (await w.received(lease))[-1] == accepted.hash

    virtual.run(main)


def test_the_newer_of_event_and_query_counts() -> None:
    assert expected_hash((5, "event"), (4, "query")) == "event"
    assert expected_hash((5, "event"), (5, "query")) == "query"
    assert expected_hash((5, "event"), (6, "query")) == "query"
    assert expected_hash((5, "event"), (0, "query")) == "query"
