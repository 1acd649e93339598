"""Putting one image together: which digests it needs, and where each of them came from.

The manifest leads to the config, the config to the layers. All blobs are fetched side by side;
layers are unpacked bottom first, each as soon as it and those below are there, because an upper
layer borrows what it does not say from the lower ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leasehold.core.errors import LeaseholdError, not_found
from leasehold.images import oci
from leasehold.images.download import Download, read_all, too_large
from leasehold.images.ports import ContentKind, Credentials, FailureClass, OriginError, Reader
from leasehold.images.records import Part
from leasehold.images.staging import BLOCK, disk_errors
from leasehold.images.store import FileReader
from leasehold.model.digest import Digest
from leasehold.model.reference import Reference

if TYPE_CHECKING:
    from leasehold.images.service import Images

MANIFEST_DEPTH = 3
"""Indexes inside indexes that are followed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ``ensure`` is. Bytes are compressed ones; ``total`` is 0 until it is known."""

    phase: str
    """``resolving``, ``fetching``, ``unpacking`` or ``ready``."""
    bytes: int = 0
    total: int = 0
    layers_done: int = 0
    layers: int = 0


ProgressCallback = Callable[[Progress], None]


class Teller:
    """The latest progress, told whenever it changes."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._values: dict[str, Any] = {}

    def __call__(self, **changes: Any) -> None:
        self._values.update(changes)
        if self._callback is not None:
            self._callback(Progress(**self._values))


