"""What an operator does with images: list, explain, pin, verify, collect garbage.

A layer directory goes when no image that is remembered uses it and no mount on this machine shows
it; an image is forgotten when it is unused for ``keep_seconds``, neither pinned nor held.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from leasehold.core.errors import not_found
from leasehold.core.logs import get_logger
from leasehold.images.eviction import Swept
from leasehold.images.records import Record
from leasehold.model.digest import Digest

if TYPE_CHECKING:
    from leasehold.images.service import Images

log = get_logger(__name__)


class Collected(msgspec.Struct):
    """What ``gc`` took away."""

    images: list[str]
    layers: int
    blobs: int
    blob_bytes: int
    deferred: int


class Verified(msgspec.Struct):
    """What ``verify`` found; ``bad`` digests were dropped and will be fetched again."""

    good: int
    bytes: int
    bad: list[str]


class Housekeeping:
    """The operator's side of :class:`Images`."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def list(self) -> list[Record]:
        """Every image that was made ready here, latest use last."""
        return self._images.records.all()

    def find(self, name: str) -> Record:
        """An image by reference, digest or the beginning of one."""
        found = self._images.records.find(name)
        if found is None:
            raise not_found("image", name, hint="See `leasehold images ls`.")
        return found

    def pin(self, name: str, *, pinned: bool = True) -> Record:
        """Keep an image whatever happens, or no longer."""
        record = self.find(name)
        record.pinned = pinned
        self._images.records.save(record)
        return record

    def hold(self, digest: Digest, by: str) -> None:
        """``by`` (a lease, a container) uses the image until :meth:`release`; twice is once."""
        record = self.find(digest)
        if by not in record.holds:
            record.holds.append(by)
            self._images.records.save(record)

    def release(self, by: str, *, keep: Collection[str] = ()) -> None:
        """``by`` uses no image any more, except the digests in ``keep``."""
        for record in self._images.records.all():
            if by in record.holds and record.digest not in keep:
                record.holds.remove(by)
                self._images.records.save(record)

    def in_use(self) -> set[Digest]:
        """Digests of images that are pinned, held, or being put together."""
        busy = {digest for job in self._images.assembling for digest in job.needs}
        return busy | {
            Digest(digest)
            for record in self._images.records.all()
            if record.pinned or record.holds
            for digest in (
                record.digest,
                record.index,
                record.config,
                *(part.digest for part in record.parts),
            )
        }

    async def verify(self) -> Verified:
        """Hash everything again; what is bad goes, from here and from the records of holders."""
        images = self._images
        result = Verified(0, 0, [])
        async for digest in images.store.digests():
            good = await images.store.verify(digest)
            if good:
                result.good += 1
                result.bytes += await images.store.size(digest) or 0
            elif good is False:
                result.bad.append(str(digest))
                await images.store.delete(digest)
                if images.downloads.announcer is not None:
                    images.downloads.announcer.withdraw(digest)
                log.error("images.blob.corrupt", digest=digest)
        return result

    async def gc(self, keep_seconds: float | None = None) -> Collected:
        """Forget images unused for ``keep_seconds`` (default: the setting), drop what they left."""
        images = self._images
        keep = images.settings.keep_seconds if keep_seconds is None else keep_seconds
        forgotten = []
        for record in images.records.all():
            unused = images.clock.now() - record.at
            if unused > keep and not record.pinned and not record.holds:
                forgotten.append(record.reference)
                images.records.drop(record)
        used = {name for record in images.records.all() for name in record.layers}
        mounted = await asyncio.to_thread(mounted_under, images.layers.root)
        dropped = 0
        for path, _ in images.layers.all():
            busy = images.layers.busy(path)
            if path.name not in used and path.name not in mounted and not busy:
                await images.layers.remove(path)
                dropped += 1
        swept = await images.evictor.sweep() if images.evictor else Swept(0, 0, 0)
        return Collected(forgotten, dropped, swept.evicted, swept.bytes, swept.deferred)


def mounted_under(root: Path) -> set[str]:
    """Names of directories below ``root`` that any mount of any process shows."""
    wanted = str(root.resolve()) + "/"
    found: set[str] = set()
    seen: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            namespace = os.readlink(process / "ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            text = (process / "mountinfo").read_text()
        except OSError:
            continue
        for piece in text.split(wanted)[1:]:
            found.add(piece.split("/", 1)[0].split(":", 1)[0].split(",", 1)[0].split(" ", 1)[0])
    return found
