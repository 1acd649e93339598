"""Foreign implementations dial us and we dial them: both exchanges, identify, ping, provide, find.

js-libp2p 3.3 and py-libp2p 0.8.1 run as processes (``scripts/interop-setup`` installs them). What
crosses the wire is compared as bytes; what comes back is read by our codec.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from interop_peers import Peer, running_peer
from loopback import MakeHost, address, until

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.images.coord import PROTOCOL_1_0, PROTOCOL_1_1
from leasehold.images.coord.client import Client
from leasehold.images.coord.messages import (
    ALREADY_PULLING,
    STARTED,
    Intent,
    PleasePullRequest,
    PleasePullResponse,
    PullIntentRequest,
    PullResult,
    decode,
    encode,
)
from leasehold.images.coord.server import Server
from leasehold.images.discovery import key_of
from leasehold.images.inflight import InFlight
from leasehold.images.membership import Member, View
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import ContentKind, FailureClass
from leasehold.model.digest import Digest
from leasehold.p2p import varint
from leasehold.p2p.errors import PeerError
from leasehold.p2p.host import Host
from leasehold.p2p.kad import PROTOCOL as KAD
from leasehold.p2p.kad.dht import Kademlia
from leasehold.p2p.keys import PeerId
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.ping import ping

D = Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")


@pytest.fixture(params=["js", "py"])
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    async with running_peer(request.param) as found:
        yield found


class Held:
    async def has(self, digest: Digest) -> bool:
        return digest == D


class Pump:
    async def begin(
        self, registry: str, repository: str, kind: Any, digests: Any, auth: str
    ) -> Any:
        assert (registry, repository, kind) == ("r.example", "a/b", ContentKind.MANIFEST)
        return [PullResult(d, STARTED, started_at=1700000000.5, told=True) for d, _ in digests]


def envelope(frame: bytes) -> str:
    size, start = varint.decode(frame) or (0, 0)
    assert len(frame) == start + size
    return frame[start:].hex()


async def serve(host: Host, theirs: str) -> None:
    view = View([Member(node="us", peer_id=str(host.peer_id)), Member(node=theirs)])
    clock = SystemClock()
    Server(
        "us", lambda: view, Held(), InFlight(clock), NegativeCache(clock), Pump(), clock  # type: ignore
    ).bind(host)  # fmt: skip


async def test_they_ask_us(peer: Peer, make_host: MakeHost) -> None:
    host = await make_host()
    await serve(host, "them")
    us = str(host.peer_id)
    assert (await peer.call("dial", address=str(address(host))))["peer"] == us
    assert (await peer.call("ping", peer=us))["ms"] < 5000

    async def introduced() -> bool:
        return PROTOCOL_1_0 in (await peer.call("protocols", peer=us))["protocols"]

    await until(introduced, 15)

    frame = envelope(encode(PullIntentRequest(D)))
    answers = await asyncio.gather(*(peer.call("rpc", peer=us, frame=frame) for _ in range(50)))
    for answer in answers:
        said = decode(bytes.fromhex(answer["frame"]))
        assert isinstance(said, Intent)
        assert said.has_cached
        assert said.hrw_rank in (0, 1)

    request = PleasePullRequest((D, "sha256:bad"), "r.example", "a/b", ContentKind.MANIFEST)
    answer = await peer.call("rpc", peer=us, frame=envelope(encode(request)))
    expected = PleasePullResponse((PullResult(D, STARTED, started_at=1700000000.5),))
    assert decode(bytes.fromhex(answer["frame"])) == expected

    with pytest.raises(RuntimeError):
        await peer.call("rpc", peer=us, frame="0a03ffffff", timeout=15)
    with pytest.raises(RuntimeError):
        await peer.call("rpc", peer=us, frame="00", protocol="/nope/1.0.0", timeout=15)
    answer = await peer.call("rpc", peer=us, frame=frame)
    assert decode(bytes.fromhex(answer["frame"])) == said, "the connection is as good as before"


async def test_we_ask_them(peer: Peer, make_host: MakeHost) -> None:
    host = await make_host()
    theirs = PeerId.parse(peer.id)
    client = Client(host, None, SystemClock())
    host.learn(theirs, [Multiaddr.parse(a) for a in peer.addresses])
    intent = Intent(in_flight=True, started_at=1700000000.5, hrw_rank=0)
    pulled = PleasePullResponse((PullResult(D, ALREADY_PULLING, started_at=1700000000.5),))
    await peer.call("reply", kind="0a", frame=envelope(encode(intent)))
    await peer.call("reply", kind="1a", frame=envelope(encode(pulled)))

    assert await client.pull_intent_query(peer.id, D) == intent
    answers = await asyncio.gather(*(client.pull_intent_query(peer.id, D) for _ in range(50)))
    assert answers == [intent] * 50
    request = PleasePullRequest((D,), "registry.example.com", "library/nginx", ContentKind.MANIFEST)
    assert await client.please_pull(peer.id, request) == pulled
    frames = (await peer.call("seen"))["frames"]
    assert frames[0] == envelope(encode(PullIntentRequest(D)))
    assert frames[-1] == envelope(encode(request))
    assert len(frames) == 52

    assert await ping(host, theirs) < 5
    connection = host.connection(theirs)
    assert connection is not None
    await until(lambda: connection.protocols)
    assert {PROTOCOL_1_0, KAD} <= connection.protocols
    with pytest.raises(PeerError):
        stream = await host.open(theirs, "/nope/1.0.0")
        await stream.write(b"\x01x")
        await stream.read_frame(10)
    assert await client.pull_intent_query(peer.id, D) == intent


async def test_version_1_1_both_ways(peer: Peer, make_host: MakeHost) -> None:
    host = await make_host()
    await serve(host, "them")
    us, theirs = str(host.peer_id), PeerId.parse(peer.id)
    await peer.call("dial", address=str(address(host)))
    frame = envelope(encode(PullIntentRequest(D)))
    answer = await peer.call("rpc", peer=us, frame=frame, protocol=PROTOCOL_1_1)
    said = decode(bytes.fromhex(answer["frame"]))
    assert isinstance(said, Intent)
    assert said.has_cached

    await peer.call("offer", protocol=PROTOCOL_1_1)
    intent = Intent(hrw_rank=3, recently_failed=True, failure=FailureClass.NOT_FOUND)
    await peer.call("reply", kind="0a", frame=envelope(encode(intent)))
    only = Client(host, None, SystemClock(), protocols=(PROTOCOL_1_1,))
    host.learn(theirs, [Multiaddr.parse(a) for a in peer.addresses])
    assert await only.pull_intent_query(peer.id, D) == intent
    both = Client(host, None, SystemClock())
    assert await both.pull_intent_query(peer.id, D) == intent
    assert (await peer.call("seen"))["frames"] == [frame, frame]


async def test_a_large_message_both_ways(peer: Peer, make_host: MakeHost) -> None:
    host = await make_host()
    theirs = PeerId.parse(peer.id)

    async def mirror(stream: Any, _: Any) -> None:
        message = await stream.read_frame(1 << 20)
        await stream.write(varint.encode(len(message)) + message, fin=True)

    host.handle(PROTOCOL_1_0, mirror, deadline=30.0)
    big = "ff" + "ab" * 900_000
    await peer.call("dial", address=str(address(host)))
    assert (await peer.call("rpc", peer=str(host.peer_id), frame=big))["frame"] == big
    stream = await host.open(theirs, PROTOCOL_1_0)
    body = bytes.fromhex(big)
    await stream.write(varint.encode(len(body)) + body)
    assert await stream.read_frame(1 << 20) == body
    stream.close()


async def test_records_cross_between_implementations(peer: Peer, make_host: MakeHost) -> None:
    host = await make_host()
    theirs = PeerId.parse(peer.id)
    async with running(Kademlia(host)) as kad:
        await peer.call("dial", address=str(address(host)))
        await until(lambda: theirs in kad.table, 15)

        async def in_their_table() -> bool:
            return bool((await peer.call("table"))["size"])

        if peer.kind == "py":  # it adds a peer to its table only when told
            await peer.call("learn", peer=str(host.peer_id))
        await until(in_their_table, 15)

        await peer.call("provide", digest=D.hex)
        await until(lambda: kad.records.get(key_of(D)), 15)
        assert [c.peer for c in await kad.find(key_of(D), 1)] == [theirs]

        other = Digest.of(b"ours")
        assert await kad.provide(key_of(other)) == 1
        found = (await peer.call("find", digest=other.hex))["found"]
        assert str(host.peer_id) in [f["peer"] for f in found]
