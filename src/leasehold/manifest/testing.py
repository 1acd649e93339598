"""A market, tenants and a provider in memory, for tests of manifest intake and of what uses it.

``world(clock)`` makes one; ``async with w.up() as service`` runs the provider, and running it again
is a restart. Nothing here is used by a real provider.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.core.retry import Backoff
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY, Log
from leasehold.events.memory import MemoryLog
from leasehold.manifest.ports import LeasePage, MarketDeployment, MarketGroup, MarketLease
from leasehold.manifest.service import ManifestService
from leasehold.manifest.settings import ManifestSettings
from leasehold.model import manifest as manifests
from leasehold.model import sdl
from leasehold.model.events.lease import DeployFailed, WorkloadHealthy, WorkloadRunning
from leasehold.model.events.market import (
    DeploymentClosed,
    DeploymentCreated,
    DeploymentUpdated,
    LeaseClosed,
    LeaseWon,
    Price,
)
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.model.sealing import Vault
from leasehold.observe.engine import Engine

OWNER = "akash1owner"
OTHER = "akash1other"
PROVIDER = "akash1provider"


@dataclass
class FakeMarket:
    """Answers at once, or after ``delay`` seconds, or with ``failures`` UNAVAILABLE first."""

    clock: Clock
    deployments: dict[DeploymentId, MarketDeployment] = field(default_factory=dict)
    live: dict[LeaseId, MarketLease] = field(default_factory=dict)
    delay: float = 0.0
    failures: int = 0
    queries: int = 0
    closes: list[tuple[LeaseId, int]] = field(default_factory=list)
    close_failures: list[LeaseholdError | float] = field(default_factory=list)
    page_size: int = 1000

    async def _answer(self) -> None:
        if self.delay:
            await self.clock.sleep(self.delay)
        if self.failures > 0:
            self.failures -= 1
            raise LeaseholdError("rpc", "the market is down", kind=Kind.UNAVAILABLE, retry_after=1)

    async def deployment(self, id: DeploymentId) -> MarketDeployment:
        self.queries += 1
        found = self.deployments.get(id)
        await self._answer()
        if found is None:
            raise not_found("deployment", str(id))
        return found

    async def leases(
        self, provider: str, deployment: DeploymentId | None = None, *, page: str = ""
    ) -> LeasePage:
        ours = sorted(
            (
                lease
                for lease in self.live.values()
                if lease.id.provider == provider
                and (deployment is None or lease.id.deployment == deployment)
            ),
            key=lambda lease: lease.id,
        )
        await self._answer()
        start = int(page or 0)
        end = start + self.page_size
        return LeasePage(leases=ours[start:end], next=str(end) if end < len(ours) else "")

    async def close_bid(self, id: LeaseId, reason: int) -> None:
        if self.close_failures:
            trouble = self.close_failures.pop(0)
            if isinstance(trouble, LeaseholdError):
                raise trouble
            await self.clock.sleep(trouble)
        self.closes.append((id, reason))
        self.live.pop(id, None)


@dataclass
class World:
    """One provider and its market. ``feed=False``: events of the market do not arrive."""

    clock: Clock
    log: Log
    market: FakeMarket
    vault: Vault
    settings: ManifestSettings
    provider: str = PROVIDER
    feed: bool = True
    height: int = 0
    service: ManifestService = field(init=False)
    engine: Engine = field(init=False)
    options: dict[str, Any] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[ManifestService]:
        """A running provider: service and engine; leave it and enter again for a restart."""
        self.engine = Engine(self.log, self.clock)
        self.service = ManifestService(
            self.log,
            self.engine,
            self.market,
            self.market,
            provider=self.provider,
            vault=self.vault,
            settings=self.settings,
            clock=self.clock,
            backoff=Backoff(first=0.1, cap=5.0, rng=random.Random(7)),
            **self.options,
        )
        async with running(self.service), running(self.engine):
            yield self.service

    async def tell(self, kind: str, id: object, payload: msgspec.Struct) -> None:
        if self.feed:
            await self.say(kind, id, payload)

    async def say(self, kind: str, id: object, payload: msgspec.Struct) -> Event:
        event = NewEvent.of(payload, clock=self.clock)
        return (await self.log.append(Entity(kind, str(id)), ANY, [event]))[0]

    async def deploy(self, text: str, dseq: int = 1, owner: str = OWNER) -> bytes:
        """Put an SDL on the market; returns the manifest to send."""
        loaded = sdl.load(text)
        id = DeploymentId(owner, dseq)
        self.height += 1
        self.market.deployments[id] = MarketDeployment(
            id=id,
            hash=loaded.hash.hex(),
            groups=[
                MarketGroup(gseq=n, spec=spec) for n, spec in enumerate(loaded.groups(), start=1)
            ],
            height=self.height,
        )
        await self.tell(
            "deployment",
            id,
            DeploymentCreated(id=id, hash=loaded.hash.hex(), height=self.height),
        )
        return msgspec.json.encode(loaded.manifest())

    async def update(self, body: bytes, dseq: int = 1, owner: str = OWNER) -> None:
        """Put the hash of another manifest on the market."""
        id = DeploymentId(owner, dseq)
        hash = manifests.version_hash(manifests.decode(body)).hex()
        self.height += 1
        self.market.deployments[id] = msgspec.structs.replace(
            self.market.deployments[id], hash=hash, height=self.height
        )
        await self.tell("deployment", id, DeploymentUpdated(id=id, hash=hash, height=self.height))

    async def win(self, dseq: int = 1, gseq: int = 1, oseq: int = 1, owner: str = OWNER) -> LeaseId:
        id = LeaseId(owner, dseq, gseq, oseq, self.provider)
        self.height += 1
        group = self.market.deployments[id.deployment].groups[gseq - 1].spec
        self.market.live[id] = MarketLease(id=id, denom="uakt", amount="1", height=self.height)
        await self.tell(
            "lease",
            id,
            LeaseWon(
                id=id,
                price=Price("uakt", "1"),
                group=msgspec.to_builtins(group),
                height=self.height,
            ),
        )
        return id

    async def close_lease(self, id: LeaseId) -> None:
        self.height += 1
        self.market.live.pop(id, None)
        await self.tell("lease", id, LeaseClosed(id=id, height=self.height))

    async def close_deployment(self, dseq: int = 1, owner: str = OWNER) -> None:
        id = DeploymentId(owner, dseq)
        self.height += 1
        self.market.deployments[id] = msgspec.structs.replace(
            self.market.deployments[id], state="closed", height=self.height
        )
        await self.tell("deployment", id, DeploymentClosed(id=id, height=self.height))

    async def deployed(self, id: LeaseId, hash: str, *, failed: str = "") -> None:
        """What the deploy system would say of a manifest."""
        if failed:
            await self.say("lease", id, DeployFailed(id=id, hash=hash, code=failed, message=failed))
            return
        await self.say("lease", id, WorkloadRunning(id=id, hash=hash, uris=["http://x"]))
        await self.say("lease", id, WorkloadHealthy(id=id, hash=hash))

    async def events(self, kind: str, id: object, type: str = "") -> list[Event]:
        return [
            event
            async for event in self.log.read(Entity(kind, str(id)))
            if isinstance(event, Event) and (not type or event.type == type)
        ]

    async def received(self, id: LeaseId) -> list[str]:
        """The hashes handed to a lease, in order."""
        return [e.payload.hash for e in await self.events("lease", id, "manifest.received")]


def world(clock: Clock, **settings: Any) -> World:
    options = {"linger_s": 300.0, **settings}
    return World(
        clock,
        MemoryLog(clock),
        FakeMarket(clock),
        Vault(bytes(32)),
        ManifestSettings(**options),
    )


def simple() -> str:
    """The SDL of one web service with a host and a port, two replicas."""
    return """
