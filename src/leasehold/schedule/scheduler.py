"""The scheduler: claims what is due, runs it, keeps the claim alive, writes the result.

Instances look at the same rows; a claim makes sure that one runs a task at a time. If an instance
dies, its claims run out and another takes over within one lease. If an instance is paused past its
lease, its result is refused. After a failure the interval grows by a table with jitter; one good
run resets it.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from pathlib import Path

import httpx
import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, gauge, histogram
from leasehold.core.service import Service, running
from leasehold.core.web import HttpServer
from leasehold.schedule.rpc import RpcClient
from leasehold.schedule.runners import Outcome, Runners
from leasehold.schedule.settings import ScheduleSettings
from leasehold.schedule.store import NewTask, ScheduledTask, ScheduleStore
from leasehold.schedule.targets import Destination, Targets, load

BACKOFF = (1.0, 1.0, 1.5, 2.0, 4.0, 4.0, 8.0, 8.0, 16.0, 16.0, 32.0)
"""The interval is multiplied by this after the n-th failure in a row; the last one repeats."""

RUNS = counter("leasehold_schedule_runs", "Runs of scheduled tasks", ["kind", "result"])
RUN_TIME = histogram("leasehold_schedule_run_seconds", "One run", ["kind"])
RUNNING = gauge("leasehold_schedule_running", "Tasks this instance is running")
LATE = histogram("leasehold_schedule_late_seconds", "Due until claimed")

log = get_logger(__name__)


class Scheduler(Service):
    """One instance; ``store`` must run already. ``http=False`` leaves out API and page."""

    def __init__(
        self,
        store: ScheduleStore,
        clock: Clock | None = None,
        settings: ScheduleSettings | None = None,
        *,
        http: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("scheduler", clock=clock)
        self.store = store
        self.settings = settings or ScheduleSettings()
        self.id = str(uuid.uuid4())
        self._with_http = http
        self._rng = rng or random.Random()
        self._clients: dict[str, RpcClient] = {}
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self.http: HttpServer | None = None

    async def start(self) -> None:
        settings = self.settings
        client = await self.resources.enter_async_context(httpx.AsyncClient())
        self.resources.push_async_callback(self._close_clients)
        destinations = load(settings.destinations)
        destinations += [Destination(address=address) for address in settings.managers]
        self.targets = Targets(destinations, clock=self.clock, client=client, rpc=self._rpc)
        self.runners = Runners(settings, self.targets, client=client, rpc=self._rpc)
        await self._load_schedules()
        self.spawn(self._discover(), name="discover")
        self.spawn(self._look(), name="look")
        if self._with_http:
            from leasehold.schedule.api import application

            self.http = HttpServer(
                application(self),
                host=settings.host,
                port=settings.port,
                name="scheduler http",
                setting="schedule.port",
                clock=self.clock,
            )
            await self.resources.enter_async_context(running(self.http))

    async def stop(self) -> None:
        """Give claims back, so that another instance goes on at once."""
        for call in list(self._calls.values()):
            call.cancel()
        if self._calls:
            await asyncio.wait(list(self._calls.values()))

    def _rpc(self, address: str) -> RpcClient:
        if address not in self._clients:
            self._clients[address] = RpcClient(address, self.clock)
        return self._clients[address]

    async def _close_clients(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _load_schedules(self) -> None:
        """Add the tasks of the configured folder that are not there yet, disabled."""
        if not self.settings.schedules:
            return
        for path in sorted(Path(self.settings.schedules).glob("*.json")):
            try:
                wanted = msgspec.json.decode(path.read_bytes(), type=list[NewTask])
            except msgspec.MsgspecError as error:
                raise LeaseholdError(
                    "bad_schedules", f"{path}: {error}", kind=Kind.INVALID, path=str(path)
                ) from None
            for new in wanted:
                try:
                    await self.store.add(new)
                except LeaseholdError as error:
                    if error.code != "task_exists":
                        raise

    async def _discover(self) -> None:
        while True:
            await self.targets.discover()
            self.wake()
            await self.clock.sleep(self.settings.discovery)

    # running

    def wake(self) -> None:
        """Look for due tasks now."""
        self._wake.set()

    async def disabled(self, id: str) -> None:
        """A task was disabled through this instance: end its call now, not at the next renewal."""
        call = self._calls.get(id)
        if call is not None:
            call.cancel()
            await asyncio.wait({call})

    async def _look(self) -> None:
        while True:
            room = self.settings.concurrency - len(self._calls)
            try:
                for id_ in await self.store.due(limit=room) if room > 0 else ():
                    if id_ not in self._calls:
                        await self._start(id_)
            except Exception as error:
                # The database may be away; nothing is lost, the rows are what they were.
                log.warning("schedule.look_failed", error=str(error))
            self._wake.clear()
            try:
                async with self.clock.timeout(self.settings.poll):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _start(self, id_: str) -> None:
        task = await self.store.claim(id_, self.id, self.settings.lease)
        if task is None:
            return
        LATE.observe(max(0.0, self.clock.now() - task.due_at))
        RUNNING.inc()
        call = self.spawn(self._run_task(task), name=f"{task.kind}:{task.task_id}")
        self._calls[id_] = call

        def ended(_: asyncio.Task[None]) -> None:
            RUNNING.dec()
            self._calls.pop(id_, None)
            self._wake.set()

        call.add_done_callback(ended)

    async def _run_task(self, task: ScheduledTask) -> None:
        began = self.clock.monotonic()
        try:
            outcome = await self._while_claimed(task)
        except asyncio.CancelledError:
            await asyncio.shield(self.store.release(task))
            RUNS.labels(task.kind, "cancelled").inc()
            raise
        except Exception as error:
            log.exception("schedule.run_failed", task=task.task_id)
            outcome = Outcome(task.state, error=f"{type(error).__name__}: {error}", backoff=True)
        if outcome is None:
            RUNS.labels(task.kind, "lost").inc()
            await self.store.release(task)
            return
        seconds = self.clock.monotonic() - began
        RUN_TIME.labels(task.kind).observe(seconds)
        failures = task.failures + 1 if outcome.backoff else 0
        written = await self.store.finish(
            task,
            state=outcome.state,
            error=outcome.error,
            failures=failures,
            due_at=self.clock.now() + pause(task.interval, failures, self._rng),
            seconds=seconds,
            done=outcome.done,
        )
        result = "failed" if outcome.error else "done" if outcome.done else "ok"
        RUNS.labels(task.kind, result if written else "lost").inc()

    async def _while_claimed(self, task: ScheduledTask) -> Outcome | None:
        """Run it and renew the claim; None when the claim was lost or the task disabled."""
        async with asyncio.TaskGroup() as group:
            call = group.create_task(self.runners.run(task))
            renewals = group.create_task(self._renew(task))
            await asyncio.wait({call, renewals}, return_when=asyncio.FIRST_COMPLETED)
            renewals.cancel()
            if not call.done():
                call.cancel()
                return None
        return call.result()

    async def _renew(self, task: ScheduledTask) -> None:
        while True:
            await self.clock.sleep(self.settings.lease / 3)
            if not await self.store.renew(task.id, task.epoch, self.settings.lease):
                log.info("schedule.claim_lost", task=task.task_id)
                return


def pause(interval: float, failures: int, rng: random.Random) -> float:
    """Seconds until the next run: the interval, or longer and jittered after failures."""
    if failures <= 0:
        return interval
    factor = BACKOFF[min(failures - 1, len(BACKOFF) - 1)]
    return interval * factor * (1 + rng.random())
