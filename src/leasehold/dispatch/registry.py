"""The workers a manager knows: who pinged, in which state, dialled by whom, gone when.

A record is made by a ping and lives as long as pings come. One task per record keeps its stream:
dial, first pong, serve, and again with back-off after it broke. A worker without a ping for
``worker_expiry`` and without a stream is taken out; a record is removed ``worker_grace`` later.
A new worker replaces another only if both are reached at the very same address and the other is
not online: it is then the same process, restarted. No ping ever touches another's living stream.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.dispatch import metrics
from leasehold.dispatch.pool import Member, Pool, PoolKey
from leasehold.dispatch.session import Session
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Attempt
from leasehold.dispatch.transport import Dialer, LinkClosed, WorkerLink
from leasehold.dispatch.wire import DEFAULT_VERSION

Name = Annotated[str, Meta(min_length=1, max_length=128)]

RECONNECT = Backoff(first=0.1, cap=5.0)
"""Between dials of one worker, seconds; a pong resets it."""

log = get_logger(__name__)


class WorkerState(enum.IntEnum):
    """The integers on the wire."""

    UNKNOWN = 0
    ONLINE = 1
    ERROR = 2
    RECONNECTING = 3
    CLOSING = 4
    OFFLINE = 5


class Connectivity(msgspec.Struct, frozen=True):
    version: Annotated[str, Meta(max_length=64)] = DEFAULT_VERSION
    type: Annotated[str, Meta(max_length=64)] = "grpc"
    address: Annotated[str, Meta(max_length=300)] = ""


class ClientPing(msgspec.Struct, frozen=True):
    """The body of ``/client_ping``. Unknown keys are ignored."""

    id: Name
    network: Name
    chain_id: Annotated[str, Meta(max_length=128)] = ""
    connectivity: Connectivity = Connectivity()


class WorkerRecord:
    """One worker run, known by the id it chose."""

    def __init__(self, ping: ClientPing, address: str, ip: str, at: float) -> None:
        self.id = ping.id
        self.network = ping.network
        self.chain_id = ping.chain_id
        self.version = ping.connectivity.version or DEFAULT_VERSION
        self.type = ping.connectivity.type
        self.address = address
        self.ip = ip
        self.state = WorkerState.UNKNOWN
        self.last_check = at
        self.last_online = 0.0
        self.offline_since: float | None = at
        self.session: Session | None = None
        self.problem = ""
        self.keeper: asyncio.Task[None] | None = None

    @property
    def pool(self) -> PoolKey:
        return (self.network, self.chain_id, self.version)


class Registry:
    """Give it ``spawn`` of the manager, so that its tasks end with it."""

    def __init__(
        self,
        *,
        clock: Clock,
        settings: DispatchSettings,
        sender: str,
        dialers: Mapping[str, Dialer],
        pool_of: Callable[[PoolKey], Pool],
        on_lost: Callable[[Attempt, bool], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.clock = clock
        self.settings = settings
        self.sender = sender
        self.workers: dict[str, WorkerRecord] = {}
        self._dialers = dialers
        self._pool_of = pool_of
        self._on_lost = on_lost
        self._spawn = spawn
        self._dials = asyncio.Semaphore(settings.max_dials)

    def hopeful(self, key: PoolKey) -> int:
        """Workers of a pool that are online or may come back."""
        recently = self.clock.now() - self.settings.worker_expiry
        return sum(
            1
            for w in self.workers.values()
            if w.pool == key
            and (
                w.state in (WorkerState.ONLINE, WorkerState.RECONNECTING, WorkerState.UNKNOWN)
                or (w.state is WorkerState.ERROR and w.last_online > recently)
            )
        )

    def ping(self, ping: ClientPing, ip: str) -> WorkerRecord:
        """A worker announced itself from ``ip``; LeaseholdError when it is refused."""
        now = self.clock.now()
        address = dial_target(ping.connectivity.address, ip)
        worker = self.workers.get(ping.id)
        if worker is not None:
            version = ping.connectivity.version or DEFAULT_VERSION
            same = (worker.type, worker.address, worker.pool) == (
                ping.connectivity.type,
                address,
                (ping.network, ping.chain_id, version),
            )
            if same:
                worker.last_check = now
                self._keep(worker)
                return worker
            self._replace(worker, "announced as another")
        elif ping.connectivity.type not in self._dialers:
            raise LeaseholdError(
                "unknown_transport",
                f"no transport of type {ping.connectivity.type!r}",
                kind=Kind.INVALID,
                path="connectivity.type",
                expected=", ".join(sorted(self._dialers)),
                got=ping.connectivity.type,
            )
        self._dialers[ping.connectivity.type].check(address)
        where = (ping.network, ping.connectivity.type, address)
        for other in list(self.workers.values()):
            if (other.network, other.type, other.address) == where:
                self._replace(other, "same address")
        if len(self.workers) >= self.settings.max_workers and not self._evict():
            raise LeaseholdError(
                "too_many_workers",
                f"this manager knows {len(self.workers)} workers, which is its limit",
                kind=Kind.RATE_LIMITED,
                path="dispatch.max_workers",
                retry_after=self.settings.ping_interval,
            )
        worker = WorkerRecord(ping, address, ip, now)
        self.workers[worker.id] = worker
        self._keep(worker)
        return worker

    def _replace(self, worker: WorkerRecord, reason: str) -> None:
        """Make way for a newcomer, unless the worker is there: then the newcomer is not it.

        A worker that was restarted broke its stream, so its old record is not online any more; and
        a stranger cannot push a living worker aside by announcing its id or address.
        """
        if worker.state is WorkerState.ONLINE:
            raise LeaseholdError(
                "worker_is_online",
                f"worker {worker.id} at {worker.address} is online; try again when it is gone",
                kind=Kind.CONFLICT,
                retry_after=self.settings.heartbeat,
                got=worker.id,
            )
        self.remove(worker.id, reason)

    def _evict(self) -> bool:
        """Make room by the record that has been unreachable longest, if there is one."""
        dead = [
            w
            for w in self.workers.values()
            if w.state in (WorkerState.OFFLINE, WorkerState.ERROR) and w.offline_since is not None
        ]
        if not dead:
            return False
        oldest = min(dead, key=lambda w: w.offline_since or 0.0)
        if self.clock.now() - (oldest.offline_since or 0.0) < self.settings.ping_interval:
            return False
        self.remove(oldest.id, "evicted")
        return True

    async def adopt(self, worker_id: str, network: str, chain_id: str, version: str,
                    link: WorkerLink) -> None:  # fmt: skip
        """Serve a stream the worker opened itself; returns when it has ended."""
        ping = ClientPing(
            worker_id, network, chain_id, Connectivity(version, "grpc-attach", link.hello.peer)
        )
        if worker_id in self.workers:
            self.remove(worker_id, "attached again")
        if len(self.workers) >= self.settings.max_workers and not self._evict():
            log.warning("worker.refused", worker=worker_id, reason="too many workers")
            return
        worker = WorkerRecord(ping, link.hello.peer, "", self.clock.now())
        self.workers[worker_id] = worker
        try:
            await self._serve(worker, link)
        finally:
            if self.workers.get(worker_id) is worker:
                self.remove(worker_id, "detached")

    def remove(self, worker_id: str, reason: str) -> None:
        """Forget a worker: close its stream, take it out of its pool."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        log.info("worker.removed", worker=worker_id, address=worker.address, reason=reason)
        pool = self._pool_of(worker.pool)
        pool.leave(worker_id)
        if worker.session is not None:
            worker.session.end()
        if worker.keeper is not None and worker.session is None:
            worker.keeper.cancel()
        pool.fail_if_hopeless()

    def get(self, worker_id: str) -> WorkerRecord:
        worker = self.workers.get(worker_id)
        if worker is None:
            raise not_found("worker", worker_id)
        return worker

    def sweep(self) -> None:
        """Expire and remove what does not ping any more; call it now and then."""
        now = self.clock.now()
        for worker in list(self.workers.values()):
            silent = now - worker.last_check
            if worker.type == "grpc-attach" or worker.session is not None:
                # An open stream with its own heartbeat says more than a missing HTTP ping.
                continue
            if silent > self.settings.worker_expiry + self.settings.worker_grace:
                self.remove(worker.id, "expired")
            elif silent > self.settings.worker_expiry and worker.state is not WorkerState.OFFLINE:
                self._offline(worker, "no ping")
                self._pool_of(worker.pool).fail_if_hopeless()

    # one worker's stream

    def _keep(self, worker: WorkerRecord) -> None:
        if worker.keeper is None or worker.keeper.done():
            worker.keeper = self._spawn(self._keep_connected(worker))

    def _alive(self, worker: WorkerRecord) -> bool:
        """Still listed, and it pinged not long ago."""
        return (
            self.workers.get(worker.id) is worker
            and self.clock.now() - worker.last_check <= self.settings.worker_expiry
        )

    async def _keep_connected(self, worker: WorkerRecord) -> None:
        failures = 0
        while self._alive(worker):
            try:
                if await self._connect_and_serve(worker):
                    failures = 0
            except Exception as error:
                # Whatever one worker's stream comes up with ends that stream and nothing else.
                log.exception("worker.failed", worker=worker.id, address=worker.address)
                self._unreachable(worker, error)
            failures += 1
            if not self._alive(worker):
                break
            await self.clock.sleep(RECONNECT.delay(failures))
        if self.workers.get(worker.id) is worker:
            self._offline(worker, worker.problem)
            self._pool_of(worker.pool).fail_if_hopeless()

    async def _connect_and_serve(self, worker: WorkerRecord) -> bool:
        """One stream, from dial to end; False when the worker was never reached."""
        # A worker that could not be reached stays in ERROR while it is tried again, so that
        # nobody waits for one that pings but cannot be dialled.
        if worker.state is not WorkerState.ERROR:
            worker.state = WorkerState.RECONNECTING
        link: WorkerLink | None = None
        try:
            async with self._dials, self.clock.timeout(self.settings.connect_timeout):
                link = await self._dialers[worker.type].dial(worker.address)
        except (LeaseholdError, TimeoutError, LinkClosed) as error:
            self._unreachable(worker, error)
            return False
        return await self._serve(worker, link)

    async def _serve(self, worker: WorkerRecord, link: WorkerLink) -> bool:
        pool = self._pool_of(worker.pool)
        session = Session(
            link,
            clock=self.clock,
            sender=self.sender,
            heartbeat=self.settings.heartbeat,
            on_lost=self._on_lost,
            on_free=pool.pump,
            on_goodbye=lambda: self._draining(worker),
        )
        worker.session = session
        was_online = False
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(session.run())
                try:
                    await session.ping(self.settings.connect_timeout)
                except (TimeoutError, LinkClosed) as error:
                    session.end()
                    self._unreachable(worker, error)
                else:
                    was_online = True
                    if self.workers.get(worker.id) is worker:
                        self._online(worker, session, pool)
                    else:
                        session.end()
        finally:
            worker.session = None
            pool.leave(worker.id)
            if was_online:
                worker.last_online = self.clock.now()
            if was_online and self.workers.get(worker.id) is worker:
                draining = worker.state is WorkerState.CLOSING
                self._offline(worker, "said goodbye" if draining else "stream ended")
                if not draining:
                    worker.state = WorkerState.RECONNECTING
                pool.fail_if_hopeless()
        return was_online

    def _online(self, worker: WorkerRecord, session: Session, pool: Pool) -> None:
        worker.state = WorkerState.ONLINE
        worker.offline_since = None
        worker.problem = ""
        metrics.RECONNECTS.labels("ok").inc()
        log.info("worker.online", worker=worker.id, address=worker.address, pool=pool.key)
        claimed = session.link.hello.concurrency or self.settings.assumed_concurrency
        concurrency = min(claimed, self.settings.max_concurrency)
        pool.join(Member(worker.id, session, concurrency + self.settings.prefetch))

    def _offline(self, worker: WorkerRecord, problem: str) -> None:
        worker.state = WorkerState.OFFLINE
        worker.problem = problem
        if worker.offline_since is None:
            worker.offline_since = self.clock.now()
        log.info("worker.offline", worker=worker.id, address=worker.address, problem=problem)

    def _unreachable(self, worker: WorkerRecord, error: Exception) -> None:
        worker.state = WorkerState.ERROR
        problem = str(error) or "no answer"
        if problem != worker.problem:
            log.info(
                "worker.unreachable", worker=worker.id, address=worker.address, problem=problem
            )
        worker.problem = problem
        if worker.offline_since is None:
            worker.offline_since = self.clock.now()
        metrics.RECONNECTS.labels("failed").inc()
        self._pool_of(worker.pool).fail_if_hopeless()

    def _draining(self, worker: WorkerRecord) -> None:
        worker.state = WorkerState.CLOSING
        self._pool_of(worker.pool).leave(worker.id)
        log.info("worker.draining", worker=worker.id, address=worker.address)


def dial_target(address: str, ip: str) -> str:
    """Where to dial: the advertised address, with the peer's own IP where it names no host."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return address or ip
    if host.strip("[]") in ("", "0.0.0.0", "::") and ip:
        host = f"[{ip}]" if ":" in ip else ip
    return f"{host}:{port}"
