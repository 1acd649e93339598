"""One digest on its way here, shared by everybody who asks for it.

There is at most one :class:`Download` of a digest on a node. Whoever wants it joins: the mirror
streams the bytes as they come, peers read what is there already, the unpacker waits for the end.
It fills one staged file from the origin or from holders (``peers``), and only a match of the whole
digest commits it; until then readers that must not be fooled are one byte short of the end.

It runs on when those who asked have left: the next one to ask will want it too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, gauge
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.images.ports import (
    Announcer,
    ContentKind,
    Credentials,
    DigestMismatch,
    FailureClass,
    Origin,
    OriginContent,
    OriginError,
    Reader,
)
from leasehold.images.settings import ImagesSettings
from leasehold.images.staging import Staged
from leasehold.images.traffic import Traffic
from leasehold.model.digest import Digest

PIECE = 256 * 1024
"""Bytes handed on at once."""

PENDING = 4 * 1024 * 1024
"""Bytes received ahead of the disk before the network has to wait."""

GATHER = 0.05
"""Seconds bytes of a slow source are gathered before they are written and announced ..."""

LINGER = 0.2
"""... and before a follower is sent less than a piece: a slow source comes in crumbs, and twenty
followers of six layers would cost more in wake-ups than in bytes."""

HOLD_BACK = 1
"""Bytes a client is kept short of until the whole content is verified: enough that a transfer of
bad bytes can never look complete."""

PULLS = counter("p2p_origin_pull_total", "Origin pulls begun", ["kind"])
PULLED = counter("p2p_origin_pull_success_total", "Origin pulls that ended well", ["kind"])
FAILED = counter("p2p_origin_pull_failure_total", "Origin pulls that failed", ["kind", "class"])
ACTIVE = gauge("leasehold_images_downloads", "Downloads under way")

log = get_logger(__name__)


CHUNK_LISTS = 256
"""Chunk lists of complete content kept; they are 64 bytes each 4 MiB."""

T = TypeVar("T")


class Recent(Generic[T]):
    """The last few values by digest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Digest, T] = OrderedDict()

    def get(self, digest: Digest) -> T | None:
        found = self._values.get(digest)
        if found is not None:
            self._values.move_to_end(digest)
        return found

    def put(self, digest: Digest, value: T) -> None:
        self._values[digest] = value
        while len(self._values) > self.most:
            self._values.popitem(last=False)


class StagingStore(Protocol):
    """A ``Store`` whose writers are staged files, as both of ours are."""

    async def open(self, digest: Digest) -> Reader | None: ...

    async def size(self, digest: Digest) -> int | None: ...

    async def writer(self, digest: Digest, size: int | None = None) -> Staged: ...


class Download:
    """The state of one transfer; see the module."""

    def __init__(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None,
        credentials: Credentials | None,
        clock: Clock | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.digest = digest
        self.kind = kind
        self.registry = registry
        self.repository = repository
        self.size = size
        self.credentials = credentials
        self.staged: Staged | None = None
        self.sources: dict[str, int] = {}
        """Bytes by where they came from: ``origin`` or the name of a node."""
        self.media_type = ""
        self.done = False
        self.error: LeaseholdError | None = None
        self.restarts = 0
        """How often everything received was thrown away: readers of it must break off."""
        self.pulling = False
        """True once this node reads the digest from its origin."""
        self._news = asyncio.Event()

    @property
    def received(self) -> int:
        """Bytes of the prefix that is here."""
        return self.staged.prefix if self.staged is not None else 0

    @property
    def chunks(self) -> list[str]:
        """Digests of the complete 4 MiB chunks that are here."""
        return self.staged.chunks if self.staged is not None else []

    @property
    def ended(self) -> bool:
        return self.done or self.error is not None

    def notify(self) -> None:
        """Something changed: wake everybody who waits."""
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self) -> None:
        """The next change."""
        await self._news.wait()

    async def finish(self) -> None:
        """Wait for the end; raises what went wrong."""
        while not self.ended:
            await self.changed()
        if self.error is not None:
            raise self.error

    async def sized(self) -> int | None:
        """The size as soon as it is known; None when the source does not say."""
        while self.size is None and not self.received and not self.ended:
            await self.changed()
        if self.error is not None:
            raise self.error
        return self.size

    async def stream(
        self, start: int = 0, end: int | None = None, *, hold_back: bool = True
    ) -> AsyncIterator[bytes]:
        """Bytes from ``start`` (to ``end``, exclusive) as they come; raises when it breaks off.

        Ends early, at the prefix, when the download is done: the store has the rest.
        """
        position = start
        restarts = self.restarts
        lingered = False
        while True:
            staged = self.staged
            if self.error is not None:
                raise self.error
            if self.restarts != restarts and position > start:
                raise LeaseholdError(
                    "transfer_restarted",
                    f"bytes of {self.digest} that were passed on turned out to be bad",
                    kind=Kind.UNAVAILABLE,
                )
            restarts = self.restarts
            if self.done or staged is None:
                if self.done:
                    return
                await self.changed()
                continue
            ready = staged.prefix - (HOLD_BACK if hold_back else 0)
            ready = ready if end is None else min(ready, end)
            if position < ready and ready - position < PIECE and not lingered:
                last = self.size if end is None else end
                if last is None or ready < last - HOLD_BACK:
                    lingered = True
                    await self.clock.sleep(LINGER)
                    continue
            lingered = False
            if position < ready:
                data = await staged.read(position, min(PIECE, ready - position))
                if data:
                    position += len(data)
                    yield data
                continue
            if end is not None and position >= end:
                return
            await self.changed()


