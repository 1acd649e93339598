"""Kademlia among real hosts: records are found, kept honest, and nobody speaks for others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import MakeHost, address, until

from leasehold.core.clock import SystemClock, VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images.discovery import Discovery, Health, cid_of, key_of
from leasehold.images.membership import Member, View
from leasehold.model.digest import Digest
from leasehold.p2p.errors import PeerError, ProtocolViolation
from leasehold.p2p.host import Host
from leasehold.p2p.kad import PROTOCOL
from leasehold.p2p.kad.dht import Kademlia, _framed
from leasehold.p2p.kad.messages import (
    ADD_PROVIDER,
    GET_PROVIDERS,
    Contact,
    Message,
    decode,
    encode,
)
from leasehold.p2p.kad.records import MAX_HOLDERS, ProviderRecords
from leasehold.p2p.kad.table import RoutingTable, position
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.multiaddr import Multiaddr

D = Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")


def peers(count: int) -> list[bytes]:
    return [KeyPair.from_seed(bytes([i // 256, i % 256]) * 16).peer_id for i in range(count)]


@asynccontextmanager
async def network(make_host: MakeHost, count: int) -> AsyncIterator[list[Kademlia]]:
    """``count`` nodes, each of which was told of the first one only."""
    async with AsyncExitStack() as stack:
        nodes: list[Kademlia] = []
        for i in range(count):
            host = await make_host()
            node = await stack.enter_async_context(running(Kademlia(host, rng=random.Random(i))))
            if nodes:
                assert await node.bootstrap([address(nodes[0].host)]) == 1
            nodes.append(node)
        yield nodes


async def test_what_one_provides_any_other_finds(make_host: MakeHost) -> None:
    async with network(make_host, 12) as nodes:
        assert all(len(node.table) >= 8 for node in nodes)
        key = key_of(D)
        assert await nodes[7].find(key) == []
        assert await nodes[3].provide(key) >= 10
        for node in nodes:
            found = await node.find(key)
            assert [c.peer for c in found] == [nodes[3].host.peer_id]
            assert found[0].addresses == tuple(nodes[3].host.addresses)
        await nodes[3].withdraw(key)
        await asyncio.sleep(0.05)
        for node in nodes:
            assert await node.find(key) == []


async def test_dead_nodes_do_not_stop_a_lookup(make_host: MakeHost) -> None:
    async with network(make_host, 10) as nodes:
        await nodes[2].provide(key_of(D))
        for dead in nodes[5:]:
            await dead.host.shutdown()
        found = await nodes[1].find(key_of(D))
        assert [c.peer for c in found] == [nodes[2].host.peer_id]


async def test_nobody_speaks_for_others(make_host: MakeHost) -> None:
    async with network(make_host, 2) as nodes:
        liar, victim = nodes
        other = KeyPair.generate().peer_id
        message = Message(
            ADD_PROVIDER, key_of(D), providers=(Contact(other, tuple(liar.host.addresses)),)
        )
        await liar._tell(victim.host.peer_id, PROTOCOL, _framed(encode(message)))
        assert victim.records.get(key_of(D)) == []


async def test_ping_and_malformed_requests(make_host: MakeHost) -> None:
    async with network(make_host, 2) as (a, b):
        await a.ping(b.host.peer_id)
        for raw in (encode(Message(GET_PROVIDERS)), encode(Message(0, b"k")), b"\x12\xff", b"\x0b"):
            stream = await a.host.open(b.host.peer_id, PROTOCOL)
            await stream.write(bytes([len(raw)]) + raw)
            with pytest.raises(PeerError):
                await stream.read_frame(1000)
        await a.ping(b.host.peer_id)


async def test_discovery_names_members_and_counts(make_host: MakeHost) -> None:
    async with network(make_host, 3) as (a, b, c), AsyncExitStack() as stack:
        view = View(
            [
                Member(node="b", peer_id=str(b.host.peer_id), transfer="10.0.0.2:29501"),
                Member(node="a", peer_id=str(a.host.peer_id), transfer="10.0.0.1:29501"),
            ]
        )
        nodes = [
            await stack.enter_async_context(
                running(Discovery(name, kad, lambda: view, SystemClock(), transfer_port=7))
            )
            for name, kad in (("a", a), ("b", b), ("c", c))
        ]

        async def holds(count: int) -> bool:
            return len(await nodes[0].find(D)) == count

        for node in nodes[1:]:
            node.announce(D)
        await until(lambda: holds(2))
        holders = await nodes[0].find(D)
        assert {(h.node, h.address) for h in holders} == {
            ("b", "10.0.0.2:29501"),
            (str(c.host.peer_id), "127.0.0.1:7"),
        }
        assert await nodes[0].holder_count(D) == 2
        assert nodes[0].health() == 1.0
        nodes[1].withdraw(D)
        await until(lambda: holds(1))
        assert await nodes[0].holder_count(D) == 2, "a minute old at most"


def test_cid_of_the_specification() -> None:
    assert cid_of(D) == "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"
    assert key_of(D).hex() == "1220" + D.hex


def test_health_is_the_cube_root_of_its_parts(virtual: VirtualClock) -> None:
    async def main() -> None:
        health = Health(virtual)
        assert health.score(0, 0) == 1.0
        assert health.score(1, 8) == pytest.approx(0.5)
        for _ in range(20):
            health.lookup_took(2.6)
        assert health.score(8, 8) == pytest.approx(0.5 ** (1 / 3))
        health.tested(True)
        health.tested(False)
        assert health.score(8, 8) == pytest.approx(0.25 ** (1 / 3))
        await virtual.sleep(301)
        assert health.score(8, 8) == pytest.approx(0.5 ** (1 / 3))

    virtual.run(main)


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=8), st.integers(1, 30))
def test_closest_is_sorted_by_distance(key: bytes, count: int) -> None:
    own, *others = peers(60)
    table = RoutingTable(own)
    known = [p for p in others if table.add(p)]
    where = position(key)
    expected = sorted(known, key=lambda p: position(p) ^ where)[:count]
    assert table.closest(where, count) == expected


def test_full_buckets_keep_those_that_answer() -> None:
    own, *others = peers(400)
    table = RoutingTable(own, bucket=4)
    for peer in others:
        table.add(peer)
    kept = table.peers()
    assert len(kept) < 60
    stranger = next(p for p in others if p not in table)
    assert not table.add(stranger)
    for peer in kept:
        table.failed(peer)
    assert table.add(stranger)
    assert len(table) == len(kept)


def test_records_expire_and_are_bounded(virtual: VirtualClock) -> None:
    async def main() -> None:
        records = ProviderRecords(virtual, validity=100)
        where = (Multiaddr.parse("/ip4/1.2.3.4/tcp/5"),)
        everybody = peers(MAX_HOLDERS + 10)
        for peer in everybody:
            records.add(b"k", peer, where)
        assert len(records.get(b"k")) == MAX_HOLDERS
        assert records.get(b"k")[0].peer == everybody[-1]
        await virtual.sleep(101)
        assert records.get(b"k") == []
        assert len(records) == 0

    virtual.run(main)


@given(st.binary(max_size=200))
def test_arbitrary_kademlia_bytes_are_a_message_or_a_violation(raw: bytes) -> None:
    try:
        message = decode(raw)
    except ProtocolViolation:
        return
    assert decode(encode(message)) == message


def test_a_dht_that_is_unwell_does_not_count_holders(virtual: VirtualClock) -> None:
    async def main() -> None:
        host = Host(KeyPair.generate())
        kad = Kademlia(host, clock=virtual)
        view = View([Member(node=n) for n in "ab"])
        discovery = Discovery("a", kad, lambda: view, virtual)
        with pytest.raises(LeaseholdError, match="cannot tell"):
            await discovery.holder_count(D)

    virtual.run(main)
