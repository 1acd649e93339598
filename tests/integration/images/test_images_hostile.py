"""Strangers at the listeners: silence, slowness, nonsense, crowds. All bounded and counted."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from leasehold.core.service import running
from leasehold.core.web import HttpServer
from leasehold.images import patience
from leasehold.images.memory import MemoryOrigin
from leasehold.images.ports import ContentKind
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings
from leasehold.images.transfer import Transfer
from leasehold.model.digest import Digest

BLOB = os.urandom(2_000_000)


@contextlib.asynccontextmanager
async def transfer(
    folder: Path, *, header_seconds: float = 0.3, connections: int = 4096
) -> AsyncIterator[HttpServer]:
    settings = ImagesSettings(plaintext=True)
    node = Images(folder, settings=settings, origin=MemoryOrigin(BLOB))
    async with running(node):
        await node.downloads.get(Digest.of(BLOB), ContentKind.BLOB, "r", "a").finish()
        kind = patience.protocol("test", header_seconds=header_seconds, max_connections=connections)
        app = Transfer(node.downloads, settings, node.clock)
        async with running(HttpServer(app, http=kind)) as server:
            yield server


async def ask(server: HttpServer, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def count(why: str) -> float:
    return patience.REFUSED.labels("test", why)._value.get()


async def test_those_who_say_nothing_are_let_go(tmp_path: Path) -> None:
    async with transfer(tmp_path) as server:
        before = count("slow_header")
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(500)]
        async with asyncio.timeout(20):
            for reader, _ in silent:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        assert count("slow_header") - before == 500
        for _, writer in silent:
            writer.close()
        good = await ask(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert good.startswith(b"HTTP/1.1 200")


async def test_a_byte_now_and_then_is_too_slow(tmp_path: Path) -> None:
    async with transfer(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        began = asyncio.get_running_loop().time()

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionError):
            await reader.read()
        assert asyncio.get_running_loop().time() - began < 3
        dripping.cancel()
        writer.close()


async def test_more_connections_than_allowed_are_closed(tmp_path: Path) -> None:
    async with transfer(tmp_path, connections=20, header_seconds=5) as server:
        before = count("too_many")
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(20)]
        await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert count("too_many") > before
        for _, writer in held:
            writer.close()


async def test_nonsense_gets_an_answer_and_the_next_one_is_served(tmp_path: Path) -> None:
    name = Digest.of(BLOB)
    async with transfer(tmp_path) as server:
        mirrored = b"Gantry-Mirrored: 1\r\nConnection: close\r\n"
        for raw in (
            b"\x16\x03\x01\x02\x00" + os.urandom(200),
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /v2/_/blobs/sha256:%s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (b"z" * 64, mirrored),
            b"GET /v2/../../etc/passwd HTTP/1.1\r\nHost: x\r\n" + mirrored + b"\r\n",
            b"GET /v2/_/blobs/%s HTTP/1.1\r\nHost: x\r\nRange: bytes=%s-\r\n%s\r\n"
            % (name.encode(), b"9" * 5000, mirrored),
            b"GET /leasehold/v1/chunks/%s?after=-1 HTTP/1.1\r\nHost: x\r\n%s\r\n"
            % (name.encode(), mirrored),
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n" + mirrored + b"\r\n",
        ):
            answer = await ask(server, raw)
            assert not answer.startswith(b"HTTP/1.1 2"), raw[:80]
        raw = b"GET /v2/_/blobs/%s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (name.encode(), mirrored)
        assert (await ask(server, raw)).endswith(BLOB[-1000:])


async def test_a_reader_that_leaves_frees_its_place(tmp_path: Path) -> None:
    """More than ``serve_cap`` clients start reading and go: the next one is served."""
    name = Digest.of(BLOB)
    async with transfer(tmp_path) as server:
        raw = b"GET /v2/_/blobs/%s HTTP/1.1\r\nHost: x\r\nGantry-Mirrored: 1\r\n%s\r\n"
        for _ in range(15):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            writer.write(raw % (name.encode(), b""))
            await reader.readline()
            writer.transport.abort()
        async with asyncio.timeout(10):
            while True:
                answer = await ask(server, raw % (name.encode(), b"Connection: close\r\n"))
                if answer.startswith(b"HTTP/1.1 200"):
                    break
        assert answer.endswith(BLOB[-1000:])
