"""POST over kept HTTP/1.1 connections, with as little as a local RPC needs.

A question to the ledger costs 0.15 ms of the server's time; the general client adds over a
millisecond of its own, and more the more questions are on their way. This one knows one URL, one
method, plain or TLS, lengths or chunks, and nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

from leasehold.core.errors import Kind, LeaseholdError

MAX_ANSWER = 64 << 20
"""Bytes of one answer."""

MAX_IDLE = 100
"""Connections kept open between calls."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Connections:
    """Connections to the server of ``url`` (``http://…`` or ``https://…``)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LeaseholdError(
                "bad_url",
                f"{url!r} is no RPC address",
                kind=Kind.MALFORMED,
                expected="http://host:port",
                got=url,
            )
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        path = parts.path or "/"
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._idle: list[Connection] = []

    async def post(self, body: bytes) -> bytes:
        """The answer's body, whatever its status. ``OSError`` when there is no whole answer."""
        while self._idle:
            kept = self._idle.pop()
            try:
                return await self._exchange(kept, body)
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                # The server may have closed it since; only a new one tells whether it is there.
                continue
        fresh = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=1 << 20)
        try:
            return await self._exchange(fresh, body)
        except (EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise ConnectionError(f"no answer: {error}") from None

    async def _exchange(self, connection: Connection, body: bytes) -> bytes:
        reader, writer = connection
        try:
            writer.write(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
            await writer.drain()
            answer, keep = await _read(reader)
        except BaseException:
            writer.close()
            raise
        if keep and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            writer.close()
        return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """``(body, whether the connection stays open)`` of one answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
    if not head.startswith("http/1.1 "):
        raise ValueError("not HTTP/1.1")
    fields = dict(line.split(":", 1) for line in head.split("\r\n")[1:] if ":" in line)
    keep = fields.get("connection", "").strip() != "close"
    if "chunked" in fields.get("transfer-encoding", ""):
        return await _read_chunks(reader), keep
    length = int(fields["content-length"]) if "content-length" in fields else -1
    if not 0 <= length <= MAX_ANSWER:
        raise ValueError("an answer without a length, or too long")
    return await reader.readexactly(length), keep


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        if len(body) + size > MAX_ANSWER:
            raise ValueError("an answer too long")
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return bytes(body)