class Downloads(Service):
    """The transfers of a node: a ``Puller`` for coordination, the way in for everybody else.

    ``peers`` (see that module) is what makes it ask other nodes first; without it every digest
    comes from its origin.
    """

    def __init__(
        self,
        store: StagingStore,
        origin: Origin,
        settings: ImagesSettings | None = None,
        clock: Clock | None = None,
        *,
        announcer: Announcer | None = None,
    ) -> None:
        super().__init__("image downloads", clock=clock or SystemClock())
        self.store = store
        self.origin = origin
        self.settings = settings or ImagesSettings()
        self.announcer = announcer
        self.peers: Cooperation | None = None
        self.backoff = Backoff(first=0.2, cap=5.0)
        self.traffic = Traffic(self.clock)
        self.committed: list[Callable[[Digest, int], Any]] = []
        """Called with (digest, size) after each commit."""
        self.chunk_lists: Recent[tuple[int, list[str]]] = Recent(CHUNK_LISTS)
        self._active: dict[Digest, Download] = {}
        self._origin_slots = asyncio.Semaphore(self.settings.origin_concurrency)

    def active(self, digest: Digest) -> Download | None:
        """The transfer of ``digest`` under way."""
        return self._active.get(digest)

    def under_way(self) -> list[Download]:
        """Every transfer under way, oldest first."""
        return list(self._active.values())

    def progress(self, digest: Digest) -> tuple[int, int | None] | None:
        """(bytes received, size) of a transfer under way."""
        found = self._active.get(digest)
        return (found.received, found.size) if found is not None else None

    def get(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None = None,
        credentials: Credentials | None = None,
    ) -> Download:
        """Begin or join the download of ``digest``. ``size`` in bytes, from its manifest."""
        found = self._active.get(digest)
        if found is not None:
            return found
        return self._begin(digest, kind, registry, repository, size, credentials, self._fill)

    async def pull(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None = None,
        credentials: Credentials | None = None,
    ) -> int:
        """Fetch from the origin as the node chosen for ``digest``; its size."""
        found = self._active.get(digest)
        if found is None:
            found = self._begin(
                digest, kind, registry, repository, size, credentials, self._run_origin
            )
        else:
            found.pulling = True  # one that has no byte yet goes to the origin itself
            found.notify()
        await found.finish()
        return found.received

    def _begin(
        self,
        digest: Digest,
        kind: ContentKind,
        registry: str,
        repository: str,
        size: int | None,
        credentials: Credentials | None,
        run: Callable[[Download], Any],
    ) -> Download:
        download = Download(digest, kind, registry, repository, size, credentials, self.clock)
        self.spawn(self._guard(download, run), name=f"download {digest.short}")
        self._active[digest] = download
        ACTIVE.set(len(self._active))
        return download

    async def _guard(self, download: Download, run: Callable[[Download], Any]) -> None:
        """Run to the end, whatever it is; the outcome is in the download, never in the service."""
        try:
            limit = self._limit(download.kind)
            if download.size is not None and download.size > limit:
                raise too_large(download.digest, limit)
            download.staged = await self.store.writer(download.digest, download.size)
            await run(download)
            size = await download.staged.commit()
            self.chunk_lists.put(download.digest, (size, download.chunks))
            download.size, download.done = size, True
            if self.announcer is not None:
                self.announcer.announce(download.digest)
            for told in self.committed:
                told(download.digest, size)
        except LeaseholdError as error:
            download.error = error
        except asyncio.CancelledError:
            download.error = LeaseholdError(
                "transfer_ended", "the node is stopping", kind=Kind.UNAVAILABLE, retry_after=5.0
            )
            raise
        except Exception as error:  # a bug must not look like a hang to those who wait
            log.exception("images.download.broke", digest=download.digest)
            download.error = LeaseholdError(
                "download_failed", f"the download failed: {error}", kind=Kind.INTERNAL
            )
        finally:
            if self._active.get(download.digest) is download:
                del self._active[download.digest]
            ACTIVE.set(len(self._active))
            self.traffic.add(download.sources)
            if not download.done and download.staged is not None:
                await download.staged.abort()
            download.notify()
            if download.error is not None:
                log.warning(
                    "images.download.failed",
                    digest=download.digest,
                    code=download.error.code,
                    error=download.error.message,
                )

    async def _fill(self, download: Download) -> None:
        if self.peers is None:
            await self._run_origin(download)
        else:
            await self.peers.fetch(download, self._run_origin)

    async def _run_origin(self, download: Download) -> None:
        """Everything from the origin; a break goes on where it was."""
        download.pulling = True
        kind = download.kind.label
        PULLS.labels(kind).inc()
        try:
            async with self._origin_slots:
                await self._with_retries(download)
        except BaseException as error:
            failure = getattr(error, "failure", FailureClass.TRANSIENT)
            FAILED.labels(kind, failure.name.lower()).inc()
            raise
        PULLED.labels(kind).inc()

    async def _with_retries(self, download: Download) -> None:
        failures = 0
        while True:
            before = download.received
            try:
                return await self._once(download)
            except OriginError as error:
                failures = 1 if download.received > before else failures + 1
                if error.failure is not FailureClass.TRANSIENT:
                    raise
                if failures >= self.settings.origin_attempts:
                    raise
                log.info(
                    "images.origin.again",
                    digest=download.digest,
                    at=download.received,
                    error=error.message,
                )
                await self.clock.sleep(self.backoff.delay(failures))

    async def _once(self, download: Download) -> None:
        assert download.staged is not None
        async with self.origin.fetch(
            download.kind,
            download.registry,
            download.repository,
            download.digest,
            download.credentials,
            offset=download.received,
        ) as content:
            download.media_type = content.media_type
            if content.size is not None:
                if download.size is not None and content.size != download.size:
                    raise DigestMismatch(
                        download.digest,
                        f"content of {content.size} bytes instead of {download.size}",
                        download.registry,
                    )
                download.size = content.size
                download.notify()
            await self._copy(download, download.staged, content)

    async def _copy(self, download: Download, staged: Staged, content: OriginContent) -> None:
        """Body to disk; while one block is written the next ones arrive."""
        limit = download.size if download.size is not None else self._limit(download.kind)
        if limit > self._limit(download.kind):
            raise too_large(download.digest, self._limit(download.kind))
        position = content.offset
        start = staged.prefix
        pending = bytearray()
        flushed = -GATHER

        async def flush() -> None:
            nonlocal flushed
            early = flushed + GATHER - self.clock.monotonic()
            if early > 0 and len(pending) < PIECE:
                await self.clock.sleep(early)
            flushed = self.clock.monotonic()
            while pending:
                data = bytes(pending)
                pending.clear()
                await staged.write(staged.prefix, data)
                download.sources["origin"] = download.sources.get("origin", 0) + len(data)
                download.notify()

        broke: LeaseholdError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                flushing: asyncio.Task[None] | None = None
                try:
                    async for piece in content.chunks():
                        # A server that ignores Range sends again what is here already.
                        skip = max(0, start - position)
                        position += len(piece)
                        if position > limit:
                            raise too_large(download.digest, limit)
                        pending += piece[skip:]
                        if flushing is not None and (flushing.done() or len(pending) >= PENDING):
                            await flushing
                            flushing = None
                        if flushing is None:
                            flushing = tasks.create_task(flush())
                except LeaseholdError as error:
                    broke = error  # what came before the break is good: keep it
                if flushing is not None:
                    await flushing
                await flush()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if broke is not None:
            raise broke
        if download.size is not None and staged.prefix < download.size:
            raise OriginError(
                FailureClass.TRANSIENT,
                f"{download.registry} broke off {download.digest} at byte {staged.prefix}"
                f" of {download.size}",
            )

    def _limit(self, kind: ContentKind) -> int:
        settings = self.settings
        return settings.blob_bytes if kind is ContentKind.BLOB else settings.manifest_bytes


class Cooperation(Protocol):
    """How other nodes are asked first."""

    async def fetch(self, download: Download, from_origin: Callable[[Download], Any]) -> None:
        """Fill ``download`` from holders, or by ``from_origin`` when this node is to."""
        ...


def too_large(digest: Digest, limit: int) -> LeaseholdError:
    return LeaseholdError(
        "content_too_large",
        f"{digest} is larger than {limit} bytes",
        kind=Kind.TOO_LARGE,
        expected=f"<= {limit}",
    )


async def read_all(reader: Reader, limit: int) -> bytes | None:
    """Small content whole; None beyond ``limit`` bytes."""
    if reader.size > limit:
        return None
    out = bytearray()
    while piece := await reader.read(len(out), PIECE):
        out += piece
    return bytes(out)
