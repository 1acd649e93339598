"""A transport in memory, for tests of your own workers and callers, with faults on demand.

``MemoryNetwork`` connects managers and workers of one process without sockets::

    net = MemoryNetwork()
    worker = Worker(clock, settings, handlers, listener=net.listener("w1"))
    manager = Manager(clock, settings, dialers=[net.dialer()], http=False)
    ...
    net.announce(manager, worker)

``net.kill("w1")`` breaks its streams as SIGKILL would; ``net.partition("w1")`` lets them hang;
``net.latency`` delays every message. With a ``VirtualClock`` all of it takes no real time.

:func:`cluster` is all of it in one line: ``async with cluster(handlers, workers=3) as c:``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.registry import ClientPing, Connectivity
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Call
from leasehold.dispatch.transport import LinkClosed, OnStream
from leasehold.dispatch.wire import FEATURES, Hello, Request, Response
from leasehold.dispatch.worker import Handler, Worker

PIPE = 64
"""Messages one direction of a link holds before its sender waits, like a flow-control window."""

M = TypeVar("M")


class _Pipe(Generic[M]):
    """One direction of a link."""

    def __init__(self, network: MemoryNetwork, worker: str) -> None:
        self._network = network
        self._worker = worker
        self._items: deque[M] = deque()
        self._changed = asyncio.Condition()
        self.closed = False

    async def put(self, item: M) -> None:
        await self._network.delay(self._worker)
        async with self._changed:
            await self._changed.wait_for(lambda: self.closed or len(self._items) < PIPE)
            if self.closed:
                raise LinkClosed("closed")
            self._items.append(item)
            self._changed.notify_all()

    async def get(self) -> M | None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.closed or bool(self._items))
            if self.closed:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    async def close(self) -> None:
        async with self._changed:
            self.closed = True
            self._changed.notify_all()


class _Link:
    """Both ends of one stream."""

    def __init__(self, network: MemoryNetwork, worker: str, features: frozenset[str]) -> None:
        self.down: _Pipe[Request] = _Pipe(network, worker)
        self.up: _Pipe[Response] = _Pipe(network, worker)
        self.features = features

    async def close(self) -> None:
        await self.down.close()
        await self.up.close()


class _ManagerEnd:
    def __init__(self, link: _Link, hello: Hello) -> None:
        self._link = link
        self.hello = hello

    async def send(self, *requests: Request) -> None:
        for request in requests:
            await self._link.down.put(request)

    async def receive(self) -> Response | None:
        return await self._link.up.get()

    async def close(self) -> None:
        await self._link.close()


class _WorkerEnd:
    def __init__(self, link: _Link, hello: Hello) -> None:
        self._link = link
        self.hello = hello

    async def send(self, *responses: Response) -> None:
        for response in responses:
            await self._link.up.put(response)

    async def receive(self) -> Request | None:
        return await self._link.down.get()


class MemoryListener:
    type = "memory"

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self.address = address
        self._on_stream: OnStream | None = None
        self.hello = Hello()
        self.links: set[_Link] = set()
        self._streams: set[asyncio.Task[None]] = set()

    async def start(self, on_stream: OnStream, hello: Hello) -> str:
        self._on_stream = on_stream
        self.hello = hello
        return self.address

    def accept(self, link: _Link, hello: Hello) -> None:
        self.links.add(link)
        task = asyncio.ensure_future(self._serve(link, hello))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        task.add_done_callback(lambda _: self.links.discard(link))

    async def _serve(self, link: _Link, hello: Hello) -> None:
        assert self._on_stream is not None
        try:
            await self._on_stream(_WorkerEnd(link, hello))
        finally:
            await link.close()

    async def stop(self) -> None:
        self._network.listeners.pop(self.address, None)
        for link in list(self.links):
            await link.close()
        await asyncio.gather(*self._streams, return_exceptions=True)


class _MemoryDialer:
    type = "memory"

    def __init__(self, network: MemoryNetwork, features: frozenset[str]) -> None:
        self._network = network
        self._features = features

    def check(self, address: str) -> None:
        """Any text is an address here."""

    async def dial(self, address: str) -> _ManagerEnd:
        listener = self._network.listeners.get(address)
        if listener is None or address in self._network.dead:
            raise LinkClosed(f"nobody at {address}")
        await self._network.delay(address)
        link = _Link(self._network, address, self._features)
        listener.accept(link, Hello(features=self._features, peer="memory"))
        known = self._features & listener.hello.features
        return _ManagerEnd(link, msgspec.structs.replace(listener.hello, features=known))


class MemoryNetwork:
    """The wires between managers and workers; ``latency`` in seconds per message."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.latency = 0.0
        self.listeners: dict[str, MemoryListener] = {}
        self.dead: set[str] = set()
        self._partitions: dict[str, asyncio.Event] = {}

    def listener(self, address: str) -> MemoryListener:
        """Where a worker listens; give it to :class:`Worker`."""
        self.dead.discard(address)
        made = self.listeners[address] = MemoryListener(self, address)
        return made

    def dialer(self, features: frozenset[str] = FEATURES) -> _MemoryDialer:
        """For a manager; with no ``features`` it is one of the base protocol."""
        return _MemoryDialer(self, features)

    def announce(self, manager: Manager, worker: Worker) -> None:
        """What the HTTP ping would do."""
        settings = worker.settings
        manager.registry.ping(
            ClientPing(
                worker.id,
                settings.network,
                settings.chain_id,
                Connectivity(settings.version, "memory", worker.address),
            ),
            "127.0.0.1",
        )

    async def kill(self, address: str) -> None:
        """Break all streams of a worker at once and let nobody dial it."""
        self.dead.add(address)
        listener = self.listeners.get(address)
        for link in list(listener.links) if listener else []:
            await link.close()

    def revive(self, address: str) -> None:
        self.dead.discard(address)

    def partition(self, address: str) -> None:
        """Messages to and from the worker wait until :meth:`heal`."""
        self._partitions.setdefault(address, asyncio.Event())

    def heal(self, address: str) -> None:
        wall = self._partitions.pop(address, None)
        if wall is not None:
            wall.set()

    async def delay(self, address: str) -> None:
        if self.latency:
            await self.clock.sleep(self.latency)
        wall = self._partitions.get(address)
        if wall is not None:
            await wall.wait()


