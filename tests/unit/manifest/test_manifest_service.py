"""Manifest intake end to end, on the log in memory and in virtual time."""

from __future__ import annotations

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.manifest.testing import OTHER, OWNER, changed, quiet, simple, two_groups, world
from leasehold.model import manifest as manifests


async def refused(coro: object) -> LeaseholdError:
    with pytest.raises(LeaseholdError) as caught:
        await coro  # type: ignore[misc]
    return caught.value


def test_a_manifest_of_a_won_lease_is_accepted_and_handed_on_once(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            accepted = await service.submit(OWNER, 1, body)
            assert accepted.leases == [lease] and accepted.repeated == []
            again = await service.submit(OWNER, 1, body)
            assert again.repeated == [lease]
            assert await w.received(lease) == [accepted.hash]
            kept = await w.events("deployment", f"{OWNER}/1", "manifest.accepted")
            assert [e.payload.sender for e in kept] == [OWNER, OWNER]
            assert service.status()["deployments"] == 1
            _hash, group = await service.manifest(lease)
            assert group == manifests.decode(body)[0]

    virtual.run(main)


def test_no_lease_wrong_hash_and_other_manifests_are_refused_and_leave_nothing(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            error = await refused(service.submit(OWNER, 1, body))
            assert (error.code, error.kind) == ("no_lease", Kind.NOT_FOUND)
            error = await refused(service.submit(OTHER, 1, body))
            assert error.kind is Kind.NOT_FOUND
            lease = await w.win()
            before = await w.log.last_seq()
            error = await refused(service.submit(OWNER, 1, changed(body, image="other")))
            assert (error.code, error.kind) == ("manifest_version", Kind.INVALID)
            error = await refused(service.submit(OWNER, 1, changed(body, count=3)))
            assert {v.code for v in error.violations} == {"hash", "count"}
            assert (await refused(service.submit(OWNER, 1, b"{"))).kind is Kind.INVALID
            assert await w.log.last_seq() == before
            assert await w.received(lease) == []

    virtual.run(main)


def test_a_changed_hash_on_the_market_is_fetched_before_anything_is_refused(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            await service.submit(OWNER, 1, body)
            w.feed = False  # the update event is lost, the cache is fresh
            new = changed(body, image="nginx:2")
            await w.update(new)
            accepted = await service.submit(OWNER, 1, new)
            assert (await w.received(lease))[-1] == accepted.hash

    virtual.run(main)


def test_a_lease_won_later_is_served_with_the_known_manifest(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(two_groups())
            east = await w.win(gseq=1)
            accepted = await service.submit(OWNER, 1, body)
            assert accepted.leases == [east]
            west = await w.win(gseq=2)
            await virtual.sleep(1)
            assert await w.received(west) == [accepted.hash]
            await virtual.sleep(3600)
            assert w.market.closes == []

    virtual.run(main)


def test_everyone_who_waits_shares_one_fetch(virtual: VirtualClock) -> None:
    async def main() -> None:
        import asyncio

        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            await w.win()
            await virtual.sleep(1)
            w.market.delay = 1.0
            w.market.queries = 0
            async with asyncio.TaskGroup() as tasks:
                for _ in range(20):
                    tasks.create_task(service.submit(OWNER, 1, body))
            assert w.market.queries == 1
            await virtual.sleep(2.0)
            await service.submit(OWNER, 1, body)
            assert w.market.queries == 1
            await virtual.sleep(5.0)
            await service.submit(OWNER, 1, body)
            assert w.market.queries == 2

    virtual.run(main)


def test_a_market_that_fails_is_asked_again_within_the_callers_time(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual, submit_budget_s=30.0)
        async with w.up() as service:
            body = await w.deploy(simple())
            await w.win()
            await quiet()
            w.market.failures = 5
            assert (await service.submit(OWNER, 1, body)).leases
            await virtual.sleep(10)
            w.market.failures = 10**9
            began = virtual.now()
            error = await refused(service.submit(OWNER, 1, body))
            assert (error.code, error.kind) == ("rpc", Kind.UNAVAILABLE)
            assert error.retry_after and virtual.now() - began == pytest.approx(30)

    virtual.run(main)


def test_secrets_are_sealed_in_the_log_and_open_for_the_workload(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(two_groups())
            lease = await w.win()
            await service.submit(OWNER, 1, body)
            async for event in w.log.read_all():
                assert b"tiger" not in event.data
            _hash, group = await service.manifest(lease)
            assert group.all_services[0].env == ["SECRET=tiger", "EMPTY=", "BARE"]
            history = await service.history(OWNER, 1)
            assert [h["images"] for h in history] == [{"web": "nginx"}]

    virtual.run(main)


def test_rollback_takes_a_kept_manifest_whose_hash_is_on_the_market_again(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        w = world(virtual, keep_manifests=3)
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            first = await service.submit(OWNER, 1, body)
            second = changed(body, image="nginx:broken")
            await w.update(second)
            await service.submit(OWNER, 1, second)
            error = await refused(service.rollback(OWNER, 1, first.hash))
            assert error.code == "manifest_version"
            await w.update(body)
            await service.rollback(OWNER, 1, first.hash[:8])
            assert (await w.received(lease))[-1] == first.hash
            assert (await refused(service.rollback(OWNER, 1, "ff"))).kind is Kind.NOT_FOUND
            for n in range(5):
                other = changed(body, image=f"nginx:{n}")
                await w.update(other)
                await service.submit(OWNER, 1, other)
            assert len(await service.history(OWNER, 1)) == 3

    virtual.run(main)


def test_validate_says_everything_and_changes_nothing(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            await w.win()
            await service.submit(OWNER, 1, body)
            before = await w.log.last_seq()
            report = await service.validate(OWNER, 1, changed(body, name="api", count=9))
            assert not report["valid"] and not report["on_market"]
            assert {v["code"] for v in report["violations"]} == {"count"}
            assert report["changes"]["added"] == ["westcoast/api"]
            assert report["changes"]["dropped"] == ["westcoast/web"]
            good = await service.validate(OWNER, 1, body)
            assert (
                good["valid"]
                and good["on_market"]
                and good["changes"]["unchanged"] == ["westcoast/web"]
            )
            assert await w.log.last_seq() == before

    virtual.run(main)


def test_after_a_restart_everything_is_as_before(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(two_groups())
            east = await w.win(gseq=1)
            accepted = await service.submit(OWNER, 1, body)
        await w.win(gseq=2)
        async with w.up() as service:
            await virtual.sleep(1)
            assert service.status()["deployments"] == 1
            assert await service.is_active(OWNER, 1)
            again = await service.submit(OWNER, 1, body)
            assert len(again.leases) == 2 and again.repeated == again.leases
            assert await w.received(east) == [accepted.hash]

    virtual.run(main)


def test_stopped_means_not_running(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
        for call in (
            service.submit(OWNER, 1, body),
            service.validate(OWNER, 1, body),
            service.is_active(OWNER, 1),
        ):
            assert (await refused(call)).code == "not_running"
        with pytest.raises(LeaseholdError):
            service.status()

    virtual.run(main)


def test_the_outcome_of_a_manifest_is_waited_for(virtual: VirtualClock) -> None:
    async def main() -> None:
        import asyncio

        w = world(virtual)
        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            accepted = await service.submit(OWNER, 1, body)
            waiting = asyncio.ensure_future(service.outcome(lease, accepted.hash, timeout=60))
            await virtual.sleep(5)
            await w.deployed(lease, accepted.hash)
            state = await waiting
            assert state.phase == "healthy" and state.uris == ["http://x"]
            began = virtual.now()
            new = changed(body, image="bad")
            await w.update(new)
            again = await service.submit(OWNER, 1, new)
            state = await service.outcome(lease, again.hash, timeout=60)
            assert state.phase == "received" and virtual.now() - began == pytest.approx(60)
            await w.deployed(lease, again.hash, failed="image_not_found")
            state = await service.outcome(lease, again.hash, timeout=60)
            assert state.phase == "failed" and state.failed
            # The same manifest again is another try.
            assert (await service.submit(OWNER, 1, new)).repeated == []

    virtual.run(main)
