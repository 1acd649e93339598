"""As long as content is held there is a record of it, however long that is.

The original told the DHT once; its records lapsed while the content was still held. Do not spawn
``Discovery._tell_again`` and the record is gone after its validity here; push what was withdrawn
and it comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.images.discovery import Discovery, key_of
from leasehold.images.membership import Member, View
from leasehold.model.digest import Digest
from leasehold.p2p.errors import PeerError
from leasehold.p2p.kad.records import ProviderRecords
from leasehold.p2p.keys import KeyPair

VALIDITY = 48 * 3600.0
US = KeyPair.from_seed(bytes(32)).peer_id


class Neighbour:
    """A DHT of one other node, which may not answer for a while."""

    def __init__(self, clock: VirtualClock) -> None:
        self.records = ProviderRecords(clock, VALIDITY)
        self.table = [US]
        self.host: Any = type("Host", (), {"peer_id": US})
        self.answers = True
        self.told = 0

    async def provide(self, key: bytes) -> int:
        if not self.answers:
            raise PeerError("provide_failed", "nobody answers")
        self.records.add(key, US, ())
        return 1

    async def provide_all(self, keys: Sequence[bytes]) -> dict[bytes, int | None]:
        if not self.answers:
            return dict.fromkeys(keys)
        self.told += len(keys)
        return {key: await self.provide(key) for key in keys}

    async def withdraw(self, key: bytes) -> None:
        self.records.remove(key, US)

    async def find(self, key: bytes, limit: int = 20) -> list[Any]:
        return self.records.get(key)

    async def bootstrap(self, _: Any) -> int:
        return 1


def test_for_a_week_and_over_an_outage(virtual: VirtualClock) -> None:
    async def main() -> None:
        dht: Any = Neighbour(virtual)
        view = View([Member(node="us")])
        digests = [Digest.of(bytes([i])) for i in range(50)]
        discovery = Discovery("us", dht, lambda: view, virtual, validity=VALIDITY)
        async with running(discovery):
            for digest in digests:
                discovery.announce(digest)
            await virtual.sleep(1)
            for hour in range(24 * 7):
                dht.answers = not 60 <= hour < 70
                await virtual.sleep(3600)
                assert all(dht.records.get(key_of(digest)) for digest in digests)
            # Within the last quarter of half the validity: about every 42 h at most, not hourly.
            assert dht.told <= 50 * 15
            for digest in digests[:25]:
                discovery.withdraw(digest)
            await virtual.sleep(7 * 24 * 3600)
            assert [bool(dht.records.get(key_of(d))) for d in digests] == [False] * 25 + [True] * 25

    virtual.run(main)


def test_a_dht_that_never_answered_is_told_when_it_does(virtual: VirtualClock) -> None:
    async def main() -> None:
        dht: Any = Neighbour(virtual)
        dht.answers = False
        view, digest = View([Member(node="us")]), Digest.of(b"x")
        async with running(Discovery("us", dht, lambda: view, virtual)) as discovery:
            discovery.announce(digest)
            await virtual.sleep(600)
            assert not dht.records.get(key_of(digest))
            dht.answers = True
            await virtual.sleep(120)
            assert dht.records.get(key_of(digest))

    virtual.run(main)
