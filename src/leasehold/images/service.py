"""Images for the rest of Leasehold: a reference in, unpacked layers out.

``ensure`` resolves the reference (tag → digest at the registry), proves that the caller may use it,
fetches manifest, config and layers by digest, unpacks them bottom first while the next ones still
arrive, and answers with the config and the layer directories. Everything below a digest is shared
with whoever else wants it at the time; a repeated call finds everything here and takes one request
to the registry at most.

What every image took (bytes from where, seconds) is kept beside it: ``explain``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import histogram
from leasehold.core.service import Group, Service
from leasehold.images import oci
from leasehold.images.access import Access, denied
from leasehold.images.assembly import Assembly, Progress, ProgressCallback, Teller
from leasehold.images.download import Downloads
from leasehold.images.eviction import Evictor
from leasehold.images.housekeeping import Housekeeping
from leasehold.images.mirror import Mirror
from leasehold.images.mirror import server as mirror_server
from leasehold.images.origin import RegistryOrigin
from leasehold.images.peerclient import PeerClient
from leasehold.images.peers import Peers
from leasehold.images.ports import (
    Announcer,
    ContentKind,
    Credentials,
    FailureClass,
    Origin,
    OriginError,
    Resolver,
)
from leasehold.images.records import Record, Records
from leasehold.images.settings import ImagesSettings
from leasehold.images.store import FileStore
from leasehold.images.transfer import server as transfer_server
from leasehold.images.unpack import Layers
from leasehold.model.digest import Digest
from leasehold.model.reference import Reference
from leasehold.p2p.keys import KeyPair

if TYPE_CHECKING:
    from leasehold.images.containerd import ContainerdStore
    from leasehold.images.fleet import Fleet

SETTLE_SECONDS = 10.0
"""Between two syncs of layers and memories to disk, and looks whether the store answers."""

PROBE = Digest.of(b"")
"""Asked of the store to see whether it answers."""

ENSURE = histogram("leasehold_images_ensure_seconds", "Reference to unpacked layers", ["cold"])

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Image:
    """An image ready to run. ``layers`` are directories for overlayfs, bottom first."""

    reference: str
    digest: Digest
    """Of the platform's manifest."""
    config: dict[str, Any]
    """The OCI image config document: ``config``, ``rootfs``, ``history``, ..."""
    layers: list[Path]
    bytes: int
    """Compressed bytes of the config and all layers."""
    sources: dict[str, int] = field(default_factory=dict)
    """Bytes by where they came from: ``origin``, ``cache`` or ``peer:<node>``."""
    seconds: float = 0.0


