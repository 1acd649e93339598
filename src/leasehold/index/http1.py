"""POST over HTTP/1.1 with kept connections: as little as JSON-RPC to one node needs.

A general client spends more time on its pool than on a small answer (measured: 4 ms a request with
20 connections); an index makes two requests a block. One request at a time on a connection, as many
connections as allowed, the last used one first. A kept connection that the node closed meanwhile is
noticed on use and replaced. When one does not answer in time, all kept ones are given up: a network
that forgot one has forgotten all, and each would cost another wait.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from urllib.parse import unquote, urlsplit

MAX_HEADER = 64 * 1024
"""Bytes of the status line and headers of an answer."""

READ = 256 * 1024
"""Bytes a connection buffers before the node has to wait."""

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpFailure(Exception):
    """No answer, or none that is HTTP."""


class Poster:
    """POSTs to one URL. ``timeout`` is seconds for a whole request."""

    def __init__(self, url: str, *, timeout: float, connections: int, max_bytes: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https URL: {url!r}")
        self._host = parts.hostname
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(connections)
        self._idle: list[_Connection] = []
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
            "Accept: application/json",
        ]
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            lines.append(f"Authorization: Basic {base64.b64encode(login.encode()).decode()}")
        self._head = ("\r\n".join(lines) + "\r\nContent-Length: ").encode()

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """``(status, body)`` of the answer; HttpFailure when there is none."""
        request = self._head + str(len(body)).encode() + b"\r\n\r\n" + body
        try:
            async with self._slots, asyncio.timeout(self._timeout):
                while self._idle:
                    kept = self._idle.pop()
                    try:
                        return await self._exchange(kept, request)
                    except (ConnectionError, asyncio.IncompleteReadError):
                        continue
                    except asyncio.CancelledError:
                        self._give_up_kept()
                        raise
                return await self._exchange(await self._connect(), request)
        except TimeoutError:
            raise HttpFailure(f"no answer within {self._timeout:g} s") from None
        except asyncio.IncompleteReadError:
            raise HttpFailure("the connection ended in the middle of the answer") from None
        except asyncio.LimitOverrunError:
            raise HttpFailure(f"headers of more than {MAX_HEADER} bytes") from None
        except (OSError, ValueError) as error:
            raise HttpFailure(str(error) or type(error).__name__) from None

    def _give_up_kept(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _connect(self) -> _Connection:
        return await asyncio.open_connection(self._host, self._port, ssl=self._ssl, limit=READ)

    async def _exchange(self, connection: _Connection, request: bytes) -> tuple[int, bytes]:
        reader, writer = connection
        keep = False
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1")
            status_line, *header_lines = head.split("\r\n")
            version, _, rest = status_line.partition(" ")
            if not version.startswith("HTTP/1."):
                raise ValueError(f"not HTTP/1: {status_line[:100]!r}")
            headers = {}
            for line in header_lines:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            if headers.get("transfer-encoding", "").lower() == "chunked":
                content = await self._chunked(reader)
            elif "content-length" in headers:
                content = await reader.readexactly(self._checked(int(headers["content-length"])))
            else:
                raise ValueError("an answer of unknown length")
            keep = headers.get("connection", "").lower() != "close" and version == "HTTP/1.1"
            return int(rest[:3]), content
        finally:
            # Left half-way, as by a timeout, a connection is of no more use.
            if keep:
                self._idle.append(connection)
            else:
                writer.close()

    async def _chunked(self, reader: asyncio.StreamReader) -> bytes:
        content = bytearray()
        while True:
            size = int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            self._checked(len(content) + size)
            if size:
                content += await reader.readexactly(size)
            line = await reader.readuntil(b"\r\n")
            if size == 0:
                while line != b"\r\n":  # trailers
                    line = await reader.readuntil(b"\r\n")
                return bytes(content)

    def _checked(self, size: int) -> int:
        if not 0 <= size <= self._max_bytes:
            raise ValueError(f"an answer of {size} bytes; at most {self._max_bytes} are read")
        return size

    async def close(self) -> None:
        """Close the kept connections."""
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
