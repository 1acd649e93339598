"""Addresses that name every layer: ``/ip4/10.0.0.7/tcp/29401/p2p/12D3KooW…``.

Text and bytes are two forms of one tuple of ``(protocol, value)`` parts. The table knows the
protocols of our transports plus those other peers advertise beside them (QUIC, WebSocket,
WebTransport, relays), so that a foreign address is kept and passed on, not refused; an unknown
code cannot be skipped, because its length is unknown, and is an error.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import cached_property

from leasehold.p2p import multibase, varint
from leasehold.p2p.keys import PeerId

MAX_BYTES = 1024
"""Bytes of one address; far above any real one."""

MAX_PARTS = 16

_NONE, _PORT, _IP4, _IP6, _NAME, _PEER, _BLOB, _PREFIX = range(8)

_PROTOCOLS: dict[str, tuple[int, int]] = {
    # name: (code, how its value is written), from the multiaddr protocol table
    "ip4": (4, _IP4),
    "tcp": (6, _PORT),
    "ip6": (41, _IP6),
    "ip6zone": (42, _NAME),
    "ipcidr": (43, _PREFIX),
    "dns": (53, _NAME),
    "dns4": (54, _NAME),
    "dns6": (55, _NAME),
    "dnsaddr": (56, _NAME),
    "udp": (273, _PORT),
    "p2p-circuit": (290, _NONE),
    "unix": (400, _NAME),
    "p2p": (421, _PEER),
    "tls": (448, _NONE),
    "sni": (449, _NAME),
    "noise": (454, _NONE),
    "quic": (460, _NONE),
    "quic-v1": (461, _NONE),
    "webtransport": (465, _NONE),
    "certhash": (466, _BLOB),
    "ws": (477, _NONE),
    "wss": (478, _NONE),
    "http": (480, _NONE),
    "webrtc-direct": (280, _NONE),
    "webrtc": (281, _NONE),
}
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_BY_CODE = {code: (name, kind) for name, (code, kind) in _PROTOCOLS.items()}


@dataclass(frozen=True)
class Multiaddr:
    """One address. Make it with :meth:`parse` or :meth:`from_bytes`; both raise ``ValueError``."""

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Multiaddr:
        if not text.startswith("/"):
            raise ValueError(f"an address starts with '/': {text[:80]!r}")
        words = iter(text[1:].rstrip("/").split("/"))
        parts = []
        for name in words:
            name = "p2p" if name == "ipfs" else name
            if name not in _PROTOCOLS:
                raise ValueError(f"unknown address part {name[:40]!r} in {text[:80]!r}")
            kind = _PROTOCOLS[name][1]
            value = ""
            if kind != _NONE:
                value = next(words, "")
                if not value:
                    raise ValueError(f"{name} needs a value in {text[:80]!r}")
                value = _value_from_bytes(kind, _value_to_bytes(kind, value))
            parts.append((name, value))
            if len(parts) > MAX_PARTS:
                raise ValueError("an address of too many parts")
        if not parts:
            raise ValueError("an empty address")
        return cls(tuple(parts))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Multiaddr:
        if not raw or len(raw) > MAX_BYTES:
            raise ValueError("an address of 1 to 1024 bytes was expected")
        parts, at = [], 0
        while at < len(raw):
            found = varint.decode(raw, at)
            if found is None or found[0] not in _BY_CODE:
                raise ValueError("unknown or truncated address part")
            code, at = found
            name, kind = _BY_CODE[code]
            size = {_NONE: 0, _PORT: 2, _IP4: 4, _IP6: 16, _PREFIX: 1}.get(kind)
            if size is None:
                length = varint.decode(raw, at)
                if length is None:
                    raise ValueError("truncated address")
                size, at = length
            if size > len(raw) - at:
                raise ValueError("truncated address")
            parts.append((name, _value_from_bytes(kind, raw[at : at + size])))
            at += size
            if len(parts) > MAX_PARTS:
                raise ValueError("an address of too many parts")
        return cls(tuple(parts))

    @classmethod
    def of_tcp(cls, host: str, port: int) -> Multiaddr:
        """The address of a TCP socket; ``host`` an IP address or a DNS name."""
        try:
            version = ipaddress.ip_address(host).version
            return cls.parse(f"/ip{version}/{host}/tcp/{port}")
        except ValueError:
            return cls.parse(f"/dns/{host}/tcp/{port}")

    @cached_property
    def raw(self) -> bytes:
        """The bytes form."""
        out = bytearray()
        for name, value in self.parts:
            code, kind = _PROTOCOLS[name]
            out += varint.encode(code)
            data = _value_to_bytes(kind, value)
            if kind in (_NAME, _PEER, _BLOB):
                out += varint.encode(len(data))
            out += data
        return bytes(out)

    def __str__(self) -> str:
        return "".join(f"/{name}/{value}" if value else f"/{name}" for name, value in self.parts)

    def get(self, *names: str) -> str | None:
        """The value of the first part with one of ``names``."""
        return next((value for name, value in self.parts if name in names), None)

    @property
    def peer_id(self) -> PeerId | None:
        """The peer at the end of the address, if it names one."""
        name, value = self.parts[-1]
        return PeerId.parse(value) if name == "p2p" else None

    def tcp(self) -> tuple[str, int] | None:
        """``(host, port)`` when this is plain TCP that we can dial, else None."""
        names = [name for name, _ in self.parts]
        if names[-1] == "p2p":
            names.pop()
        if len(names) != 2 or names[0] not in _HOSTS or names[1] != "tcp":
            return None
        return self.parts[0][1], int(self.parts[1][1])

    def with_peer(self, peer: PeerId) -> Multiaddr:
        """This address ending in ``/p2p/<peer>``."""
        return Multiaddr((*self.without_peer().parts, ("p2p", str(peer))))

    def without_peer(self) -> Multiaddr:
        if self.parts[-1][0] == "p2p" and len(self.parts) > 1:
            return Multiaddr(self.parts[:-1])
        return self


def _value_to_bytes(kind: int, value: str) -> bytes:
    if kind == _NONE:
        return b""
    if kind == _PORT:
        port = int(value) if value.isascii() and value.isdigit() and len(value) <= 5 else -1
        if not 0 <= port <= 65535:
            raise ValueError(f"not a port: {value[:20]!r}")
        return port.to_bytes(2, "big")
    if kind == _IP4:
        return ipaddress.IPv4Address(value).packed
    if kind == _IP6:
        return ipaddress.IPv6Address(value).packed
    if kind == _PREFIX:
        return bytes((int(value) & 0xFF,))
    if kind == _PEER:
        return bytes(PeerId.parse(value))
    if kind == _BLOB:
        if not value.startswith("b"):
            raise ValueError("expected base32 text")
        return multibase.b32decode(value[1:])
    return value.encode()


def _value_from_bytes(kind: int, raw: bytes) -> str:
    if kind == _NONE:
        return ""
    if kind == _PORT:
        return str(int.from_bytes(raw, "big"))
    if kind == _IP4:
        return str(ipaddress.IPv4Address(raw))
    if kind == _IP6:
        return str(ipaddress.IPv6Address(raw))
    if kind == _PREFIX:
        return str(raw[0])
    if kind == _PEER:
        return str(PeerId.from_bytes(raw))
    if kind == _BLOB:
        return "b" + multibase.b32encode(raw)
    name = str(raw, "utf-8")
    # A slash would make the text form ambiguous; control characters would forge log lines.
    if not name or "/" in name or not name.isprintable():
        raise ValueError("a name with a slash or control characters")
    return name
