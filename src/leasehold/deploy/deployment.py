"""One lease's deployment: an actor that runs the table of :mod:`.machine`.

It is told what is wanted (:meth:`Deployment.want`, :meth:`Deployment.close`) and never waits for
anything in its own loop: bringing a version up, watching and tearing down are tasks whose outcome
is an input like any other. It holds nothing that could not be found out again; ending it (the
provider stops) leaves the workload as it is.
"""

from __future__ import annotations

import asyncio

from leasehold.core import metrics
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.deploy.driver import Applied, Driver, Emit, Health, History, Watch
from leasehold.deploy.machine import Action, Input, State, step
from leasehold.deploy.replica import Replica
from leasehold.deploy.workload import Workload
from leasehold.model.events.lease import DeployFailed, WorkloadHealthy, WorkloadRemoved
from leasehold.model.market import LeaseId

DEPLOY_SECONDS = metrics.histogram(
    "leasehold_deploy_seconds", "manifest received to healthy", ["result"]
)

PASSING = (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED)
"""Kinds of failure that may pass by themselves: the attempt is repeated."""

log = get_logger(__name__)


class Deployment:
    """``emit(payload, key=)`` appends to the lease's entity."""

    def __init__(self, lease: LeaseId, driver: Driver, history: History, emit: Emit) -> None:
        self.lease = lease
        self.driver = driver
        self.history = history
        self.emit = emit
        self.state = State.COMPLETE
        self.wanted: Workload | None = None
        self.applied: Applied | None = None
        self.error: LeaseholdError | None = None
        self.health = Health(attempts_left=driver.settings.monitor_attempts)
        self._inbox: asyncio.Queue[Input] = asyncio.Queue()
        self._attempt: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.monitor: Watch | None = None
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
            await self.driver.point(self.applied)

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
            self.monitor = self.driver.watch(self.applied, self.health, self.emit)
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
        began = self.driver.clock.monotonic()
        outcome = Input.FAILED
        try:
            if self.applied is None:
                self.applied = await self._adopt(workload)
                if self.applied is not None:
                    self.health.healthy = self.health.told = self.history.healthy
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
        DEPLOY_SECONDS.labels(outcome.name.lower()).observe(self.driver.clock.monotonic() - began)
        if self.applied is not None:
            await self.driver.sweep(self.applied)
        self._inbox.put_nowait(outcome)

    async def _adopt(self, workload: Workload) -> Applied | None:
        """Take over what runs. What is away for a moment (a proxy, say) is waited for: a workload
        that is not taken over is not watched either."""
        backoff = Backoff(first=0.5, cap=10.0, rng=self.driver.rng)
        failures = 0
        while True:
            try:
                return await self.driver.adopt(self.lease, self.history)
            except LeaseholdError as error:
                if error.kind not in PASSING:
                    raise
                failures += 1
                await self._say_failed(workload, error, final=False)
                await self.driver.clock.sleep(backoff.delay(failures))

    async def _roll_out(self, workload: Workload) -> Applied | None:
        """Try until it is up, fails for good, or something newer is wanted."""
        backoff = Backoff(first=1.0, cap=60.0, rng=self.driver.rng)
        failures = 0
        while True:
            rollout = self.driver.rollout(workload, self.applied, self.emit)
            try:
                return await rollout.run()
            except* LeaseholdError as errors:
                error = _first(errors)
            failures += 1
            if error.kind not in PASSING or error.code in self.driver.late:
                if error.code in self.driver.late and self.applied is None:
                    # It stays, answers or not: the monitor takes over and says what it sees.
                    self.health.healthy = self.health.told = False
                    await self._say_failed(workload, error)
                    return Applied(workload, rollout.revisions, rollout.digests)
                raise error
            await self._say_failed(workload, error, final=False)
            wait = max(backoff.delay(failures), error.retry_after or 0.0)
            await self.driver.clock.sleep(wait)
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
        self.health.healthy = self.health.told = self.history.healthy = True
        self.history.hash = hash
        self.history.failed = ("", "")

    # -- tearing down -----------------------------------------------------------------------------

    async def _tear_down(self) -> None:
        settings = self.driver.settings
        backoff = Backoff(
            first=settings.teardown_first, cap=settings.teardown_cap, rng=self.driver.rng
        )
        failures = 0
        while True:
            try:
                await self.driver.remove(self.lease)
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
                await self.driver.clock.sleep(backoff.delay(min(failures, 64)))
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


def _first(errors: BaseExceptionGroup[LeaseholdError]) -> LeaseholdError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LeaseholdError)
    return error
