"""What other nodes talk to: content of this node, and only of this node.

``GET|HEAD /v2/<anything>/{blobs|manifests}/<digest>`` with the header ``Gantry-Mirrored: 1`` (it
breaks loops; it is no authentication). Nothing asked here ever causes a request elsewhere. A digest
still on its way in is passed on as it comes to nodes that say who they are (``Leasehold-Node``) and
so know that those bytes are unverified; ``/leasehold/v1/chunks/<digest>`` tells the digests of its
4 MiB chunks as they become known.

At most ``serve_cap`` bodies are served at a time. The next is told 429, when to come back, and
which nodes are being given this digest right now: they have its first bytes and can pass them on,
so a crowd becomes a tree.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, gauge
from leasehold.core.web import HttpServer
from leasehold.images import oci, patience, peertls, ranges, serving
from leasehold.images.download import Download, Downloads
from leasehold.images.ports import Reader
from leasehold.images.settings import ImagesSettings
from leasehold.images.staging import BLOCK, ChunkHasher
from leasehold.model.digest import Digest, is_digest
from leasehold.p2p.keys import KeyPair

MIRRORED = b"gantry-mirrored"
NODE = b"leasehold-node"
ALSO = b"leasehold-also"
VERIFIED = b"leasehold-verified"

RETRY_SECONDS = 1
"""What a busy node asks for before the next try."""

SMALL = 64 * 1024
"""Content up to this size (manifests, configs) is served beyond the cap: queueing costs more."""

ALSO_NODES = 8
"""Nodes named to one that was turned away."""

CHUNK_WAIT = 4.0
"""Seconds a question for chunk digests waits for news: less than a peer's patience."""

SERVED = counter("p2p_peer_serve_total", "Bodies served to other nodes")
MISSED = counter("p2p_peer_miss_total", "Requests of other nodes for what is not here")
BUSY = counter("leasehold_images_peer_busy_total", "Requests of other nodes turned away: 429")
SENT = counter("leasehold_images_peer_sent_bytes_total", "Body bytes served to other nodes")
SERVING = gauge("leasehold_images_peer_serving", "Bodies being served to other nodes")

log = get_logger(__name__)


class ChunkAnswer(msgspec.Struct):
    """``digests`` of the chunks from ``after`` on; ``complete`` when there will be no more."""

    size: int | None
    after: int
    digests: list[str]
    complete: bool