class Images(Service):
    """The image system of a node, rooted at a directory.

    ``mirror`` and ``transfer`` open those endpoints. ``cooperate`` (before the start) adds other
    nodes; without it every digest comes from its registry. ``origin`` replaces the registries'
    client in tests. ``keys`` is the node's identity, needed by a transfer over TLS.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock | None = None,
        settings: ImagesSettings | None = None,
        *,
        origin: Origin | None = None,
        keys: KeyPair | None = None,
        mirror: bool = False,
        transfer: bool = False,
    ) -> None:
        super().__init__("images", clock=clock or SystemClock())
        self.root = root
        self.settings = settings or ImagesSettings()
        self.registries = RegistryOrigin(self.settings, self.clock)
        self.origin: Origin = origin or self.registries
        self.store = store_of(root / "store", self.settings, self.clock)
        self.downloads = Downloads(self.store, self.origin, self.settings, self.clock)
        self.layers = Layers(root / "layers", self.settings)
        self.access = Access(root / "access.json", self.clock)
        self.records = Records(root / "images")
        self.mirror = Mirror(
            self.downloads,
            self.origin,
            self.registries.known,
            self.access,
            self.settings,
            self.clock,
        )
        self.mirror_server = mirror_server(self.mirror) if mirror else None
        self.transfer_server = (
            transfer_server(self.downloads, self.settings, self.clock, keys, root / "tls")
            if transfer
            else None
        )
        self.keeping = Housekeeping(self)
        self.assembling: set[Assembly] = set()
        # containerd's content leaves when containerd says so.
        self.evictor = (
            Evictor(self.store, self.settings, self.clock, self.keeping.in_use)
            if isinstance(self.store, FileStore)
            else None
        )
        self._peers: PeerClient | None = None
        self.fleet: Fleet | None = None
        """What is known of other nodes; None without any."""
        self.unready: str | None = None
        """Why this node should not get requests: its store cannot be asked."""

    def cooperate(self, resolver: Resolver, announcer: Announcer | None, node: str) -> None:
        """Ask other nodes first. ``node`` is our own name among them. Call it before the start."""
        self._peers = PeerClient(self.settings, self.clock, node)
        self.downloads.peers = Peers(resolver, self._peers, self.settings, self.clock)
        self.downloads.announcer = announcer
        if self.evictor is not None:
            self.evictor.announcer = announcer
        self.mirror.resolver = resolver

    async def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock()
        await asyncio.to_thread(self.layers.prepare)
        self.access.load()
        self.records.load()
        services: list[Service] = [self.registries, self.store, self.downloads]
        services += [s for s in (self.transfer_server, self.mirror_server) if s is not None]
        parts = Group(services, "image parts", clock=self.clock)
        self.spawn(parts.serve(), name="parts")
        self._parts = parts
        for part in parts.services:
            await part._started.wait()
        self.spawn(self._settle(), name="settle")
        self._crowded = asyncio.Event()
        self.downloads.committed.append(lambda _digest, _size: self._crowded.set())
        self.spawn(self._evict(), name="evict")
        self.spawn(self._collect(), name="gc")

    def _lock(self) -> None:
        """One process uses a folder: another one's start would empty its staging."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.resources.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LeaseholdError(
                "images_in_use",
                f"another process uses the images in {self.root}",
                kind=Kind.CONFLICT,
                path=str(self.root),
            ) from None

    async def _evict(self) -> None:
        """Look after every commit whether the store has become too big."""
        while True:
            await self._crowded.wait()
            self._crowded.clear()
            try:
                if self.evictor is not None and self.evictor.needed:
                    await self.evictor.sweep()
            except (LeaseholdError, OSError) as error:
                log.warning("images.eviction.failed", error=str(error))

    async def _collect(self) -> None:
        while True:
            await self.clock.sleep(self.settings.gc_seconds)
            try:
                await self.keeping.gc()
            except (LeaseholdError, OSError) as error:
                log.warning("images.gc.failed", error=str(error))

    async def stop(self) -> None:
        self.mirror.draining = True
        await self._parts.shutdown()
        if self._peers is not None:
            await self._peers.close()
        await self.layers.settle()
        self.access.save()

    async def _settle(self) -> None:
        while True:
            await self.clock.sleep(SETTLE_SECONDS)
            try:
                await self.layers.settle()
                await asyncio.to_thread(self.access.save)
                await self.store.has(PROBE)
                self.unready = None
            except LeaseholdError as error:
                self.unready = error.message
            except OSError as error:
                log.warning("images.settle.failed", error=str(error))

    async def ensure(
        self,
        reference: str,
        *,
        credentials: Credentials | None = None,
        progress: ProgressCallback | None = None,
        holder: str = "",
    ) -> Image:
        """Have ``reference`` here, unpacked, for the holder of ``credentials`` (None: anybody).

        ``holder`` (a lease) uses the image from now on: neither its bytes nor its layers leave
        this node before ``keeping.release(holder)``.

        Errors: ``reference_malformed``, ``image_not_found``, ``origin_auth``,
        ``image_access_denied``, ``registry_unreachable``, ``platform_missing``, ``disk_full``,
        ``layer_refused``, ``layer_too_large``, ``digest_mismatch``.
        """
        began = self.clock.monotonic()
        tell = Teller(progress)
        tell(phase="resolving")
        ref = Reference.parse(reference)
        digest = await self.resolve(ref, credentials)
        await self.authorize(ref, digest, credentials)
        job = Assembly(self, ref, credentials, tell)
        self.assembling.add(job)
        claimed: list[Path] = []
        try:
            manifest_digest, manifest = await job.manifest(digest)
            config = oci.parse_config(await job.small(manifest.config, ContentKind.CONFIG))
            directories = await job.layers(manifest, config, claimed)
            self._record(ref, digest, manifest_digest, manifest, directories, job, began, holder)
        finally:
            self.assembling.discard(job)
            self.layers.let_go(claimed)
        seconds = self.clock.monotonic() - began
        sources = job.sources()
        ENSURE.labels("no" if set(sources) <= {"cache"} else "yes").observe(seconds)
        tell(phase="ready")
        log.info("image.ready", image=str(ref), seconds=round(seconds, 3), **sources)
        return Image(
            str(ref), manifest_digest, config, directories, manifest.size, sources, seconds
        )

    def _record(
        self,
        reference: Reference,
        index: Digest,
        digest: Digest,
        manifest: oci.Manifest,
        directories: list[Path],
        job: Assembly,
        began: float,
        holder: str,
    ) -> None:
        self.records.put(
            Record(
                reference=str(reference),
                digest=str(digest),
                index=str(index),
                size=manifest.size,
                at=self.clock.now(),
                seconds=self.clock.monotonic() - began,
                config=manifest.config.digest,
                layers=[path.name for path in directories],
                parts=job.parts,
                holds=[holder] if holder else [],
            )
        )

    async def resolve(self, reference: Reference, credentials: Credentials | None) -> Digest:
        """The digest ``reference`` names now, from its registry; a known tag when that is down."""
        if reference.digest is not None:
            return reference.digest
        try:
            digest = await self._ask(reference, credentials)
        except OriginError as error:
            if error.failure is not FailureClass.TRANSIENT:
                raise
            known = self.access.known_tag(reference, credentials, self.settings.known_tag_seconds)
            if known is None:
                raise
            log.warning("image.tag.from_memory", image=str(reference), digest=known)
            return known
        self.access.learn_tag(reference, digest, credentials)
        self.access.allow(reference, digest, credentials)
        return digest

    async def authorize(
        self, reference: Reference, digest: Digest, credentials: Credentials | None
    ) -> None:
        """Prove that ``credentials`` may use ``digest``; see ``access``."""
        age = self.access.passed(reference, digest, credentials)
        if age <= self.settings.access_recheck_seconds:
            return
        try:
            await self.origin.head(
                ContentKind.MANIFEST, reference.registry, reference.repository, digest, credentials
            )
        except OriginError as error:
            if error.failure is FailureClass.TRANSIENT:
                bound = self.settings.access_bound_seconds
                if credentials is None:  # public then: nobody's right can have been revoked
                    bound = max(bound, self.settings.known_tag_seconds)
                if age <= bound:
                    return
                raise
            self.access.refuse(reference, digest, credentials)
            if error.failure is FailureClass.AUTH:
                raise denied(reference, error.message) from error
            raise
        self.access.allow(reference, digest, credentials)

    async def _ask(self, reference: Reference, credentials: Credentials | None) -> Digest:
        kind, target = ContentKind.MANIFEST, reference.target
        answer = await self.origin.head(
            kind, reference.registry, reference.repository, target, credentials
        )
        if answer.digest is not None:
            return answer.digest
        # A registry that does not say on HEAD: the content says it.
        limit = self.settings.manifest_bytes
        body = bytearray()
        async with self.origin.fetch(
            kind, reference.registry, reference.repository, target, credentials
        ) as content:
            async for piece in content.chunks():
                body += piece
                if len(body) > limit:
                    raise LeaseholdError(
                        "manifest_too_large",
                        f"{reference} has a manifest of more than {limit} bytes",
                        kind=Kind.TOO_LARGE,
                    )
        return Digest.of(bytes(body))


def store_of(folder: Path, settings: ImagesSettings, clock: Clock) -> FileStore | ContainerdStore:
    """The store the settings name."""
    if settings.store == "disk":
        return FileStore(folder, settings, clock)
    if settings.store == "containerd":
        from leasehold.images.containerd import ContainerdStore  # grpc: only where it is used

        return ContainerdStore(folder, settings, clock)
    raise LeaseholdError(
        "store_unknown",
        f"there is no image store {settings.store!r}",
        path="images.store",
        expected="disk or containerd",
        got=settings.store,
    )


__all__ = ["Image", "Images", "Progress"]
