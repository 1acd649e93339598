"""Bringing one version of a workload up beside what runs, without losing a request.

1. Images are made sure of and volumes prepared.
2. New replicas are started beside the old ones. A replica whose key (lease, service, revision,
   number) runs already is kept: an update that changes nothing in a service does not touch it.
   A service with persistent volumes cannot have two versions writing at once, so its old replicas
   end first; the proxy holds requests meanwhile and tries again until the new one accepts.
3. When every new replica answers, ingress, ports and names are moved over and the old replicas
   drained; then they are removed.

When a new replica does not come up, the new ones are removed and everything stays as it was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.deploy.driver import Applied, Emit
from leasehold.deploy.ports import Image, Images, LeaseMarket, Volumes
from leasehold.deploy.replica import Order, Replica, Runtime, State
from leasehold.deploy.routes import Routes
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload, exclusive, revision, volume_mounts
from leasehold.model.events.lease import (
    ImagePulled,
    ReplicaExited,
    ServiceStarted,
    VolumeReady,
    WorkloadRunning,
)
from leasehold.model.manifest import ManifestService
from leasehold.model.market import LeaseId

FIRST_CHECK, SLOWEST_CHECK = 0.01, 1.0
"""Seconds between looks at whether a new replica answers; the wait doubles."""

COMES_UP_LATE = ("not_answering", "keeps_ending")
"""Failures of a first version after which it is left to the monitor instead of removed."""

log = get_logger(__name__)


@dataclass
class Parts:
    """What deployments work with."""

    runtime: Runtime
    images: Images
    volumes: Volumes
    routes: Routes
    market: LeaseMarket | None
    settings: DeploySettings
    clock: Clock
    rng: random.Random = field(default_factory=random.Random)
    marks: dict[str, int] = field(default_factory=dict)
    last_of: Callable[[LeaseId], bool] = lambda lease: True
    """Whether no other lease of the same deployment is deployed here."""

    def mark(self, lease: str) -> int:
        """The lease's number in the network: the smallest that no other lease has."""
        if lease not in self.marks:
            used = set(self.marks.values())
            self.marks[lease] = next(n for n in range(1, len(used) + 2) if n not in used)
        return self.marks[lease]


