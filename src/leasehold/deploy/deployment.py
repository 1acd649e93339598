"""One lease's deployment: an actor that runs the table of :mod:`.machine`.

It is told what is wanted (:meth:`Deployment.want`, :meth:`Deployment.close`) and never waits for
anything in its own loop: bringing a version up, watching and tearing down are tasks whose outcome
is an input like any other. It holds nothing that could not be found out again; ending it (the
provider stops) leaves the workload as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from leasehold.core import metrics
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.deploy.machine import Action, Input, State, step
from leasehold.deploy.monitor import Health, Monitor
from leasehold.deploy.replica import Replica
from leasehold.deploy.replica import State as ReplicaState
from leasehold.deploy.rollout import COMES_UP_LATE, Applied, Emit, Parts, Rollout
from leasehold.deploy.workload import Workload
from leasehold.model.events.lease import DeployFailed, WorkloadHealthy, WorkloadRemoved
from leasehold.model.market import LeaseId

DEPLOY_SECONDS = metrics.histogram(
    "leasehold_deploy_seconds", "manifest received to healthy", ["result"]
)

PASSING = (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED)
"""Kinds of failure that may pass by themselves: the attempt is repeated."""

log = get_logger(__name__)


@dataclass
class History:
    """What the lease's events say of earlier runs of the provider."""

    hash: str = ""
    revisions: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    workload: Workload | None = None
    """What requests went to last, by its hash and its services' revisions."""
    healthy: bool | None = None
    failed: tuple[str, str] = ("", "")


