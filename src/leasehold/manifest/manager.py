"""One manager a deployment: what the market says of it, asked once for everybody who waits.

A fetch is one query for the deployment and one for our leases of it. At most one is in flight;
everyone who needs data waits for it. Data is used for a few seconds. Whatever changes the
deployment or its leases raises the generation: a fetch that began before does not count as fresh,
so that an answer from the past is never used for the present. A fetch that fails is tried again
for as long as the caller has time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.retry import Backoff
from leasehold.manifest.ports import (
    ACTIVE,
    RECLAIMING,
    Market,
    MarketDeployment,
    MarketGroup,
    MarketLease,
)
from leasehold.manifest.settings import ManifestSettings
from leasehold.model import manifest as manifests
from leasehold.model.manifest import Manifest
from leasehold.model.market import DeploymentId

FETCHES = metrics.histogram(
    "leasehold_manifest_fetch_seconds", "time to fetch a deployment and its leases"
)
MAX_PAGES = 1000
"""Pages of leases read of one deployment before the market is called broken."""


@dataclass(frozen=True, slots=True)
class MarketData:
    """A deployment with our live leases: the ``serial``-th fetch, begun at ``at`` (monotonic)."""

    deployment: MarketDeployment
    leases: tuple[MarketLease, ...]
    groups: dict[int, MarketGroup]
    at: float
    serial: int


class Manager:
    """What is known of one deployment. ``spawn`` runs the shared fetch in the service's tasks."""

    def __init__(
        self,
        id: DeploymentId,
        market: Market,
        provider: str,
        clock: Clock,
        settings: ManifestSettings,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
        backoff: Backoff,
    ) -> None:
        self.id = id
        self.market = market
        self.provider = provider
        self.clock = clock
        self.settings = settings
        self.spawn = spawn
        self.backoff = backoff
        self.generation = 0
        self.serial = 0
        """Fetches begun so far."""
        self.waiting = 0
        self.used_at = clock.monotonic()
        self.lock = asyncio.Lock()
        self.passed: tuple[str, str, int] | None = None
        """Hash, expected hash and fetch of the last manifest that passed all checks."""
        self._decoded: tuple[bytes, Manifest, str] | None = None
        self.trouble: LeaseholdError | None = None
        """Why the last fetch failed: what callers are told whose time runs out."""
        self._data: MarketData | None = None
        self._fetch: asyncio.Future[MarketData] | None = None

    def invalidate(self) -> None:
        """Something changed: what is known or being fetched is of the past."""
        self.generation += 1
        self._data = None

    def decode(self, body: bytes) -> tuple[Manifest, str]:
        """The manifest in ``body`` and its version hash; the last one is remembered."""
        digest = hashlib.sha256(body).digest()
        if self._decoded is None or self._decoded[0] != digest:
            manifest = manifests.decode(body, limit=self.settings.max_manifest_bytes)
            self._decoded = (digest, manifest, manifests.version_hash(manifest).hex())
        return self._decoded[1], self._decoded[2]

    async def data(self, *, after: int = -1) -> MarketData:
        """Fresh enough market data.

        ``after``: only what a later fetch than this serial number brought. Raises what the market
        raised; UNAVAILABLE and TIMEOUT are tried again until the caller's deadline.
        """
        failures = 0
        while True:
            data = self._data
            if (
                data is not None
                and self.clock.monotonic() - data.at < self.settings.cache_age_s
                and data.serial > after
            ):
                return data
            generation = self.generation
            try:
                data = await asyncio.shield(self._fetching())
            except LeaseholdError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT):
                    raise
                self.trouble = error
                failures += 1
                await self.clock.sleep(self.backoff.delay(failures))
                continue
            self.trouble = None
            if generation == self.generation and data.serial > after:
                return data

    def _fetching(self) -> asyncio.Future[MarketData]:
        if self._fetch is None:
            self._fetch = future = asyncio.get_running_loop().create_future()
            self.spawn(self._run(future))
        return self._fetch

    async def _run(self, future: asyncio.Future[MarketData]) -> None:
        generation, began = self.generation, self.clock.monotonic()
        self.serial += 1
        try:
            async with self.clock.timeout(self.settings.query_timeout_s):
                data = await self._query(began, self.serial)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except TimeoutError:
            error = LeaseholdError(
                "market_timeout",
                f"the market did not answer within {self.settings.query_timeout_s:g} s",
                kind=Kind.UNAVAILABLE,
                retry_after=5.0,
            )
            self._fail(future, error)
        except Exception as error:
            self._fail(future, error)
        else:
            if generation == self.generation:
                self._data = data
            if not future.done():
                future.set_result(data)
        finally:
            self._fetch = None
            FETCHES.observe(self.clock.monotonic() - began)

    @staticmethod
    def _fail(future: asyncio.Future[MarketData], error: Exception) -> None:
        if not future.done():
            future.set_exception(error)
            future.exception()  # every waiter may have left

    async def _query(self, began: float, serial: int) -> MarketData:
        deployment = await self.market.deployment(self.id)
        leases: list[MarketLease] = []
        page = ""
        for _ in range(MAX_PAGES):
            answer = await self.market.leases(self.provider, self.id, page=page)
            leases += [lease for lease in answer.leases if lease.state in (ACTIVE, RECLAIMING)]
            page = answer.next
            if not page:
                break
        groups = {group.gseq: group for group in deployment.groups}
        for lease in leases:
            if lease.id.gseq not in groups:
                raise LeaseholdError(
                    "market_inconsistent",
                    f"the market knows lease {lease.id} but not its group; try again shortly",
                    kind=Kind.UNAVAILABLE,
                    got=lease.id.gseq,
                    retry_after=1.0,
                )
        return MarketData(deployment, tuple(leases), groups, began, serial)
