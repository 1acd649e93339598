"""What a herd costs one node: one order a digest, no polling, a bounded number of dials.

In the original ten thousand queries meant ten thousand times ten thousand hashes on the first rank,
ten thousand nodes polled the DHT for the same keys, and a node dialled every address it heard of.
Drop the memo in ``Ranking._order``, let ``Resolver._follow`` poll where the puller can be streamed
from, or take ``left[:MAX_DIALS]`` or ``answered < ENOUGH`` out of ``Kademlia.bootstrap``, and one
of these fails.
"""

from __future__ import annotations

from typing import Any

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.images import hrw
from leasehold.images.hrw import Ranking
from leasehold.images.testing import DIGEST, Neighbours
from leasehold.p2p.host import Host
from leasehold.p2p.kad.dht import ENOUGH, MAX_DIALS, Kademlia
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.multiaddr import Multiaddr


def test_ten_thousand_questions_hash_every_member_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = 0
    score = hrw.score

    def counted(node: str, digest: Any) -> bytes:
        nonlocal hashed
        hashed += 1
        return score(node, digest)

    monkeypatch.setattr(hrw, "score", counted)
    ranking = Ranking([f"node-{i}" for i in range(1000)])
    ranks = {ranking.rank(DIGEST, "node-7") for _ in range(10_000)}
    assert len(ranks) == 1
    assert hashed == 1000


def test_a_puller_is_followed_without_polling(virtual: VirtualClock) -> None:
    async def main() -> None:
        world = Neighbours(virtual)
        await world.resolve()
        assert (len(world.asked), world.lookups, len(world.pulled)) == (3, 1, 1)
        assert virtual.monotonic() == 0.0, "no waiting either: its bytes are streamed"

    virtual.run(main)


@pytest.mark.parametrize(("alive", "dials"), [(False, MAX_DIALS), (True, 8)])
async def test_a_node_dials_a_few_of_many(
    alive: bool, dials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kad = Kademlia(Host(KeyPair.generate()))
    dialled = 0

    async def dial(_: Multiaddr) -> bool:
        nonlocal dialled
        dialled += 1
        return alive

    async def walk(_: bytes) -> list[Any]:
        return []

    monkeypatch.setattr(kad, "_dial", dial)
    monkeypatch.setattr(kad, "walk", walk)
    someone = Multiaddr.parse("/ip4/127.0.0.1/tcp/1").with_peer(KeyPair.generate().peer_id)
    answered = await kad.bootstrap([someone] * 10_000)
    assert dialled == dials
    assert answered >= ENOUGH if alive else answered == 0
