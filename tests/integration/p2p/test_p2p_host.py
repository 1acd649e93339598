"""Hosts on real sockets: exchanges, negotiation, dialling, caps and endings."""

from __future__ import annotations

import asyncio
import os

import pytest
from loopback import ECHO, MakeHost, address, ask

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.p2p import identify
from leasehold.p2p.connection import Connection
from leasehold.p2p.errors import PeerError
from leasehold.p2p.host import Host
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.ping import ping
from leasehold.p2p.settings import P2PSettings
from leasehold.p2p.yamux import Stream


async def test_many_exchanges_at_once_on_one_connection(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    await a.connect(b.peer_id, [address(b)])
    messages = [os.urandom(i * 7 % 3000) for i in range(400)]
    answers = await asyncio.gather(*(ask(a, b.peer_id, m) for m in messages))
    assert answers == messages
    assert len(a._connections[b.peer_id]) == 1
    assert await ask(b, a.peer_id, b"back") == b"back", "the other side may ask as well"
    assert (a.budget.used, b.budget.used) == (0, 0)


async def test_a_mebibyte_there_and_back(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    a.learn(b.peer_id, [address(b)])
    message = os.urandom(1 << 20)
    assert await ask(a, b.peer_id, message) == message
    with pytest.raises(PeerError):
        await ask(a, b.peer_id, message + b"!")


async def test_ping_and_identify(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    seen: asyncio.Future[identify.Identity] = asyncio.get_running_loop().create_future()
    b.on_identified.append(lambda _, said: seen.done() or seen.set_result(said))
    await a.connect(b.peer_id, [address(b)])
    assert 0 < await ping(a, b.peer_id) < 5
    said = await asyncio.wait_for(seen, 5)
    assert said.public_key == a.keys.public
    assert said.addresses == tuple(a.addresses)
    assert ECHO in said.protocols
    assert b.known_addresses(a.peer_id) == tuple(a.addresses), "learnt without being told"


async def test_a_changed_identity_is_pushed(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    news: asyncio.Queue[identify.Identity] = asyncio.Queue()
    b.on_identified.append(lambda _, said: news.put_nowait(said))
    a_knows: asyncio.Queue[object] = asyncio.Queue()
    a.on_identified.append(lambda *_: a_knows.put_nowait(None))
    await a.connect(b.peer_id, [address(b)])
    async with asyncio.timeout(5):
        await news.get()
        await a_knows.get()
        a.handle("/new/1.0.0", lambda *_: asyncio.sleep(0), deadline=1.0)
        await a.push_identity()
        assert "/new/1.0.0" in (await news.get()).protocols


async def test_the_best_common_protocol_is_agreed_and_remembered(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    connection = await a.connect(b.peer_id, [address(b)])
    for _ in range(2):
        stream = await a.open(b.peer_id, "/newer/2.0.0", ECHO)
        stream.close()
        assert stream.protocol in (ECHO, "")
        assert connection.chosen.get(("/newer/2.0.0", ECHO), ECHO) == ECHO
    with pytest.raises(PeerError) as refusal:
        await ask(a, b.peer_id, protocol="/unknown/1.0.0")
    assert refusal.value.code == "protocol_unsupported"
    assert await ask(a, b.peer_id) == b"hello", "the connection is as good as before"


async def test_dials_are_shared_and_failures_not_remembered(make_host: MakeHost) -> None:
    a, keys = await make_host(), KeyPair.generate()
    b = Host(keys, P2PSettings(listen=["/ip4/127.0.0.1/tcp/0"]))
    async with running(b):
        where = b.addresses
        made = await asyncio.gather(*(a.connect(keys.peer_id, where) for _ in range(20)))
        assert len({id(c) for c in made}) == 1
    await made[0].done
    with pytest.raises(PeerError) as refusal:
        await a.connect(keys.peer_id, where)
    assert refusal.value.code == "dial_failed"
    again = Host(keys, P2PSettings(listen=[str(where[0])]))
    async with running(again):
        loop = asyncio.get_running_loop()
        at = loop.time()
        await a.connect(keys.peer_id)
        assert loop.time() - at < 1.0, "no penalty for the failure before"


async def test_a_dead_address_beside_a_good_one_costs_a_moment(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    # 192.0.2.0/24 is for documentation: nothing answers there.
    await a.connect(b.peer_id, [Multiaddr.parse("/ip4/192.0.2.1/tcp/9"), *b.addresses])


async def test_a_stranger_in_place_of_the_peer_is_not_talked_to(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    with pytest.raises(PeerError, match="expected"):
        await a.connect(KeyPair.generate().peer_id, b.addresses)
    with pytest.raises(PeerError):
        await a.connect(a.peer_id, a.addresses)


async def test_only_allowed_peers_get_in() -> None:
    members = {KeyPair.from_seed(b"m" * 32).peer_id}
    settings = P2PSettings(listen=["/ip4/127.0.0.1/tcp/0"])
    guarded = Host(KeyPair.generate(), settings, allow=members.__contains__)
    member, stranger = (
        Host(KeyPair.from_seed(b"m" * 32), settings),
        Host(KeyPair.generate(), settings),
    )
    async with running(guarded), running(member), running(stranger):
        await member.connect(guarded.peer_id, guarded.addresses)
        assert await ping(member, guarded.peer_id) > 0
        with pytest.raises((PeerError, TimeoutError)):
            async with asyncio.timeout(2):
                await stranger.connect(guarded.peer_id, guarded.addresses)
                await ping(stranger, guarded.peer_id)


async def test_idle_connections_make_room_for_new_ones(make_host: MakeHost) -> None:
    b = await make_host(max_connections=3)
    clients = [await make_host() for _ in range(5)]
    for client in clients:
        await client.connect(b.peer_id, b.addresses)
        assert await ask(client, b.peer_id) == b"hello"
    assert b._count <= 3
    assert await ask(clients[0], b.peer_id) == b"hello", "evicted, dials again"


async def test_a_raising_handler_costs_its_stream_only(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()

    async def broken(_: Stream, __: Connection) -> None:
        raise ZeroDivisionError("handler bug")

    b.handle("/broken/1.0.0", broken, deadline=5.0)
    await a.connect(b.peer_id, b.addresses)
    for _ in range(3):
        with pytest.raises(PeerError):
            await ask(a, b.peer_id, protocol="/broken/1.0.0")
    assert await ask(a, b.peer_id) == b"hello"


async def test_a_silent_handler_is_ended_at_its_deadline(make_host: MakeHost) -> None:
    a, b = await make_host(), await make_host()
    ended = asyncio.Event()

    async def silent(_: Stream, __: Connection) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    b.handle("/silent/1.0.0", silent, deadline=0.3)
    await a.connect(b.peer_id, b.addresses)
    with pytest.raises(PeerError):
        await ask(a, b.peer_id, protocol="/silent/1.0.0")
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_peer_that_vanished_is_noticed(make_host: MakeHost) -> None:
    """The socket stays open but nobody answers: the keep-alive ends the connection."""
    a = await make_host(keepalive_interval=0.2, keepalive_timeout=0.3)
    b = await make_host()
    connection = await a.connect(b.peer_id, b.addresses)
    for other in b._connections[a.peer_id]:
        other._transport.pause_reading()  # type: ignore[union-attr]
    await asyncio.wait_for(connection.done, 5)
    with pytest.raises(PeerError):
        await ask_on(connection)


async def ask_on(connection: Connection) -> None:
    assert connection.session is not None
    connection.session.open()


async def test_a_port_in_use_names_the_setting(make_host: MakeHost) -> None:
    a = await make_host()
    with pytest.raises(LeaseholdError) as refusal:
        await make_host(listen=[str(a.addresses[0])])
    assert refusal.value.path == "p2p.listen"


async def test_stopping_ends_connections_and_handlers(make_host: MakeHost) -> None:
    a = await make_host()
    b = Host(KeyPair.generate(), P2PSettings(listen=["/ip4/127.0.0.1/tcp/0"]))
    started = asyncio.Event()

    async def forever(_: Stream, __: Connection) -> None:
        started.set()
        await asyncio.sleep(3600)

    b.handle("/forever/1.0.0", forever, deadline=3600.0)
    async with running(b):
        stream = await a.open((await a.connect(b.peer_id, b.addresses)).peer, "/forever/1.0.0")
        await stream.write(b"x")
        await started.wait()
        at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - at < 3
    with pytest.raises(PeerError):
        await stream.read()
