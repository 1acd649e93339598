"""Spans out of events: the tree, its ids, failures, later manifests, and nothing told twice."""

from __future__ import annotations

from leasehold.app.traces import RECENT, LeaseTrace, readable
from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.events.event import Entity, NewEvent
from leasehold.events.memory import MemoryLog
from leasehold.model.events import lease as happened
from leasehold.model.events import market
from leasehold.model.market import LeaseId
from leasehold.model.spans import Span, trace_id
from leasehold.observe.engine import Engine

LEASE = LeaseId("akash1owner", 7, 1, 1, "akash1provider")
OTHER = LeaseId("akash1owner", 7, 1, 1, "akash1other")
PRICE = market.Price(denom="uakt", amount="1")


class Way:
    """A lease's way, a second a step, and what is told of it."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.log = MemoryLog(clock)
        self.told: list[list[Span]] = []

    def engine(self) -> Engine:
        engine = Engine(self.log, self.clock)
        engine.register(
            lambda c: LeaseTrace(c, lambda spans: self.told.append(list(spans)), LEASE.provider),
            kind=LeaseTrace,
        )
        return engine

    async def say(self, *facts: object, on: str = "lease") -> None:
        id = str(LEASE.order if on == "order" else LEASE)
        head = await self.log.head(Entity(on, id))
        for fact in facts:
            await self.clock.sleep(1.0)
            event = NewEvent.of(fact, clock=self.clock)
            head = (await self.log.append(Entity(on, id), head.id if head else None, [event]))[0]

    async def order_to_manifest(self) -> None:
        await self.say(
            market.OrderCreated(id=LEASE.order, height=1),
            market.BidCreated(id=OTHER, price=PRICE, height=1),
            market.BidCreated(id=LEASE, price=PRICE, height=1),
            on="order",
        )
        await self.say(
            market.LeaseCreated(id=LEASE, price=PRICE, height=2),
            market.LeaseWon(id=LEASE, price=PRICE, group={}, height=2),
            happened.ManifestReceived(id=LEASE, hash="ab", group={}),
        )

    async def deployed(self, hash: str = "ab") -> None:
        await self.say(
            happened.ImagePulled(
                id=LEASE, service="web", reference="r/x:1", digest="sha256:1", bytes=9, seconds=0.75
            ),
            happened.VolumeReady(id=LEASE, service="web", volume="data", seconds=0.25),
            happened.ServiceStarted(id=LEASE, service="web", replica=0, key="k"),
            happened.WorkloadRunning(id=LEASE, hash=hash),
            happened.WorkloadHealthy(id=LEASE, hash=hash),
        )


async def quiet(way: Way) -> None:
    """Everybody had their turn."""
    await way.clock.sleep(5.0)


def test_the_tree_of_a_lease() -> None:
    clock = VirtualClock()

    async def go() -> None:
        way = Way(clock)
        async with running(way.engine()):
            began = clock.now()
            await way.order_to_manifest()
            await way.deployed()
            await quiet(way)
            (spans,) = way.told
            root, *steps = spans
            assert (root.name, root.parent, root.error) == ("order", 0, "")
            assert (root.start, root.end) == (began + 1, began + 11)
            assert [s.name for s in steps] == [
                "bid", "accept", "lease", "manifest", "image", "volume", "run", "first byte",
            ]  # fmt: skip
            assert {s.trace for s in spans} == {trace_id(LEASE)}
            assert {s.parent for s in steps} == {root.id}
            assert len({s.id for s in spans}) == len(spans)
            image = next(s for s in steps if s.name == "image")
            assert image.end - image.start == 0.75
            assert image.attributes["leasehold.reference"] == "r/x:1"
            assert all(root.start <= s.start <= s.end <= root.end for s in spans)
            shown = readable(image, None)
            assert (shown.context.trace_id, shown.parent.span_id) == (trace_id(LEASE), root.id)
            assert shown.end_time - shown.start_time == 750_000_000

    clock.run(go)


def test_a_manifest_that_overtakes_the_news_of_the_lease() -> None:
    """The market's news take a block; the tenant's manifest may be there before them."""
    clock = VirtualClock()

    async def go() -> None:
        way = Way(clock)
        async with running(way.engine()):
            await way.say(market.OrderCreated(id=LEASE.order, height=1), on="order")
            await way.say(
                happened.ManifestReceived(id=LEASE, hash="ab", group={}),
                market.LeaseWon(id=LEASE, price=PRICE, group={}, height=2),
            )
            await way.deployed()
            await quiet(way)
            (spans,) = way.told
            assert [s.name for s in spans[:3]] == ["order", "manifest", "lease"]
            assert min(s.start for s in spans) == spans[0].start

    clock.run(go)


def test_a_later_manifest_and_a_failure_are_told_on_their_own() -> None:
    clock = VirtualClock()

    async def go() -> None:
        way = Way(clock)
        async with running(way.engine()):
            await way.order_to_manifest()
            await way.deployed()
            await way.say(
                happened.WorkloadUnhealthy(id=LEASE, hash="ab", reason="hangs"),
                happened.WorkloadHealthy(id=LEASE, hash="ab"),
                happened.ManifestReceived(id=LEASE, hash="cd", group={}),
                happened.DeployFailed(id=LEASE, hash="cd", code="pull", message="try again"),
                happened.DeployFailed(
                    id=LEASE, hash="cd", code="pull", message="no such image", final=True
                ),
            )
            await quiet(way)
            _, update = way.told
            assert [(s.name, s.error) for s in update] == [
                ("update", "no such image"), ("manifest", ""),
                ("failed", "try again"), ("failed", "no such image"),
            ]  # fmt: skip
            assert update[0].trace == trace_id(LEASE)

    clock.run(go)


def test_a_restart_tells_nothing_twice_and_goes_on_with_what_was_begun() -> None:
    clock = VirtualClock()

    async def go() -> None:
        way = Way(clock)
        async with running(way.engine()):
            await way.order_to_manifest()
            await quiet(way)
        async with running(way.engine()):
            await way.deployed()
            await quiet(way)
        async with running(way.engine()):
            await quiet(way)
        assert [spans[0].name for spans in way.told] == ["order"]
        assert len(way.told[0]) == 9

    clock.run(go)


def test_what_ended_before_traces_were_on_is_not_told() -> None:
    clock = VirtualClock()

    async def go() -> None:
        way = Way(clock)
        await way.order_to_manifest()
        await way.deployed()
        await clock.sleep(RECENT)
        async with running(way.engine()):
            await quiet(way)
        assert way.told == []

    clock.run(go)
