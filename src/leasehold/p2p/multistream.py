"""multistream-select 1.0.0: two sides agree on a protocol by exchanging lines.

Each line is a varint length and text ending in a newline. Both sides say the header, the
initiator proposes, the responder echoes or says ``na``. Both sides here are machines without
input or output: :meth:`feed` takes what arrived so far, removes what it used, and says what to
send and whether a protocol was agreed. In the *optimistic* form the initiator sends header,
proposal and its first request in one go, which saves two round trips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from leasehold.p2p import varint
from leasehold.p2p.errors import PeerError, ProtocolViolation

HEADER = b"\x13/multistream/1.0.0\n"
_HEADER_TEXT = b"/multistream/1.0.0"
_NA = b"na"

MAX_LINE = 1024
"""Bytes of a line; libp2p's implementations use the same bound."""

MAX_PROPOSALS = 32
"""Lines an initiator may try before it is sent away."""


def line(text: bytes) -> bytes:
    return varint.encode(len(text) + 1) + text + b"\n"


@lru_cache(maxsize=256)
def opening(protocol: str) -> bytes:
    """Header and proposal of ``protocol``, which is also what a responder that agrees says."""
    return HEADER + line(protocol.encode())


def _take_line(buffer: bytearray) -> bytes | None:
    try:
        found = varint.decode(buffer)
    except varint.VarintError:
        raise ProtocolViolation("multistream_malformed", "a line's length overflows") from None
    if found is None:
        return None
    size, start = found
    if not 0 < size <= MAX_LINE:
        raise ProtocolViolation("multistream_malformed", f"a line of {size} bytes")
    if len(buffer) < start + size:
        return None
    text = bytes(buffer[start : start + size])
    del buffer[: start + size]
    if not text.endswith(b"\n"):
        raise ProtocolViolation("multistream_malformed", "a line without a newline")
    return text[:-1]


class Responder:
    """The side that is asked. ``supports`` says whether a protocol is spoken here."""

    __slots__ = ("_greeted", "_proposals", "_supports")

    def __init__(self, supports: Callable[[str], bool]) -> None:
        self._supports = supports
        self._greeted = False
        self._proposals = 0

    def feed(self, buffer: bytearray) -> tuple[bytes, str | None]:
        """``(bytes to send, protocol agreed or None)``."""
        reply = b""
        if not self._greeted:
            # The usual case in one look: header and a known protocol arrived together.
            end = buffer.find(b"\n", len(HEADER) + 1) + 1
            if end and buffer[len(HEADER)] == end - len(HEADER) - 1 and buffer.startswith(HEADER):
                try:
                    name = str(buffer[len(HEADER) + 1 : end - 1], "utf-8")
                except UnicodeDecodeError:
                    name = ""
                if self._supports(name):
                    reply = bytes(buffer[:end])
                    del buffer[:end]
                    return reply, name
            text = _take_line(buffer)
            if text is None:
                return reply, None
            if text != _HEADER_TEXT:
                raise ProtocolViolation("multistream_malformed", "not multistream-select 1.0.0")
            self._greeted = True
            reply = HEADER
        while True:
            try:
                text = _take_line(buffer)
            except ProtocolViolation:
                if reply.endswith(line(_NA)):
                    # What follows a refused proposal may be the request that went with it: let
                    # the initiator hear the refusal; the next bytes or the deadline end it.
                    return reply, None
                raise
            if text is None:
                return reply, None
            try:
                name = str(text, "utf-8")
            except UnicodeDecodeError:
                raise ProtocolViolation("multistream_malformed", "a line is not UTF-8") from None
            if self._supports(name):
                return reply + line(text), name
            self._proposals += 1
            if self._proposals >= MAX_PROPOSALS:
                raise ProtocolViolation("multistream_exhausted", "too many unknown protocols")
            reply += line(_NA)


class Initiator:
    """The side that asks: proposes ``protocols`` in order of preference."""

    __slots__ = ("_greeted", "_left", "_proposed")

    def __init__(self, protocols: Sequence[str]) -> None:
        self._left = list(protocols)
        self._greeted = False
        self._proposed = ""

    def start(self) -> bytes:
        """The first bytes to send: the header and the first proposal."""
        self._proposed = self._left.pop(0)
        return opening(self._proposed)

    def feed(self, buffer: bytearray) -> tuple[bytes, str | None]:
        """``(bytes to send, protocol agreed or None)``; raises when none is left to propose."""
        if not self._greeted:
            expected = opening(self._proposed)
            if buffer.startswith(expected):
                del buffer[: len(expected)]
                return b"", self._proposed
            text = _take_line(buffer)
            if text is None:
                return b"", None
            if text != _HEADER_TEXT:
                raise ProtocolViolation("multistream_malformed", "not multistream-select 1.0.0")
            self._greeted = True
        text = _take_line(buffer)
        if text is None:
            return b"", None
        if text == self._proposed.encode():
            return b"", self._proposed
        if text != _NA:
            raise ProtocolViolation("multistream_malformed", "an answer that was not asked for")
        if not self._left:
            raise PeerError("protocol_unsupported", f"the peer does not speak {self._proposed}")
        self._proposed = self._left.pop(0)
        return line(self._proposed.encode()), None
