"""yamux 1.0.0: many streams on one connection, each with its own credit.

A frame is twelve bytes (version, type, flags, stream, length) and, for DATA, a body. Each side
may send what the other granted: 256 KiB to begin with, more by WINDOW_UPDATE as the reader
consumes. Here the window is *enforced*: a peer that sends past it loses the connection. A stream's
buffer never holds more than its window (or the one message its reader waits for), every byte is
charged to the connection's share of the :mod:`budget`, and a stream that does not fit is reset.

The session does no input or output: :meth:`Session.receive` takes decrypted bytes, ``send`` hands
frames to the connection, which batches all frames of a loop turn. SYN and ACK ride on the first
frame that has something to say; an accepted stream whose handler is silent is acknowledged at the
end of the turn. Frames of streams we have forgotten are ignored, as they may be late.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Protocol

from leasehold.p2p import varint
from leasehold.p2p.budget import Share
from leasehold.p2p.errors import PeerError, ProtocolViolation, refused

PROTOCOL = "/yamux/1.0.0"
WINDOW = 256 * 1024
"""Initial window of each stream and direction (yamux specification)."""

MAX_WINDOW = 0xFFFF_FFFF
MAX_BODY = 64 * 1024
"""Bytes we put into one DATA frame, so that one stream does not hold up the others."""

DATA, UPDATE, PING, GOAWAY = 0, 1, 2, 3
SYN, ACK, FIN, RST = 1, 2, 4, 8
_HEADER = struct.Struct(">BBHII")
_pack = _HEADER.pack
_unpack = _HEADER.unpack_from


class Filter(Protocol):
    """Sees what arrives on a stream before its reader does, until it says it is done."""

    def feed(self, buffer: bytearray) -> tuple[bytes, str | None]: ...


class Wire(Protocol):
    """What a session needs of the connection below it."""

    def send(self, frame: bytes) -> None:
        """Queue one frame; never waits."""

    def schedule(self) -> None:
        """Call :meth:`Session.settle` and send at the end of the loop turn."""

    def congested(self) -> bool:
        """True while so much waits to be sent that writers should wait too."""

    async def drained(self) -> None:
        """Returns when it is no longer congested; raises when the connection ended."""


class Stream:
    """One two-way stream. ``protocol`` is empty until negotiated."""

    __slots__ = (
        "_buffer", "_credit", "_error", "_fin_sent", "_flags", "_remote_fin", "_room", "_session",
        "_waiting", "_wanted", "_window", "deadline", "filter", "id", "on_failed",
        "on_negotiated", "outbound", "prefix", "protocol", "task",
    )  # fmt: skip

    def __init__(self, session: Session, stream_id: int, *, outbound: bool) -> None:
        self._session = session
        self.id = stream_id
        self.outbound = outbound
        self.protocol = ""
        self.deadline = 0.0
        """Loop time at which the session resets this stream; 0.0: never."""
        self.prefix = b""
        """Bytes that go out in front of the next write: negotiation that rides along."""
        self.task: asyncio.Task[None] | None = None
        """Who serves this stream; ended with it when the deadline passes."""
        self.filter: Filter | None = None
        self.on_negotiated: Callable[[Stream], None] | None = None
        self.on_failed: Callable[[], object] | None = None
        self._buffer = bytearray()
        self._credit = WINDOW
        self._window = WINDOW
        self._wanted = 0
        self._flags = SYN if outbound else ACK
        self._fin_sent = False
        self._remote_fin = False
        self._error: PeerError | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def session(self) -> Session:
        return self._session

    @property
    def closed(self) -> bool:
        """True when nothing more can be written."""
        return self._error is not None or self._fin_sent

    @property
    def failure(self) -> PeerError | None:
        """Why the stream ended before its time, if it did."""
        return self._error

    # reading

    async def read(self, size: int = 65536) -> bytes:
        """Up to ``size`` bytes as soon as there are any; ``b""`` when the peer has finished."""
        while not self._buffer or self.filter is not None:
            if self._ended():
                return b""
            await self._wait()
        return self._take(min(size, len(self._buffer)))

    async def negotiated(self) -> None:
        """Returns when the peer agreed to the protocol; raises when it did not."""
        while self.filter is not None:
            if self._ended():
                raise PeerError("stream_eof", "the peer closed without agreeing to a protocol")
            await self._wait()

    async def read_exactly(self, size: int) -> bytes:
        """Exactly ``size`` bytes; :class:`PeerError` ``stream_eof`` when they never come."""
        while len(self._buffer) < size or self.filter is not None:
            self._want(size)
            if self._ended():
                raise PeerError("stream_eof", "the peer closed in the middle of a message")
            await self._wait()
        return self._take(size)

    async def read_frame(self, limit: int) -> bytes:
        """One message after its varint length; longer than ``limit`` bytes is a violation."""
        while True:
            frame = None if self.filter is not None else self.take_frame(limit)
            if frame is not None:
                return frame
            if self._ended():
                raise PeerError(
                    "stream_eof",
                    "the peer closed in the middle of a message"
                    if self._buffer
                    else "the peer closed without a message",
                )
            await self._wait()

    def take_frame(self, limit: int) -> bytes | None:
        """:meth:`read_frame` without waiting: None when the message is not here in full."""
        buffer = self._buffer
        try:
            found = varint.decode(buffer)
        except varint.VarintError:
            found = (limit + 1, 0)
        if found is None:
            return None
        size, start = found
        if size > limit:
            raise ProtocolViolation("frame_too_large", f"a message of {size} bytes, limit {limit}")
        end = start + size
        if len(buffer) < end:
            self._want(end)
            return None
        frame = bytes(buffer[start:end])
        self._drop(end)
        return frame

    # writing

    async def write(self, data: bytes, *, fin: bool = False) -> None:
        """Send ``data``, waiting for the peer's window; ``fin`` ends our side with it."""
        at, end = 0, len(data)
        while True:
            if self._error is not None:
                raise self._error
            if self._fin_sent:
                raise PeerError("stream_closed", "our side of the stream is closed")
            if self._session.wire.congested():
                await self._session.wire.drained()
                continue
            size = min(end - at, self._window - len(self.prefix), MAX_BODY)
            if size > 0 or at == end:
                last = at + size == end
                self._emit(data if size == end else data[at : at + size], fin=fin and last)
                at += size
                if last:
                    return
            else:
                await self._wait_room()

    def write_now(self, data: bytes, *, fin: bool = False) -> bool:
        """Send ``data`` if it fits right now; False (nothing sent) when :meth:`write` must wait."""
        if self._error is not None or self._fin_sent or self._session.wire.congested():
            return False
        if len(data) + len(self.prefix) > min(self._window, MAX_BODY):
            return False
        self._emit(data, fin=fin)
        return True

    def flush(self) -> None:
        """Send what waits for the next write (SYN, a negotiation) now."""
        if self._error is None and (self._flags or self.prefix):
            self._emit(b"")

    def close(self) -> None:
        """Done in both directions: what was written still goes out, what comes is dropped."""
        if self._error is None and not self._fin_sent and not self._flags & SYN:
            self._emit(b"", fin=True)
        self._session.forget(self)

    def close_write(self) -> None:
        """Tell the peer that nothing more comes; reading goes on."""
        if self._error is None and not self._fin_sent:
            self._emit(b"", fin=True)

    def reset(self, reason: str = "reset") -> None:
        """End the stream at once in both directions; waiting readers and writers fail."""
        if self._error is None:
            if not ((self._fin_sent and self._remote_fin) or self._flags & SYN):
                self._session.wire.send(_pack(0, UPDATE, RST, self.id, 0))
            self._fail(PeerError("stream_reset", f"the stream was reset: {reason}"))

    # from the session

    def _receive(self, body: bytes) -> None:
        size = len(body)
        if not self._session.share.take(size):
            refused("byte_budget")
            self.reset("byte budget")
            return
        self._buffer += body
        if self.filter is not None:
            self._negotiate()
        elif self._waiting is not None:
            self._wake()

    def _negotiate(self) -> None:
        assert self.filter is not None
        before = len(self._buffer)
        try:
            reply, protocol = self.filter.feed(self._buffer)
        except PeerError as error:
            refused(error.code)
            if self._error is None:
                self._session.wire.send(_pack(0, UPDATE, RST, self.id, 0))
                self._fail(error)
            return
        self._session.share.give(before - len(self._buffer))
        if reply:
            # It goes with the handler's answer if that comes at once, alone otherwise.
            self.prefix += reply
            self._session.owe(self)
        if protocol is not None:
            self.filter = None
            self.protocol = protocol
            if self.on_negotiated is not None:
                self.on_negotiated(self)
            self._wake()

    def _finish(self) -> None:
        self._remote_fin = True
        self._wake()
        if self._fin_sent:
            # Both sides are done: nothing more can arrive, what is buffered can still be read.
            self._session.retire(self)

    def _fail(self, error: PeerError) -> None:
        if self._error is None:
            self._error = error
            self._session.forget(self)
            self._wake()
            if self.on_failed is not None:
                self.on_failed()
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    def _grow(self, size: int) -> None:
        self._window += size
        if self._window > MAX_WINDOW:
            raise ProtocolViolation("yamux_window", "a window beyond 4 GiB")
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # inner workings

    def _emit(self, data: bytes, *, fin: bool = False) -> None:
        flags, self._flags = self._flags, 0
        self._session.owing.pop(self.id, None)
        if fin:
            flags |= FIN
            self._fin_sent = True
        if self.prefix:
            data, self.prefix = self.prefix + data, b""
        if data:
            self._window -= len(data)
            self._session.wire.send(_pack(0, DATA, flags, self.id, len(data)) + data)
        else:
            self._session.wire.send(_pack(0, UPDATE, flags, self.id, 0))
        if fin and self._remote_fin:
            self._session.retire(self)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        self._drop(size)
        return data

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._wanted = 0
        self._session.share.give(size)
        self._grant()

    def _want(self, size: int) -> None:
        if size > WINDOW:
            self._wanted = size
            self._grant()

    def _grant(self) -> None:
        if self._remote_fin or self._error is not None:
            return
        room = max(WINDOW, self._wanted) - len(self._buffer) - self._credit
        if room >= WINDOW // 2:
            self._credit += room
            flags, self._flags = self._flags, 0
            self._session.wire.send(_pack(0, UPDATE, flags, self.id, room))

    def _ended(self) -> bool:
        if self._error is not None:
            raise self._error
        return self._remote_fin

    async def _wait(self) -> None:
        if self._waiting is not None:
            raise RuntimeError("two readers on one stream")
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    async def _wait_room(self) -> None:
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Session:
    """All streams of one connection. ``accept`` is called for each stream the peer opens."""

    def __init__(
        self,
        wire: Wire,
        share: Share,
        *,
        initiator: bool,
        accept: Callable[[Stream], None],
        max_inbound: int,
    ) -> None:
        self.wire = wire
        self.share = share
        self.streams: dict[int, Stream] = {}
        self.inbound = 0
        self.owing: dict[int, Stream] = {}
        self.going_away = False
        """The peer accepts no new streams."""
        self.closed = False
        self._next_id = 1 if initiator else 2
        self._theirs = 0 if initiator else 1
        self._accept = accept
        self._max_inbound = max_inbound
        self._head = b""
        self._body_of: Stream | None = None
        self._body_left = 0
        self._body_fin = False
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._ping_id = 0

    def open(self) -> Stream:
        """A new stream; SYN goes out with its first frame."""
        if self.closed or self.going_away:
            raise PeerError("connection_closed", "the connection takes no new streams")
        stream = Stream(self, self._next_id, outbound=True)
        self._next_id += 2
        self.streams[stream.id] = stream
        return stream

    async def ping(self) -> None:
        """Returns when the peer answers; the caller sets the deadline."""
        self._ping_id = (self._ping_id + 1) & 0xFFFF_FFFF
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = self._ping_id
        self._pings[number] = answer
        self.wire.send(_pack(0, PING, SYN, 0, number))
        try:
            await answer
        finally:
            self._pings.pop(number, None)

    def go_away(self, code: int = 0) -> None:
        """Tell the peer that no new streams are accepted (0 normal, 1 protocol error)."""
        self.wire.send(_pack(0, GOAWAY, 0, 0, code))

    def settle(self) -> None:
        """Say what no frame has carried yet; the wire calls this at the end of a loop turn."""
        for stream in list(self.owing.values()):
            if stream._flags or stream.prefix:
                stream._emit(b"")
        self.owing.clear()

    def owe(self, stream: Stream) -> None:
        """``stream`` has something to say that may ride on its next frame, this turn or never."""
        self.owing[stream.id] = stream
        self.wire.schedule()

    def expire(self, now: float) -> int:
        """Reset every stream whose deadline has passed; returns how many."""
        late = [s for s in self.streams.values() if s.deadline and s.deadline <= now]
        for stream in late:
            refused("stream_deadline")
            stream.reset("deadline")
            if stream.task is not None:
                stream.task.cancel()
        return len(late)

    def close(self, error: PeerError) -> None:
        """The connection ended: every stream fails with ``error``."""
        self.closed = True
        for stream in list(self.streams.values()):
            stream._fail(error)
        for answer in self._pings.values():
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # nobody may be waiting any more
        self._pings.clear()

    def forget(self, stream: Stream) -> None:
        """Drop a stream and what it holds."""
        self.retire(stream)
        self.share.give(len(stream._buffer))
        stream._buffer.clear()

    def retire(self, stream: Stream) -> None:
        """Take a stream out of the table; its reader may still read what is buffered."""
        if self.streams.pop(stream.id, None) is not None and not stream.outbound:
            self.inbound -= 1
        self.owing.pop(stream.id, None)
        if self._body_of is stream:
            self._body_of = None

    def receive(self, data: bytes) -> None:
        """Decrypted bytes from the peer, in any portions. Raises on a broken protocol."""
        if self._head:
            data, self._head = self._head + data, b""
        at, end = 0, len(data)
        while at < end:
            if self._body_left:
                size = min(self._body_left, end - at)
                body = data[at : at + size]
                at += size
                self._body_left -= size
                stream: Stream | None = self._body_of
                if stream is not None:
                    stream._receive(body)
                    if not self._body_left and self._body_fin and self._body_of is stream:
                        stream._finish()
                continue
            if end - at < 12:
                self._head = data[at:]
                return
            version, kind, flags, stream_id, length = _unpack(data, at)
            at += 12
            if version:
                raise ProtocolViolation("yamux_malformed", f"yamux version {version}")
            if kind == DATA:
                stream = self._stream(stream_id, flags)
                if flags & RST:
                    stream = None
                if stream is not None:
                    if length > stream._credit:
                        refused("window_exceeded")
                        raise ProtocolViolation("yamux_window", "more data than was granted")
                    stream._credit -= length
                if length <= end - at:
                    if stream is not None and length:
                        stream._receive(data[at : at + length])
                    at += length
                else:
                    if stream is None and length > WINDOW * 64:
                        raise ProtocolViolation("yamux_window", "data for no stream of ours")
                    # The rest comes later, and a FIN counts only once it is here.
                    self._body_of, self._body_left = stream, length
                    self._body_fin = bool(flags & FIN)
                    continue
                if flags & FIN and stream is not None:
                    stream._finish()
            elif kind == UPDATE:
                stream = self._stream(stream_id, flags)
                if stream is not None:
                    if length:
                        stream._grow(length)
                    if flags & FIN:
                        stream._finish()
            elif kind == PING:
                self._pinged(flags, length)
            elif kind == GOAWAY:
                self.going_away = True
            else:
                raise ProtocolViolation("yamux_malformed", f"yamux frame type {kind}")

    def _stream(self, stream_id: int, flags: int) -> Stream | None:
        """The stream a frame speaks of: a new one for SYN, None when there is none (any more)."""
        stream = self.streams.get(stream_id)
        if flags & SYN:
            if stream is not None or stream_id % 2 != self._theirs or stream_id == 0:
                raise ProtocolViolation("yamux_malformed", "a stream was opened twice")
            return None if flags & RST else self._opened(stream_id)
        if stream is not None and flags & RST:
            stream._fail(PeerError("stream_reset", "the peer reset the stream"))
            return None
        if stream is None and stream_id == 0:
            raise ProtocolViolation("yamux_malformed", "data on stream 0")
        return stream

    def _opened(self, stream_id: int) -> Stream | None:
        if self.inbound >= self._max_inbound or self.closed:
            refused("too_many_streams")
            self.wire.send(_pack(0, UPDATE, RST, stream_id, 0))
            return None
        stream = Stream(self, stream_id, outbound=False)
        self.streams[stream_id] = stream
        self.inbound += 1
        self._accept(stream)
        self.owe(stream)
        return stream

    def _pinged(self, flags: int, value: int) -> None:
        if flags & SYN:
            self.wire.send(_pack(0, PING, ACK, 0, value))
        elif (answer := self._pings.pop(value, None)) is not None and not answer.done():
            answer.set_result(None)
