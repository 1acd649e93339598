"""The worker: serves managers' streams and runs handlers. Your own worker in a few lines::

    worker = Worker(settings=DispatchSettings(network="mine", chain_id="mine-1"))

    @worker.task("Double")
    async def double(job: Job) -> AsyncIterator[Reply]:
        yield Reply("Doubled", str(int(job.payload) * 2).encode(), final=True)

A handler is an async generator; each reply is sent as it is made. If none was marked final, the
end is told with ``END``. An exception becomes a final error with its text. What a handler
promises about repetition matters: a manager may run a task again on another worker.

Each stream (one per manager) has its own handlers, queue and ids, so what one manager does, or
fails to read, touches no other. The reader never waits for handlers: pings are answered and
cancels obeyed however busy the worker is.
"""

from __future__ import annotations

import asyncio
import functools
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.dispatch import metrics
from leasehold.dispatch.discovery import Announcer, Sign
from leasehold.dispatch.registry import RECONNECT, ClientPing, Connectivity
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.transport import LinkClosed, Listener, ManagerLink, load
from leasehold.dispatch.wire import (
    BATCH,
    BATCH_BYTES,
    CANCEL,
    CREDIT,
    END,
    FEATURES,
    GOODBYE,
    PING,
    PONG,
    REFUSED,
    Grant,
    Hello,
    Request,
    Response,
    new_id,
)

OUTGOING = 128
"""Responses of one stream that wait to be written before handlers wait with them."""

MAX_UNSENT = 10_000
"""Messages a manager may leave unread (pongs, refusals) before its stream is ended."""

log = get_logger(__name__)


class Reply(msgspec.Struct, gc=False):
    """What a handler yields: a type, a payload, and whether it is the last one.

    ``error`` on a final reply reports a failure that still has data, as a partial range.
    """

    type: str
    payload: bytes = b""
    final: bool = False
    error: str = ""


class Job(msgspec.Struct, frozen=True):
    """A task as its handler sees it; ``timeout`` in seconds, ``attempt`` counts from 1."""

    id: str
    type: str
    payload: bytes
    manager: str
    timeout: float
    attempt: int


Handler = Callable[[Job], AsyncIterator[Reply]]


class Worker(Service):
    """Give it handlers by task type, or register them with :meth:`task` before it starts.

    If ``handlers`` has an ``aclose()``, it is called when the worker has stopped.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        settings: DispatchSettings | None = None,
        handlers: Mapping[str, Handler] | None = None,
        *,
        listener: Listener | None = None,
        sign: Sign | None = None,
    ) -> None:
        super().__init__("worker", clock=clock)
        self.settings = settings or DispatchSettings()
        self.id = new_id()
        self.handlers: dict[str, Handler] = dict(handlers or {})
        self.timeouts: dict[str, float] = {}
        self._close_handlers = getattr(handlers, "aclose", None)
        self.address = ""
        self.stop_deadline = self.settings.drain_timeout + 2.0
        self._listener = listener
        self._sign = sign
        self._streams: set[_Stream] = set()

    def task(self, type: str, *, timeout: float | None = None) -> Callable[[Handler], Handler]:
        """Register a handler for a task type; ``timeout`` in seconds, at most what it may take."""

        def register(handler: Handler) -> Handler:
            if type in self.handlers:
                raise ValueError(f"task type {type!r} has a handler already")
            self.handlers[type] = handler
            if timeout is not None:
                self.timeouts[type] = timeout
            return handler

        return register

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. For a program that is nothing but a worker."""

        async def main() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self.request_stop)
            await self.serve()

        asyncio.run(main())

    async def start(self) -> None:
        settings = self.settings
        if self._close_handlers is not None:
            self.resources.push_async_callback(self._close_handlers)
        hello = Hello(
            features=FEATURES,
            concurrency=settings.concurrency,
            id=self.id,
            network=settings.network,
            chain_id=settings.chain_id,
            version=settings.version,
        )
        if settings.attach:
            for manager in settings.managers:
                self.spawn(self._stay_attached(manager, hello), name=f"attach:{manager}")
            return
        if self._listener is None:
            self._listener = load("grpc").make_listener(settings)
            assert self._listener is not None
        bound = await self._listener.start(self._serve, hello)
        self.resources.push_async_callback(self._listener.stop)
        self.address = settings.worker_address or bound
        if settings.managers:
            ping = ClientPing(
                self.id,
                settings.network,
                settings.chain_id,
                Connectivity(settings.version, self._listener.type, self.address),
            )
            announcer = Announcer(
                settings.managers,
                ping,
                clock=self.clock,
                interval=settings.ping_interval,
                token=settings.token,
                verify=settings.tls_ca or True,
                cert=(settings.tls_cert, settings.tls_key) if settings.tls_cert else None,
                sign=self._sign,
            )
            self.spawn(announcer.run(), name="announce")
        log.info("worker.ready", id=self.id, address=self.address, tasks=sorted(self.handlers))

    async def stop(self) -> None:
        """Say goodbye, finish what runs within ``drain_timeout``, refuse the rest."""
        for stream in self._streams:
            stream.say_goodbye()
        try:
            async with self.clock.timeout(self.settings.drain_timeout):
                for stream in list(self._streams):
                    await stream.drained()
        except TimeoutError:
            log.warning("worker.drain_timeout", seconds=self.settings.drain_timeout)

    async def _serve(self, link: ManagerLink) -> None:
        stream = _Stream(self, link)
        self._streams.add(stream)
        metrics.WORKER_STREAMS.inc()
        metrics.NEW_STREAMS.inc()
        try:
            await stream.run()
        finally:
            metrics.WORKER_STREAMS.dec()
            self._streams.discard(stream)

    async def _stay_attached(self, manager: str, hello: Hello) -> None:
        failures = 0
        while True:
            link = load("grpc").attach(self.settings, manager, hello)
            began = self.clock.monotonic()
            try:
                await self._serve(link)
            finally:
                await link.close()
            failures = 0 if self.clock.monotonic() - began > RECONNECT.cap else failures + 1
            await self.clock.sleep(RECONNECT.delay(failures + 1))

    def timeout_of(self, request: Request) -> float:
        """Seconds a task may run here: the least of what caller, handler and settings say."""
        limit = min(
            self.timeouts.get(request.type, self.settings.handler_timeout),
            self.settings.handler_timeout,
        )
        return min(limit, request.timeout) if request.timeout > 0 else limit