class Rollout:
    """One attempt to bring ``workload`` up in place of ``before``."""

    def __init__(
        self, parts: Parts, workload: Workload, before: Applied | None, emit: Emit
    ) -> None:
        self.parts = parts
        self.workload = workload
        self.before = before
        self.emit = emit
        self.settings = parts.settings
        self.clock = parts.clock
        self.revisions: dict[str, str] = {}
        self.digests: dict[str, str] = {}

    async def run(self) -> Applied:
        """Bring it up, or raise and leave things as they were."""
        images = await self._images()
        volumes = await self._volumes()
        revisions = self.revisions = {
            service.name: revision(service, images[service.name].digest)
            for service in self.workload.services
        }
        digests = self.digests = {name: str(image.digest) for name, image in images.items()}
        applied = Applied(self.workload, revisions, digests)
        running = {r.key: r for r in await self._mine() if r.state is State.RUNNING}
        wanted = applied.keys()
        missing = [key for key in wanted if key not in running]
        obsolete = [replica for key, replica in running.items() if key not in wanted]
        keeping = {s.name for s in self.workload.services if exclusive(s)}
        first = {(r.service, r.number): r for r in obsolete if r.service in keeping}
        started: list[Replica] = []
        for key in wanted:
            if key in running:
                await self._say_started(running[key])
        try:
            for replica in first.values():
                await self.parts.runtime.remove_replica(
                    replica.key, grace=self.settings.stop_grace, keep_network=True
                )
            orders = [self._order(*wanted[key], applied, images, volumes) for key in missing]
            orders = [_instead(order, first) for order in orders]
            async with asyncio.TaskGroup() as group:
                for order in orders:
                    group.create_task(self._start(order, started))
            await self.parts.routes.names(applied, [*running.values(), *started])
            await self.emit(
                WorkloadRunning(
                    id=self.workload.lease,
                    hash=self.workload.hash,
                    uris=self.parts.routes.uris(self.workload),
                    revisions=revisions,
                    digests=digests,
                ),
                key=f"running/{self.workload.hash}/{_digest(revisions)}",
            )
            await self._until_answering(applied, orders, started)
        except BaseException as error:
            await self._undo(started, list(first.values()), error)
            raise
        await self.parts.routes.move(applied, await self._mine())
        for replica in obsolete:
            await self.parts.runtime.remove_replica(replica.key, grace=self.settings.stop_grace)
        await self.parts.images.release(str(self.workload.lease), keep=set(digests.values()))
        return applied

    async def restart(self, applied: Applied, service: ManifestService, number: int) -> None:
        """Bring one replica of a version that is up back, and let requests reach it again."""
        image = await self.parts.images.ensure(
            pinned(service.image, applied.digests.get(service.name, "")),
            credentials=service.credentials or _given(service),
            holder=str(self.workload.lease),
        )
        images = {service.name: image}
        order = self._order(service, number, applied, images, await self._volumes())
        started: list[Replica] = []
        await self._start(order, started)
        await self._until_answering(applied, [order], started)
        await self.parts.routes.move(applied, await self._mine())

    async def _mine(self) -> list[Replica]:
        return await self.parts.runtime.replicas(self.workload.lease)

    async def _images(self) -> dict[str, Image]:
        found: dict[str, Image] = {}

        async def ensure(service: ManifestService) -> None:
            began = self.clock.monotonic()
            image = await self.parts.images.ensure(
                service.image,
                credentials=service.credentials or _given(service),
                holder=str(self.workload.lease),
            )
            found[service.name] = image
            await self.emit(
                ImagePulled(
                    id=self.workload.lease,
                    service=service.name,
                    reference=image.reference,
                    digest=str(image.digest),
                    bytes=int(getattr(image, "bytes", 0)),
                    seconds=round(self.clock.monotonic() - began, 6),
                ),
                key=f"image/{self.workload.hash}/{service.name}/{image.digest}",
            )

        await _all(ensure(service) for service in self.workload.services)
        return found

    async def _volumes(self) -> dict[str, dict[str, Path]]:
        found: dict[str, dict[str, Path]] = {}
        lease = self.workload.lease
        for service in self.workload.services:
            mine = found[service.name] = {}
            for mount in volume_mounts(service):
                if not mount.storage.persistent:
                    continue
                began = self.clock.monotonic()
                mine[mount.storage.name] = await self.parts.volumes.ensure(
                    lease.owner, lease.dseq, service.name, mount.storage.name, mount.size
                )
                await self.emit(
                    VolumeReady(
                        id=lease,
                        service=service.name,
                        volume=mount.storage.name,
                        seconds=round(self.clock.monotonic() - began, 6),
                    ),
                    key=f"volume/{self.workload.hash}/{service.name}/{mount.storage.name}",
                )
        return found

    def _order(
        self,
        service: ManifestService,
        number: int,
        applied: Applied,
        images: dict[str, Image],
        volumes: dict[str, dict[str, Path]],
    ) -> Order:
        workload = self.workload
        lease = str(workload.lease)
        return Order(
            key=workload.key(service, applied.revisions[service.name], number),
            lease=workload.lease,
            service=service,
            revision=applied.revisions[service.name],
            number=number,
            hash=workload.hash,
            image=images[service.name],
            environment=workload.environment(self.settings.public_host),
            mark=self.parts.mark(lease),
            volumes=volumes[service.name],
        )

    async def _start(self, order: Order, started: list[Replica]) -> None:
        replica = await self.parts.runtime.start_replica(order)
        started.append(replica)
        await self._say_started(replica)

    async def _say_started(self, replica: Replica) -> None:
        """Once for each start, also when the provider was killed before it could say so."""
        await self.emit(
            ServiceStarted(
                id=self.workload.lease,
                service=replica.service,
                replica=replica.number,
                key=replica.key,
                hash=self.workload.hash,
            ),
            key=f"started/{replica.key}/{replica.started_at}",
        )

    async def _until_answering(
        self, applied: Applied, orders: list[Order], started: list[Replica]
    ) -> None:
        by_key = {order.key: order for order in orders}
        try:
            async with self.clock.timeout(self.settings.start_deadline):
                await _all(self._answering(by_key[r.key], r, started) for r in list(started))
        except TimeoutError:
            raise LeaseholdError(
                "not_answering",
                f"the new version did not answer within {self.settings.start_deadline:g} s",
                kind=Kind.TIMEOUT,
            ) from None

    async def _answering(self, order: Order, replica: Replica, started: list[Replica]) -> None:
        """Wait until it answers; one that ends meanwhile is started again, later each time."""
        ports = tcp_ports(order.service)
        wait, restarts = FIRST_CHECK, 0
        while not await self.parts.runtime.answers(replica, ports):
            await self.clock.sleep(wait)
            wait = min(wait * 1.5, SLOWEST_CHECK)
            found = {r.key: r for r in await self._mine()}.get(replica.key)
            if found is not None and found.state is State.RUNNING:
                continue
            await self._exited(order, found or replica)
            restarts += 1
            if restarts >= self.settings.start_attempts:
                raise LeaseholdError(
                    "keeps_ending",
                    f"{order.service.name} ended {restarts} times before it answered, "
                    f"the last time with {(found or replica).ended or 'an unknown end'}; "
                    "see its log",
                    path=f"services.{order.service.name}",
                )
            await self.clock.sleep(
                min(self.settings.restart_cap, self.settings.restart_first * 2 ** (restarts - 1))
            )
            started.remove(replica)
            replica = await self.parts.runtime.start_replica(order)
            started.append(replica)
            wait = FIRST_CHECK

    async def _exited(self, order: Order, replica: Replica) -> None:
        ended = replica.ended
        await self.emit(
            ReplicaExited(
                id=order.lease,
                service=order.service.name,
                replica=order.number,
                key=order.key,
                status=wait_status(replica),
                reason=str(ended) if ended else "",
            ),
            key=f"exited/{order.key}/{replica.started_at}",
        )

    async def _undo(
        self, started: list[Replica], removed: list[Replica], error: BaseException
    ) -> None:
        """Take back what was started, where something older goes on instead.

        A first version that is up but does not answer stays: there is nothing to go back to, its
        logs say why, and it may still come up.
        """
        stays = self.before is None and getattr(error, "code", "") in COMES_UP_LATE
        if stays:
            return
        for replica in list(started):
            try:
                await self.parts.runtime.remove_replica(replica.key)
            except LeaseholdError as failure:
                log.warning("rollout.undo_failed", replica=replica.key, error=str(failure))
        if self.before is None or isinstance(error, asyncio.CancelledError):
            return
        wanted = self.before.keys()
        back = Rollout(self.parts, self.before.workload, self.before, self.emit)
        for replica in removed:
            if replica.key in wanted:
                await back.restart(self.before, *wanted[replica.key])