class Assembly:
    """One ``ensure``: which digests it needs and where each came from."""

    def __init__(
        self, images: Images, reference: Reference, credentials: Credentials | None, tell: Teller
    ) -> None:
        self.images = images
        self.reference = reference
        self.credentials = credentials
        self.tell = tell
        self.parts: list[Part] = []
        self.needs: set[Digest] = set()
        """What must not be evicted before the image is together."""
        self._received: dict[str, int] = {}
        self._slots = asyncio.Semaphore(images.settings.image_concurrency)

    def sources(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for part in self.parts:
            for source, count in part.sources.items():
                out[source] = out.get(source, 0) + count
        return out

    async def manifest(self, digest: Digest) -> tuple[Digest, oci.Manifest]:
        """The manifest for this machine below ``digest``."""
        for _ in range(MANIFEST_DEPTH):
            descriptor = oci.Descriptor(oci.OCI_MANIFEST, str(digest), -1)
            content = await self.small(descriptor, ContentKind.MANIFEST)
            found = oci.parse_manifest(content, max_layers=self.images.settings.layers)
            if isinstance(found, oci.Manifest):
                return digest, found
            digest = Digest.parse(oci.choose(found).digest)
        raise LeaseholdError("manifest_invalid", "the image's indexes are nested too deeply")

    async def small(self, descriptor: oci.Descriptor, kind: ContentKind) -> bytes:
        """A manifest or config, whole."""
        digest = Digest.parse(descriptor.digest)
        await self.have(digest, kind, None if descriptor.size < 0 else descriptor.size)
        reader = await self.images.store.open(digest)
        if reader is None:
            raise not_found("image content", digest, hint="It was evicted while in use.")
        limit = self.images.settings.manifest_bytes
        try:
            content = await read_all(reader, limit)
        finally:
            await reader.close()
        if content is None:
            raise too_large(digest, limit)
        return content

    async def layers(
        self, manifest: oci.Manifest, config: dict[str, Any], claimed: list[Path]
    ) -> list[Path]:
        """All layers, fetched side by side and unpacked in order; ``claimed`` keeps them."""
        diff_ids = [Digest.parse(d) for d in config["rootfs"]["diff_ids"]]
        if len(diff_ids) != len(manifest.layers):
            raise LeaseholdError(
                "manifest_invalid",
                "the image's config and manifest disagree on the number of layers",
                expected=len(diff_ids),
                got=len(manifest.layers),
            )
        here = self.images.layers.present()
        wanted = [
            (Digest.parse(layer.digest), layer.size)
            for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
            if diff_id not in here
        ]
        self.tell(phase="fetching", layers=len(diff_ids), total=sum(s for _, s in wanted))
        directories: list[Path] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                fetches = {
                    digest: tasks.create_task(self._fetch(digest, size))
                    for digest, size in dict(wanted).items()
                }
                for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
                    found = await self._directory(layer, diff_id, directories, fetches, claimed)
                    directories.append(found)
                    self.tell(layers_done=len(directories))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return directories

    async def _directory(
        self,
        layer: oci.Descriptor,
        diff_id: Digest,
        below: Sequence[Path],
        fetches: Mapping[Digest, asyncio.Task[None]],
        claimed: list[Path],
    ) -> Path:
        digest = Digest.parse(layer.digest)
        while True:
            found = await self.images.layers.find(diff_id, below)
            if found is None:
                await (fetches.get(digest) or self._fetch(digest, layer.size))
                found = await self._unpack(digest, diff_id, below)
            elif digest not in fetches:
                self.parts.append(Part(str(digest), "layer", layer.size, {"cache": layer.size}))
            claimed.append(found)
            self.images.layers.claimed[found] += 1
            if found.is_dir():  # not collected between the look and the claim
                return found

    async def _fetch(self, digest: Digest, size: int) -> None:
        async with self._slots:
            await self.have(digest, ContentKind.BLOB, size)

    async def _unpack(self, digest: Digest, diff_id: Digest, below: Sequence[Path]) -> Path:
        self.tell(phase="unpacking")
        reader = await self.images.store.open(digest)
        if reader is None:
            raise not_found("layer", digest, hint="It was evicted while in use.")
        began = self.images.clock.monotonic()
        try:
            async with _descriptor(reader, self.images.layers.root) as fd:
                found = await self.images.layers.unpack(fd, digest, diff_id, below)
        finally:
            await reader.close()
        for part in self.parts:
            if part.digest == digest:
                part.unpack_seconds = self.images.clock.monotonic() - began
        return found

    async def have(self, digest: Digest, kind: ContentKind, size: int | None) -> None:
        """``digest`` in the store, from wherever it is."""
        store, downloads = self.images.store, self.images.downloads
        self.needs.add(digest)
        held = await store.size(digest)
        if held is not None:
            self.parts.append(Part(str(digest), kind.label, held, {"cache": held}))
            return
        began = self.images.clock.monotonic()
        ref = self.reference
        for attempt in (1, 2):
            download = downloads.get(
                digest, kind, ref.registry, ref.repository, size, self.credentials
            )
            try:
                await self._follow(download)
                break
            except OriginError as error:
                # It was refused to whoever asked first; our own credentials may be better.
                mine = download.credentials == self.credentials
                if mine or attempt == 2 or error.failure is not FailureClass.AUTH:
                    raise
        self.parts.append(
            Part(
                str(digest),
                kind.label,
                download.received,
                dict(download.sources),
                self.images.clock.monotonic() - began,
            )
        )

    async def _follow(self, download: Download) -> None:
        while not download.ended:
            if download.kind is ContentKind.BLOB:
                self._received[download.digest] = download.received
                self.tell(bytes=sum(self._received.values()))
            await download.changed()
        await download.finish()
        if download.kind is ContentKind.BLOB:
            self._received[download.digest] = download.received
            self.tell(bytes=sum(self._received.values()))


@contextlib.asynccontextmanager
async def _descriptor(reader: Reader, folder: Path) -> AsyncIterator[int]:
    """A file with the content: the store's own, or a nameless copy while it is unpacked."""
    if isinstance(reader, FileReader):
        yield reader.fd
        return
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        while piece := await reader.read(offset, BLOCK):
            with disk_errors():
                await asyncio.to_thread(os.pwrite, fd, piece, offset)
            offset += len(piece)
        yield fd
    finally:
        os.close(fd)
