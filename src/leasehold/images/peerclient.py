"""Asking another node, over connections that prove who answers.

A small HTTP/1.1 client on asyncio streams, because a peer's certificate must be checked after the
handshake and before the request, and because bodies go straight to where they are wanted. GET and
HEAD with Content-Length only, which is all the transfer endpoint speaks. Connections are kept and
reused, a few for each node; one that fails is closed, never repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.metrics import counter
from leasehold.images import peertls
from leasehold.images.ports import Holder
from leasehold.images.settings import ImagesSettings

IDLE = 4
"""Idle connections kept for one node."""

IDLE_TOTAL = 128
HEADER_BYTES = 16 * 1024
READ = 256 * 1024
DIAL_SECONDS = 2.0
"""Until a host that says nothing at all is taken for dead (the original's)."""

BUFFER = 1024 * 1024
"""Bytes a connection reads ahead before the sender has to wait."""

DIALED = counter("p2p_peer_dial_success_total", "Connections made to other nodes")
UNDIALED = counter("p2p_peer_dial_failure_total", "Connections to other nodes that failed")


class PeerError(LeaseholdError):
    """The node did not answer as it should; another one may."""

    def __init__(self, why: str, *, outcome: str = "error") -> None:
        super().__init__("peer_failed", why, kind=Kind.UNAVAILABLE)
        self.outcome = outcome


class Answer:
    """Status and headers of an answer; the body must be read to its end or the connection goes."""

    def __init__(self, status: int, headers: Mapping[str, str], client: PeerClient) -> None:
        self.status = status
        self.headers = headers
        self._client = client
        length = headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 19:
            raise PeerError("an answer without a length")
        self.length = int(length)
        self.left = self.length
        self._reader: asyncio.StreamReader | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; :class:`PeerError` ``stall`` when nothing comes for too long."""
        assert self._reader is not None
        while self.left:
            piece = await self._client.patiently(self._reader.read(min(READ, self.left)))
            if not piece:
                raise PeerError("the node broke off", outcome="stall")
            self.left -= len(piece)
            yield piece

    async def body(self, limit: int) -> bytes:
        """The whole body, at most ``limit`` bytes."""
        if self.length > limit:
            raise PeerError("an answer beyond all bounds")
        out = bytearray()
        async for piece in self.chunks():
            out += piece
        return bytes(out)


class PeerClient:
    """Connections of this node to others. ``node`` is our own name."""

    def __init__(self, settings: ImagesSettings, clock: Clock, node: str) -> None:
        self.settings = settings
        self.clock = clock
        self.node = node
        self._tls = None if settings.plaintext else peertls.client_context()
        self._idle: dict[
            tuple[str, str | None], list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        ] = {}
        self._idle_count = 0

    async def patiently(self, work: object) -> bytes:
        """Wait for bytes, within the stall limit."""
        try:
            async with self.clock.timeout(self.settings.peer_stall_seconds):
                return await work  # type: ignore[misc, no-any-return]
        except TimeoutError:
            raise PeerError("the node sends nothing", outcome="stall") from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise PeerError(f"the connection broke: {error}") from None

    @contextlib.asynccontextmanager
    async def request(
        self, holder: Holder, path: str, *, method: str = "GET", span: tuple[int, int] | None = None
    ) -> AsyncIterator[Answer]:
        """Ask ``holder``; ``span`` is (start, end exclusive)."""
        key = (holder.address, holder.peer_id)
        connection, fresh = await self._connection(holder)
        clean = False
        try:
            try:
                answer = await self._exchange(connection, holder, path, method, span)
            except PeerError:
                if fresh:
                    raise
                # An idle connection may have been closed at the other end: once more, anew.
                self._close(connection)
                connection = await self._dial(holder)
                answer = await self._exchange(connection, holder, path, method, span)
            if method == "HEAD":
                answer.left = 0
            yield answer
            clean = answer.left == 0 and answer.headers.get("connection", "") != "close"
        finally:
            pool = self._idle.setdefault(key, [])
            if clean and len(pool) < IDLE and self._idle_count < IDLE_TOTAL:
                pool.append(connection)
                self._idle_count += 1
            else:
                self._close(connection)
            if not pool:
                self._idle.pop(key, None)

    async def close(self) -> None:
        """Close what is idle."""
        for pool in self._idle.values():
            for connection in pool:
                self._close(connection)
        self._idle.clear()
        self._idle_count = 0

    async def _connection(
        self, holder: Holder
    ) -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter], bool]:
        pool = self._idle.get((holder.address, holder.peer_id))
        while pool:
            reader, writer = pool.pop()
            self._idle_count -= 1
            if not reader.at_eof() and not writer.is_closing():
                return (reader, writer), False
            self._close((reader, writer))
        return await self._dial(holder), True

    async def _dial(self, holder: Holder) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = holder.address.rpartition(":")
        tls: ssl.SSLContext | None = self._tls
        if tls is not None and holder.peer_id is None:
            raise PeerError(f"{holder.node} has no peer id to check its certificate against")
        sock: socket.socket | None = None
        try:
            # The kernel of a host that lives answers at once; its node may be busy, and gets the
            # time of any other silence for the handshake.
            async with self.clock.timeout(min(DIAL_SECONDS, self.settings.connect_seconds)):
                sock = await _connected(host.strip("[]"), int(port))
            async with self.clock.timeout(self.settings.peer_stall_seconds):
                reader, writer = await asyncio.open_connection(
                    sock=sock, ssl=tls, server_hostname="node" if tls else None, limit=BUFFER
                )
        except (TimeoutError, OSError, ValueError) as error:
            if sock is not None:
                sock.close()
            UNDIALED.inc()
            raise PeerError(f"{holder.node} cannot be reached: {error or 'no answer'}") from None
        if tls is not None:
            assert holder.peer_id is not None
            try:
                found = writer.get_extra_info("ssl_object")
                peertls.check(found.getpeercert(True), holder.peer_id, self.clock.now())
            except LeaseholdError as error:
                UNDIALED.inc()
                writer.transport.abort()
                raise PeerError(error.message, outcome="corrupt") from None
        DIALED.inc()
        return reader, writer

    async def _exchange(
        self,
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        holder: Holder,
        path: str,
        method: str,
        span: tuple[int, int] | None,
    ) -> Answer:
        reader, writer = connection
        wanted = f"Range: bytes={span[0]}-{span[1] - 1}\r\n" if span else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {holder.address}\r\nGantry-Mirrored: 1\r\n"
            f"Leasehold-Node: {self.node}\r\n{wanted}\r\n"
        )
        try:
            writer.write(head.encode("latin-1"))
        except (OSError, RuntimeError) as error:
            raise PeerError(f"the connection broke: {error}") from None
        raw = await self.patiently(reader.readuntil(b"\r\n\r\n"))
        if len(raw) > HEADER_BYTES:
            raise PeerError("a header beyond all bounds")
        lines = raw.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise PeerError("an answer that is no HTTP")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        if "transfer-encoding" in headers:
            raise PeerError("an answer without a length")
        answer = Answer(int(parts[1]), headers, self)
        answer._reader = reader
        return answer

    def _close(self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        connection[1].transport.abort()


async def _connected(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        family, address = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)
        socket.inet_pton(family, host)
    except OSError:  # a name, not an address
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, address = found[0][0], found[0][4][:2]  # type: ignore[assignment]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