class Transfer:
    """The ASGI application."""

    def __init__(self, downloads: Downloads, settings: ImagesSettings, clock: Clock) -> None:
        self.downloads = downloads
        self.settings = settings
        self.clock = clock
        self._serving = 0
        self._receivers: dict[Digest, OrderedDict[str, int]] = {}
        self._waiting = 0

    async def __call__(
        self, scope: serving.Scope, receive: serving.Receive, send: serving.Send
    ) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path in ("/healthz", "/v2", "/v2/"):
            await serving.answer(send, 200, b"{}", [(b"content-type", b"application/json")])
        elif scope["method"] not in ("GET", "HEAD"):
            await serving.answer(send, 405, headers=[(b"allow", b"GET, HEAD")])
        elif serving.header(scope, MIRRORED) != b"1":
            await serving.answer(send, 400, b"this endpoint is for image nodes\n")
        elif path.startswith("/leasehold/v1/chunks/"):
            await self._answer_chunks(scope, send)
        else:
            await self._answer_content(scope, send)

    # --- content ---

    async def _answer_content(self, scope: serving.Scope, send: serving.Send) -> None:
        path = serving.parse_path(scope["path"], any_repository=True)
        if path is None or not path.by_digest:
            await serving.answer(send, 404)
            return
        if not path.valid:
            await serving.answer(send, 400)
            return
        digest = Digest(path.target)
        try:
            reader = await self.downloads.store.open(digest)
        except LeaseholdError as error:
            await serving.answer_error(send, 503, error, [])
            return
        if reader is not None:
            try:
                await self._serve_held(scope, send, digest, reader)
            finally:
                await reader.close()
            return
        download = self.downloads.active(digest)
        if download is None or serving.header(scope, NODE) is None:
            MISSED.inc()
            await serving.answer(send, 404)
            return
        await self._serve_arriving(scope, send, download)

    async def _serve_held(
        self, scope: serving.Scope, send: serving.Send, digest: Digest, reader: Reader
    ) -> None:
        try:
            span = ranges.parse(serving.header(scope, b"range"), reader.size)
        except ranges.Unsatisfiable:
            await self._unsatisfiable(send, reader.size)
            return
        start, end = span or (0, reader.size)
        headers = self._headers(start, end, reader.size, span is not None, verified=True)
        status = 206 if span else 200
        if scope["method"] == "HEAD":
            await serving.send_start(send, status, headers)
            await serving.send_end(send)
            return
        async with self._slot(scope, send, digest, reader.size) as granted:
            if granted:
                await serving.send_start(send, status, headers)
                SENT.inc(await serving.send_file(send, reader, start, end))
                SERVED.inc()

    async def _serve_arriving(
        self, scope: serving.Scope, send: serving.Send, download: Download
    ) -> None:
        """Pass on what is still arriving. Its end comes when our own source ends."""
        try:
            async with self.clock.timeout(self.settings.peer_stall_seconds / 2):
                size = await download.sized()
        except (TimeoutError, LeaseholdError):
            size = None
        if size is None:
            MISSED.inc()
            await serving.answer(send, 404)
            return
        try:
            span = ranges.parse(serving.header(scope, b"range"), size)
        except ranges.Unsatisfiable:
            await self._unsatisfiable(send, size)
            return
        start, end = span or (0, size)
        headers = self._headers(start, end, size, span is not None, verified=False)
        status = 206 if span else 200
        if scope["method"] == "HEAD":
            await serving.send_start(send, status, headers)
            await serving.send_end(send)
            return
        async with self._slot(scope, send, download.digest, size) as granted:
            if not granted:
                return
            await serving.send_start(send, status, headers)
            try:
                sent = await serving.send_stream(send, download.stream(start, end, hold_back=False))
                if start + sent < end:
                    sent += await self._rest(send, download.digest, start + sent, end)
            except LeaseholdError as error:
                log.info("images.serve.broken_off", digest=download.digest, error=error.message)
                return  # without an end: the connection closes, the receiver knows
            SENT.inc(sent)
            SERVED.inc()
            await serving.send_end(send)

    async def _rest(self, send: serving.Send, digest: Digest, start: int, end: int) -> int:
        """The download ended while we followed it: the store has what is left."""
        reader = await self.downloads.store.open(digest)
        if reader is None:
            raise LeaseholdError("transfer_ended", f"{digest} was evicted while being served")
        sent = 0
        try:
            while start + sent < end:
                piece = await reader.read(start + sent, min(serving.SEND, end - start - sent))
                sent += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            await reader.close()
        return sent

    def _headers(
        self, start: int, end: int, size: int, partial: bool, *, verified: bool
    ) -> serving.Headers:
        headers = [
            (b"content-type", oci.OCTETS.encode()),
            (b"content-length", b"%d" % (end - start)),
            (b"accept-ranges", b"bytes"),
            (VERIFIED, b"true" if verified else b"false"),
        ]
        if partial:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)))
        return headers

    async def _unsatisfiable(self, send: serving.Send, size: int) -> None:
        await serving.answer(send, 416, headers=[(b"content-range", b"bytes */%d" % size)])

    @contextlib.asynccontextmanager
    async def _slot(
        self, scope: serving.Scope, send: serving.Send, digest: Digest, size: int
    ) -> AsyncIterator[bool]:
        """One of the ``serve_cap`` places; without one the answer is 429."""
        node = (serving.header(scope, NODE) or b"").decode("latin-1")[:255]
        small = size <= SMALL
        if not small and self._serving >= self.settings.serve_cap:
            BUSY.inc()
            others = [n for n in self._receivers.get(digest, ()) if n and n != node]
            headers = [(b"retry-after", b"%d" % RETRY_SECONDS)]
            if others:
                headers.append((ALSO, ",".join(others[-ALSO_NODES:]).encode("latin-1")))
            await serving.answer(send, 429, headers=headers)
            yield False
            return
        receivers = self._receivers.setdefault(digest, OrderedDict())
        receivers[node] = receivers.get(node, 0) + 1
        self._serving += not small
        SERVING.set(self._serving)
        try:
            yield True
        finally:
            self._serving -= not small
            SERVING.set(self._serving)
            receivers[node] -= 1
            if not receivers[node]:
                del receivers[node]
            if not receivers and self._receivers.get(digest) is receivers:
                del self._receivers[digest]

    # --- chunk digests ---

    async def _answer_chunks(self, scope: serving.Scope, send: serving.Send) -> None:
        name = scope["path"].rpartition("/")[2]
        query = scope.get("query_string", b"")
        after = 0
        if query.startswith(b"after="):
            digits = query[6:]
            if not digits.isdigit() or len(digits) > 9:
                await serving.answer(send, 400)
                return
            after = int(digits)
        if not is_digest(name):
            await serving.answer(send, 400)
            return
        found = await self._chunk_list(Digest(name), after)
        if found is None:
            await serving.answer(send, 404)
            return
        await serving.answer(
            send, 200, msgspec.json.encode(found), [(b"content-type", b"application/json")]
        )

    async def _chunk_list(self, digest: Digest, after: int) -> ChunkAnswer | None:
        download = self.downloads.active(digest)
        if download is not None and self._waiting < patience.MAX_CONNECTIONS // 2:
            self._waiting += 1
            try:
                async with self.clock.timeout(CHUNK_WAIT):
                    while not download.ended and len(download.chunks) <= after:
                        await download.changed()
            except TimeoutError:
                pass
            finally:
                self._waiting -= 1
            if not download.done:
                known = [] if download.error else list(download.chunks[after:])
                return ChunkAnswer(download.size, after, known, False)
        known_list = await self._complete_list(digest)
        if known_list is None:
            return None
        size, digests = known_list
        return ChunkAnswer(size, after, digests[after:], True)

    async def _complete_list(self, digest: Digest) -> tuple[int, list[str]] | None:
        found = self.downloads.chunk_lists.get(digest)
        if found is not None:
            return found
        reader = await self.downloads.store.open(digest)
        if reader is None:
            return None
        hasher = ChunkHasher()
        offset = 0
        try:
            while piece := await reader.read(offset, BLOCK):
                await asyncio.to_thread(hasher.update, memoryview(piece))
                offset += len(piece)
        finally:
            await reader.close()
        hasher.finish()
        self.downloads.chunk_lists.put(digest, (offset, hasher.digests))
        return offset, hasher.digests


def server(
    downloads: Downloads,
    settings: ImagesSettings,
    clock: Clock,
    keys: KeyPair | None,
    folder: Path,
) -> HttpServer:
    """The transfer endpoint as a service: TLS 1.3 with ``keys``, unless ``plaintext`` is set."""
    options: dict[str, Any] = {
        "http": patience.protocol("transfer"),
        "timeout_keep_alive": 30,
        "server_header": False,
        "date_header": False,
    }
    if not settings.plaintext:
        if keys is None:
            raise LeaseholdError(
                "identity_missing", "peer transfer over TLS needs the node's identity key"
            )
        cert, key = peertls.write_files(keys, clock, folder)
        options["ssl_context_factory"] = lambda *_: peertls.server_context(cert, key)
    return HttpServer(
        Transfer(downloads, settings, clock),
        host=settings.transfer_host,
        port=settings.transfer_port,
        name="peer transfer",
        setting="images.transfer_port",
        clock=clock,
        **options,
    )


async def lifespan(receive: serving.Receive, send: serving.Send) -> None:
    """Nothing to do at start and end; say so."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
