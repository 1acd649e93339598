"""What containerd, podman and skopeo talk to: the pull side of a registry, on loopback.

By digest only. A tag is answered 503 with an empty body at once, so that the client walks on to its
next host, the registry itself (unless the operator lets known tags outlive their registry). Content
that is here is served from disk; what is not is fetched, from other nodes or the registry, and
streamed to the client while it arrives, one byte short of the end until the whole is verified.

HEAD never starts anything: it looks here, then asks the registry once. ``Range`` works on
everything; on content still arriving it waits for the end.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from urllib.parse import parse_qs

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter
from leasehold.core.web import HttpServer
from leasehold.images import oci, patience, ranges, serving
from leasehold.images.access import Access
from leasehold.images.download import Download, Downloads, Recent, read_all
from leasehold.images.ports import (
    ContentKind,
    Credentials,
    FailureClass,
    Origin,
    OriginError,
    Reader,
    Resolver,
)
from leasehold.images.settings import ImagesSettings, Registry
from leasehold.images.transfer import lifespan
from leasehold.model.digest import Digest
from leasehold.model.reference import Reference, is_host

GATE_RETRY = 5
"""Seconds a client is told to wait while the node is not ready."""

SMALL = 256 * 1024
"""Content up to this size is kept in memory ..."""

SMALL_COUNT = 128
"""... for so many digests: at most 32 MiB."""

HITS = counter("p2p_cache_hit_total", "Mirror requests answered from the store")
MISSES = counter("p2p_cache_miss_total", "Mirror requests that had to fetch")
SENT = counter("leasehold_images_mirror_sent_bytes_total", "Body bytes sent to local clients")

API_VERSION = (b"docker-distribution-api-version", b"registry/2.0")

log = get_logger(__name__)


class Mirror:
    """The ASGI application. ``known`` finds a configured registry.

    ``ready`` opens the gate, once; ``draining`` closes it for good.
    """

    def __init__(
        self,
        downloads: Downloads,
        origin: Origin,
        known: Callable[[str], Registry | None],
        access: Access,
        settings: ImagesSettings,
        clock: Clock,
        *,
        resolver: Resolver | None = None,
    ) -> None:
        self.downloads = downloads
        self.origin = origin
        self._known = known
        self.access = access
        self.settings = settings
        self.clock = clock
        self.resolver = resolver
        self.ready = True
        self.draining = False
        self._small: Recent[tuple[bytes, str]] = Recent(SMALL_COUNT)

    async def __call__(
        self, scope: serving.Scope, receive: serving.Receive, send: serving.Send
    ) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                await self._answer(scope, send)
            except LeaseholdError as error:
                await self._refuse(scope, send, error)

    async def _answer(self, scope: serving.Scope, send: serving.Send) -> None:
        if self.draining or not self.ready:
            wait = [] if self.draining else [(b"retry-after", b"%d" % GATE_RETRY)]
            await serving.answer(send, 503, headers=wait)
            return
        path = scope["path"]
        if path in ("/v2", "/v2/"):
            headers = [API_VERSION, (b"content-type", b"application/json")]
            await serving.answer(send, 200, b"{}", headers)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await serving.answer(send, 405, headers=[API_VERSION, (b"allow", b"GET, HEAD")])
            return
        asked = serving.parse_path(path)
        upstream = self._upstream(scope, asked) if asked else None
        if upstream is None:
            await serving.answer(send, 404, headers=[API_VERSION])
            return
        registry, asked = upstream
        credentials = self._credentials(scope)
        if asked.by_digest:
            digest = Digest.parse(asked.target)
            if not self.settings.mirror_shared_content:
                await self._check(registry, asked, digest, credentials)
        else:
            found = await self._known_tag(registry, asked, credentials)
            if found is None:
                await serving.answer(send, 503, headers=[API_VERSION])
                return
            digest = found
        await self._content(scope, send, registry, asked, digest, credentials)

    # --- who asks for what ---

    def _upstream(
        self, scope: serving.Scope, asked: serving.Path
    ) -> tuple[str, serving.Path] | None:
        """The registry meant by ``?ns=`` or named in front; None when it is not one of ours."""
        configured = self.settings.registries
        values = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("ns")
        if values:
            name = self._registry(values[0])
            return (name, asked) if name else None
        # podman and CRI-O cannot say ns: /v2/docker.io/library/nginx/...
        first, _, rest = asked.repository.partition("/")
        if rest and "." in first:
            name = self._registry(first)
            if name:
                return name, asked._replace(repository=rest)
        return (configured[0].name, asked) if len(configured) == 1 else None

    def _registry(self, name: str) -> str | None:
        if not self.settings.registries:
            return name if is_host(name) else None
        found = self._known(name)
        return found.name if found else None

    def _credentials(self, scope: serving.Scope) -> Credentials | None:
        sent = serving.header(scope, b"authorization")
        return Credentials(header=sent.decode("latin-1")) if sent else None

    async def _check(
        self,
        registry: str,
        asked: serving.Path,
        digest: Digest,
        credentials: Credentials | None,
    ) -> None:
        """The request's own credentials must be good for the content, not just this node's."""
        reference = Reference(registry, asked.repository, None, digest)
        age = self.access.passed(reference, digest, credentials)
        if age <= self.settings.access_recheck_seconds:
            return
        try:
            await self.origin.head(asked.kind, registry, asked.repository, digest, credentials)
        except OriginError as error:
            if error.failure is FailureClass.TRANSIENT:
                if age <= self.settings.access_bound_seconds:
                    return
            else:
                self.access.refuse(reference, digest, credentials)
            raise
        self.access.allow(reference, digest, credentials)

    async def _known_tag(
        self, registry: str, asked: serving.Path, credentials: Credentials | None
    ) -> Digest | None:
        """What a tag means, when the operator lets the mirror say; None: ask the registry."""
        oldest = self.settings.mirror_known_tag_seconds
        if oldest <= 0 or asked.kind is not ContentKind.MANIFEST:
            return None
        reference = Reference(registry, asked.repository, asked.target)
        try:
            answer = await self.origin.head(
                asked.kind, registry, asked.repository, asked.target, credentials
            )
        except OriginError as error:
            if error.failure is not FailureClass.TRANSIENT:
                raise
            return self.access.known_tag(reference, credentials, oldest)
        if answer.digest is not None:
            self.access.learn_tag(reference, answer.digest, credentials)
        return answer.digest

    # --- content ---

    async def _content(
        self,
        scope: serving.Scope,
        send: serving.Send,
        registry: str,
        asked: serving.Path,
        digest: Digest,
        credentials: Credentials | None,
    ) -> None:
        small = self._small.get(digest)
        if small is not None:
            HITS.inc()
            await self._send_bytes(scope, send, digest, *small)
            return
        reader = await self.downloads.store.open(digest)
        if reader is None and scope["method"] == "HEAD":
            await self._head(send, registry, asked, digest, credentials)
            return
        if reader is None:
            MISSES.inc()
            download = self.downloads.get(
                digest, asked.kind, registry, asked.repository, None, credentials
            )
            if not await self._streamable(scope, download):
                await download.finish()
                reader = await self._reopen(digest)
            else:
                await self._stream(send, download)
                return
        else:
            HITS.inc()
        try:
            await self._send_held(scope, send, registry, asked, digest, reader)
        finally:
            await reader.close()

    async def _send_held(
        self,
        scope: serving.Scope,
        send: serving.Send,
        registry: str,
        asked: serving.Path,
        digest: Digest,
        reader: Reader,
    ) -> None:
        size = reader.size
        if size <= SMALL:
            content = await reader.read(0, size)
            media = oci.media_type_of(content)
            if asked.kind is ContentKind.MANIFEST and media == oci.OCTETS:
                media = oci.OCI_MANIFEST
            self._small.put(digest, (content, media))
            self._prefetch(registry, asked.repository, content, media)
            await self._send_bytes(scope, send, digest, content, media)
            return
        media = await self._sniff(reader, asked.kind)
        span = await self._span(scope, send, size)
        if span is None:
            return
        start, end, partial = span
        headers = self._headers(digest, media, start, end, size, partial)
        await serving.send_start(send, 206 if partial else 200, headers)
        if scope["method"] == "HEAD":
            await serving.send_end(send)
            return
        SENT.inc(await serving.send_file(send, reader, start, end))

    async def _send_bytes(
        self, scope: serving.Scope, send: serving.Send, digest: Digest, content: bytes, media: str
    ) -> None:
        span = await self._span(scope, send, len(content))
        if span is None:
            return
        start, end, partial = span
        headers = self._headers(digest, media, start, end, len(content), partial)
        await serving.send_start(send, 206 if partial else 200, headers)
        body = b"" if scope["method"] == "HEAD" else content[start:end]
        SENT.inc(len(body))
        await send({"type": "http.response.body", "body": body})

    async def _streamable(self, scope: serving.Scope, download: Download) -> bool:
        """Whether the client can be given bytes as they come."""
        if download.kind is ContentKind.MANIFEST or serving.header(scope, b"range") is not None:
            return False
        size = await download.sized()
        if size is None or size <= SMALL:
            return False
        async for head in download.stream(0, 1, hold_back=False):
            # A manifest asked for as a blob needs its type: wait for all of it.
            return head != b"{" or size > self.settings.manifest_bytes
        return False

    async def _stream(self, send: serving.Send, download: Download) -> None:
        size = download.size or 0
        headers = self._headers(download.digest, oci.OCTETS, 0, size, size, partial=False)
        await serving.send_start(send, 200, headers)
        try:
            sent = await serving.send_stream(send, download.stream(0, size))
            await download.finish()
            reader = await self._reopen(download.digest)
        except LeaseholdError as error:
            log.warning("images.mirror.broken_off", digest=download.digest, error=error.message)
            return  # without the last byte: the client knows
        try:
            sent += await serving.send_file(send, reader, sent, size)
        finally:
            await reader.close()
        SENT.inc(sent)

    async def _reopen(self, digest: Digest) -> Reader:
        reader = await self.downloads.store.open(digest)
        if reader is None:
            raise LeaseholdError(
                "evicted", f"{digest} was evicted at once", kind=Kind.UNAVAILABLE, retry_after=1.0
            )
        return reader

    async def _head(
        self,
        send: serving.Send,
        registry: str,
        asked: serving.Path,
        digest: Digest,
        credentials: Credentials | None,
    ) -> None:
        """Ask the registry once; nothing else happens."""
        found = await self.origin.head(asked.kind, registry, asked.repository, digest, credentials)
        media = found.media_type or oci.OCTETS
        headers = [
            API_VERSION,
            (b"docker-content-digest", digest.encode()),
            (b"content-type", media.encode("latin-1", "replace")),
        ]
        if found.size is not None:
            headers.append((b"content-length", b"%d" % found.size))
        await serving.send_start(send, 200, headers)
        await serving.send_end(send)

    # --- pieces ---

    async def _sniff(self, reader: Reader, kind: ContentKind) -> str:
        if kind is not ContentKind.MANIFEST and await reader.read(0, 1) != b"{":
            return oci.OCTETS
        content = await read_all(reader, self.settings.manifest_bytes)
        media = oci.OCTETS if content is None else oci.media_type_of(content)
        if kind is ContentKind.MANIFEST and media == oci.OCTETS:
            return oci.OCI_MANIFEST
        return media

    async def _span(
        self, scope: serving.Scope, send: serving.Send, size: int
    ) -> tuple[int, int, bool] | None:
        """(start, end, partial); None when 416 was answered."""
        try:
            span = ranges.parse(serving.header(scope, b"range"), size, clamp=True)
        except ranges.Unsatisfiable:
            unsatisfied = (b"content-range", b"bytes */%d" % size)
            await serving.answer(send, 416, headers=[API_VERSION, unsatisfied])
            return None
        return (0, size, False) if span is None else (*span, True)

    def _headers(
        self, digest: Digest, media: str, start: int, end: int, size: int, partial: bool
    ) -> serving.Headers:
        headers = [
            API_VERSION,
            (b"docker-content-digest", digest.encode()),
            (b"content-type", media.encode()),
            (b"content-length", b"%d" % (end - start)),
            (b"accept-ranges", b"bytes"),
        ]
        if partial:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)))
        return headers

    def _prefetch(self, registry: str, repository: str, content: bytes, media: str) -> None:
        """A manifest was served: its children will be asked for next."""
        if self.resolver is None or media not in (oci.OCI_MANIFEST, oci.DOCKER_MANIFEST):
            return
        try:
            manifest = oci.parse_manifest(content, max_layers=self.settings.layers)
        except LeaseholdError:
            return
        if isinstance(manifest, oci.Manifest):
            self.resolver.prefetch(registry, repository, oci.children(manifest))

    async def _refuse(
        self, scope: serving.Scope, send: serving.Send, error: LeaseholdError
    ) -> None:
        if isinstance(error, OriginError):
            status = error.kind.http
        elif error.kind in (Kind.INTERNAL, Kind.NOT_FOUND):
            status = 502
        else:
            status = error.kind.http
        await serving.answer_error(
            send, status, error, [API_VERSION], bodiless=scope["method"] == "HEAD"
        )


def server(mirror: Mirror) -> HttpServer:
    """The mirror as a service, on loopback unless the operator insists."""
    settings = mirror.settings
    if not settings.mirror_allow_non_loopback and not _loopback(settings.mirror_host):
        raise LeaseholdError(
            "mirror_not_loopback",
            f"the mirror has no authentication and must not listen on {settings.mirror_host};"
            " set images.mirror_allow_non_loopback if that is meant",
            kind=Kind.FORBIDDEN,
            path="images.mirror_host",
            got=settings.mirror_host,
        )
    return HttpServer(
        mirror,
        host=settings.mirror_host,
        port=settings.mirror_port,
        name="image mirror",
        setting="images.mirror_port",
        clock=mirror.clock,
        http=patience.protocol("mirror"),
        timeout_keep_alive=30,
        server_header=False,
        date_header=False,
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