def pinned(reference: str, digest: str) -> str:
    """The image that was started, not what its tag names by now."""
    if "@" in reference or not digest.startswith("sha256:"):
        return reference
    name, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:  # no tag; the colon belongs to a port
        name = reference
    return f"{name}@{digest}"


def tcp_ports(service: ManifestService) -> list[int]:
    """The ports a replica must accept connections on to count as up."""
    return sorted({expose.port for expose in service.exposes if expose.proto == "TCP"})


def wait_status(replica: Replica) -> int | None:
    """The end as a wait status: exit code in the high byte, or the signal; None for unknown."""
    ended = replica.ended
    if ended is None or not ended.known:
        return None
    return ended.code << 8 if ended.code is not None else ended.signal


def _instead(order: Order, removed: dict[tuple[str, int], Replica]) -> Order:
    """``order`` in the network of the old replica it takes the place of."""
    old = removed.get((order.service.name, order.number))
    return order if old is None else replace(order, replaces=old.key)


def _given(service: ManifestService) -> Any:
    return service.params.credentials if service.params else None


def _digest(revisions: dict[str, str]) -> str:
    return ",".join(f"{name}={revision}" for name, revision in sorted(revisions.items()))


async def _all(work: Any) -> None:
    """Do it all at once; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for item in work:
                group.create_task(item)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
