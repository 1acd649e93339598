"""Answers other nodes, and this node itself, about digests.

One stream, one request, one answer. Nothing is ever refused in words: a bad frame, a bad digest,
a response where a request belongs, and the stream is closed without an answer and counted. The
local calls (:meth:`Server.local_pull_intent`, :meth:`Server.start_local_pull`) run the same code as
the wire, so a node that ranks itself gets the answer it would have given a stranger.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.images.coord import MAX_MESSAGE, PROTOCOL_1_0, PROTOCOL_1_1
from leasehold.images.coord.messages import (
    STARTED,
    UNSPECIFIED,
    Intent,
    PleasePullRequest,
    PleasePullResponse,
    PullIntentRequest,
    PullResult,
    decode,
    encode,
    sizes_of,
)
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.gate import TokenBucket
from leasehold.images.inflight import InFlight
from leasehold.images.membership import View
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import ContentKind, Store, StoreUnavailable
from leasehold.model.digest import Digest
from leasehold.p2p.connection import Connection
from leasehold.p2p.errors import PeerError, ProtocolViolation
from leasehold.p2p.host import Host
from leasehold.p2p.keys import PeerId
from leasehold.p2p.yamux import Stream

SOURCES = 4096
"""Peers whose rate of pulls is remembered."""

INTENTS = metrics.counter("p2p_coord_pull_intent_served_total", "Intents answered.")
UNAVAILABLE = metrics.counter(
    "p2p_coord_pull_intent_storage_unavailable_total", "Intents while the store could not be asked."
)
PULLS = metrics.counter("p2p_coord_please_pull_served_total", "please_pull requests answered.")
PULLS_STARTED = metrics.counter("p2p_coord_please_pull_started_total", "Digests begun by them.")
ERRORS = metrics.counter("p2p_coord_stream_error_total", "Streams and digests dropped.")


class Pump(Protocol):
    """What sets pulls in motion; answers at once, one result a digest, in order."""

    async def begin(
        self,
        registry: str,
        repository: str,
        kind: ContentKind,
        digests: Sequence[tuple[Digest, int | None]],
        authorization: str,
    ) -> list[PullResult]: ...


def _nothing(*_: object) -> None:
    return None


@dataclass(slots=True)
class Hooks:
    """Called beside the metrics, each optional."""

    on_pull_intent_served: Callable[[], object] = field(default=_nothing)
    on_pull_intent_storage_unavailable: Callable[[], object] = field(default=_nothing)
    on_please_pull_served: Callable[[], object] = field(default=_nothing)
    on_please_pull_started: Callable[[Digest], object] = field(default=_nothing)
    on_stream_error: Callable[[str], object] = field(default=_nothing)


class Server:
    """``node`` is this node's name, ``view`` tells the members of the moment.

    ``may_pull`` decides whether a peer may make us pull from a registry and repository; the
    default lets every connected peer (who may connect is the host's ``allow``).
    """

    def __init__(
        self,
        node: str,
        view: Callable[[], View],
        store: Store,
        flights: InFlight,
        negative: NegativeCache,
        pump: Pump | None,
        clock: Clock,
        settings: CoordSettings | None = None,
        *,
        hooks: Hooks | None = None,
        may_pull: Callable[[PeerId, str, str], bool] | None = None,
    ) -> None:
        self.node = node
        self.pump = pump
        self.hooks = hooks or Hooks()
        self._view = view
        self._store = store
        self._flights = flights
        self._negative = negative
        self._clock = clock
        self._settings = settings or CoordSettings()
        self._may_pull = may_pull
        self._open: dict[PeerId, int] = {}
        self._open_total = 0
        self._buckets: OrderedDict[PeerId, TokenBucket] = OrderedDict()

    def bind(self, host: Host) -> None:
        """Serve both versions on ``host``."""
        for protocol in (PROTOCOL_1_1, PROTOCOL_1_0):
            host.handle(protocol, self._serve, deadline=self._settings.stream_deadline)

    def unbind(self, host: Host) -> None:
        for protocol in (PROTOCOL_1_1, PROTOCOL_1_0):
            host.unhandle(protocol)

    # answers

    async def local_pull_intent(self, digest: Digest) -> Intent:
        """What this node would answer about ``digest``."""
        try:
            cached = await self._store.has(digest)
        except StoreUnavailable:
            cached = False
            UNAVAILABLE.inc()
            self.hooks.on_pull_intent_storage_unavailable()
        entry = self._flights.get(digest)
        cooldown = self._negative.lookup(digest)
        rank = self._view().ranking.rank(digest, self.node)
        if entry is None and cooldown is None:
            return Intent(has_cached=cached, hrw_rank=rank)
        now = self._clock.monotonic()
        return Intent(
            has_cached=cached,
            in_flight=entry is not None,
            started_at=entry.started_at if entry is not None else None,
            hrw_rank=rank,
            recently_failed=cooldown is not None,
            cooldown_until=cooldown.until if cooldown is not None else None,
            failure=cooldown.failure if cooldown is not None else None,
            told=True,
            age=now - entry.began if entry is not None else 0.0,
            silence=now - entry.moved if entry is not None else 0.0,
            received=entry.received if entry is not None else 0,
            size=entry.size if entry is not None else None,
            remaining=cooldown.remaining if cooldown is not None else 0.0,
        )

    async def start_local_pull(
        self,
        registry: str,
        repository: str,
        kind: ContentKind,
        digests: Sequence[tuple[Digest, int | None]],
        authorization: str = "",
    ) -> list[PullResult]:
        """please_pull to this very node. One result a digest; registry and repository required."""
        if not registry or not repository:
            raise ProtocolViolation("coord_incomplete", "a pull needs registry and repository")
        if self.pump is None:
            return [PullResult(digest, UNSPECIFIED) for digest, _ in digests]
        results = await self.pump.begin(registry, repository, kind, digests, authorization)
        for result in results:
            if result.outcome == STARTED:
                PULLS_STARTED.inc()
                self.hooks.on_please_pull_started(Digest(result.digest))
        return results

    async def _please_pull(self, request: PleasePullRequest, peer: PeerId) -> PleasePullResponse:
        if not request.registry or not request.repository:
            raise ProtocolViolation("coord_incomplete", "a pull needs registry and repository")
        if len(request.digests) > self._settings.max_batch:
            raise ProtocolViolation("coord_batch", f"{len(request.digests)} digests in one request")
        digests: list[tuple[Digest, int | None]] = []
        for text, size in zip(request.digests, sizes_of(request), strict=True):
            try:
                digests.append((Digest.parse(text), size))
            except LeaseholdError:
                self._error("digest_malformed")
        if not digests:
            return PleasePullResponse()
        if self._may_pull and not self._may_pull(peer, request.registry, request.repository):
            self._error("pull_not_allowed")
            return PleasePullResponse(tuple(PullResult(d, UNSPECIFIED) for d, _ in digests))
        granted = [d for d in digests if self._grant(peer)]
        results = await self.start_local_pull(
            request.registry, request.repository, request.kind, granted, request.authorization
        )
        refused = [PullResult(d, UNSPECIFIED) for d, _ in digests[len(granted) :]]
        return PleasePullResponse((*results, *refused))

    def _grant(self, peer: PeerId) -> bool:
        bucket = self._buckets.get(peer)
        if bucket is None:
            bucket = TokenBucket(self._clock, self._settings.pulls_per_minute, 60.0)
            self._buckets[peer] = bucket
            if len(self._buckets) > SOURCES:
                self._buckets.popitem(last=False)
        return bucket.take()

    # the wire

    async def _serve(self, stream: Stream, connection: Connection) -> None:
        peer = connection.peer
        mine = self._open.get(peer, 0)
        if mine >= self._settings.max_streams or self._open_total >= (
            self._settings.max_streams_total
        ):
            self._error("too_many_streams")
            stream.reset("too many streams")
            return
        self._open[peer] = mine + 1
        self._open_total += 1
        try:
            await self._exchange(stream, peer)
        except PeerError as error:
            # Silence is the only refusal: the stream is closed without an answer.
            self._error(error.code)
        except TimeoutError:
            self._error("dispatch_timeout")
        finally:
            self._open_total -= 1
            if self._open[peer] > 1:
                self._open[peer] -= 1
            else:
                del self._open[peer]

    async def _exchange(self, stream: Stream, peer: PeerId) -> None:
        request = decode(await stream.read_frame(MAX_MESSAGE))
        answer: Intent | PleasePullResponse
        async with self._clock.timeout(self._settings.dispatch_timeout):
            if isinstance(request, PullIntentRequest):
                try:
                    digest = Digest.parse(request.digest)
                except LeaseholdError as error:
                    raise ProtocolViolation("digest_malformed", error.message) from None
                answer = await self.local_pull_intent(digest)
                INTENTS.inc()
                self.hooks.on_pull_intent_served()
            elif isinstance(request, PleasePullRequest):
                answer = await self._please_pull(request, peer)
                PULLS.inc()
                self.hooks.on_please_pull_served()
            else:
                raise ProtocolViolation("coord_unexpected", "a response instead of a request")
        frame = encode(answer, durations=stream.protocol == PROTOCOL_1_1)
        if not stream.write_now(frame, fin=True):
            await stream.write(frame, fin=True)

    def _error(self, reason: str) -> None:
        ERRORS.inc()
        self.hooks.on_stream_error(reason)
