"""The proxy alone, held by a real keeper, with upstreams that the test plays itself."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from leasehold.core.service import Group, running
from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.ingress.table import Server
from leasehold.deploy.keeper.client import KeeperClient

Handler = Callable[["Request"], Awaitable[None]]


@contextlib.asynccontextmanager
async def proxy(folder: Path, **options: Any) -> AsyncIterator[Ingress]:
    """Stopped like a provider's: the process goes on until :func:`cleared`."""
    keeper = KeeperClient(folder / "keeper")
    ingress = Ingress(
        keeper, folder / "ingress", network=None, address="127.0.0.1", ports=(0,), **options
    )
    async with running(Group([keeper, ingress])):
        yield ingress


@contextlib.asynccontextmanager
async def cleared(folder: Path) -> AsyncIterator[None]:
    """Ends the keeper and what it holds, whatever happened."""
    try:
        yield
    finally:
        keeper = KeeperClient(folder / "keeper")
        async with running(keeper):
            await keeper.retire(force=True)


@dataclass
class Request:
    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def body(self) -> bytes:
        """All of it; IncompleteReadError when the sender gives up."""
        lower = self.head.lower()
        if b"transfer-encoding: chunked" in lower:
            found = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                found += (await self.reader.readexactly(size + 2))[:-2]
            return found
        if b"content-length:" in lower:
            size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
            return await self.reader.readexactly(size)
        return b""

    async def answer(self, text: str = "ok", status: str = "200 OK") -> None:
        body = text.encode()
        self.writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n".encode()
            + b"Connection: close\r\n\r\n"
            + body
        )
        await self.writer.drain()


@dataclass
class Upstream:
    """A replica's HTTP server: ``handler`` answers, ``requests`` are the heads seen."""

    handler: Handler
    requests: list[bytes] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Server]:
        served = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with served:
            yield Server("127.0.0.1", served.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            await self.handler(Request(head, reader, writer))
        except (asyncio.IncompleteReadError, OSError, ValueError):
            pass
        finally:
            writer.close()


async def ask(
    port: int, text: str, body: bytes = b"", *, tls: ssl.SSLContext | None = None, sni: str = ""
) -> tuple[int, bytes]:
    """``(status, head and body)`` of a request given as its head lines; 0 when it was cut off."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls, server_hostname=sni or None
    )
    try:
        lines = [*text.split("|"), "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        found = b""
        with contextlib.suppress(OSError):
            found = await reader.read()
        return (int(found.split(b" ", 2)[1]) if found else 0), found
    finally:
        writer.close()


def chunked(data: bytes, size: int = 8192) -> bytes:
    parts = [data[n : n + size] for n in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


def self_signed(*names: str, serial: int = 1, days: int = 30) -> str:
    """Chain and key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (certificate.public_bytes(serialization.Encoding.PEM) + private).decode()


async def served(port: int, host: str) -> x509.Certificate | None:
    """The certificate a client gets that asks for ``host``; None when it is turned away."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=host
        )
    except (ssl.SSLError, OSError):
        return None
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(found)
