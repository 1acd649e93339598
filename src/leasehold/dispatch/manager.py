"""The manager: takes tasks from callers, gives them to workers, gives the responses back.

It keeps nothing on disk: a task is an open call of somebody who waits for it, and workers announce
themselves again after a restart. What is promised: a call ends exactly once, with all responses
in order or with one error; a worker's death costs a caller time, not a result.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service, not_running, running
from leasehold.core.web import HttpServer
from leasehold.dispatch import metrics
from leasehold.dispatch.pool import POLICIES, Pool, PoolKey
from leasehold.dispatch.registry import Registry, WorkerState
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Attempt, Call, Task
from leasehold.dispatch.transport import TRANSPORTS, Dialer, WorkerLink, load
from leasehold.dispatch.wire import FEATURES, Hello, Response, new_id

MAX_POOLS = 1000
"""Pools kept; a pool without a worker or a task is dropped before that."""

log = get_logger(__name__)


class Manager(Service):
    """``async with running(Manager(clock, settings)) as manager: await manager.call(...)``.

    ``dialers`` are transports by type (default: gRPC). ``app`` is an ASGI application that gets
    the HTTP requests the manager has no route for, as the index's REST API; JSON-RPC methods are
    registered with :meth:`method`. With ``http=False`` the manager has no HTTP server: workers are
    then registered through :attr:`registry`. ``admit`` is given the body and the headers of each
    announcement and raises for a worker that is not wanted; with it nobody may attach, since a
    worker that attaches announces nothing it could prove itself by.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        settings: DispatchSettings | None = None,
        *,
        dialers: Sequence[Dialer] | None = None,
        app: Any = None,
        http: bool = True,
        admit: Callable[[bytes, Mapping[str, str]], None] | None = None,
    ) -> None:
        super().__init__("manager", clock=clock)
        self.settings = settings or DispatchSettings()
        self.id = str(uuid.uuid4())
        self._given_dialers = dialers
        self._app = app
        self._with_http = http
        self.admit = admit
        self._pools: dict[PoolKey, Pool] = {}
        self._open: set[Task] = set()
        self.http: HttpServer | None = None
        self.registry: Registry
        self._methods: dict[str, Callable[[list[Any]], Any]] = {}

    # lifecycle

    async def start(self) -> None:
        dialers = self._given_dialers
        if dialers is None:
            dialers = [load(type_).make_dialer(self.settings) for type_ in TRANSPORTS]
        self.registry = Registry(
            clock=self.clock,
            settings=self.settings,
            sender=self.id,
            dialers={dialer.type: dialer for dialer in dialers},
            pool_of=self.pool,
            on_lost=self._lost,
            spawn=lambda coro: self.spawn(coro, name="worker"),
        )
        self.spawn(self._sweep(), name="sweep")
        if self.settings.attach_port >= 0:
            await self._start_attach()
        if self._with_http:
            from leasehold.dispatch.http import ManagerApp

            self.http = HttpServer(
                ManagerApp(self, methods=self._methods, fallback=self._app),
                host=self.settings.manager_host,
                port=self.settings.manager_port,
                name="manager http",
                setting="dispatch.manager_port",
                clock=self.clock,
                ws_max_size=self.settings.max_http_body,
                **self._tls(),
            )
            await self.resources.enter_async_context(running(self.http))
        log.info("manager.ready", id=self.id, url=self.url)

    def _tls(self) -> dict[str, Any]:
        if not self.settings.tls_cert:
            return {}
        return {"ssl_certfile": self.settings.tls_cert, "ssl_keyfile": self.settings.tls_key}

    async def _start_attach(self) -> None:
        server = load("grpc").make_attach_server(self.settings)

        async def attached(link: WorkerLink) -> None:
            hello = link.hello
            if self.admit is not None:
                log.warning("worker.refused", worker=hello.id, reason="it cannot prove who it is")
            elif hello.id and hello.network:
                await self.registry.adopt(
                    hello.id, hello.network, hello.chain_id, hello.version, link
                )

        self.attach_address = await server.start(attached, Hello(features=FEATURES))
        self.resources.push_async_callback(server.stop)

    async def stop(self) -> None:
        for task in list(self._open):
            task.finish(
                "stopped",
                LeaseholdError(
                    "manager_stopped",
                    "the manager was stopped before the task was done; ask another manager",
                    kind=Kind.UNAVAILABLE,
                    retry_after=1.0,
                ),
            )

    @property
    def url(self) -> str:
        """Where workers ping, empty without HTTP."""
        return self.http.url if self.http is not None else ""

    # extension

    def method(self, name: str, handler: Callable[[list[Any]], Any]) -> None:
        """Offer ``async handler(params)`` as a JSON-RPC method on ``/ws``."""
        self._methods[name] = handler

    def mount(self, app: Any) -> None:
        """The ASGI application for every path the manager has no route for; before the start."""
        self._app = app

    # tasks

    def submit(self, call: Call) -> Task:
        """Accept a task; iterate the result, inside ``async with``, for its responses.

        LeaseholdError at once: ``no_workers`` when nobody serves the pool, ``busy`` when too many
        wait already.
        """
        if self.stopping:
            raise not_running(self.name)
        settings = self.settings
        task = Task(
            new_id(),
            call,
            timeout=call.timeout or settings.task_timeout,
            window=settings.task_window,
            limit=settings.task_buffer,
            limit_bytes=settings.task_buffer_bytes,
            at=self.clock.monotonic(),
            on_end=self._ended,
        )
        self._open.add(task)
        try:
            self.pool(call.pool).submit(task)
        except LeaseholdError as error:
            task.finish(error.code, error)
            raise
        return task

    async def call(self, call: Call) -> list[Response]:
        """All responses of one task, in order; raises its error if it failed.

        When the task had to be repeated, only the last attempt's responses are returned.
        """
        got: list[Response] = []
        async with self.submit(call) as task:
            attempts = task.attempts
            async for response in task:
                if task.attempts != attempts:
                    attempts = task.attempts
                    got.clear()
                got.append(response)
        return got

    def _ended(self, task: Task, outcome: str) -> None:
        self._open.discard(task)
        attempt = task.attempt
        pool = self._pools.get(task.call.pool)
        if attempt is not None:
            attempt.session.drop(attempt, cancel=outcome not in ("done", "failed"))
        elif pool is not None:
            pool.forget(task)
        metrics.outcome(task.call.type, outcome).inc()
        metrics.run_time(task.call.type).observe(self.clock.monotonic() - task.accepted_at)

    def _lost(self, attempt: Attempt, started: bool) -> None:
        task = attempt.task
        if task.done:
            return
        task.attempt = None
        if not task.may_retry(started=started):
            task.finish("lost", _worker_lost(task, "its results were already being taken"))
        elif task.attempts >= self.settings.max_attempts:
            task.finish("lost", _worker_lost(task, f"{task.attempts} workers were tried"))
        else:
            metrics.REDISPATCHES.labels("lost" if started else "not started").inc()
            self.pool(task.call.pool).resubmit(task)

    # workers

    def pool(self, key: PoolKey) -> Pool:
        """The pool of ``key``, made on first use."""
        found = self._pools.get(key)
        if found is None:
            if len(self._pools) >= MAX_POOLS:
                self._drop_idle_pools()
            found = self._pools[key] = Pool(
                key,
                clock=self.clock,
                policy=POLICIES[self.settings.policy],
                queue_limit=self.settings.queue_limit,
                expected=lambda: self.registry.hopeful(key),
            )
        return found

    def _drop_idle_pools(self) -> None:
        used = {worker.pool for worker in self.registry.workers.values()}
        for key, pool in list(self._pools.items()):
            if key not in used and not pool.members and not pool.queued:
                pool.retire()
                del self._pools[key]

    async def wait_for_worker(self, network: str, chain_id: str, version: str = "0.0.1") -> None:
        """Return as soon as the pool has a worker online."""
        await self.pool((network, chain_id, version)).online.wait()

    def unserved(self) -> list[str]:
        """What of ``settings.required`` has no worker online; ``["any network"]`` when nothing is
        required and nobody is there."""
        online = set()
        for worker in self.registry.workers.values():
            if worker.state is WorkerState.ONLINE:
                online |= {worker.network, f"{worker.network}/{worker.chain_id}"}
        if not self.settings.required:
            return [] if online else ["any network"]
        return [name for name in self.settings.required if name not in online]

    async def _sweep(self) -> None:
        states = [(state, state.name.lower()) for state in WorkerState]
        while True:
            self.registry.sweep()
            for pool in self._pools.values():
                pool.fail_if_hopeless()
            counts: dict[tuple[str, WorkerState], int] = {}
            networks = set()
            for worker in self.registry.workers.values():
                networks.add(worker.network)
                key = (worker.network, worker.state)
                counts[key] = counts.get(key, 0) + 1
            metrics.WORKERS.clear()
            for network in networks:
                for state, name in states:
                    metrics.WORKERS.labels(network, name).set(counts.get((network, state), 0))
            await self.clock.sleep(1.0)


def _worker_lost(task: Task, why: str) -> LeaseholdError:
    return LeaseholdError(
        "worker_lost",
        f"the worker of this {task.call.type} task was lost and the task was not repeated: {why}",
        kind=Kind.UNAVAILABLE,
        retry_after=1.0,
    )
