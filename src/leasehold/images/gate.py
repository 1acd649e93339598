"""The last resort: a direct pull from the origin when coordination found nobody.

Ten thousand nodes whose discovery broke must not become ten thousand pulls, so the gate asks, in
this order: is the node past its first moments, is discovery healthy enough to be believed, does
this node fetch the digest already, are tokens left, and, after a random wait that grows with the
logarithm of the fleet, does anybody hold it by now? Each *no* has a name that is counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.images.inflight import InFlight
from leasehold.images.ports import ContentKind
from leasehold.model.digest import Digest

RECHECK_SECONDS = 1.0
UNHEALTHY = 0.3
"""Discovery health below which nothing it says is believed (section 11 of the original)."""

PULLS = metrics.counter("p2p_origin_fallback_total", "Direct origin pulls after all else failed.")
DECLINED = metrics.counter(
    "p2p_origin_fallback_decline_total", "Direct origin pulls not made.", ("reason",)
)


class TokenBucket:
    """``capacity`` tokens, refilled evenly within ``period`` seconds; starts full, no refunds."""

    def __init__(self, clock: Clock, capacity: int, period: float) -> None:
        self._clock = clock
        self._capacity = float(capacity)
        self._rate = capacity / period
        self._tokens = float(capacity)
        self._at = clock.monotonic()

    def take(self) -> bool:
        now = self._clock.monotonic()
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class DirectGate:
    """``health`` tells discovery's score, ``members`` how many nodes there are, ``held_elsewhere``
    looks a digest up once more. ``bootstrapping`` is true in the node's first moments.

    ``jitter`` is the seconds that are multiplied by ln(members); ``per_minute`` the bucket.
    """

    def __init__(
        self,
        clock: Clock,
        flights: InFlight,
        *,
        health: Callable[[], float],
        members: Callable[[], int],
        held_elsewhere: Callable[[Digest], Awaitable[bool]],
        bootstrapping: Callable[[], bool],
        per_minute: int = 2,
        jitter: float = 3.0,
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._flights = flights
        self._health = health
        self._members = members
        self._held_elsewhere = held_elsewhere
        self._bootstrapping = bootstrapping
        self._bucket = TokenBucket(clock, per_minute, 60.0)
        self._jitter = jitter
        self._rng = rng or random.Random()

    @asynccontextmanager
    async def passing(
        self, digest: Digest, kind: ContentKind, size: int | None = None
    ) -> AsyncIterator[None]:
        """Entered: pull now; the digest is in flight meanwhile. ``fallback_declined`` otherwise."""
        if self._bootstrapping():
            raise _declined("bootstrap_window", 5.0)
        if self._health() < UNHEALTHY:
            raise _declined("dht_unhealthy", 10.0)
        if self._flights.get(digest) is not None:
            raise _declined("in_flight", 1.0)
        if not self._bucket.take():
            raise _declined("rate_limited", 30.0)
        members = self._members()
        if members >= 2:
            try:
                await self._clock.sleep(self._rng.uniform(0.0, self._jitter * math.log(members)))
            except BaseException:
                DECLINED.labels("context_cancelled").inc()
                raise
        if await self._recheck(digest):
            raise _declined("recheck_hit", 0.0)
        claim = self._flights.start(digest, kind, size)
        if not claim.won:
            raise _declined("in_flight", 1.0)
        try:
            PULLS.inc()
            yield
        finally:
            claim.done()

    async def _recheck(self, digest: Digest) -> bool:
        try:
            async with self._clock.timeout(RECHECK_SECONDS):
                return await self._held_elsewhere(digest)
        except (LeaseholdError, TimeoutError):
            return False  # nobody found is the very reason to be here


def _declined(reason: str, retry_after: float) -> LeaseholdError:
    DECLINED.labels(reason).inc()
    return LeaseholdError(
        "fallback_declined",
        f"no node holds it, and a direct pull from the origin was declined: {reason}",
        kind=Kind.UNAVAILABLE,
        retry_after=retry_after,
        got=reason,
    )