version: "2.0"
services:
  web:
    image: nginx
    expose:
      - {port: 80, accept: [ahostname.com], to: [{global: true}]}
      - {port: 12345, proto: udp, to: [{global: true}]}
profiles:
  compute:
    web: {resources: {cpu: {units: 100m}, memory: {size: 128Mi}, storage: {size: 1Gi}}}
  placement:
    westcoast: {pricing: {web: {denom: uakt, amount: 50}}}
deployment:
  web:
    westcoast: {profile: web, count: 2}
"""


def two_groups() -> str:
    """One service in two placements, so two groups and two leases."""
    return """
version: "2.0"
services:
  web:
    image: nginx
    env: [SECRET=tiger, EMPTY=, BARE]
    expose: [{port: 80, to: [{global: true}]}]
profiles:
  compute:
    web: {resources: {cpu: {units: 100m}, memory: {size: 64Mi}, storage: {size: 64Mi}}}
  placement:
    east: {pricing: {web: {denom: uakt, amount: 5}}}
    west: {pricing: {web: {denom: uakt, amount: 5}}}
deployment:
  web:
    east: {profile: web, count: 1}
    west: {profile: web, count: 1}
"""


def changed(body: bytes, **service: Any) -> bytes:
    """The manifest with fields of every service replaced."""
    manifest = json.loads(body)
    for group in manifest:
        for each in group["services"]:
            each.update(service)
    return json.dumps(manifest).encode()


async def quiet(rounds: int = 50) -> None:
    """Let everything that is ready run."""
    for _ in range(rounds):
        await asyncio.sleep(0)
