"""What strangers tried on other implementations, tried on ours.

Each attack runs against a host while an honest peer keeps asking: the host must live, the honest
peer must be served, and what the host keeps must stay within its bounds.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from loopback import ECHO, Attacker, MakeHost, ask

from leasehold.p2p import multistream, varint
from leasehold.p2p.errors import PeerError
from leasehold.p2p.host import Host
from leasehold.p2p.yamux import WINDOW

OPENING = multistream.opening(ECHO)


@asynccontextmanager
async def honest(host: Host, make_host: MakeHost, worst: float = 2.0) -> AsyncIterator[None]:
    """An honest peer asks all the while, and every answer comes within ``worst`` seconds."""
    client = await make_host()
    await client.connect(host.peer_id, host.addresses)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def keep_asking() -> int:
        count = 0
        while not done.is_set() or count < 20:
            at = loop.time()
            assert await ask(client, host.peer_id, b"still there?") == b"still there?"
            assert loop.time() - at < worst
            count += 1
            await asyncio.sleep(0.01)
        return count

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(keep_asking())
        yield
        done.set()
    assert asking.result() >= 20


async def test_5000_streams_that_say_nothing(make_host: MakeHost) -> None:
    host = await make_host(negotiate_timeout=1.0)
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        for stream in range(1, 10_001, 2):
            attacker.frame(1, 1, stream, 0)
        resets = 0
        async with asyncio.timeout(20):
            async for kind, flags, _, _ in attacker.frames():
                resets += kind == 1 and bool(flags & 8)
                if resets == 5000:
                    break
    assert host.budget.used == 0
    connections = host._connections[attacker.peer_id]
    assert all(c.session is not None and c.session.inbound == 0 for c in connections)
    attacker.close()


async def test_5000_negotiated_streams_then_silence(make_host: MakeHost) -> None:
    host = await make_host()
    host.handle("/slow/1.0.0", lambda s, _: s.read_frame(100), deadline=1.0)
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        for stream in range(1, 10_001, 2):
            attacker.open(stream, multistream.opening("/slow/1.0.0"))
        ended: set[int] = set()
        async with asyncio.timeout(20):
            async for _, flags, stream, _ in attacker.frames():
                if flags & 8:
                    ended.add(stream)
                if len(ended) == 5000:
                    break
        assert not host._handlers or len(host._handlers) < 20
    attacker.close()


async def test_one_byte_a_moment_does_not_outlive_the_deadline(make_host: MakeHost) -> None:
    host = await make_host()
    host.handle("/slow/1.0.0", lambda s, _: s.read_frame(1 << 20), deadline=0.6)
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        attacker.open(1, multistream.opening("/slow/1.0.0") + varint.encode(1000))
        reading = attacker.frames()
        async with asyncio.timeout(5):
            while True:
                attacker.frame(0, 0, 1, 1, b"x")
                try:
                    async with asyncio.timeout(0.05):
                        _, flags, _, _ = await anext(reading)
                except TimeoutError:
                    reading = attacker.frames()
                    continue
                if flags & 8:
                    break
    attacker.close()


async def test_a_flood_past_the_window_is_cut_off(make_host: MakeHost) -> None:
    """Nobody reads the stream; the peer sends on and on. It gets its window and no byte more."""
    host = await make_host()
    host.handle("/deaf/1.0.0", lambda *_: asyncio.sleep(30), deadline=30.0)
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        attacker.open(1, multistream.opening("/deaf/1.0.0"))
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(10):
                for _ in range(4000):
                    attacker.frame(0, 0, 1, 50_000, bytes(50_000))
                    await attacker.writer.drain()
        assert host.budget.used <= WINDOW
    attacker.close()


async def test_many_streams_within_their_windows_stay_within_the_budget(
    make_host: MakeHost,
) -> None:
    host = await make_host(receive_budget_per_connection=4 << 20)
    host.handle("/deaf/1.0.0", lambda *_: asyncio.sleep(30), deadline=30.0)
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        opening = multistream.opening("/deaf/1.0.0")
        for stream in range(1, 401, 2):
            attacker.open(stream, opening)
            attacker.frame(0, 0, stream, 200_000, bytes(200_000))
            await attacker.writer.drain()
        resets = 0
        async with asyncio.timeout(10):
            async for _, flags, _, _ in attacker.frames():
                resets += bool(flags & 8)
                if resets >= 170:
                    break
        assert host.budget.used <= 4 << 20
    attacker.close()


async def test_the_window_of_an_ended_stream_buffers_nothing(make_host: MakeHost) -> None:
    host = await make_host()
    host.handle("/brief/1.0.0", lambda *_: asyncio.sleep(0), deadline=5.0)
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        attacker.open(1, multistream.opening("/brief/1.0.0"))
        async with asyncio.timeout(20):
            async for _, flags, _, _ in attacker.frames():
                if flags & 4:  # its end
                    break
        for _ in range(200):
            attacker.frame(0, 0, 1, 50_000, bytes(50_000))
            await attacker.writer.drain()
        attacker.frame(2, 1, 0, 7)
        async with asyncio.timeout(20):
            async for kind, *_ in attacker.frames():
                if kind == 2:  # the answer to our ping: all before it was read
                    break
        assert host.budget.used == 0
    attacker.close()


async def test_a_ping_flood_without_reading_is_cut_off(make_host: MakeHost) -> None:
    host = await make_host(max_output=1 << 20)
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        pings = struct.pack(">BBHII", 0, 2, 1, 0, 7) * 4000
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(20):
                while True:
                    attacker.send(pings)
                    await attacker.writer.drain()
    attacker.close()


async def test_a_peer_that_stops_reading_wedges_nobody_else(make_host: MakeHost) -> None:
    """The deadline fires while the answer waits for a stalled peer: its stream ends, no more."""
    host = await make_host()

    async def flood(stream, _) -> None:  # type: ignore[no-untyped-def]
        await stream.write(bytes(100 << 20))

    host.handle("/flood/1.0.0", flood, deadline=0.5)
    async with honest(host, make_host):
        stalled = await make_host()
        connection = await stalled.connect(host.peer_id, host.addresses)
        stream = await stalled.open_on(connection, "/flood/1.0.0")
        await stream.write(b"go")
        await asyncio.sleep(1.2)
        with pytest.raises(PeerError):
            while await stream.read(1 << 20):
                pass
        assert await ask(stalled, host.peer_id) == b"hello", "the connection itself is fine"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(70_000),
        b"\xff" * 100,
        multistream.opening("/plaintext/2.0.0"),
        multistream.HEADER + multistream.line(b"\xff\xfe"),
        multistream.opening("/noise") + b"\xff\xff" + b"x" * 65535,
        multistream.opening("/noise") + b"\x00\x00",
        multistream.opening("/noise") + b"\x00\x20" + bytes(32) + b"\x00\x01x",
    ],
)
async def test_garbage_instead_of_a_handshake(make_host: MakeHost, data: bytes) -> None:
    host = await make_host(handshake_timeout=0.5)
    async with honest(host, make_host):
        where = host.addresses[0].tcp()
        assert where is not None
        reader, writer = await asyncio.open_connection(*where)
        writer.write(data)
        async with asyncio.timeout(5):
            try:
                while await reader.read(65536):
                    pass
            except ConnectionError:
                pass
        writer.close()
    assert not host._pending


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        multistream.HEADER + b"\x03\xff\xfe\n",
        multistream.HEADER + multistream.line(b"x" * 2000),
        multistream.HEADER + multistream.line(b"/nope") * 40,
        OPENING + b"\xff" * 20,
        OPENING + varint.encode(1 << 40),
    ],
)
async def test_garbage_on_a_stream(make_host: MakeHost, data: bytes) -> None:
    """Invalid UTF-8 in a protocol name among them, which has ended whole processes elsewhere."""
    host = await make_host()
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        attacker.open(1, data)
        async with asyncio.timeout(5):
            async for _, flags, stream, _ in attacker.frames():
                if stream == 1 and flags & 8:
                    break
    attacker.close()


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">BBHII", 1, 0, 0, 1, 0),
        struct.pack(">BBHII", 0, 7, 0, 1, 0),
        struct.pack(">BBHII", 0, 0, 1, 0, 3) + b"abc",
        struct.pack(">BBHII", 0, 1, 1, 2, 0),
        struct.pack(">BBHII", 0, 0, 1, 1, 0xFFFFFFFF),
        struct.pack(">BBHII", 0, 1, 1, 1, 0) * 2,
    ],
)
async def test_broken_frames_end_the_connection(make_host: MakeHost, frame: bytes) -> None:
    host = await make_host()
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        attacker.send(frame)
        await attacker.until_closed()


async def test_a_forged_message_ends_the_connection(make_host: MakeHost) -> None:
    host = await make_host()
    async with honest(host, make_host):
        attacker = await Attacker.connect(host)
        attacker.raw(b"x" * 50)
        await attacker.until_closed()


async def test_300_silent_sockets_lock_nobody_out(make_host: MakeHost) -> None:
    host = await make_host(max_pending=64)
    where = host.addresses[0].tcp()
    assert where is not None
    sockets = [await asyncio.open_connection(*where) for _ in range(300)]
    async with honest(host, make_host):
        assert len(host._pending) <= 64
    for _, writer in sockets:
        writer.close()


async def test_disconnecting_at_every_step_leaks_nothing(make_host: MakeHost) -> None:
    host = await make_host(handshake_timeout=1.0)
    async with honest(host, make_host):
        where = host.addresses[0].tcp()
        assert where is not None
        steps = multistream.opening("/noise") + b"\x00\x20" + bytes(range(32))
        for cut in range(0, len(steps) + 1, 5):
            _, writer = await asyncio.open_connection(*where)
            writer.write(steps[:cut])
            writer.transport.abort()
        attackers = []
        for _ in range(20):
            attackers.append(attacker := await Attacker.connect(host))
            attacker.open(1, OPENING + varint.encode(100) + b"half")
            attacker.writer.transport.abort()
    async with asyncio.timeout(5):
        for attacker in attackers:
            for connection in list(host._connections.get(attacker.peer_id, ())):
                await connection.done
    assert (len(host._pending), host._count, host.budget.used) == (0, 1, 0)
