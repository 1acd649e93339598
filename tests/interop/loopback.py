"""Hosts on loopback, and a raw attacker that speaks Noise by hand."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from leasehold.p2p import multistream, varint
from leasehold.p2p.connection import Connection
from leasehold.p2p.host import Host
from leasehold.p2p.keys import KeyPair, PeerId
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.security import SecureHandshake
from leasehold.p2p.yamux import Stream

ECHO = "/test/echo/1.0.0"
MakeHost = Callable[..., Awaitable[Host]]


async def echo(stream: Stream, _: Connection) -> None:
    message = await stream.read_frame(1 << 20)
    await stream.write(varint.encode(len(message)) + message, fin=True)


async def ask(host: Host, peer: PeerId, message: bytes = b"hello", protocol: str = ECHO) -> bytes:
    async with asyncio.timeout(5):
        stream = await host.open(peer, protocol)
        try:
            await stream.write(varint.encode(len(message)) + message)
            return await stream.read_frame(1 << 20)
        finally:
            stream.close()


def address(host: Host) -> Multiaddr:
    return host.addresses[0].with_peer(host.peer_id)


class Attacker:
    """A client with a valid identity that may then send any bytes it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""

    @classmethod
    async def connect(cls, host: Host) -> Attacker:
        where = host.addresses[0].tcp()
        assert where is not None
        self = cls(*await asyncio.open_connection(*where))
        self.writer.write(multistream.opening("/noise"))
        await self.reader.readexactly(len(multistream.opening("/noise")))
        keys = KeyPair.generate()
        self.peer_id = keys.peer_id
        handshake = SecureHandshake(keys, initiator=True, muxers=("/yamux/1.0.0",))
        self.raw(handshake.first())
        self.raw(handshake.read_second(await self.message()))
        secured = handshake.finish()
        self.seal, self.unseal = secured.send, secured.receive
        return self

    def raw(self, message: bytes) -> None:
        self.writer.write(len(message).to_bytes(2, "big") + message)

    async def message(self) -> bytes:
        size = int.from_bytes(await self.reader.readexactly(2), "big")
        return await self.reader.readexactly(size)

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), 60_000):
            self.raw(self.seal.encrypt(data[at : at + 60_000]))

    def frame(self, kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> None:
        self.send(struct.pack(">BBHII", 0, kind, flags, stream, length) + body)

    def open(self, stream: int, data: bytes) -> None:
        """Open ``stream`` and send ``data`` on it."""
        self.frame(0, 1, stream, len(data), data)

    async def until_closed(self, seconds: float = 10.0) -> None:
        """Read (and drop) until the other side ends the connection."""
        async with asyncio.timeout(seconds):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass

    async def frames(self) -> AsyncIterator[tuple[int, int, int, int]]:
        """Headers of the frames the other side sends: kind, flags, stream, length."""
        buffer = b""
        while True:
            buffer += self.unseal.decrypt(await self.message())
            while len(buffer) >= 12:
                _, kind, flags, stream, length = struct.unpack_from(">BBHII", buffer)
                body = length if kind == 0 else 0
                if len(buffer) < 12 + body:
                    break
                buffer = buffer[12 + body :]
                yield kind, flags, stream, length

    def close(self) -> None:
        self.writer.close()


async def until(condition: Callable[[], object | Awaitable[object]], seconds: float = 5.0) -> None:
    """Wait for something that nobody announces."""
    async with asyncio.timeout(seconds):
        while True:
            now = condition()
            if (await now) if isinstance(now, Awaitable) else now:
                return
            await asyncio.sleep(0.01)
