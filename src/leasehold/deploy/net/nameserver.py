"""The DNS server of the node's leases: one process for all of them. Standard library only.

It answers on the gateway address inside the node's network. Who asks is known by the source
address, which the node's rules make trustworthy; so each replica sees the services of its own
lease and nothing of others. Other names are asked of the host's resolvers through a socket that
was opened on the host, where the lease may go out at all.

The table is a JSON file that is replaced as a whole; it is looked at again when it has changed:
``{"members": {address: lease}, "leases": {lease: {name: [address]}}, "egress": bool,
"upstream": [address]}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import sys
from typing import Any

TTL = 0
"""Seconds answers may be kept: an update moves a name at once."""

MAX_PENDING = 4096
"""Questions to the host's resolvers that may be open at once."""

UPSTREAM_SECONDS = 5.0
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
A, AAAA = 1, 28


class Table:
    """The file, re-read when it changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp = (0, 0)
        self.content: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        try:
            found = os.stat(self.path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._stamp:
                with open(self.path, "rb") as file:
                    self.content = json.load(file)
                self._stamp = stamp
        except (OSError, ValueError):
            pass
        return self.content


class Server(asyncio.DatagramProtocol):
    """One UDP socket towards the replicas, one towards the host's resolvers."""

    def __init__(self, table: Table, upstream: socket.socket | None) -> None:
        self.table = table
        self.upstream = upstream
        self.transport: Any = None
        self._pending: dict[int, tuple[tuple[str, int], int, asyncio.TimerHandle]] = {}
        self._loop = asyncio.get_running_loop()
        if upstream is not None:
            upstream.setblocking(False)
            self._loop.add_reader(upstream, self._answered)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        try:
            name, kind, end = question(data)
        except (ValueError, IndexError, struct.error):
            return
        table = self.table.read()
        lease = table.get("members", {}).get(peer[0])
        if lease is None:
            self.transport.sendto(reply(data, end, REFUSED, []), peer)
            return
        services = table["leases"].get(lease, {})
        if name in services:
            addresses = list(services[name]) if kind == A else []
            random.shuffle(addresses)
            self.transport.sendto(reply(data, end, NOERROR, addresses), peer)
        elif "." not in name or not table.get("egress") or self.upstream is None:
            self.transport.sendto(reply(data, end, NXDOMAIN, []), peer)
        else:
            self._forward(data, end, peer, table.get("upstream") or [])

    def _forward(self, data: bytes, end: int, peer: tuple[str, int], resolvers: list[str]) -> None:
        if not resolvers or len(self._pending) >= MAX_PENDING:
            self.transport.sendto(reply(data, end, SERVFAIL, []), peer)
            return
        number = random.randrange(1 << 16)
        while number in self._pending:
            number = random.randrange(1 << 16)
        expiry = self._loop.call_later(UPSTREAM_SECONDS, self._pending.pop, number, None)
        self._pending[number] = (peer, struct.unpack_from("!H", data)[0], expiry)
        assert self.upstream is not None
        try:
            self.upstream.sendto(
                struct.pack("!H", number) + data[2:], (random.choice(resolvers), 53)
            )
        except OSError:
            expiry.cancel()
            del self._pending[number]
            self.transport.sendto(reply(data, end, SERVFAIL, []), peer)

    def _answered(self) -> None:
        assert self.upstream is not None
        try:
            data, source = self.upstream.recvfrom(4096)
        except OSError:
            return
        if len(data) < 12 or source[0] not in (self.table.read().get("upstream") or ()):
            return
        found = self._pending.pop(struct.unpack_from("!H", data)[0], None)
        if found is not None:
            peer, original, expiry = found
            expiry.cancel()
            self.transport.sendto(struct.pack("!H", original) + data[2:], peer)


def question(data: bytes) -> tuple[str, int, int]:
    """``(name, type, end of the question section)``; ValueError for anything but one question."""
    _, flags, count = struct.unpack_from("!HHH", data)
    if flags & 0x8000 or count != 1:
        raise ValueError("not a question")
    labels = []
    offset = 12
    while True:
        length = data[offset]
        offset += 1
        if length == 0:
            break
        if length > 63:
            raise ValueError("compressed question")
        labels.append(data[offset : offset + length].decode("ascii", "replace").lower())
        offset += length
    kind, _ = struct.unpack_from("!HH", data, offset)
    return ".".join(labels), kind, offset + 4


def reply(data: bytes, end: int, code: int, addresses: list[str]) -> bytes:
    """An answer to the question in ``data``."""
    number, flags = struct.unpack_from("!HH", data)
    flags = 0x8480 | (flags & 0x0100) | code
    head = struct.pack("!HHHHHH", number, flags, 1, len(addresses), 0, 0)
    answers = b"".join(
        struct.pack("!HHHIH", 0xC00C, A, 1, TTL, 4) + socket.inet_aton(address)
        for address in addresses
    )
    return head + data[12:end] + answers


async def main(path: str, address: str, upstream_fd: int) -> None:
    loop = asyncio.get_running_loop()
    upstream = socket.socket(fileno=upstream_fd) if upstream_fd >= 0 else None
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((address, 53))
    table = Table(path)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    await loop.create_datagram_endpoint(lambda: Server(table, upstream), sock=sock)
    await asyncio.Event().wait()


def run() -> None:
    """``argv``: table file, address, descriptor of the host's socket or -1."""
    path, address, upstream = sys.argv[-3:]
    asyncio.run(main(path, address, int(upstream)))
