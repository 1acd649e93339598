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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.core.logs import get_logger
from leasehold.core.metrics import histogram
from leasehold.core.service import Group, Service
from leasehold.images import oci
from leasehold.images.access import Access, denied
from leasehold.images.download import Download, Downloads, read_all, too_large
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
from leasehold.images.records import Part, Record, Records
from leasehold.images.settings import ImagesSettings
from leasehold.images.store import FileReader, FileStore
from leasehold.images.transfer import server as transfer_server
from leasehold.images.unpack import Layers
from leasehold.model.digest import Digest
from leasehold.model.reference import Reference
from leasehold.p2p.keys import KeyPair

SETTLE_SECONDS = 10.0
"""Between two syncs of unpacked layers and memories to disk."""

MANIFEST_DEPTH = 3
"""Indexes inside indexes that are followed."""

ENSURE = histogram("leasehold_images_ensure_seconds", "Reference to unpacked layers", ["cold"])

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ``ensure`` is. Bytes are compressed ones; ``total`` is 0 until it is known."""

    phase: str
    """``resolving``, ``fetching``, ``unpacking`` or ``ready``."""
    bytes: int = 0
    total: int = 0
    layers_done: int = 0
    layers: int = 0


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


ProgressCallback = Callable[[Progress], None]


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
        self.store = FileStore(root / "store", self.settings, self.clock)
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
        self._peers: PeerClient | None = None

    def cooperate(self, resolver: Resolver, announcer: Announcer | None, node: str) -> None:
        """Ask other nodes first. ``node`` is our own name among them. Call it before the start."""
        self._peers = PeerClient(self.settings, self.clock, node)
        self.downloads.peers = Peers(resolver, self._peers, self.settings, self.clock)
        self.downloads.announcer = announcer
        self.mirror.resolver = resolver

    async def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
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
            except OSError as error:
                log.warning("images.settle.failed", error=str(error))

    async def ensure(
        self,
        reference: str,
        *,
        credentials: Credentials | None = None,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """Have ``reference`` here, unpacked, for the holder of ``credentials`` (None: anybody).

        Errors: ``reference_malformed``, ``image_not_found``, ``origin_auth``,
        ``image_access_denied``, ``registry_unreachable``, ``platform_missing``, ``disk_full``,
        ``layer_refused``, ``layer_too_large``, ``digest_mismatch``.
        """
        began = self.clock.monotonic()
        tell = _Teller(progress)
        tell(phase="resolving")
        ref = Reference.parse(reference)
        digest = await self.resolve(ref, credentials)
        await self.authorize(ref, digest, credentials)
        job = _Job(self, ref, credentials, tell)
        manifest_digest, manifest = await job.manifest(digest)
        config = oci.parse_config(await job.small(manifest.config, ContentKind.CONFIG))
        directories = await job.layers(manifest, config)
        seconds = self.clock.monotonic() - began
        record = Record(
            reference=str(ref),
            digest=str(manifest_digest),
            index=str(digest),
            size=manifest.size,
            at=self.clock.now(),
            seconds=seconds,
            config=manifest.config.digest,
            layers=[str(p.name) for p in directories],
            parts=job.parts,
        )
        self.records.put(record)
        sources = job.sources()
        ENSURE.labels("no" if set(sources) <= {"cache"} else "yes").observe(seconds)
        tell(phase="ready")
        log.info("image.ready", image=str(ref), seconds=round(seconds, 3), **sources)
        return Image(
            str(ref), manifest_digest, config, directories, manifest.size, sources, seconds
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
                if age <= self.settings.access_bound_seconds:
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


class _Teller:
    """The latest progress, told whenever it changes."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._values: dict[str, Any] = {}

    def __call__(self, **changes: Any) -> None:
        self._values.update(changes)
        if self._callback is not None:
            self._callback(Progress(**self._values))


class _Job:
    """One ``ensure``: which digests it needs and where each came from."""

    def __init__(
        self, images: Images, reference: Reference, credentials: Credentials | None, tell: _Teller
    ) -> None:
        self.images = images
        self.reference = reference
        self.credentials = credentials
        self.tell = tell
        self.parts: list[Part] = []
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

    async def layers(self, manifest: oci.Manifest, config: dict[str, Any]) -> list[Path]:
        """All layers, fetched side by side and unpacked in order."""
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
                    digest = Digest.parse(layer.digest)
                    found = await self.images.layers.find(diff_id, directories)
                    if found is None:
                        await (fetches.get(digest) or self._fetch(digest, layer.size))
                        found = await self._unpack(digest, diff_id, directories)
                    elif digest not in fetches:
                        self.parts.append(
                            Part(str(digest), "layer", layer.size, {"cache": layer.size})
                        )
                    directories.append(found)
                    self.tell(layers_done=len(directories))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return directories

    async def _fetch(self, digest: Digest, size: int) -> None:
        async with self._slots:
            await self.have(digest, ContentKind.BLOB, size)

    async def _unpack(self, digest: Digest, diff_id: Digest, below: Sequence[Path]) -> Path:
        self.tell(phase="unpacking")
        reader = await self.images.store.open(digest)
        if not isinstance(reader, FileReader):
            raise not_found("layer", digest, hint="It was evicted while in use.")
        began = self.images.clock.monotonic()
        try:
            found = await self.images.layers.unpack(reader.fd, digest, diff_id, below)
        finally:
            await reader.close()
        for part in self.parts:
            if part.digest == digest:
                part.unpack_seconds = self.images.clock.monotonic() - began
        return found

    async def have(self, digest: Digest, kind: ContentKind, size: int | None) -> None:
        """``digest`` in the store, from wherever it is."""
        store, downloads = self.images.store, self.images.downloads
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


__all__ = ["Image", "Images", "Progress"]
