"""The lifecycle of everything that runs: starting -> running -> stopping -> stopped.

A service owns its tasks (``spawn``) and its resources (``resources``): both end with it, always,
in reverse order. A :class:`Group` starts services in order and stops them in reverse; when the
nth fails to start, those before it are stopped, awaited, and the nth's error is raised. When a
running service fails, the whole group stops and its error is raised.

Subclass it, acquire things in :meth:`Service.start`, drain in :meth:`Service.stop`::

    class Feed(Service):
        async def start(self) -> None:
            self.session = await self.resources.enter_async_context(open_session())
            self.spawn(self._follow(), name="follow")
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger

START_DEADLINE = 30.0
"""Seconds a service may take to start before its group gives up."""

STOP_DEADLINE = 10.0
"""Seconds a service may take to drain before its tasks are cancelled."""

S = TypeVar("S", bound="Service")

log = get_logger(__name__)


class State(enum.Enum):
    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Service:
    """One part of a process. ``start`` and ``stop`` are the hooks; ``serve`` is the lifecycle."""

    start_deadline: float = START_DEADLINE
    stop_deadline: float = STOP_DEADLINE

    def __init__(self, name: str | None = None, *, clock: Clock | None = None) -> None:
        self.name = name or type(self).__name__
        self.clock: Clock = clock or SystemClock()
        self.state = State.NEW
        self.resources = contextlib.AsyncExitStack()
        self._stop_requested = asyncio.Event()
        self._stopped = asyncio.Event()
        self._started: asyncio.Event = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._spawned: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Acquire what is needed; return when requests can be served."""

    async def stop(self) -> None:
        """Finish what was accepted; new work is refused from here on."""

    async def serve(self) -> None:
        """Run until :meth:`shutdown` or a failure. Call it once, inside a task you own."""
        if self.state is not State.NEW:
            raise RuntimeError(f"{self.name} was started before")
        self.state = State.STARTING
        try:
            async with self.resources:
                try:
                    await self._run()
                except BaseExceptionGroup as group:
                    raise _single(group) from None
        finally:
            self.state = State.STOPPED
            self._stop_requested.set()
            self._stopped.set()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                async with self.clock.timeout(self.start_deadline):
                    await self.start()
            except TimeoutError:
                raise LeaseholdError(
                    "start_timeout",
                    f"{self.name} did not start within {self.start_deadline:g} s",
                    kind=Kind.TIMEOUT,
                ) from None
            except BaseException:
                self._cancel_spawned()
                raise
            self.state = State.RUNNING
            self._started.set()
            await self._stop_requested.wait()
            self.state = State.STOPPING
            try:
                async with self.clock.timeout(self.stop_deadline):
                    await self.stop()
            except TimeoutError:
                log.warning("service.stop_deadline", service=self.name, seconds=self.stop_deadline)
            finally:
                self._cancel_spawned()

    def _cancel_spawned(self) -> None:
        for task in self._spawned:
            task.cancel()

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str = "task") -> asyncio.Task[Any]:
        """Run ``coro`` as a task of this service; its failure ends the service."""
        if self._tasks is None or self.state in (State.STOPPING, State.STOPPED):
            coro.close()
            raise not_running(self.name)
        try:
            task = self._tasks.create_task(coro, name=f"{self.name}:{name}")
        except RuntimeError:  # a failed or cancelled group takes no more
            coro.close()
            raise not_running(self.name) from None
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        return task

    @property
    def stopping(self) -> bool:
        """True once a stop was asked for: do not accept new work."""
        return self._stop_requested.is_set()

    def request_stop(self) -> None:
        """Ask for a stop and return at once; twice is harmless."""
        self._stop_requested.set()

    async def wait_stop_requested(self) -> None:
        await self._stop_requested.wait()

    async def shutdown(self) -> None:
        """Ask for a stop and wait until everything of this service has ended."""
        self._stop_requested.set()
        if self.state is not State.NEW:
            await self._stopped.wait()


class Group(Service):
    """Services that run together: started in order, stopped in reverse."""

    def __init__(
        self, services: Sequence[Service], name: str = "group", *, clock: Clock | None = None
    ) -> None:
        super().__init__(name, clock=clock)
        self.services = list(services)
        self.start_deadline = sum(s.start_deadline for s in services) + START_DEADLINE
        self.stop_deadline = sum(s.stop_deadline for s in services) + STOP_DEADLINE
        self._running: list[tuple[Service, asyncio.Task[None]]] = []

    async def start(self) -> None:
        try:
            for service in self.services:
                await self._start_one(service)
        except BaseException:
            await self._stop_all()
            raise

    async def _start_one(self, service: Service) -> None:
        # Not spawned as a bare member of the task group: a failing start must reach us as a value,
        # so that the services before it are stopped in order instead of being cancelled.
        assert self._tasks is not None
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._tasks.create_task(
            self._watch(service, outcome), name=f"{self.name}:{service.name}"
        )
        self._running.append((service, task))
        started = self._tasks.create_task(service._started.wait())
        either: set[asyncio.Future[Any]] = {started, outcome}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if outcome.done():
            outcome.result()
            raise LeaseholdError(
                "service_ended", f"{service.name} ended while starting", kind=Kind.INTERNAL
            )

    async def _watch(self, service: Service, outcome: asyncio.Future[None]) -> None:
        try:
            await service.serve()
        except Exception as error:
            if service._started.is_set():
                log.error("service.failed", service=service.name, error=str(error))
                raise
            if not outcome.done():
                outcome.set_exception(error)
        else:
            if not outcome.done():
                outcome.set_result(None)
            if service._started.is_set() and not service.stopping and not self.stopping:
                raise LeaseholdError(
                    "service_ended", f"{service.name} ended by itself", kind=Kind.INTERNAL
                )

    async def stop(self) -> None:
        await self._stop_all()

    async def _stop_all(self) -> None:
        while self._running:
            service, task = self._running.pop()
            service.request_stop()
            await asyncio.wait({task})


@contextlib.asynccontextmanager
async def running(service: S) -> AsyncIterator[S]:
    """``async with running(service):`` starts it, and stops it on the way out."""
    group = Group([service], name=f"running {service.name}", clock=service.clock)
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(group.serve(), name=group.name)
            waiter = tasks.create_task(group._started.wait())
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
            if task.done():
                await task
            try:
                yield service
            finally:
                group.request_stop()
    except BaseExceptionGroup as errors:
        raise _single(errors) from None


def not_running(name: str) -> LeaseholdError:
    """What a stopped or stopping service answers."""
    return LeaseholdError(
        "not_running",
        f"{name} is not running; try again shortly",
        kind=Kind.UNAVAILABLE,
        retry_after=1.0,
    )


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real error of a task group: the others are cancellations it caused."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _single(error)
        return error
    return group