class Deployment:
    """``emit(payload, key=)`` appends to the lease's entity."""

    def __init__(self, lease: LeaseId, parts: Parts, history: History, emit: Emit) -> None:
        self.lease = lease
        self.parts = parts
        self.history = history
        self.emit = emit
        self.state = State.COMPLETE
        self.wanted: Workload | None = None
        self.applied: Applied | None = None
        self.error: LeaseholdError | None = None
        self.health = Health(attempts_left=parts.settings.monitor_attempts)
        self._inbox: asyncio.Queue[Input] = asyncio.Queue()
        self._attempt: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.monitor: Monitor | None = None
        self.gone = asyncio.Event()
        """Set when nothing of the lease is left: followers of its logs stop."""

    # -- told from outside ------------------------------------------------------------------------

    def want(self, workload: Workload) -> None:
        """Run this version; telling it twice is harmless."""
        if self.wanted is None or self.wanted.hash != workload.hash:
            self.wanted = workload
            self._inbox.put_nowait(Input.UPDATE)

    async def point(self) -> None:
        """Host names were moved to or from this lease: let ingress know."""
        if self.applied is not None and self.state is State.COMPLETE:
            replicas = await self.parts.runtime.replicas(self.lease)
            await self.parts.routes.move(self.applied, replicas)

    def close(self) -> None:
        self._inbox.put_nowait(Input.CLOSE)

    def replica_exited(self, replica: Replica) -> None:
        if self.monitor is not None:
            self.monitor.exited(replica)

    def look_again(self) -> None:
        if self.monitor is not None:
            self.monitor.look_again()

    # -- the actor --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until everything of a closed lease is removed, or cancelled."""
        async with asyncio.TaskGroup() as tasks:
            try:
                while self.state is not State.TEARDOWN_COMPLETE:
                    input = await self._inbox.get()
                    self.state, action = step(self.state, input)
                    if action is not None:
                        await self._act(action, tasks)
            finally:
                await self._stop_watching()

    async def _act(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        await self._stop_watching()
        if action is Action.DEPLOY:
            assert self.wanted is not None
            self._attempt = tasks.create_task(self._deploy(self.wanted))
        elif action is Action.WATCH and self.applied is not None:
            self.monitor = Monitor(self.parts, self.applied, self.health, self.emit)
            self._watch = tasks.create_task(self.monitor.run())
        elif action is Action.CANCEL and self._attempt is not None:
            self._attempt.cancel()
        elif action is Action.TEARDOWN:
            tasks.create_task(self._tear_down())

    async def _stop_watching(self) -> None:
        watch, self._watch, self.monitor = self._watch, None, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})

    # -- bringing up ------------------------------------------------------------------------------

    async def _deploy(self, workload: Workload) -> None:
        began = self.parts.clock.monotonic()
        outcome = Input.FAILED
        try:
            if self.applied is None:
                self.applied = await self._adopt()
            if self.applied is not None and self.applied.workload.hash == workload.hash:
                outcome = Input.DEPLOYED
            else:
                applied = await self._roll_out(workload)
                if applied is not None:
                    self.applied = applied
                    outcome = Input.DEPLOYED
                    if self.health.healthy is not False:
                        self.error = None
                        await self._say_healthy()
        except asyncio.CancelledError:
            # Called off for a teardown; a stopping provider cancels the actor itself as well.
            pass
        except LeaseholdError as error:
            await self._say_failed(workload, error)
        except Exception as error:
            log.exception("deploy.bug", lease=str(self.lease))
            await self._say_failed(
                workload, LeaseholdError("internal", f"{type(error).__name__}: {error}")
            )
        DEPLOY_SECONDS.labels(outcome.name.lower()).observe(self.parts.clock.monotonic() - began)
        await self._sweep()
        self._inbox.put_nowait(outcome)

    async def _sweep(self) -> None:
        """Remove what is left of attempts that failed, or that a crash cut short."""
        if self.applied is None:
            return
        wanted = self.applied.keys()
        with contextlib.suppress(LeaseholdError):
            for replica in await self.parts.runtime.replicas(self.lease):
                if replica.key not in wanted:
                    await self.parts.runtime.remove_replica(replica.key)

    async def _adopt(self) -> Applied | None:
        """What runs from before this provider started.

        No image or volume is asked for: adopting works while the registry is down.
        """
        workload, revisions = self.history.workload, self.history.revisions
        if workload is None or set(revisions) != {s.name for s in workload.services}:
            return None
        applied = Applied(workload, revisions, self.history.digests)
        mine = {replica.key: replica for replica in await self.parts.runtime.replicas(self.lease)}
        running = [r for r in mine.values() if r.state is ReplicaState.RUNNING]
        wanted = applied.keys()
        if not wanted.keys() & {replica.key for replica in running}:
            return None
        self.parts.marks.setdefault(str(self.lease), running[0].mark)
        await self.parts.routes.move(applied, running)
        self.health.healthy = self.history.healthy
        log.info("deploy.adopted", lease=str(self.lease), replicas=len(running))
        return applied

    async def _roll_out(self, workload: Workload) -> Applied | None:
        """Try until it is up, fails for good, or something newer is wanted."""
        backoff = Backoff(first=1.0, cap=60.0, rng=self.parts.rng)
        failures = 0
        while True:
            rollout = Rollout(self.parts, workload, self.applied, self.emit)
            try:
                return await rollout.run()
            except* LeaseholdError as errors:
                error = _first(errors)
            failures += 1
            if error.kind not in PASSING or error.code in COMES_UP_LATE:
                if error.code in COMES_UP_LATE and self.applied is None:
                    # It stays, answers or not: the monitor takes over and says what it sees.
                    self.health.healthy = False
                    await self._say_failed(workload, error)
                    return Applied(workload, rollout.revisions, rollout.digests)
                raise error
            await self._say_failed(workload, error, final=False)
            wait = max(backoff.delay(failures), error.retry_after or 0.0)
            await self.parts.clock.sleep(wait)
            if self.wanted is not workload:
                return None

    async def _say_failed(
        self, workload: Workload, error: LeaseholdError, *, final: bool = True
    ) -> None:
        self.error = error
        said = (workload.hash, error.code)
        if self.history.failed == said:
            return
        self.history.failed = said
        log.warning("deploy.failed", lease=str(self.lease), code=error.code, error=error.message)
        await self.emit(
            DeployFailed(
                id=self.lease,
                hash=workload.hash,
                code=error.code,
                message=error.message,
                final=final,
                path=error.path,
            )
        )

    async def _say_healthy(self) -> None:
        assert self.applied is not None
        hash = self.applied.workload.hash
        if not (self.history.healthy and self.history.hash == hash):
            await self.emit(WorkloadHealthy(id=self.lease, hash=hash))
        self.health.healthy = self.history.healthy = True
        self.history.hash = hash
        self.history.failed = ("", "")

    # -- tearing down -----------------------------------------------------------------------------

    async def _tear_down(self) -> None:
        settings = self.parts.settings
        backoff = Backoff(
            first=settings.teardown_first, cap=settings.teardown_cap, rng=self.parts.rng
        )
        failures = 0
        while True:
            try:
                await self._remove_everything()
                break
            except (LeaseholdError, OSError) as error:
                failures += 1
                log.warning(
                    "deploy.teardown_retry",
                    lease=str(self.lease),
                    failures=failures,
                    error=str(error),
                )
                # Past the attempts we go on at the slowest pace: a workload nobody pays for must
                # not stay because something was away for long.
                await self.parts.clock.sleep(backoff.delay(min(failures, 64)))
                if failures == settings.teardown_attempts:
                    await self._say_failed_teardown(error)
        await self.emit(WorkloadRemoved(id=self.lease), key="removed")
        self.gone.set()
        self._inbox.put_nowait(Input.REMOVED)

    async def _say_failed_teardown(self, error: Exception) -> None:
        await self.emit(
            DeployFailed(
                id=self.lease,
                hash=self.wanted.hash if self.wanted else "",
                code="teardown_failed",
                message=f"not everything could be removed yet: {error}",
            )
        )

    async def _remove_everything(self) -> None:
        await self.parts.routes.forget(self.lease)
        mine = await self.parts.runtime.replicas(self.lease)
        async with asyncio.TaskGroup() as tasks:
            for replica in mine:
                tasks.create_task(
                    self.parts.runtime.remove_replica(
                        replica.key, grace=self.parts.settings.stop_grace
                    )
                )
        if self.parts.last_of(self.lease):
            await self.parts.volumes.release(self.lease.owner, self.lease.dseq)
        await self.parts.images.release(str(self.lease))
        self.parts.runtime.forget_lease(self.lease)
        self.parts.marks.pop(str(self.lease), None)


def _first(errors: BaseExceptionGroup[LeaseholdError]) -> LeaseholdError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LeaseholdError)
    return error
