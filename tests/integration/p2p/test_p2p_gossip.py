"""Members by word of mouth, on real hosts: everybody hears of everybody, and of nobody false."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import MakeHost, address, until

from leasehold.core.service import running
from leasehold.images import gossip as module
from leasehold.images.gossip import PROTOCOL, Announcement, Gossip, News
from leasehold.images.membership import AnnouncedMembers, Member
from leasehold.p2p.errors import PeerError
from leasehold.p2p.host import Host
from leasehold.p2p.keys import KeyPair


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND", 0.1)
    monkeypatch.setattr(module, "FIRST_ROUND", 0.05)
    monkeypatch.setattr(module, "REFRESH", 0.3)


@dataclass
class Node:
    host: Host
    members: AnnouncedMembers
    gossip: Gossip

    @property
    def names(self) -> list[str]:
        return list(self.members.view.members)


@asynccontextmanager
async def node(
    make_host: MakeHost,
    name: str,
    seeds: Sequence[Node] = (),
    *,
    keys: KeyPair | None = None,
    secret: bytes = b"",
) -> AsyncIterator[Node]:
    host = await make_host(keys)
    members = AnnouncedMembers(ttl=1.5)
    made = Gossip(host, members, seeds=[address(s.host) for s in seeds], secret=secret)
    async with running(members), running(made):
        members.announce_own(
            Member(node=name, peer_id=str(host.peer_id), addresses=(str(address(host)),))
        )
        yield Node(host, members, made)


async def test_all_hear_of_all_and_of_those_who_leave(make_host: MakeHost) -> None:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(make_host, "n0"))]
        for i in range(1, 6):
            nodes.append(await stack.enter_async_context(node(make_host, f"n{i}", nodes[:1])))
        everybody = [f"n{i}" for i in range(6)]
        await until(lambda: all(n.names == everybody for n in nodes), 10)
        async with node(make_host, "n6", nodes[3:4]):
            await until(lambda: all("n6" in n.names for n in nodes))
        await until(lambda: all(n.names == everybody for n in nodes), 10)
        # One that says nothing any more is forgotten; talking about it does not keep it alive.
        await nodes[5].host.shutdown()
        await until(lambda: all("n5" not in n.names for n in nodes[:5]), 10)
        await asyncio.sleep(0.5)
        assert all(n.names == everybody[:5] for n in nodes[:5])


async def test_a_name_belongs_to_whom_has_it(make_host: MakeHost) -> None:
    async with node(make_host, "a") as a, node(make_host, "b", [a]) as b:
        await until(lambda: a.names == b.names == ["a", "b"])
        async with node(make_host, "b", [a]) as thief:
            await until(lambda: "a" in thief.names)
            await asyncio.sleep(0.3)
            assert a.members.view.members["b"].peer_id == str(b.host.peer_id)


async def test_a_restarted_node_is_itself_again(make_host: MakeHost) -> None:
    keys = KeyPair.generate()
    async with node(make_host, "a") as a:
        for _ in range(2):
            async with node(make_host, "b", [a], keys=keys):
                await until(lambda: a.names == ["a", "b"])
            await until(lambda: a.names == ["a"])


async def test_only_those_who_know_the_secret(make_host: MakeHost) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(node(make_host, "a", secret=b"s3"))
        await stack.enter_async_context(node(make_host, "b", [first], secret=b"s3"))
        await stack.enter_async_context(node(make_host, "c", [first], secret=b"guess"))
        await stack.enter_async_context(node(make_host, "d", [first]))
        await until(lambda: first.names == ["a", "b"])
        await asyncio.sleep(0.5)
        assert first.names == ["a", "b"]


def said(keys: KeyPair, name: str, number: int, **changes: Any) -> Announcement:
    member = Member(node=name, peer_id=str(keys.peer_id), **changes.pop("member", {}))
    plain = Announcement(msgspec.json.encode(member), number, False, b"")
    signed = msgspec.structs.replace(plain, signature=keys.sign(plain.signed))
    return msgspec.structs.replace(signed, **changes)


async def test_what_is_not_believed(make_host: MakeHost) -> None:
    keys, other = KeyPair.generate(), KeyPair.generate()
    async with node(make_host, "a") as a:
        now = int(a.gossip.clock.now() * 1000)
        good = said(keys, "x", now)
        elses = msgspec.json.encode(Member(node="x", peer_id=str(other.peer_id)))
        cases = {
            "bad_signature": msgspec.structs.replace(good, member=elses),
            "too_old": msgspec.structs.replace(good, age=1e9),
            "from_the_future": said(keys, "x", now + 10**9),
            "malformed": said(keys, "", now),
            "too_large": said(keys, "x" * 5000, now),
            "name_taken": said(keys, "a", now),
        }
        for why, announcement in cases.items():
            assert a.gossip._believe(announcement) == why
        assert a.gossip._believe(msgspec.structs.replace(good, leaving=True)) == "bad_signature"
        assert a.names == ["a"]
        assert a.gossip._believe(good) == ""
        older = said(keys, "x", now - 1, member={"transfer": "elsewhere:1"})
        assert a.gossip._believe(older) == ""
        assert a.members.view.members["x"].transfer == ""


async def test_garbage_costs_a_stream(make_host: MakeHost) -> None:
    async with node(make_host, "a") as a:
        stranger = await make_host()
        stranger.learn(a.host.peer_id, a.host.addresses)
        for raw in (b"\xc1", b"\x93\x01", msgspec.msgpack.encode(News([])), b""):
            stream = await stranger.open(a.host.peer_id, PROTOCOL)
            await stream.write(bytes([len(raw)]) + raw)
            with pytest.raises(PeerError):
                await stream.read_frame(1000)
        async with node(make_host, "b", [a]) as b:
            await until(lambda: b.names == ["a", "b"])


@given(st.binary(max_size=300))
def test_arbitrary_members_are_members_or_malformed(raw: bytes) -> None:
    keys = KeyPair.from_seed(bytes(32))
    gossip = Gossip(Host(keys), AnnouncedMembers(Member(node="a", peer_id=str(keys.peer_id))))
    plain = Announcement(raw, 1, False, b"x" * 64)
    assert gossip._believe(plain) in {"malformed", "bad_signature", "too_large"}
