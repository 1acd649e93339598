"""What "please pull" sets in motion: at most one fetch a digest, detached from who asked.

The answer comes at once, in this order: it failed lately, it is here, it is being fetched, it has
been started. The fetch itself runs as a task; whatever its end, the claim is given back, and only
after the provider record went out, so that nobody finds neither a holder nor a puller.

There is no total limit on a fetch: a large layer over a slow line is fine while it moves. One that
receives nothing for ``pump_idle`` seconds is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.images.coord.messages import (
    ALREADY_PULLING,
    RECENTLY_FAILED,
    STARTED,
    UNSPECIFIED,
    PullResult,
)
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.inflight import Claim, InFlight
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import (
    ContentKind,
    Credentials,
    FailureClass,
    OriginError,
    Puller,
    Store,
    StoreUnavailable,
)
from leasehold.model.digest import Digest

LOOK_SECONDS = 0.1
"""How long the store may take to say whether a digest is here before a pull is begun anyway."""

PROVIDE_SECONDS = 5.0
WATCH_SECONDS = 0.25
"""Between two looks at how far a fetch is."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]

log = get_logger(__name__)


class PullerPump:
    """``spawn`` runs a task for as long as the node lives; ``provide`` tells the DHT (optional)."""

    def __init__(
        self,
        store: Store,
        puller: Puller,
        flights: InFlight,
        negative: NegativeCache,
        clock: Clock,
        *,
        spawn: Spawn,
        provide: Callable[[Digest], Awaitable[object]] | None = None,
        settings: CoordSettings | None = None,
    ) -> None:
        self._store = store
        self._puller = puller
        self._flights = flights
        self._negative = negative
        self._clock = clock
        self._spawn = spawn
        self._provide = provide
        self._settings = settings or CoordSettings()
        self.draining = False
        """True while shutting down: new pulls are declined."""

    async def begin(
        self,
        registry: str,
        repository: str,
        kind: ContentKind,
        digests: Sequence[tuple[Digest, int | None]],
        authorization: str = "",
    ) -> list[PullResult]:
        """One result a digest, in order; never waits for a pull."""
        return [
            await self._begin_one(registry, repository, kind, digest, size, authorization)
            for digest, size in digests
        ]

    async def _begin_one(
        self,
        registry: str,
        repository: str,
        kind: ContentKind,
        digest: Digest,
        size: int | None,
        authorization: str,
    ) -> PullResult:
        cooldown = self._negative.hit(digest)
        if cooldown is not None and not (authorization and cooldown.failure is FailureClass.AUTH):
            return PullResult(
                digest,
                RECENTLY_FAILED,
                cooldown_until=cooldown.until,
                failure=cooldown.failure,
                told=True,
                remaining=cooldown.remaining,
            )
        try:
            async with self._clock.timeout(LOOK_SECONDS):
                if await self._store.has(digest):
                    return PullResult(
                        digest, ALREADY_PULLING, started_at=self._clock.now(), told=True
                    )
        except TimeoutError:
            pass
        except StoreUnavailable:
            return PullResult(digest, UNSPECIFIED)
        if self.draining:
            return PullResult(digest, UNSPECIFIED)
        claim = self._flights.start(digest, kind, size)
        entry = claim.entry
        if not claim.won:
            silence = self._clock.monotonic() - entry.moved
            return PullResult(
                digest, ALREADY_PULLING, started_at=entry.started_at, told=True, silence=silence
            )
        try:
            self._spawn(self._pull(claim, registry, repository, digest, size, authorization))
        except LeaseholdError:
            claim.done()
            return PullResult(digest, UNSPECIFIED)
        return PullResult(digest, STARTED, started_at=entry.started_at, told=True)

    async def _pull(
        self,
        claim: Claim,
        registry: str,
        repository: str,
        digest: Digest,
        size: int | None,
        authorization: str,
    ) -> None:
        kind = claim.entry.kind
        credentials = Credentials(header=authorization) if authorization else None
        try:
            await self._watched(
                self._puller.pull(digest, kind, registry, repository, size, credentials), digest
            )
        except OriginError as error:
            self._failed(digest, error.failure, error.message, delegated=bool(authorization))
        except Exception as error:  # store, copy, digest, or a bug: this node's own trouble
            self._failed(digest, FailureClass.TRANSIENT, str(error), delegated=False)
        else:
            self._negative.succeeded(digest)
            await self._tell(digest)
        finally:
            claim.done()

    async def _watched(self, pull: Awaitable[int], digest: Digest) -> None:
        """Wait for ``pull`` while it moves; its progress goes into the in-flight map."""
        pulling = asyncio.ensure_future(pull)
        try:
            while not pulling.done():
                await asyncio.wait({pulling}, timeout=WATCH_SECONDS)
                progress = self._puller.progress(digest)
                if progress is not None:
                    self._flights.progress(digest, *progress)
                entry = self._flights.get(digest)
                if entry is None or pulling.done():
                    continue
                idle = self._clock.monotonic() - entry.moved
                if idle > self._settings.pump_idle:
                    raise OriginError(
                        FailureClass.TRANSIENT, f"nothing arrived for {idle:.0f} s", got=digest
                    )
            await pulling
        finally:
            pulling.cancel()

    def _failed(
        self, digest: Digest, failure: FailureClass, message: str, *, delegated: bool
    ) -> None:
        log.warning("coord.pull_failed", digest=digest, failure=failure.name, error=message)
        if delegated and failure is FailureClass.AUTH:
            return  # somebody's own token was refused: that says nothing about the digest
        self._negative.failed(digest, failure)

    async def _tell(self, digest: Digest) -> None:
        if self._provide is None:
            return
        try:
            async with self._clock.timeout(PROVIDE_SECONDS):
                await self._provide(digest)
        except (LeaseholdError, TimeoutError) as error:
            log.info("coord.provide_failed", digest=digest, error=str(error))
