"""A store that is containerd's own: content is kept once, by the engine that runs it.

Blobs are read and written through containerd's content service (``content.v1`` over its socket),
in its namespace, under a lease of an hour, so that its garbage collector leaves fresh content alone
until an image refers to it. Bytes arrive in a staging file of ours (they come in any order) and are
handed over when they are complete and verified; containerd verifies them again. What leaves is
containerd's decision: there is no eviction here.

A containerd that does not answer is *unavailable*: neither "here" nor "not here", and nothing is
withdrawn because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.images.ports import StoreUnavailable
from leasehold.images.settings import ImagesSettings
from leasehold.images.staging import BLOCK, Staged, disk_errors, disk_full, read_at
from leasehold.model.digest import Digest, is_digest
from leasehold.p2p import protobuf

CONTENT = "/containerd.services.content.v1.Content/"
LEASES = "/containerd.services.leases.v1.Leases/"

LEASE_SECONDS = 3600.0
"""How long fresh content is safe from containerd's garbage collector without an image."""

RENEW_SECONDS = 1200.0
CALL_SECONDS = 10.0
WRITE, COMMIT = 1, 2
"""Actions of ``WriteContentRequest``."""

Metadata = tuple[tuple[str, str], ...]

log = get_logger(__name__)


class ContentReader:
    """Content of containerd, read in ranges; the last block read is kept."""

    def __init__(self, store: ContainerdStore, digest: Digest, size: int) -> None:
        self._store = store
        self._digest = digest
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        length = min(length, self._size - offset)
        return await self._store.read(self._digest, offset, length) if length > 0 else b""

    async def close(self) -> None:
        return None