NETWORK, CHAIN = "test", "test-1"


class Cluster:
    """A manager and workers ``w1``, ``w2`` … in memory, all of network ``test``."""

    def __init__(
        self,
        manager: Manager,
        net: MemoryNetwork,
        handlers: Mapping[str, Handler],
        settings: DispatchSettings,
        clock: Clock,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self.manager = manager
        self.net = net
        self.workers: dict[str, Worker] = {}
        self._handlers = handlers
        self._settings = settings
        self._clock = clock
        self._stack = stack

    async def start(self, address: str) -> Worker:
        """Start a worker, announce it, and wait until it is online."""
        worker = Worker(
            self._clock, self._settings, self._handlers, listener=self.net.listener(address)
        )
        await self._stack.enter_async_context(running(worker))
        self.workers[address] = worker
        self.net.announce(self.manager, worker)
        while self.manager.registry.get(worker.id).state != 1:
            await self._clock.sleep(0.001)
        return worker

    def call(self, type: str, payload: bytes = b"", **more: Any) -> Call:
        """A call to this cluster's pool."""
        return Call(network=NETWORK, chain_id=CHAIN, type=type, payload=payload, **more)


@contextlib.asynccontextmanager
async def cluster(
    handlers: Mapping[str, Handler],
    *,
    workers: int = 1,
    clock: Clock | None = None,
    features: frozenset[str] = FEATURES,
    **settings: Any,
) -> AsyncIterator[Cluster]:
    """A running :class:`Cluster`; ``features`` are the manager's, ``settings`` both sides'."""
    clock = clock or SystemClock()
    made = DispatchSettings(
        **{"network": NETWORK, "chain_id": CHAIN, "managers": (), "drain_timeout": 0.5, **settings}
    )
    net = MemoryNetwork(clock)
    async with contextlib.AsyncExitStack() as stack:
        manager = Manager(clock, made, dialers=[net.dialer(features)], http=False)
        await stack.enter_async_context(running(manager))
        out = Cluster(manager, net, handlers, made, clock, stack)
        for i in range(workers):
            await out.start(f"w{i + 1}")
        yield out
