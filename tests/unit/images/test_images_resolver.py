"""The seven rules one by one, with neighbours that say what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.images.coord.messages import (
    ALREADY_PULLING,
    RECENTLY_FAILED,
    STARTED,
    UNSPECIFIED,
    Intent,
    PullResult,
)
from leasehold.images.ports import ContentKind, FailureClass, Holder, OriginError, Resolution
from leasehold.images.testing import DIGEST, ORDER, Neighbours
from leasehold.model.digest import Digest
from leasehold.p2p.errors import PeerError

D = DIGEST


def run(clock: VirtualClock, test: Callable[[Neighbours], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        await test(Neighbours(clock, **options))

    clock.run(main)


async def refusal(world: Neighbours, **changes: Any) -> LeaseholdError:
    with pytest.raises(LeaseholdError) as caught:
        await world.resolve(**changes)
    return caught.value


def names(found: Resolution) -> list[str]:
    return [h.node for h in found.holders]


def test_records_come_first(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.found = [Holder("node-b", "b:1"), Holder(w.me, "me:1")]
        found = await w.resolve()
        assert (names(found), found.outcome, w.asked) == (["node-b"], "dht_hit", [])

    run(virtual, test)


def test_rule_1_a_trusted_failure_outranks_everything(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-e"] = w.fresh("node-e", has_cached=True)
        w.says["node-c"] = w.fresh("node-c", recently_failed=True, failure=FailureClass.NOT_FOUND)
        error = await refusal(w)
        assert isinstance(error, OriginError)
        assert error.failure is FailureClass.NOT_FOUND
        assert w.pulled == []

    run(virtual, test)


def test_rule_2_only_those_that_have_it(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-a"] = w.fresh("node-a", has_cached=True)
        w.says["node-e"] = w.fresh("node-e", in_flight=True, started_at=virtual.now())
        found = await w.resolve()
        assert (names(found), found.outcome) == (["node-a"], "rule2_cache_hit")

    run(virtual, test)


def test_rule_3_follows_a_puller_that_gets_on(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-a"] = w.fresh(
            "node-a", in_flight=True, started_at=0.0, told=True, age=900.0, silence=1.0
        )
        found = await w.resolve()
        assert found.outcome == "rule3_inflight"
        assert [(h.node, h.complete, h.puller) for h in found.holders] == [("node-a", False, True)]
        assert w.pulled == []

    run(virtual, test)


def test_rule_3_waits_for_a_puller_that_cannot_be_streamed_from(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-e"] = w.fresh("node-e", in_flight=True, started_at=virtual.now())

        async def later() -> None:
            await virtual.sleep(7)
            w.found = [Holder("node-e", "e:1")]

        w._spawn(later())
        found = await w.resolve()
        assert names(found) == ["node-e"]
        assert 7 <= virtual.monotonic() <= 9

    run(virtual, test)


def test_rule_3_hears_from_the_puller_itself_when_the_dht_does_not(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-e"] = w.fresh("node-e", in_flight=True, started_at=virtual.now())

        async def later() -> None:
            await virtual.sleep(4)
            w.says["node-e"] = w.fresh("node-e", has_cached=True)

        w._spawn(later())
        assert names(await w.resolve()) == ["node-e"]
        assert virtual.monotonic() < 12, "long before the stall limit of thirty seconds"

    run(virtual, test)


def test_rule_4_honours_a_cooldown_without_asking_again(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-e"] = w.fresh(
            "node-e", recently_failed=True, failure=FailureClass.TRANSIENT,
            cooldown_until=virtual.now() + 90,
        )  # fmt: skip
        assert (await refusal(w)).code == "cooldown"
        asked = len(w.asked)
        await virtual.sleep(29)
        assert (await refusal(w)).got == "honoured"
        assert len(w.asked) == asked
        await virtual.sleep(2)
        w.says["node-e"] = w.fresh("node-e")
        assert (await w.resolve()).outcome == "rule7_cold_start"

    run(virtual, test)


def test_rule_5_asks_twice_as_many_when_nobody_answers(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        for node in ORDER[:3]:
            w.says[node] = None
        w.score = 0.1
        found = await w.resolve()
        assert found.outcome == "rule5_all_unreachable/rule7_cold_start"
        assert w.pulled == ["node-d"]

    run(virtual, test)


def test_rule_6_asks_twice_as_many_once_when_discovery_is_unwell(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.score = 0.5
        w.says["node-b"] = w.fresh("node-b", has_cached=True)
        found = await w.resolve()
        assert (names(found), found.outcome) == (
            ["node-b"], "rule6_degraded_expand/rule2_cache_hit",
        )  # fmt: skip
        w.says["node-b"] = w.fresh("node-b")
        assert (await w.resolve()).outcome == "rule6_degraded_expand/rule7_cold_start"

    run(virtual, test)


def test_rule_7_by_our_ranking_and_not_by_theirs(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-c"] = Intent(hrw_rank=0)
        found = await w.resolve()
        assert w.pulled == ["node-e"]
        assert (names(found), found.outcome) == (["node-e"], "rule7_cold_start")

    run(virtual, test)


def test_rule_7_waits_for_a_first_rank_that_is_only_slow(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.slow = {"node-e": 5.0}
        assert names(await w.resolve()) == ["node-e"]
        assert w.pulled == ["node-e"], "one puller, the same for everybody"
        assert virtual.monotonic() == 7.0
        # One that stays silent is passed over in the end; one that is known to fetch is not.
        w.slow = {"node-e": 60.0}
        assert names(await w.resolve()) == ["node-a"]
        assert virtual.monotonic() == 7.0 + 2.0 + 6.0
        w.says["node-c"] = w.fresh("node-c", has_cached=True)
        assert names(await w.resolve()) == ["node-c"]
        assert virtual.monotonic() == 15.0 + 2.0

    run(virtual, test)


def test_rule_7_follows_a_puller_that_began_without_saying_so(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.pulls["node-e"] = PeerError("coord_timeout", "nothing")
        w.slow = {"node-e": 0.5}
        asked = w.resolver._please_pull

        async def begins(wanted: Any, node: str) -> Any:
            w.says["node-e"] = w.fresh("node-e", in_flight=True, told=True, started_at=0.0)
            return await asked(wanted, node)

        w.resolver._please_pull = begins  # type: ignore[method-assign]
        found = await w.resolve()
        assert (names(found), found.outcome) == (["node-e"], "rule3_inflight")
        assert w.pulled == ["node-e"]

    run(virtual, test)


def test_rule_7_may_be_this_very_node(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        found = await w.resolve()
        assert (w.pulled, found.local) == (["node-e"], True)

    run(virtual, test, me="node-e")


@pytest.mark.parametrize(
    "answer",
    [
        PullResult(D, UNSPECIFIED),
        PullResult("sha256:" + "1" * 64, STARTED),
        PeerError("coord_timeout", "nothing"),
        PullResult(D, ALREADY_PULLING, started_at=1.0, told=True, silence=31.0),
    ],
)
def test_rule_7_moves_on_to_the_next_rank(
    virtual: VirtualClock, answer: PullResult | Exception
) -> None:
    async def test(w: Neighbours) -> None:
        w.pulls["node-e"] = answer
        found = await w.resolve()
        assert w.pulled == ["node-e", "node-a"]
        assert names(found) == ["node-a"]

    run(virtual, test)


def test_rule_7_failures_are_as_rules_1_and_4(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.pulls["node-e"] = PullResult(D, RECENTLY_FAILED, failure=FailureClass.AUTH)
        assert isinstance(await refusal(w), OriginError)
        w.pulls["node-e"] = PullResult(D, RECENTLY_FAILED, told=True, remaining=8)
        assert (await refusal(w)).code == "cooldown"
        assert w.pulled == ["node-e", "node-e"]

    run(virtual, test)


def test_nobody_at_all_is_exhausted(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says = dict.fromkeys(ORDER)
        assert (await refusal(w)).code == "exhausted"
        assert sorted(w.asked) == sorted(ORDER[:3] + ORDER)
        w.says = {n: w.fresh(n) for n in ORDER}
        assert (await refusal(w, registry="")).code == "exhausted"
        assert w.pulled == []

    run(virtual, test)


def test_requests_at_once_share_one_pass_and_leaving_hurts_nobody(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        first = asyncio.ensure_future(w.resolve())
        rest = [asyncio.ensure_future(w.resolve()) for _ in range(20)]
        await asyncio.sleep(0)
        first.cancel()
        assert {names(await r)[0] for r in rest} == {"node-e"}
        assert (len(w.asked), w.pulled) == (3, ["node-e"])

    run(virtual, test)


def test_a_holder_that_let_us_down_is_left_alone(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        bad = Holder("node-b", "b:1")
        w.found = [bad, Holder("node-d", "d:1")]
        w.resolver.failed(D, bad, "notfound")
        w.resolver.failed(D, Holder("node-d", "d:1"), "busy")
        assert names(await w.resolve()) == ["node-d"]
        await virtual.sleep(61)
        assert set(names(await w.resolve())) == {"node-b", "node-d"}
        w.resolver.failed(D, bad, "corrupt")
        assert not w.resolver._others.quarantine.holds(Digest.of(b"other"), "node-d")
        assert w.resolver._others.quarantine.holds(Digest.of(b"other"), "node-b"), "for everything"

    run(virtual, test)


def test_prefetch_is_one_request_a_node_and_kind(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        children = [(Digest.of(bytes([i])), ContentKind.BLOB, i) for i in range(40)]
        children.append((Digest.of(b"config"), ContentKind.CONFIG, 9))
        w.resolver.prefetch("r.example", "a/b", children)
        await asyncio.wait(w.tasks)
        firsts = {
            w.view.ranking.top(d, 1)[0] for d, kind, _ in children if kind is ContentKind.BLOB
        }
        assert len(w.pulled) == len(firsts) + 1

    run(virtual, test)


def test_refresh_starts_nothing(virtual: VirtualClock) -> None:
    async def test(w: Neighbours) -> None:
        w.says["node-a"] = w.fresh("node-a", in_flight=True, told=True, started_at=1.0)
        w.says["node-c"] = w.fresh("node-c", has_cached=True)
        holders = await w.resolver.refresh(D, None)
        assert [(h.node, h.complete) for h in holders] == [("node-c", True), ("node-a", False)]
        assert w.pulled == []

    run(virtual, test)