class ContainerdStore(Service):
    """A ``Store`` on containerd. ``root`` holds only what is on its way in."""

    def __init__(
        self, root: Path, settings: ImagesSettings | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__("containerd store", clock=clock or SystemClock())
        self.settings = settings or ImagesSettings()
        self._tmp = root / "tmp"
        self._lease = f"leasehold-{secrets.token_hex(8)}"
        self._metadata: Metadata = (("containerd-namespace", self.settings.containerd_namespace),)

    async def start(self) -> None:
        with disk_errors():
            self._tmp.mkdir(parents=True, exist_ok=True)
            for leftover in self._tmp.iterdir():
                leftover.unlink()
        # Any: raw bytes in and out, which the stubs do not know.
        self._channel: Any = grpc.aio.insecure_channel(
            f"unix://{self.settings.containerd_socket}",
            options=[("grpc.max_receive_message_length", 16 * 1024 * 1024)],
        )
        self.resources.push_async_callback(self._channel.close, None)
        self.spawn(self._keep_lease(), name="lease")

    async def has(self, digest: Digest) -> bool:
        return await self.size(digest) is not None

    async def size(self, digest: Digest) -> int | None:
        try:
            answer = await self._call(CONTENT + "Info", protobuf.put_text(1, digest))
        except KeyError:
            return None
        for number, _, info in protobuf.fields(answer):
            if number == 1 and not isinstance(info, int):
                return _info(bytes(info))[1]
        return None

    async def open(self, digest: Digest) -> ContentReader | None:
        size = await self.size(digest)
        return None if size is None else ContentReader(self, digest, size)

    async def writer(self, digest: Digest, size: int | None = None) -> Staged:
        with disk_errors():
            free = shutil.disk_usage(self._tmp).free
        if free < 2 * (size or 0):  # staged here and written there, for a moment
            raise disk_full(f"{digest} needs twice its {size} bytes for a moment, {free} are free")
        path = self._tmp / f"{secrets.token_hex(16)}.partial"
        return Staged(path, digest, self._adopt, fsync=False)

    async def delete(self, digest: Digest) -> bool:
        try:
            await self._call(CONTENT + "Delete", protobuf.put_text(1, digest))
        except KeyError:
            return False
        return True

    async def digests(self) -> AsyncIterator[Digest]:
        call = self._channel.unary_stream(CONTENT + "List")(
            b"", metadata=self._metadata, timeout=60.0
        )
        with _unavailable():
            async for answer in call:
                for number, _, info in protobuf.fields(answer):
                    if number == 1 and not isinstance(info, int):
                        name, _size = _info(bytes(info))
                        if is_digest(name):
                            yield Digest(name)

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """A range of content."""
        request = (
            protobuf.put_text(1, digest) + protobuf.put_int(2, offset) + protobuf.put_int(3, length)
        )
        call = self._channel.unary_stream(CONTENT + "Read")(
            request, metadata=self._metadata, timeout=60.0
        )
        out = bytearray()
        with _unavailable():
            async for answer in call:
                for number, _, data in protobuf.fields(answer):
                    if number == 2 and not isinstance(data, int):
                        out += data
        return bytes(out)

    async def verify(self, digest: Digest) -> bool | None:
        """containerd verified it at commit; here it is hashed again."""
        size = await self.size(digest)
        if size is None:
            return None
        got, offset = hashlib.sha256(), 0
        while offset < size:
            piece = await self.read(digest, offset, BLOCK)
            if not piece:
                return False
            await asyncio.to_thread(got.update, piece)
            offset += len(piece)
        return got.hexdigest() == digest.hex

    # --- handing over ---

    async def _adopt(self, path: Path, digest: Digest, size: int) -> None:
        """Stream the verified file into containerd and commit it there."""
        metadata = (*self._metadata, ("containerd-lease", self._lease))
        call = self._channel.stream_stream(CONTENT + "Write")(metadata=metadata)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        head = (
            protobuf.put_text(2, f"leasehold-{digest.short}-{secrets.token_hex(4)}")
            + protobuf.put_int(3, size)
            + protobuf.put_text(4, digest)
        )
        try:
            with _unavailable():
                offset = 0
                while offset < size:
                    data = await read_at(fd, offset, min(BLOCK, size - offset))
                    await call.write(
                        protobuf.put_int(1, WRITE)
                        + head
                        + protobuf.put_int(5, offset)
                        + protobuf.put_bytes(6, data)
                    )
                    await call.read()
                    offset += len(data)
                await call.write(protobuf.put_int(1, COMMIT) + head + protobuf.put_int(5, size))
                await call.read()
                await call.done_writing()
        except FileExistsError:
            pass  # somebody else (containerd itself) brought it meanwhile
        finally:
            os.close(fd)
            call.cancel()
        path.unlink(missing_ok=True)

    async def _keep_lease(self) -> None:
        """A lease with an end, renewed by a new one before that: a crash leaves nothing behind."""
        while True:
            name = f"leasehold-{secrets.token_hex(8)}"
            until = datetime.datetime.fromtimestamp(
                self.clock.now() + LEASE_SECONDS, datetime.UTC
            ).strftime("%Y-%m-%dT%H:%M:%SZ")
            label = protobuf.put_text(1, "containerd.io/gc.expire") + protobuf.put_text(2, until)
            request = protobuf.put_text(1, name) + protobuf.put_bytes(3, label)
            try:
                await self._call(LEASES + "Create", request)
                self._lease = name
                await self.clock.sleep(RENEW_SECONDS)
            except (StoreUnavailable, KeyError) as error:
                log.warning("containerd.unavailable", error=str(error))
                await self.clock.sleep(5.0)

    async def _call(self, method: str, request: bytes) -> bytes:
        with _unavailable():
            answer = await self._channel.unary_unary(method)(
                request, metadata=self._metadata, timeout=CALL_SECONDS
            )
            return bytes(answer)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """What containerd's status codes mean: ``KeyError`` is "not there"."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        code = error.code()
        if code is grpc.StatusCode.NOT_FOUND:
            raise KeyError(error.details()) from None
        if code is grpc.StatusCode.ALREADY_EXISTS:
            raise FileExistsError(error.details()) from None
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise disk_full(error.details() or "containerd has no room") from None
        raise StoreUnavailable(f"containerd does not answer: {error.details()}") from None
    except protobuf.ProtobufError as error:
        raise StoreUnavailable(f"containerd answered nonsense: {error}") from None


def _info(raw: bytes) -> tuple[str, int]:
    name, size = "", 0
    for number, _, value in protobuf.fields(raw):
        if number == 1:
            name = protobuf.text(value)
        elif number == 2 and isinstance(value, int):
            size = value
    return name, size