class _Running:
    """A task of a stream: its handler's task and how many responses it may still send."""

    __slots__ = ("credit", "more", "order", "task")

    def __init__(self, credit: int) -> None:
        self.credit = credit if credit > 0 else -1
        self.more: asyncio.Event | None = None
        self.order = 0
        self.task: asyncio.Task[None] | None = None


class _Stream:
    """One manager's stream: a reader, a writer, and a task per running handler."""

    def __init__(self, worker: Worker, link: ManagerLink) -> None:
        self.worker = worker
        self.link = link
        self._jobs: dict[str, _Running] = {}
        self._waiting: deque[Request] = deque()
        self._running = 0
        self._control: deque[Response] = deque()
        self._responses: deque[Response] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._group: asyncio.TaskGroup

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            writer = group.create_task(self._write())
            try:
                await self._read()
            finally:
                writer.cancel()
                for job in self._jobs.values():
                    if job.task is not None:
                        job.task.cancel()
                self._waiting.clear()
                self._idle.set()

    def say_goodbye(self) -> None:
        self._draining = True
        while self._waiting:
            self._refuse(self._waiting.popleft(), "the worker is stopping")
        if "goodbye" in self.link.hello.features:
            self._control.append(Response(new_id(), GOODBYE, final=True))
        self._check_idle()
        self._wake.set()

    async def drained(self) -> None:
        """Return when nothing runs and everything was written, or the stream ended."""
        await self._idle.wait()

    # requests

    async def _read(self) -> None:
        link = self.link
        while True:
            try:
                request = await link.receive()
            except LinkClosed:
                return
            if request is None:
                return
            if len(self._control) + len(self._responses) > MAX_UNSENT:
                log.warning("manager.does_not_read", peer=link.hello.peer)
                return
            if request.type == PING:
                self._control.append(Response(request.id, PONG, final=True))
                self._wake.set()
            elif request.type == CANCEL and "cancel" in link.hello.features:
                self._cancel(request.payload)
            elif request.type == CREDIT and "credit" in link.hello.features:
                self._credit(request.payload)
            else:
                self._accept(request)

    def _accept(self, request: Request) -> None:
        if request.id in self._jobs:
            metrics.WORKER_IGNORED.labels("duplicate_id").inc()
        elif self._draining:
            self._refuse(request, "the worker is stopping")
        elif self._running < self.worker.settings.concurrency:
            self._start(request)
        elif len(self._waiting) < self.worker.settings.backlog:
            self._jobs[request.id] = self._job(request)
            self._waiting.append(request)
            self._idle.clear()
        else:
            self._refuse(request, "the worker is busy")

    def _job(self, request: Request) -> _Running:
        return _Running(request.credit if "credit" in self.link.hello.features else 0)

    def _refuse(self, request: Request, why: str) -> None:
        self._jobs.pop(request.id, None)
        metrics.WORKER_IGNORED.labels("refused").inc()
        self._responses.append(
            Response(request.id, END, 0, True, b"", why, REFUSED)  # never started
        )
        self._wake.set()

    def _start(self, request: Request) -> None:
        job = self._jobs.get(request.id)
        if job is None:
            job = self._jobs[request.id] = self._job(request)
        self._running += 1
        self._idle.clear()
        metrics.WORKER_RUNNING.inc()
        job.task = self._group.create_task(self._run(request, job))
        # Not in a ``finally`` of the task: one cancelled before its first step never gets there.
        job.task.add_done_callback(functools.partial(self._ended, request.id))

    def _ended(self, id: str, _task: asyncio.Task[None]) -> None:
        self._jobs.pop(id, None)
        self._running -= 1
        metrics.WORKER_RUNNING.dec()
        while self._waiting and self._running < self.worker.settings.concurrency:
            self._start(self._waiting.popleft())
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._running and not self._waiting and not self._responses and not self._control:
            self._idle.set()

    def _cancel(self, payload: bytes) -> None:
        id_ = payload.decode(errors="replace")
        job = self._jobs.get(id_)
        if job is None:
            return
        if job.task is not None:
            job.task.cancel()
        else:
            del self._jobs[id_]
            self._waiting = deque(r for r in self._waiting if r.id != id_)

    def _credit(self, payload: bytes) -> None:
        try:
            grant = msgspec.json.decode(payload, type=Grant)
        except msgspec.MsgspecError:
            metrics.WORKER_IGNORED.labels("bad_credit").inc()
            return
        job = self._jobs.get(grant.id)
        if job is not None and job.credit >= 0 and grant.n > 0:
            job.credit += grant.n
            if job.more is not None:
                job.more.set()

    # handlers

    async def _run(self, request: Request, job: _Running) -> None:
        worker = self.worker
        sender = self.link.hello.peer or "manager"
        handler = worker.handlers.get(request.type)
        error = ""
        kind = ""
        final = False
        began = worker.clock.monotonic()
        if handler is None:
            known = ", ".join(sorted(worker.handlers))
            error, kind = f"unknown task type {request.type!r}; there are {known}", "unknown_type"
        else:
            timeout = worker.timeout_of(request)
            try:
                async with worker.clock.timeout(timeout):
                    final = await self._replies(handler, request, job, timeout)
            except TimeoutError:
                error, kind = f"not done within {timeout:g} s", "timeout"
            except LeaseholdError as failure:
                error, kind = failure.message, failure.code
            except Exception as failure:
                log.exception("handler.failed", type=request.type)
                error, kind = f"{type(failure).__name__}: {failure}", "handler_failed"
            metrics.worker_time(request.type).observe(worker.clock.monotonic() - began)
        label = request.type if handler is not None else "unknown"
        metrics.grpc_request(_host(sender), label, kind).inc()
        if not final:
            self._put(job, Response(request.id, END, job.order, True, b"", error, kind))

    async def _replies(
        self, handler: Handler, request: Request, job: _Running, timeout: float
    ) -> bool:
        """Send what the handler yields; True when it said itself which one is final."""
        replies = handler(
            Job(
                request.id,
                request.type,
                request.payload,
                request.sender,
                timeout,
                request.attempt or 1,
            )
        )
        final = False
        try:
            async for reply in replies:
                if final:
                    raise RuntimeError(f"{request.type} yielded after its final reply")
                final = reply.final
                if not final:
                    await self._may_send(job)
                self._put(
                    job,
                    Response(request.id, reply.type, job.order, final, reply.payload, reply.error),
                )
        finally:
            close: Any = getattr(replies, "aclose", None)
            if close is not None:
                await close()
        return final

    async def _may_send(self, job: _Running) -> None:
        """Wait for credit of this task and for room in the stream's outgoing queue."""
        if job.credit == 0:
            if job.more is None:
                job.more = asyncio.Event()
            while job.credit == 0:
                job.more.clear()
                await job.more.wait()
        if job.credit > 0:
            job.credit -= 1
        while len(self._responses) >= OUTGOING:
            self._room.clear()
            await self._room.wait()

    def _put(self, job: _Running, response: Response) -> None:
        job.order += 1
        self._responses.append(response)
        self._wake.set()

    # responses

    async def _write(self) -> None:
        link, control, responses = self.link, self._control, self._responses
        try:
            while True:
                if control or responses:
                    await link.send(*self._next())
                    if len(responses) < OUTGOING:
                        self._room.set()
                else:
                    self._check_idle()
                    self._wake.clear()
                    await self._wake.wait()
        except LinkClosed as reason:
            log.info("stream.ended", peer=link.hello.peer, reason=str(reason))

    def _next(self) -> list[Response]:
        """What goes into the next message: as much as the manager takes in one."""
        control, responses = self._control, self._responses
        limit = BATCH if "batch" in self.link.hello.features else 1
        batch: list[Response] = []
        size = 0
        while control and len(batch) < limit:
            batch.append(control.popleft())
        while responses and len(batch) < limit and size < BATCH_BYTES:
            response = responses.popleft()
            size += len(response.payload)
            batch.append(response)
            metrics.grpc_response(response.type, "error" if response.error else "").inc()
        return batch


def _host(peer: str) -> str:
    """The peer without its port, so that the label stays the same over reconnects."""
    return peer.rpartition(":")[0] or peer
