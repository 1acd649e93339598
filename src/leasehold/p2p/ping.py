"""ping: 32 random bytes, echoed; measures the way there and back through all layers."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from leasehold.p2p.errors import ProtocolViolation
from leasehold.p2p.yamux import Stream

if TYPE_CHECKING:
    from leasehold.p2p.connection import Connection
    from leasehold.p2p.host import Host
    from leasehold.p2p.keys import PeerId

PROTOCOL = "/ipfs/ping/1.0.0"
SIZE = 32
DEADLINE = 60.0
"""Seconds a ping stream may live; a peer that wants to go on opens another."""


async def serve(stream: Stream, _connection: Connection) -> None:
    """Echo until the peer stops."""
    while data := await stream.read(SIZE):
        if len(data) < SIZE:
            data += await stream.read_exactly(SIZE - len(data))
        await stream.write(data)


async def ping(host: Host, peer: PeerId) -> float:
    """Seconds there and back."""
    loop = asyncio.get_running_loop()
    stream = await host.open(peer, PROTOCOL)
    try:
        sent, at = secrets.token_bytes(SIZE), loop.time()
        await stream.write(sent)
        if await stream.read_exactly(SIZE) != sent:
            raise ProtocolViolation("ping_mismatch", "the peer echoed other bytes")
        return loop.time() - at
    finally:
        stream.close()
