"""Roles that run alone in a process of their own: index worker and scheduler.

``serve`` runs any role until SIGTERM or SIGINT, then drains it.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec

from leasehold.app.settings import Settings
from leasehold.core import logs
from leasehold.core.clock import Clock
from leasehold.core.ops import Ops
from leasehold.core.service import Group, Service, running
from leasehold.dispatch.worker import Worker
from leasehold.index.handlers import worker_handlers
from leasehold.schedule.scheduler import Scheduler
from leasehold.schedule.store import ScheduleStore


class WorkerRole(Service):
    """An index worker of the chain in ``index``. With a file ``key`` it proves who it is, to
    managers that accept only workers somebody vouches for."""

    def __init__(
        self, settings: Settings, *, key: Path | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__("worker role", clock=clock)
        self.key = key if key is not None and key.exists() else None
        self.settings = settings
        self.stop_deadline = settings.dispatch.drain_timeout + 5.0

    async def start(self) -> None:
        ops = Ops(self.settings.ops, clock=self.clock)
        index = self.settings.index
        # It announces itself for the chain it reads.
        dispatch = msgspec.structs.replace(
            self.settings.dispatch, network=index.network, chain_id=index.chain_id
        )
        sign = None
        if self.key is not None:
            from leasehold.app.node import signed_by

            sign = signed_by(self.key, self.clock)
        self.worker = Worker(self.clock, dispatch, worker_handlers(index), sign=sign)
        for service in (ops, self.worker):
            await self.resources.enter_async_context(running(service))


class SchedulerRole(Service):
    """A scheduler with its rows in ``folder`` (or where ``schedule.store`` says)."""

    def __init__(self, folder: Path, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__("scheduler role", clock=clock)
        self.folder = folder
        self.settings = settings

    async def start(self) -> None:
        settings = self.settings.schedule
        url = settings.store or f"sqlite+aiosqlite:///{self.folder / 'schedule.sqlite3'}"
        store = ScheduleStore(url, self.clock, keep_runs=settings.keep_runs)
        ops = Ops(self.settings.ops, clock=self.clock)
        self.scheduler = Scheduler(store, self.clock, settings)
        for service in (ops, store, self.scheduler):
            await self.resources.enter_async_context(running(service))


def serve(role: Service, settings: Settings) -> None:
    """Run a role as this process."""
    formats = {"json": True, "text": False}
    logs.configure(settings.log.level, json=formats.get(settings.log.format))

    async def main() -> None:
        group = Group([role], role.name)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, group.request_stop)
        await group.serve()

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
