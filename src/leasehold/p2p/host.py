"""A node on the peer-to-peer network: it listens, dials, and serves protocols.

Every connection, inbound or outbound, climbs the ladder under a deadline, is counted against the
caps, introduces itself (identify) and is then shared by all protocols. Handlers run as tasks of
this service: one that raises costs its stream, never the process. Sockets that do not finish
their handshake are bounded by giving up the oldest, so that idle strangers cannot lock others
out; when all connections are taken, one without streams makes room.

``host.handle("/x/1.0.0", serve, deadline=5.0)`` serves, ``await host.open(peer, "/x/1.0.0")``
asks. Time is the event loop's, so tests run in virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.p2p import identify, ping, varint
from leasehold.p2p.budget import Budget
from leasehold.p2p.connection import Connection
from leasehold.p2p.errors import PeerError, refused
from leasehold.p2p.keys import KeyPair, PeerId
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.multistream import Initiator, Responder
from leasehold.p2p.settings import P2PSettings
from leasehold.p2p.yamux import Stream

SWEEP = 0.25
"""Seconds between looks for streams past their deadline: how late a reset may be."""

STAGGER = 0.15
"""Seconds a dial waits for one address before it tries the next one beside it."""

MAX_DIAL_ADDRESSES = 8
MAX_KNOWN_ADDRESSES = 16
IDENTIFY_TIMEOUT = 5.0

CONNECTIONS = metrics.gauge("leasehold_p2p_connections", "Connections to peers, now.")
STREAMS = metrics.counter(
    "leasehold_p2p_streams_served_total", "Streams served, by outcome.", ("outcome",)
)

log = get_logger(__name__)

Handler = Callable[[Stream, Connection], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Protocol:
    serve: Handler
    deadline: float


class Host(Service):
    """``keys`` is who we are. ``allow`` may refuse a proven peer (default: anybody may connect)."""

    def __init__(
        self,
        keys: KeyPair,
        settings: P2PSettings | None = None,
        *,
        clock: Clock | None = None,
        allow: Callable[[PeerId], bool] | None = None,
    ) -> None:
        super().__init__("p2p", clock=clock)
        self.keys = keys
        self.peer_id = keys.peer_id
        self.settings = settings or P2PSettings()
        self.allow = allow
        self.budget = Budget(
            self.settings.receive_budget, self.settings.receive_budget_per_connection
        )
        self.addresses: list[Multiaddr] = []
        """Where others can reach us; known once started."""
        self.on_identified: list[Callable[[Connection, identify.Identity], None]] = []
        self.on_disconnected: list[Callable[[PeerId], None]] = []
        self._protocols: dict[str, _Protocol] = {}
        self._pending: dict[Connection, None] = {}
        self._connections: dict[PeerId, list[Connection]] = {}
        self._count = 0
        self._dialing: dict[PeerId, asyncio.Future[Connection]] = {}
        self._book: OrderedDict[PeerId, tuple[Multiaddr, ...]] = OrderedDict()
        self._handlers: set[asyncio.Task[None]] = set()
        self._negotiable = self._protocols.__contains__
        self.handle(identify.PROTOCOL, self._serve_identify, deadline=IDENTIFY_TIMEOUT)
        self.handle(identify.PUSH, self._take_identify, deadline=IDENTIFY_TIMEOUT)
        self.handle(ping.PROTOCOL, ping.serve, deadline=ping.DEADLINE)

    # lifecycle

    async def start(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        listening: list[Multiaddr] = []
        for text in self.settings.listen:
            where = Multiaddr.parse(text).tcp()
            if where is None:
                raise LeaseholdError(
                    "listen_address",
                    f"cannot listen on {text}: only plain TCP addresses are supported",
                    path="p2p.listen",
                    expected="/ip4/<address>/tcp/<port>",
                    got=text,
                )
            try:
                server = await loop.create_server(self._inbound, where[0], where[1], backlog=1024)
            except OSError as error:
                raise LeaseholdError(
                    "listen_failed",
                    f"cannot listen on {text}: {error.strerror or error}; change p2p.listen",
                    kind=Kind.CONFLICT,
                    path="p2p.listen",
                    got=text,
                ) from None
            self.resources.callback(server.close)
            for sock in server.sockets:
                host, port = sock.getsockname()[:2]
                listening += [Multiaddr.of_tcp(a, port) for a in _reachable(host)]
        announce = [Multiaddr.parse(text) for text in self.settings.announce]
        self.addresses = announce or listening
        self.spawn(self._tend(), name="tend")

    async def stop(self) -> None:
        ending = [c for cs in self._connections.values() for c in cs]
        for connection in ending:
            connection.close("shutting down")
        for connection in list(self._pending):
            connection.abort(PeerError("connection_closed", "shutting down"))
        for task in self._handlers:
            task.cancel()
        if ending:
            await asyncio.wait([c.done for c in ending], timeout=2.0)

    # protocols

    def handle(self, protocol: str, serve: Handler, *, deadline: float) -> None:
        """Serve ``protocol``; a stream older than ``deadline`` seconds is reset."""
        self._protocols[protocol] = _Protocol(serve, deadline)

    def unhandle(self, protocol: str) -> None:
        """Stop serving ``protocol``; streams already open go on."""
        self._protocols.pop(protocol, None)

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(self._protocols)

    async def open(self, peer: PeerId, *protocols: str) -> Stream:
        """A stream to ``peer`` speaking the first of ``protocols`` it knows; dials if need be.

        With one candidate, or once a peer's choice is known, the negotiation travels with the
        first write and costs no round trip. The caller sets the deadline and closes the stream.
        """
        connection = self.connection(peer)
        if connection is None:
            connection = await self.connect(peer)
        return await self.open_on(connection, *protocols)

    async def open_on(self, connection: Connection, *protocols: str) -> Stream:
        """Like :meth:`open`, on a connection at hand."""
        if connection.session is None:
            raise PeerError("connection_closed", "the connection is not ready")
        candidates: Sequence[str] = protocols
        if len(protocols) > 1:
            known = connection.chosen.get(protocols)
            if known is None and connection.protocols:
                known = next((p for p in protocols if p in connection.protocols), None)
            if known is not None:
                candidates = (known,)
        stream = connection.session.open()
        initiator = Initiator(candidates)
        stream.prefix = initiator.start()
        stream.filter = initiator
        if len(candidates) > 1:
            agreed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            settle = lambda *_: None if agreed.done() else agreed.set_result(None)  # noqa: E731
            stream.on_negotiated = stream.on_failed = settle
            stream.flush()
            try:
                await agreed
            except BaseException:
                stream.reset("abandoned")
                raise
            if stream.failure is not None:
                raise stream.failure
            connection.chosen[protocols] = stream.protocol
        return stream

    # connections

    def connection(self, peer: PeerId) -> Connection | None:
        """A usable connection to ``peer``, if there is one."""
        for connection in self._connections.get(peer, ()):
            if connection.usable:
                return connection
        return None

    @property
    def peers(self) -> list[PeerId]:
        """Everybody we are connected to."""
        return list(self._connections)

    def known_addresses(self, peer: PeerId) -> tuple[Multiaddr, ...]:
        return self._book.get(peer, ())

    def learn(self, peer: PeerId, addresses: Iterable[Multiaddr]) -> None:
        """Remember where ``peer`` may be reached; newest first, bounded."""
        fresh = [a.without_peer() for a in addresses if a.tcp() is not None]
        merged = tuple(dict.fromkeys([*fresh, *self._book.get(peer, ())]))[:MAX_KNOWN_ADDRESSES]
        if merged:
            self._book[peer] = merged
            self._book.move_to_end(peer)
            while len(self._book) > self.settings.max_known_peers:
                self._book.popitem(last=False)

    async def connect(self, peer: PeerId, addresses: Iterable[Multiaddr] = ()) -> Connection:
        """A connection to ``peer``: the one there is, or a new one within ``dial_timeout``.

        Callers that ask at the same time share one dial. A failure is not remembered.
        """
        self.learn(peer, addresses)
        connection = self.connection(peer)
        if connection is not None:
            return connection
        if peer == self.peer_id:
            raise PeerError("dial_self", "a node does not dial itself")
        dialing = self._dialing.get(peer)
        if dialing is None:
            dialing = asyncio.get_running_loop().create_future()
            self._dialing[peer] = dialing
            try:
                self.spawn(self._dial(peer, dialing), name="dial")
            except LeaseholdError:
                del self._dialing[peer]
                raise
        return await asyncio.shield(dialing)

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to ``peer``."""
        for connection in list(self._connections.get(peer, ())):
            connection.close("disconnected")

    # dialling

    async def _dial(self, peer: PeerId, outcome: asyncio.Future[Connection]) -> None:
        try:
            connection = await self._dial_any(peer, self.known_addresses(peer))
        except PeerError as error:
            if not outcome.done():
                outcome.set_exception(error)
                outcome.exception()  # those who asked may have left
        except BaseException:
            outcome.cancel()
            raise
        else:
            if not outcome.done():
                outcome.set_result(connection)
        finally:
            self._dialing.pop(peer, None)

    async def _dial_any(self, peer: PeerId, addresses: Sequence[Multiaddr]) -> Connection:
        if not addresses:
            raise PeerError("no_address", f"no address of {peer} is known")
        attempts: set[asyncio.Task[Connection | PeerError]] = set()
        errors: list[str] = []
        left = list(addresses[:MAX_DIAL_ADDRESSES])
        try:
            async with asyncio.timeout(self.settings.dial_timeout), asyncio.TaskGroup() as tasks:
                try:
                    while left or attempts:
                        if left:
                            attempts.add(tasks.create_task(self._dial_one(peer, left.pop(0))))
                        done, attempts = await asyncio.wait(
                            attempts,
                            timeout=STAGGER if left else None,
                            return_when=asyncio.FIRST_COMPLETED,
                        )
                        for task in done:
                            result = task.result()
                            if isinstance(result, Connection):
                                return result
                            errors.append(str(result))
                finally:
                    for task in attempts:
                        task.cancel()
        except TimeoutError:
            errors.append(f"no answer within {self.settings.dial_timeout:g} s")
        raise PeerError("dial_failed", f"cannot reach {peer}: {'; '.join(errors)}")

    async def _dial_one(self, peer: PeerId, address: Multiaddr) -> Connection | PeerError:
        where = address.tcp()
        assert where is not None
        made: Connection | None = None
        try:
            _, made = await asyncio.get_running_loop().create_connection(
                lambda: self._new(outbound=True), where[0], where[1]
            )
            await made.upgrade(peer)
        except OSError as error:
            return PeerError("dial_failed", f"{address}: {error.strerror or error}")
        except PeerError as error:
            return PeerError(error.code, f"{address}: {error.message}")
        except Exception as error:
            log.error("p2p.handshake_failed", remote=str(address), error=repr(error))
            if made is not None:
                made.abort(PeerError("handshake_failed", "internal error"))
            return PeerError("handshake_failed", f"{address}: internal error")
        except BaseException:
            if made is not None:
                made.abort(PeerError("connection_closed", "the dial was abandoned"))
            raise
        if not self._admit(made):
            return PeerError("connection_closed", f"{address}: no room for a connection")
        return made

    # accepting

    def _new(self, *, outbound: bool) -> Connection:
        return Connection(
            self.keys,
            self.budget.share(),
            outbound=outbound,
            accept=self._accept,
            max_streams=self.settings.max_streams_per_connection,
            max_output=self.settings.max_output,
            connected=None if outbound else self._connected,
            lost=self._lost,
        )

    def _inbound(self) -> Connection:
        return self._new(outbound=False)

    def _connected(self, connection: Connection) -> None:
        if len(self._pending) >= self.settings.max_pending:
            refused("too_many_handshakes")
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.abort(PeerError("connection_closed", "too many unfinished handshakes"))
        self._pending[connection] = None
        try:
            self.spawn(self._welcome(connection), name="inbound")
        except LeaseholdError as error:
            self._pending.pop(connection, None)
            connection.abort(PeerError("connection_closed", error.message))

    async def _welcome(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self.settings.handshake_timeout):
                await connection.upgrade()
        except TimeoutError:
            refused("handshake_timeout")
            connection.abort(PeerError("handshake_failed", "the handshake took too long"))
        except PeerError as error:
            refused(error.code)
        except Exception as error:
            # A fault of ours that a stranger found: it may cost this connection and no more.
            refused("internal_error")
            log.error("p2p.handshake_failed", remote=connection.remote[0], error=repr(error))
            connection.abort(PeerError("handshake_failed", "internal error"))
        else:
            self._admit(connection)
        finally:
            self._pending.pop(connection, None)

    def _admit(self, connection: Connection) -> bool:
        """Count a secured connection in, or close it. False: it was closed."""
        if connection.closed is not None:
            return False
        reason = ""
        if self.allow is not None and not self.allow(connection.peer):
            reason = "peer_not_allowed"
        elif connection.peer == self.peer_id:
            reason = "dial_self"
        elif self.stopping:
            reason = "shutting_down"
        elif self._count >= self.settings.max_connections and not self._make_room():
            reason = "too_many_connections"
        siblings = self._connections.get(connection.peer, [])
        if not reason and len(siblings) >= self.settings.max_connections_per_peer:
            idle = next((c for c in siblings if c.idle), None)
            if idle is None:
                reason = "too_many_connections_of_peer"
            else:
                idle.close("replaced")
        if reason:
            refused(reason)
            connection.close(reason)
            return False
        self._connections.setdefault(connection.peer, []).append(connection)
        self._count += 1
        CONNECTIONS.inc()
        try:
            self.spawn(self._identify(connection), name="identify")
        except LeaseholdError:
            connection.close("shutting down")
            return False
        return True

    def _make_room(self) -> bool:
        idle = [c for cs in self._connections.values() for c in cs if c.idle]
        if not idle:
            return False
        min(idle, key=lambda c: c.last_active).close("making room")
        return True

    def _lost(self, connection: Connection) -> None:
        self._pending.pop(connection, None)
        siblings = self._connections.get(connection.peer)
        if siblings and connection in siblings:
            siblings.remove(connection)
            self._count -= 1
            CONNECTIONS.dec()
            if not siblings:
                del self._connections[connection.peer]
                for notify in self.on_disconnected:
                    notify(connection.peer)

    # streams

    def _accept(self, stream: Stream) -> None:
        stream.deadline = self._loop.time() + self.settings.negotiate_timeout
        stream.filter = Responder(self._negotiable)
        stream.on_negotiated = self._negotiated

    def _negotiated(self, stream: Stream) -> None:
        protocol = self._protocols.get(stream.protocol)
        if protocol is None or self._tasks is None or self.stopping:
            stream.reset("shutting down")
            return
        stream.deadline = self._loop.time() + protocol.deadline
        # Straight into the task group: a stream is far shorter lived than what ``spawn`` is for.
        task = self._tasks.create_task(self._serve(protocol.serve, stream))
        stream.task = task
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)

    async def _serve(self, serve: Handler, stream: Stream) -> None:
        connection = stream.session.wire
        assert isinstance(connection, Connection)
        try:
            await serve(stream, connection)
        except PeerError as error:
            refused(error.code)
            STREAMS.labels("refused").inc()
            stream.reset(error.code)
        except asyncio.CancelledError:
            STREAMS.labels("cancelled").inc()
            stream.reset("cancelled")
            raise
        except Exception as error:
            STREAMS.labels("failed").inc()
            log.error("p2p.handler_failed", protocol=stream.protocol, error=repr(error))
            stream.reset("internal error")
        else:
            STREAMS.labels("ok").inc()
            stream.close()

    # identify

    def _identity(self, connection: Connection) -> identify.Identity:
        return identify.Identity(
            public_key=self.keys.public,
            addresses=tuple(self.addresses),
            protocols=self.protocols,
            observed=Multiaddr.of_tcp(*connection.remote) if connection.remote[0] else None,
        )

    async def _serve_identify(self, stream: Stream, connection: Connection) -> None:
        # The answer in a frame of its own, and the FIN after it: js-libp2p waits for ever when a
        # stream that it only reads from ends in the frame that agrees to the protocol.
        stream.flush()
        await stream.write(_framed(self._identity(connection).encode()))

    async def _take_identify(self, stream: Stream, connection: Connection) -> None:
        self._learned(connection, await stream.read_frame(identify.MAX_MESSAGE))

    async def _identify(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(IDENTIFY_TIMEOUT):
                stream = await self.open_on(connection, identify.PROTOCOL)
                try:
                    await stream.write(b"")
                    self._learned(connection, await stream.read_frame(identify.MAX_MESSAGE))
                finally:
                    stream.close()
        except (PeerError, TimeoutError):
            refused("identify_failed")
        except Exception as error:
            log.error("p2p.identify_failed", peer=str(connection.peer), error=repr(error))

    def _learned(self, connection: Connection, raw: bytes) -> None:
        said = identify.Identity.decode(raw)
        if said.public_key and PeerId.of(said.public_key) != connection.peer:
            raise PeerError("identify_mismatch", "the identified key is not the connection's")
        connection.protocols = frozenset(said.protocols)
        connection.chosen.clear()
        self.learn(connection.peer, said.addresses)
        for notify in self.on_identified:
            notify(connection, said)

    async def push_identity(self) -> None:
        """Tell connected peers that our addresses or protocols changed; best effort."""
        for peer in self.peers:
            connection = self.connection(peer)
            if connection is None or identify.PUSH not in connection.protocols:
                continue
            with contextlib.suppress(PeerError, TimeoutError):
                async with asyncio.timeout(IDENTIFY_TIMEOUT):
                    stream = await self.open_on(connection, identify.PUSH)
                    stream.flush()
                    await stream.write(_framed(self._identity(connection).encode()))
                    stream.close()

    # tending

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        pinged: set[Connection] = set()
        while True:
            await self.clock.sleep(SWEEP)
            now = loop.time()
            for connections in list(self._connections.values()):
                for connection in list(connections):
                    session = connection.session
                    if session is None:
                        continue
                    if session.streams:
                        session.expire(now)
                        connection.last_used = now
                    elif now - connection.last_used > self.settings.idle_timeout:
                        connection.close("idle")
                        continue
                    silent = now - connection.last_active
                    if silent > self.settings.keepalive_interval and connection not in pinged:
                        pinged.add(connection)
                        self.spawn(self._keep_alive(connection, pinged), name="keepalive")

    async def _keep_alive(self, connection: Connection, pinged: set[Connection]) -> None:
        try:
            if connection.session is not None:
                async with asyncio.timeout(self.settings.keepalive_timeout):
                    await connection.session.ping()
        except (PeerError, TimeoutError):
            connection.abort(PeerError("connection_closed", "the peer does not answer any more"))
        finally:
            pinged.discard(connection)


def _framed(message: bytes) -> bytes:
    return varint.encode(len(message)) + message


def _reachable(host: str) -> list[str]:
    """The addresses behind a listening address: itself, or this machine's when it is a wildcard."""
    if host not in ("0.0.0.0", "::"):
        return [host]
    family, probe = (
        (socket.AF_INET, "192.0.2.1") if host == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
    )
    try:
        # Connecting a datagram socket sends nothing; it tells which of our addresses would be used.
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((probe, 9))
            return [sock.getsockname()[0]]
    except OSError:
        return ["127.0.0.1" if host == "0.0.0.0" else "::1"]
