"""Bringing one version of a workload up on the cluster in place of another.

The objects are applied, and the cluster does the rest: new replicas start beside the old ones, get
requests once they answer, and only then do the old ones drain and end. We watch that and say why
when it gets stuck. Where no node has room for a new replica beside the old one, the old one makes
room for it instead. When the new version does not come up, the objects of the old one are applied
again: its replicas were never gone. What only the old version had is removed last.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.deploy.driver import Applied, Emit
from leasehold.deploy.kubernetes import apply, pods
from leasehold.deploy.kubernetes.api import Object
from leasehold.deploy.kubernetes.pods import Trouble
from leasehold.deploy.kubernetes.render import key
from leasehold.deploy.workload import Workload, revision, stateful
from leasehold.model.events.lease import ImagePulled, ServiceStarted, WorkloadRunning
from leasehold.model.manifest import ManifestService

if TYPE_CHECKING:
    from leasehold.deploy.kubernetes.driver import KubernetesDriver

LATE = ("not_answering", "keeps_ending", "image_pull_failed", "no_room", "cannot_start",
        "pods_refused")  # fmt: skip
"""Failures after which a first version stays, for the cluster to go on trying."""

FIRST_WORD = 10.0
"""Seconds to wait for the API server before an attempt counts as failed."""

LOOK = 1.0
"""Seconds between looks while nothing is heard: what lasts is only seen by looking again."""

log = get_logger(__name__)


class ClusterRollout:
    """One attempt; see :class:`~leasehold.deploy.driver.Attempt`."""

    def __init__(
        self, driver: KubernetesDriver, workload: Workload, before: Applied | None, emit: Emit
    ) -> None:
        self.driver = driver
        self.api = driver.api
        self.cluster = driver.cluster
        self.clock = driver.clock
        self.settings = driver.settings
        self.workload = workload
        self.before = before
        self.emit = emit
        self.revisions = {s.name: revision(s, "") for s in workload.services}
        self.digests: dict[str, str] = {}
        self._surge = True
        self._generations: dict[str, int] = {}
        self._pulled: set[str] = set()
        self._started: set[str] = set()
        self._said_running = False
        self._began = 0.0
        self._crowded: float | None = None
        """Since when some replica has been without room."""

    async def run(self) -> Applied:
        await self.cluster.heard(FIRST_WORD)
        self.cluster.check()
        self._began = self.clock.monotonic()
        objects = self.driver.render(self.workload)
        try:
            await self._apply(objects)
            await self._until_up()
        except LeaseholdError as error:
            stuck = error.code in LATE or error.kind is not Kind.UNAVAILABLE
            if self.before is not None and stuck:
                await self._undo(self.before)
            raise
        unwanted = apply.leftovers(self.cluster, self.workload.name, objects)
        unwanted += [(k, name) for k, name in self._secrets_before() if (k, name) not in unwanted]
        await apply.prune(self.api, self.workload.name, unwanted)
        return Applied(self.workload, self.revisions, self.digests)

    async def _apply(self, objects: list[Object]) -> None:
        made = await apply.apply(self.api, objects, self.driver.fingerprints)
        self._generations = {
            name: int(item["metadata"]["generation"])
            for (kind, name), item in made.items()
            if kind in apply.CONTROLLERS
        }

    def _secrets_before(self) -> list[tuple[str, str]]:
        """Pull secrets only the version before had: secrets are not watched."""
        if self.before is None:
            return []
        now = {key(found) for found in self.driver.render(self.workload)}
        return [
            key(found)
            for found in self.driver.render(self.before.workload)
            if found["kind"] == "Secret" and key(found) not in now
        ]

    # -- waiting ----------------------------------------------------------------------------------

    async def _until_up(self) -> None:
        news = asyncio.Event()
        stop = self.cluster.listen(self.workload.name, news.set)
        why: Trouble | None = None
        waited = 0.0
        try:
            while True:
                news.clear()
                began = self.clock.monotonic()
                if self.cluster.reachable:
                    settled, why = await self._look()
                    if settled:
                        return
                    if waited >= self.settings.start_deadline:
                        raise await self._late(why)
                try:
                    async with self.clock.timeout(LOOK):
                        await news.wait()
                except TimeoutError:
                    pass
                if self.cluster.reachable:  # Time in which nothing is known counts for nothing.
                    waited += self.clock.monotonic() - began
        finally:
            stop()

    async def _late(self, why: Trouble | None) -> LeaseholdError:
        deadline = f"within {self.settings.start_deadline:g} s"
        if why is not None:
            return LeaseholdError(why.code, f"{why.message} ({deadline})", kind=Kind.TIMEOUT)
        text = f"the new version did not answer {deadline}"
        warning = await self.driver.last_warning(self.workload.name)
        if warning:
            text += f"; the cluster says: {warning}"
        return LeaseholdError("not_answering", text, kind=Kind.TIMEOUT)

    async def _look(self) -> tuple[bool, Trouble | None]:
        """Whether all is up, and what stands in the way. Raises what waiting cannot help."""
        settled, started, crowded = True, True, False
        worst: Trouble | None = None
        here = self.cluster.of("Pod", self.workload.name)
        for service in self.workload.services:
            mine = pods.of_service(here, service.name, self.revisions[service.name])
            for number, pod in enumerate(mine):
                await self._tell(service, number, pod)
            started = started and sum(map(pods.running, mine)) >= service.count
            controller = self._controller(service)
            if self._settled(service, mine, controller):
                continue
            settled = False
            if stateful(service) and controller is not None:
                await self._renew(service, here, controller)
            found = self._trouble(service, mine, controller)
            if found is None:
                continue
            worst = found
            if found.lasting:
                raise found.error(service.name)
            if found.code == "no_room":
                crowded = True
                await self._make_room(found, service)
        if not crowded:
            self._crowded = None
        if started or settled:
            await self._say_running()
        return settled, worst

    def _settled(
        self, service: ManifestService, mine: list[Object], controller: Object | None
    ) -> bool:
        if not pods.progress(controller, self._generations[service.name]).settled:
            return False
        # A set that was made anew takes the old one's replicas for its own before it looks at them.
        return not stateful(service) or sum(map(pods.ready, mine)) >= service.count

    async def _renew(
        self, service: ManifestService, here: list[Object], controller: Object
    ) -> None:
        """End a replica that lacks one of its set's claims: the set was made anew with more of
        them, and can neither change nor replace it. One after the other, from the first on."""
        living = {p["metadata"]["name"]: p for p in pods.of_service(here, service.name)}
        for number in range(service.count):
            pod = living.get(f"{service.name}-{number}")
            if pod is None:
                return
            if pods.lacks_claim(pod, controller):
                log.info("replica.renewed", lease=str(self.workload.lease), replica=number)
                await self.api.delete("Pod", pod["metadata"]["name"], self.workload.name)
                return
            if not pods.ready(pod):
                return

    def _controller(self, service: ManifestService) -> Object | None:
        kind = "StatefulSet" if stateful(service) else "Deployment"
        return self.cluster.get(kind, self.workload.name, service.name)

    def _trouble(
        self, service: ManifestService, mine: list[Object], controller: Object | None
    ) -> Trouble | None:
        for pod in mine:
            found = pods.trouble(pod, self.settings.start_attempts)
            if found is not None:
                return found
        return pods.refused(controller) if controller is not None else None

    async def _make_room(self, found: Trouble, service: ManifestService) -> None:
        now = self.clock.monotonic()
        if self._crowded is None:
            # The scheduler may only not have heard yet of a new node, or that others have gone.
            self._crowded = now
        if now - self._crowded < self.settings.kubernetes.no_room_grace:
            return
        if self.before is None or not self._surge:
            if self.before is None:
                raise found.error(service.name)
            return
        # The old replica's room is all there is.
        log.info("rollout.replaces", lease=str(self.workload.lease), service=service.name)
        self._surge = False
        await self._apply(self.driver.render(self.workload, surge=False))

    async def _tell(self, service: ManifestService, number: int, pod: Object) -> None:
        lease, name = self.workload.lease, pod["metadata"]["name"]
        digest = pods.digest(pod)
        if digest and service.name not in self._pulled:
            self._pulled.add(service.name)
            self.digests[service.name] = digest
            await self.emit(
                ImagePulled(
                    id=lease,
                    service=service.name,
                    reference=service.image,
                    digest=digest,
                    bytes=0,
                    seconds=round(self.clock.monotonic() - self._began, 6),
                ),
                key=f"image/{self.workload.hash}/{service.name}/{digest}",
            )
        if pods.running(pod) and name not in self._started:
            self._started.add(name)
            await self.emit(
                ServiceStarted(
                    id=lease,
                    service=service.name,
                    replica=number,
                    key=name,
                    hash=self.workload.hash,
                ),
                key=f"started/{name}/{pods.started_at(pod)}",
            )

    async def _say_running(self) -> None:
        if self._said_running:
            return
        self._said_running = True
        revisions = ",".join(f"{name}={r}" for name, r in sorted(self.revisions.items()))
        await self.emit(
            WorkloadRunning(
                id=self.workload.lease,
                hash=self.workload.hash,
                uris=self.driver.uris(self.workload),
                revisions=self.revisions,
                digests=self.digests,
            ),
            key=f"running/{self.workload.hash}/{revisions}",
        )

    # -- going back -------------------------------------------------------------------------------

    async def _undo(self, before: Applied) -> None:
        """Apply the version before again, and remove what only this one had."""
        objects = self.driver.render(before.workload)
        try:
            await apply.apply(self.api, objects, self.driver.fingerprints)
            unwanted = apply.leftovers(self.cluster, self.workload.name, objects)
            await apply.prune(self.api, self.workload.name, unwanted)
            await self._unstick(before)
        except LeaseholdError as failure:
            # Looked at again by the monitor, which repairs what is not as it was applied.
            log.warning(
                "rollout.undo_failed", lease=str(self.workload.lease), error=failure.message
            )

    async def _unstick(self, before: Applied) -> None:
        """A set waits for a broken replica to become ready before it replaces it: end it."""
        here = self.cluster.of("Pod", self.workload.name)
        for service in before.workload.services:
            if not stateful(service):
                continue
            for pod in pods.of_service(here, service.name, self.revisions.get(service.name, "-")):
                if not pods.ready(pod):
                    await self.api.delete("Pod", pod["metadata"]["name"], self.workload.name)
