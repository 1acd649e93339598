"""Other nodes first: how a download is filled from holders.

The resolver names the holders, or this node as the one that reads from the origin. From holders the
content comes in 4 MiB chunks by Range, so that it can come from several at a time, be checked chunk
by chunk, and go on elsewhere when a node stalls, lies or dies:

* **complete** holders share a large blob, up to ``stripe_holders`` at a time;
* nodes that are **still receiving** it are asked one at a time, in order: their bytes are there as
  soon as they have them, so a fleet takes hardly longer than one pull;
* each chunk is compared with the digest the origin's reader published for it. A difference names
  the holder (or, when two holders agree against it, the list), which is dropped and reported;
* a busy node (429) names others that are receiving the same digest; those known to be members are
  asked too.

Only progress counts as time: whoever sends nothing for ``peer_stall_seconds`` is left, and after
``peer_budget_seconds`` without one new byte from anybody the direct way is asked for. What no
chunk digest covers is decided by the whole: bytes of something else are thrown away, their senders
reported, and everybody who was given them is cut off.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, histogram
from leasehold.images.challenge import basic
from leasehold.images.download import Download
from leasehold.images.peerclient import Answer, PeerClient, PeerError
from leasehold.images.ports import Holder, Resolution, Resolver
from leasehold.images.settings import ImagesSettings
from leasehold.images.staging import CHUNK
from leasehold.images.transfer import ChunkAnswer

BUSY_LEAST, BUSY_MOST = 0.05, 1.0
"""Seconds before a busy node is asked again: a random time that doubles up to the most."""

ROUND_LEAST, ROUND_MOST = 0.1, 2.0
"""Seconds between rounds in which nobody could help."""

ELSEWHERE = ("recheck_hit", "in_flight")
"""Reasons of the gate that mean: it can be had without the origin after all, so look again."""

LOCAL_WAIT = 2.0
"""Seconds within which coordination starts the local pull it announced."""

PUT = 512 * 1024
"""Bytes gathered before they go to disk: a write is a trip to a thread."""

FETCHED = counter("p2p_peer_fetch_total", "Fetches from other nodes", ["outcome"])
SECONDS = histogram("p2p_peer_fetch_duration_seconds", "Fetches from other nodes", ["outcome"])
CORRUPT = counter("leasehold_images_corrupt_chunks_total", "Chunks that did not match", ["blame"])

log = get_logger(__name__)

FromOrigin = Callable[[Download], Awaitable[None]]


class Peers:
    """The ``Cooperation`` of a node."""

    def __init__(
        self,
        resolver: Resolver,
        client: PeerClient,
        settings: ImagesSettings,
        clock: Clock,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.resolver = resolver
        self.client = client
        self.settings = settings
        self.clock = clock
        self.rng = rng or random.Random()

    async def fetch(self, download: Download, from_origin: FromOrigin) -> None:
        """Fill ``download``; see the module."""
        assert download.staged is not None
        idle_since = self.clock.monotonic()
        received = 0
        pause = ROUND_LEAST
        bad: set[str] = set()
        while True:
            try:
                resolution = await self._resolve(download)
            except LeaseholdError as error:
                if error.code != "exhausted":
                    raise
                try:
                    return await self._directly(download, from_origin)
                except LeaseholdError as declined:
                    spent = self.clock.monotonic() - idle_since
                    if declined.got not in ELSEWHERE or spent > self.settings.peer_budget_seconds:
                        raise
                await self.clock.sleep(self.rng.uniform(pause / 2, pause))
                pause = min(ROUND_MOST, pause * 2)
                continue
            if resolution is None or resolution.local:
                await self._until_pulling(download)
                return await from_origin(download)
            holders = [h for h in resolution.holders if h.node not in bad]
            swarm = Swarm(self, download, holders)
            complete = await swarm.run()
            bad |= swarm.corrupt
            if complete:
                if await download.staged.matches():
                    return None
                bad |= swarm.blame_all()
                await download.staged.restart()
                download.restarts += 1
                download.sources.clear()
                download.notify()
            if download.pulling:
                return await from_origin(download)
            now = self.clock.monotonic()
            if download.received > received:
                received, idle_since, pause = download.received, now, ROUND_LEAST
            if now - idle_since > self.settings.peer_budget_seconds:
                return await self._directly(download, from_origin)
            await self.clock.sleep(self.rng.uniform(pause / 2, pause))
            pause = min(ROUND_MOST, pause * 2)

    async def _resolve(self, download: Download) -> Resolution | None:
        """The resolver's word; None when this node is made the puller meanwhile."""
        asked = asyncio.ensure_future(
            self.resolver.resolve(
                download.digest,
                download.kind,
                download.registry,
                download.repository,
                download.size,
                basic(download.credentials) if download.credentials else "",
            )
        )
        try:
            while not asked.done():
                if download.pulling:
                    return None
                change = asyncio.ensure_future(download.changed())
                await asyncio.wait({asked, change}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
            return asked.result()
        finally:
            asked.cancel()

    async def _until_pulling(self, download: Download) -> None:
        """Coordination claims the digest and calls ``pull``; go on without it if it does not."""
        try:
            async with self.clock.timeout(LOCAL_WAIT):
                while not download.pulling:
                    await download.changed()
        except TimeoutError:
            log.info("images.local_pull.unannounced", digest=download.digest)

    async def _directly(self, download: Download, from_origin: FromOrigin) -> None:
        async with self.resolver.direct(download.digest, download.kind):
            await from_origin(download)


class Swarm:
    """One round with the holders of a digest. ``run`` says whether everything is here."""

    def __init__(self, peers: Peers, download: Download, holders: Sequence[Holder]) -> None:
        assert download.staged is not None
        self.peers = peers
        self.download = download
        self.staged = download.staged
        self.used: set[str] = set()
        """Nodes whose bytes were taken."""
        self.corrupt: set[str] = set()
        """Nodes whose bytes or chunk digests were wrong."""
        self._known = {h.node for h in holders}
        # The resolver's order is by rank, the same on every node: shuffled, or all ask the first.
        complete = [h for h in holders if h.complete]
        arriving = [h for h in holders if not h.complete]
        peers.rng.shuffle(complete)
        self._complete = complete
        self._arriving = sorted(arriving, key=lambda h: not h.puller)
        self._reference: list[str] | None = None
        self._reference_of: Holder | None = None
        self._todo: list[int] = []
        self._done: dict[int, str] = {}
        self._taken: set[int] = set()
        self._seen: dict[int, tuple[str, Holder]] = {}
        self._news = asyncio.Event()

    async def run(self) -> bool:
        """Fetch what is missing; False when the holders could not give all of it."""
        if not await self._sized():
            return False
        assert self.download.size is not None
        first = self.staged.prefix // CHUNK
        count = -(-self.download.size // CHUNK)
        self._todo = list(range(first, count))
        if not self._todo:
            return True
        workers = max(1, min(self.peers.settings.stripe_holders, len(self._complete)))
        try:
            async with asyncio.TaskGroup() as tasks:
                listing = tasks.create_task(self._follow_list())
                crew = [tasks.create_task(self._work()) for _ in range(workers)]
                await asyncio.wait(crew)
                listing.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return self.staged.prefix == self.download.size

    def blame_all(self) -> set[str]:
        """The whole is not the digest's content and no chunk told: everybody is suspect."""
        for holder in (*self._complete, *self._arriving):
            if holder.node in self.used:
                self.peers.resolver.failed(self.download.digest, holder, "corrupt")
        if self._reference_of is not None:
            self.used.add(self._reference_of.node)
        return self.used

    # --- holders ---

    async def _sized(self) -> bool:
        """Learn the size from a holder when no manifest told it."""
        for holder in [*self._complete, *self._arriving]:
            if self.download.size is not None:
                return True
            try:
                async with self.peers.client.request(holder, self._path(), method="HEAD") as answer:
                    if answer.status == 200:
                        self.download.size = answer.length
                        self.download.notify()
                        return True
                    self._drop(holder, "notfound" if answer.status == 404 else "error")
            except PeerError as error:
                self._drop(holder, error.outcome)
        return self.download.size is not None

    def _pick(self, chunk: int) -> Holder | None:
        """Whom to ask for ``chunk``: not the one whose bytes for it did not match."""
        refused = self._seen.get(chunk)
        rng = self.peers.rng
        options = [h for h in self._complete if refused is None or h != refused[1]]
        if options:
            return rng.choice(options)
        arriving = [h for h in self._arriving if refused is None or h != refused[1]]
        return arriving[0] if arriving else None

    def _drop(self, holder: Holder, outcome: str) -> None:
        """Leave a holder for this round, and tell the resolver why."""
        for group in (self._complete, self._arriving):
            if holder in group:
                group.remove(holder)
        FETCHED.labels(outcome).inc()
        if outcome == "corrupt":
            self.corrupt.add(holder.node)
        self.peers.resolver.failed(self.download.digest, holder, outcome)

    def _busy(self, holder: Holder, answer: Answer) -> None:
        """Somebody is served before us; those who are can help."""
        FETCHED.labels("busy").inc()
        self.peers.resolver.failed(self.download.digest, holder, "busy")
        for node in answer.headers.get("leasehold-also", "").split(",")[:16]:
            name = node.strip()
            if not name or name in self._known or name == self.peers.client.node:
                continue
            member = self.peers.resolver.member(name)
            if member is not None:  # strangers' names lead nowhere
                self._known.add(name)
                also = Holder(member.node, member.address, member.peer_id, complete=False)
                self._arriving.insert(0, also)
        if holder in self._arriving and len(self._arriving) > 1:
            self._arriving.remove(holder)
            self._arriving.append(holder)

    # --- work ---

    async def _work(self) -> None:
        """Take chunks, lowest first, until none is left or nobody can give one."""
        wait = BUSY_LEAST
        while not self.download.pulling or self.staged.prefix:
            chunk = self._take()
            if chunk is None:
                return
            holder = self._pick(chunk)
            if holder is None:
                self._give_back(chunk)
                return
            began = self.peers.clock.monotonic()
            outcome = await self._ask(holder, chunk)
            SECONDS.labels(outcome).observe(self.peers.clock.monotonic() - began)
            if outcome == "hit":
                FETCHED.labels("hit").inc()
                wait = BUSY_LEAST
                continue
            self._give_back(chunk)
            if outcome == "busy":
                await self.peers.clock.sleep(self.peers.rng.uniform(wait / 2, wait))
                wait = min(BUSY_MOST, wait * 2)
            elif outcome != "mismatch":
                self._drop(holder, outcome)

    def _take(self) -> int | None:
        for chunk in self._todo:
            if chunk not in self._taken:
                self._taken.add(chunk)
                return chunk
        return None

    def _give_back(self, chunk: int) -> None:
        self._taken.discard(chunk)

    async def _ask(self, holder: Holder, chunk: int) -> str:
        """One chunk from one holder: ``hit``, or what came instead."""
        size = self.download.size
        assert size is not None
        start, end = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
        whole = (start, end) == (0, size)
        hasher = hashlib.sha256()
        try:
            async with self.peers.client.request(
                holder, self._path(), span=None if whole else (start, end)
            ) as answer:
                if answer.status == 429:
                    self._busy(holder, answer)
                    return "busy"
                if answer.status == 404:
                    return "notfound"
                if answer.status != (200 if whole else 206) or answer.length != end - start:
                    return "error"
                position, pending = start, bytearray()
                async for piece in answer.chunks():
                    hasher.update(piece)
                    pending += piece
                    if len(pending) >= PUT or answer.left == 0:
                        full, pending = pending, bytearray()
                        await self.staged.put(position, full)
                        position += len(full)
        except PeerError as error:
            return error.outcome
        return await self._accept(holder, chunk, end, hasher.hexdigest())

    async def _accept(self, holder: Holder, chunk: int, end: int, got: str) -> str:
        wanted = await self._wanted(chunk)
        if wanted is not None and wanted != got:
            earlier = self._seen.get(chunk)
            if earlier is not None and earlier[0] == got and earlier[1] != holder:
                # Two holders agree against the list: the list lies. The whole will decide.
                assert self._reference_of is not None
                CORRUPT.labels("list").inc()
                self._drop(self._reference_of, "corrupt")
                self._reference = None
                self._reference_of = None
            else:
                CORRUPT.labels("holder").inc()
                log.warning(
                    "images.chunk.corrupt",
                    digest=self.download.digest,
                    chunk=chunk,
                    holder=holder.node,
                )
                self._seen[chunk] = (got, holder)
                self._drop(holder, "corrupt")
                return "mismatch"
        self.used.add(holder.node)
        source = f"peer:{holder.node}"
        sources = self.download.sources
        sources[source] = sources.get(source, 0) + end - chunk * CHUNK
        self._todo.remove(chunk)
        self._done[chunk] = got
        prefix = self.staged.prefix
        while prefix // CHUNK in self._done:
            prefix = min((prefix // CHUNK + 1) * CHUNK, self.download.size or 0)
            if prefix == self.download.size:
                break
        await self.staged.advance(prefix, self._done)
        self.download.notify()
        return "hit"

    # --- chunk digests ---

    async def _wanted(self, chunk: int) -> str | None:
        """The published digest of ``chunk``; None when nobody can say."""
        try:
            async with self.peers.clock.timeout(self.peers.settings.peer_stall_seconds):
                while self._reference is not None and len(self._reference) <= chunk:
                    await self._news.wait()
        except TimeoutError:
            return None
        return None if self._reference is None else self._reference[chunk]

    async def _follow_list(self) -> None:
        """Follow the chunk digests of the node that reads the origin, else of some holder."""
        size = self.download.size
        if size is None or size <= CHUNK:
            return
        candidates = sorted(
            (*self._complete, *self._arriving), key=lambda h: (not h.puller, not h.complete)
        )
        if len(candidates) > 1 and not candidates[0].puller:
            candidates.append(candidates.pop(0))
        for holder in candidates:
            self._reference, self._reference_of = [], holder
            try:
                await self._follow(holder, -(-size // CHUNK))
                return
            except (PeerError, msgspec.DecodeError):
                self._reference = self._reference_of = None
                self._tell()

    async def _follow(self, holder: Holder, count: int) -> None:
        reference = self._reference
        assert reference is not None
        while len(reference) < count and self._reference is reference:
            path = f"/leasehold/v1/chunks/{self.download.digest}?after={len(reference)}"
            async with self.peers.client.request(holder, path) as answer:
                if answer.status != 200:
                    raise PeerError("no chunk digests")
                body = await answer.body(count * 80 + 1024)
            found = msgspec.json.decode(body, type=ChunkAnswer)
            if found.after != len(reference) or len(found.digests) > count - len(reference):
                raise PeerError("odd chunk digests")
            if not found.digests and found.complete:
                raise PeerError("odd chunk digests")
            reference.extend(found.digests)
            self._tell()
            if not found.digests:
                await self.peers.clock.sleep(BUSY_LEAST)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _path(self) -> str:
        return f"/v2/leasehold/{self.download.kind.path}/{self.download.digest}"


def no_holder() -> LeaseholdError:
    """What a resolver raises when only the direct way is left."""
    return LeaseholdError(
        "exhausted", "no node holds it or could fetch it", kind=Kind.UNAVAILABLE, retry_after=1.0
    )
