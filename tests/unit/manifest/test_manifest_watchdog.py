"""The watchdog of a won lease: when it fires, what disarms it, and that it does not give up."""

from __future__ import annotations

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.manifest.testing import OWNER, simple, world


def down() -> LeaseholdError:
    return LeaseholdError("rpc", "the market is down", kind=Kind.UNAVAILABLE)


def test_it_closes_exactly_one_bid_when_the_time_is_up(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(1)
            assert service.status()["waiting"] == 1
            assert service.status()["next_deadline"] == pytest.approx(virtual.now() + 299)
            await virtual.sleep(298)
            assert w.market.closes == []
            await virtual.sleep(2)
            assert w.market.closes == [(lease, 10003)]
            await virtual.sleep(10_000)
            assert len(w.market.closes) == 1
            said = await w.events("lease", lease, "manifest.bid_closed")
            assert [(e.payload.attempts, e.payload.already) for e in said] == [(1, False)]

    virtual.run(main)


def test_a_manifest_disarms_it_for_good(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            await w.win()
            await virtual.sleep(299)
            await service.submit(OWNER, 1, body)
            await virtual.sleep(10_000)
            assert w.market.closes == []
            assert await w.log.next_timer() is None

    virtual.run(main)


def test_zero_means_never(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual, watchdog_s=0.0)
        async with w.up():
            await w.deploy(simple())
            await w.win()
            await virtual.sleep(100_000)
            assert w.market.closes == []

    virtual.run(main)


def test_a_restart_leaves_it_the_remaining_time(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up():
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(200)
        await virtual.sleep(50)
        async with w.up():
            await virtual.sleep(49)
            assert w.market.closes == []
            await virtual.sleep(2)
            assert w.market.closes == [(lease, 10003)]

    virtual.run(main)


def test_what_became_due_while_nobody_was_there_is_done_at_once(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up():
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(1)
        await virtual.sleep(3600)
        async with w.up():
            await virtual.sleep(1)
            assert w.market.closes == [(lease, 10003)]

    virtual.run(main)


def test_a_lease_in_its_reclamation_window_is_closed_when_the_window_ends(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        from leasehold.model.events.market import LeaseReclaiming

        w = world(virtual)
        async with w.up():
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(10)
            end = virtual.now() + 5000
            await w.say("lease", lease, LeaseReclaiming(id=lease, deadline=end, height=9))
            await virtual.sleep(4990)
            assert w.market.closes == []
            await virtual.sleep(20)
            assert w.market.closes == [(lease, 10003)]

    virtual.run(main)


def test_a_refusal_for_reclamation_is_tried_again_when_the_market_says(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        w = world(virtual)
        w.market.close_failures = [
            LeaseholdError(
                "reclamation_required", "window open", kind=Kind.CONFLICT, retry_after=1000
            )
        ]
        async with w.up():
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(1290)
            assert w.market.closes == []
            await virtual.sleep(30)
            assert w.market.closes == [(lease, 10003)]

    virtual.run(main)


def test_closed_by_somebody_else_is_success(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        gone = LeaseholdError("bid_not_found", "gone", kind=Kind.NOT_FOUND)
        w.market.close_failures = [gone]
        async with w.up():
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(1000)
            said = await w.events("lease", lease, "manifest.bid_closed")
            assert [e.payload.already for e in said] == [True]
            assert w.market.closes == []

    virtual.run(main)


def test_a_lease_closed_before_the_time_is_left_alone(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(100)
            await w.close_lease(lease)
            await virtual.sleep(1000)
            assert w.market.closes == []
            assert service.status()["deployments"] == 0
            assert await w.log.next_timer() is None

    virtual.run(main)


def test_a_manifest_that_comes_while_the_bid_is_being_closed_is_refused(
    virtual: VirtualClock,
) -> None:
    """Found by the model test: it was accepted, and the lease closed under it."""

    async def main() -> None:
        w = world(virtual)
        w.market.close_failures = [20.0]
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(310)  # the close is on its way
            with pytest.raises(LeaseholdError) as caught:
                await service.submit(OWNER, 1, body)
            assert (caught.value.code, caught.value.kind.http) == ("manifest_overdue", 409)
            await virtual.sleep(20)
            assert w.market.closes == [(lease, 10003)] and await w.received(lease) == []

    virtual.run(main)


def test_a_manifest_that_is_being_accepted_when_the_time_is_up_wins_or_is_refused(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        import asyncio

        outcomes = set()
        for start in (298.5, 299.0, 299.5, 299.9999, 300.0, 300.0001):
            w = world(virtual)
            async with w.up() as service:
                body = await w.deploy(simple())
                lease = await w.win()
                await virtual.sleep(start)
                w.market.delay = 0.5
                sending = asyncio.ensure_future(service.submit(OWNER, 1, body))
                await virtual.sleep(60)
                refused = sending.exception() is not None
                outcomes.add(refused)
                assert len(w.market.closes) == int(refused)
                assert len(await w.received(lease)) == int(not refused)
        assert outcomes == {True, False}

    virtual.run(main)
