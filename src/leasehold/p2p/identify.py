"""identify: each side tells the other who it is, where it listens and what it speaks.

``/ipfs/id/1.0.0`` answers one message on a stream opened for it; ``/ipfs/id/push/1.0.0`` carries
the same message unasked when something changed. What a peer says of itself is taken with bounds
and believed only as far as it goes: the key must match the peer id the handshake proved, the
addresses are hints for dialling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leasehold.p2p import protobuf
from leasehold.p2p.errors import ProtocolViolation
from leasehold.p2p.multiaddr import Multiaddr

PROTOCOL = "/ipfs/id/1.0.0"
PUSH = "/ipfs/id/push/1.0.0"
VERSION = "ipfs/0.1.0"
"""The protocol family, not ours to choose; others log it and some compare it."""

AGENT = "leasehold"
MAX_MESSAGE = 8192
"""Bytes; what libp2p's implementations accept."""

MAX_PROTOCOLS = 256
MAX_ADDRESSES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """What one side says of itself. Unknown kinds of addresses are left out."""

    public_key: bytes = b""
    addresses: tuple[Multiaddr, ...] = ()
    protocols: tuple[str, ...] = ()
    observed: Multiaddr | None = None
    agent: str = AGENT

    def encode(self) -> bytes:
        parts = [protobuf.put_bytes(1, self.public_key)]
        parts += [protobuf.put_bytes(2, address.raw) for address in self.addresses]
        parts += [protobuf.put_text(3, protocol) for protocol in self.protocols]
        if self.observed is not None:
            parts.append(protobuf.put_bytes(4, self.observed.raw))
        parts += [protobuf.put_text(5, VERSION), protobuf.put_text(6, self.agent)]
        return b"".join(parts)

    @classmethod
    def decode(cls, raw: bytes) -> Identity:
        key, agent, observed = b"", "", None
        addresses: list[Multiaddr] = []
        protocols: list[str] = []
        try:
            for number, _, value in protobuf.fields(raw):
                if isinstance(value, int):
                    continue
                if number == 1:
                    key = value
                elif number == 2 and len(addresses) < MAX_ADDRESSES:
                    addresses += parse_addresses([value])
                elif number == 3 and len(protocols) < MAX_PROTOCOLS:
                    protocols.append(protobuf.text(value))
                elif number == 4:
                    observed = next(iter(parse_addresses([value])), None)
                elif number == 6:
                    agent = protobuf.text(value)[:128]
        except protobuf.ProtobufError as error:
            raise ProtocolViolation("identify_malformed", f"identify: {error}") from None
        return cls(key, tuple(addresses), tuple(protocols), observed, agent)


def parse_addresses(raw: Sequence[bytes]) -> list[Multiaddr]:
    """The addresses among ``raw`` that we can read; the others may be of a future kind."""
    out = []
    for item in raw:
        try:
            out.append(Multiaddr.from_bytes(item))
        except ValueError:
            continue
    return out
