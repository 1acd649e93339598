"""The ladder on one TCP socket: multistream, Noise, yamux; then frames in, frames out.

While it climbs, :meth:`Connection.upgrade` reads and writes as a coroutine. Once secured, nothing
waits any more: the event loop calls :meth:`data_received`, each Noise message is decrypted and
handed to the yamux session. Frames that go out during a loop turn are collected, encrypted as one
message (up to 64 KiB) and written once, which is where the speed comes from: an exchange costs
three small frames and, under load, a fraction of a system call.

A peer that does not read makes writers wait (``congested``); what it can still make us queue
(answers to pings, window updates, resets) is bounded by ``max_output``, then it is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from leasehold.p2p import multistream, security, yamux
from leasehold.p2p.budget import Share
from leasehold.p2p.errors import PeerError, ProtocolViolation, refused
from leasehold.p2p.keys import KeyPair, PeerId
from leasehold.p2p.noise import MAX_MESSAGE, MAX_PLAINTEXT, Cipher, NoiseError

HIGH_WATER = 512 * 1024
"""Bytes waiting to be sent at which writers of streams start to wait."""

MAX_HANDSHAKE_BYTES = 2 * (MAX_MESSAGE + 2)
"""Bytes a peer may send ahead of the handshake; the rest of the climb needs under a kilobyte."""

LINGER = 1.0
"""Seconds a closed connection may take to send what was queued."""


class Connection(asyncio.Protocol):
    """One connection to one proven peer. ``peer``, ``session`` and so on are set by the upgrade."""

    def __init__(
        self,
        keys: KeyPair,
        share: Share,
        *,
        outbound: bool,
        accept: Callable[[yamux.Stream], None],
        max_streams: int,
        max_output: int,
        connected: Callable[[Connection], None] | None = None,
        lost: Callable[[Connection], None] | None = None,
    ) -> None:
        self.outbound = outbound
        self.peer: PeerId = PeerId()
        self.public_key = b""
        self.remote: tuple[str, int] = ("", 0)
        self.local: tuple[str, int] = ("", 0)
        self.session: yamux.Session | None = None
        self.protocols: frozenset[str] = frozenset()
        """What the peer said (by identify) that it speaks; empty until it did."""
        self.chosen: dict[tuple[str, ...], str] = {}
        """What was agreed for a list of proposals, so that the next stream need not ask."""
        self.last_active = 0.0
        """Loop time at which the peer last sent anything."""
        self.last_used = 0.0
        """Loop time at which a stream was last seen open."""
        self.closed: PeerError | None = None
        self._keys = keys
        self._share = share
        self._accept = accept
        self._max_streams = max_streams
        self._max_output = max_output
        self._connected = connected
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._raw = bytearray()
        self._plain = bytearray()
        self._arrived: asyncio.Future[None] | None = None
        self._send: Cipher | None = None
        self._receive: Cipher | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._scheduled = False
        self._settled = False
        self._paused = False
        self._drain: asyncio.Future[None] | None = None
        self.done: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        return f"Connection({self.peer} at {self.remote[0]}:{self.remote[1]})"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # cast, not isinstance: uvloop's transports do not inherit from asyncio's.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(HIGH_WATER)
        remote = transport.get_extra_info("peername") or ("", 0)
        local = transport.get_extra_info("sockname") or ("", 0)
        self.remote, self.local = (remote[0], remote[1]), (local[0], local[1])
        self.last_active = self.last_used = self._loop.time()
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        self.last_active = self._loop.time()
        raw = self._raw
        if self.session is None:
            raw += data
            if len(raw) > MAX_HANDSHAKE_BYTES:
                self.abort(ProtocolViolation("handshake_failed", "too much data"))
            elif self._arrived is not None and not self._arrived.done():
                self._arrived.set_result(None)
            return
        if raw:
            raw += data
            data = bytes(raw)
            raw.clear()
        try:
            self._pump(data)
        except PeerError as error:
            self._violated(error)
        except Exception as error:
            # A fault of ours, provoked by this peer: it costs this connection and no other.
            refused("internal_error")
            self.abort(PeerError("connection_failed", f"internal error: {error!r}"))
            self._loop.call_exception_handler(
                {"message": "a connection failed inside", "exception": error}
            )

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake_writers()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(PeerError("connection_closed", f"the connection to {self.peer} ended"))
        self._transport = None
        if not self.done.done():
            self.done.set_result(None)
        if self._lost is not None:
            self._lost(self)

    # climbing

    async def upgrade(self, expect: PeerId | None = None) -> None:
        """From an open socket to a running session. Raises :class:`PeerError`; set a deadline."""
        try:
            if self.outbound:
                await self._propose(security.PROTOCOL, self._write_raw, self._more_raw, self._raw)
            else:
                await self._respond(security.PROTOCOL, self._write_raw, self._more_raw, self._raw)
            secured = await self._secure(expect)
            self.peer, self.public_key = secured.peer, secured.public_key
            self._send, self._receive = secured.send, secured.receive
            if yamux.PROTOCOL not in secured.muxers:
                ladder = self._propose if self.outbound else self._respond
                await ladder(yamux.PROTOCOL, self._write_plain, self._more_plain, self._plain)
            self.session = yamux.Session(
                self,
                self._share,
                initiator=self.outbound,
                accept=self._accept,
                max_inbound=self._max_streams,
            )
            rest = bytes(self._plain)
            self._plain.clear()
            if rest:
                self.session.receive(rest)
            raw = bytes(self._raw)
            self._raw.clear()
            self._pump(raw)
        except PeerError as error:
            self.abort(error)
            raise

    async def _propose(
        self,
        protocol: str,
        write: Callable[[bytes], None],
        more: Callable[[], Coroutine[Any, Any, None]],
        buffer: bytearray,
    ) -> None:
        initiator = multistream.Initiator([protocol])
        write(initiator.start())
        while initiator.feed(buffer)[1] is None:
            await more()

    async def _respond(
        self,
        protocol: str,
        write: Callable[[bytes], None],
        more: Callable[[], Coroutine[Any, Any, None]],
        buffer: bytearray,
    ) -> None:
        responder = multistream.Responder(lambda name: name == protocol)
        while True:
            reply, chosen = responder.feed(buffer)
            if reply:
                write(reply)
            if chosen is not None:
                return
            await more()

    async def _secure(self, expect: PeerId | None) -> security.Secured:
        handshake = security.SecureHandshake(
            self._keys, initiator=self.outbound, muxers=(yamux.PROTOCOL,), expect=expect
        )
        if self.outbound:
            self._write_message(handshake.first())
            self._write_message(handshake.read_second(await self._message()))
        else:
            self._write_message(handshake.read_first(await self._message()))
            handshake.read_third(await self._message())
        return handshake.finish()

    async def _message(self) -> bytes:
        raw = self._raw
        while len(raw) < 2 or len(raw) < 2 + (raw[0] << 8 | raw[1]):
            await self._more_raw()
        end = 2 + (raw[0] << 8 | raw[1])
        message = bytes(raw[2:end])
        del raw[:end]
        return message

    async def _more_raw(self) -> None:
        if self.closed is not None:
            raise self.closed
        self._arrived = self._loop.create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None
        if self.closed is not None:
            raise self.closed

    async def _more_plain(self) -> None:
        assert self._receive is not None
        try:
            self._plain += self._receive.decrypt(await self._message())
        except NoiseError as error:
            raise ProtocolViolation("handshake_failed", str(error)) from None

    def _write_raw(self, data: bytes) -> None:
        if self._transport is None or self.closed is not None:
            raise self.closed or PeerError("connection_closed", "the connection is closed")
        self._transport.write(data)

    def _write_message(self, message: bytes) -> None:
        self._write_raw(len(message).to_bytes(2, "big") + message)

    def _write_plain(self, data: bytes) -> None:
        assert self._send is not None
        self._write_message(self._send.encrypt(data))

    # running

    def _pump(self, data: bytes) -> None:
        assert self.session is not None
        assert self._receive is not None
        at, end = 0, len(data)
        receive, decrypt = self.session.receive, self._receive.decrypt
        while end - at >= 2:
            stop = at + 2 + (data[at] << 8 | data[at + 1])
            if stop > end:
                break
            try:
                plain = decrypt(data[at + 2 : stop])
            except NoiseError as error:
                raise ProtocolViolation("message_forged", str(error)) from None
            at = stop
            receive(plain)
            if self.closed is not None:
                return
        if at < end:
            self._raw += data[at:]

    def send(self, frame: bytes) -> None:
        """Queue one frame of the session for the end of this loop turn."""
        if self.closed is not None:
            return
        self._out.append(frame)
        self._out_bytes += len(frame)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def schedule(self) -> None:
        if not self._scheduled and self.closed is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        session, transport, cipher = self.session, self._transport, self._send
        if session is None or transport is None or cipher is None or self.closed is not None:
            self._scheduled = False
            return
        if session.owing:
            if not self._settled:
                # Handlers started in this turn run before the next one: let them answer first.
                self._settled = True
                self._loop.call_soon(self._flush)
                return
            session.settle()
        self._scheduled = self._settled = False
        if not self._out:
            return
        plain = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if len(plain) <= MAX_PLAINTEXT:
            sealed = cipher.encrypt(plain)
            transport.write(len(sealed).to_bytes(2, "big") + sealed)
        else:
            pieces: list[bytes] = []
            for at in range(0, len(plain), MAX_PLAINTEXT):
                sealed = cipher.encrypt(plain[at : at + MAX_PLAINTEXT])
                pieces += (len(sealed).to_bytes(2, "big"), sealed)
            transport.writelines(pieces)
        if transport.get_write_buffer_size() > self._max_output:
            refused("output_overflow")
            self.abort(PeerError("connection_closed", "the peer does not read what it asks for"))
        elif not self._paused:
            self._wake_writers()

    def congested(self) -> bool:
        return self._paused or self._out_bytes >= HIGH_WATER

    async def drained(self) -> None:
        if self.closed is not None:
            raise self.closed
        if self._drain is None or self._drain.done():
            self._drain = self._loop.create_future()
        await asyncio.shield(self._drain)
        if self.closed is not None:
            raise self.closed

    def _wake_writers(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    # ending

    @property
    def idle(self) -> bool:
        """No stream is open in either direction."""
        return self.session is not None and not self.session.streams

    @property
    def usable(self) -> bool:
        """New streams may be opened."""
        return self.closed is None and self.session is not None and not self.session.going_away

    def close(self, reason: str = "closed") -> None:
        """Say good-bye and close once what was queued is sent."""
        if self.closed is not None:
            return
        if self.session is not None:
            self.session.go_away()
            self._scheduled, self._settled = True, True
            self._flush()
        self._end(PeerError("connection_closed", f"the connection to {self.peer} ended: {reason}"))
        self._linger()

    def abort(self, error: PeerError) -> None:
        """Close at once, dropping what was queued."""
        self._end(error)
        if self._transport is not None:
            self._transport.abort()

    def _violated(self, error: PeerError) -> None:
        refused(error.code)
        if self.session is not None and self.closed is None:
            self.session.go_away(1)
            self._scheduled, self._settled = True, True
            self._flush()
        self._end(error)
        self._linger()

    def _linger(self) -> None:
        if self._transport is not None:
            # A peer that does not read could keep a closing socket and its buffer alive for ever.
            self._loop.call_later(LINGER, self._transport.abort)
            self._transport.close()

    def _end(self, error: PeerError) -> None:
        if self.closed is not None:
            return
        self.closed = error
        self._out.clear()
        self._raw.clear()
        if self.session is not None:
            self.session.close(error)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
        self._wake_writers()
