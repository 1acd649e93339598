"""The messages of libp2p's Kademlia (``dht.pb``): those that we send and answer."""

from __future__ import annotations

from dataclasses import dataclass

from leasehold.p2p import protobuf
from leasehold.p2p.errors import ProtocolViolation
from leasehold.p2p.identify import parse_addresses
from leasehold.p2p.keys import PeerId
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.protobuf import put_bytes, put_int

PUT_VALUE, GET_VALUE, ADD_PROVIDER, GET_PROVIDERS, FIND_NODE, PING = range(6)

MAX_MESSAGE = 256 * 1024
MAX_KEY = 128
MAX_PEERS = 100
MAX_ADDRESSES = 16


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer and where it may be reached."""

    peer: PeerId
    addresses: tuple[Multiaddr, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    type: int
    key: bytes = b""
    closer: tuple[Contact, ...] = ()
    providers: tuple[Contact, ...] = ()


def encode(message: Message) -> bytes:
    parts = [put_int(1, message.type)]
    if message.key:
        parts.append(put_bytes(2, message.key))
    parts += [put_bytes(8, _contact(c)) for c in message.closer]
    parts += [put_bytes(9, _contact(c)) for c in message.providers]
    return b"".join(parts)


def decode(raw: bytes) -> Message:
    """Contacts that we cannot read are left out; what breaks the format is a violation."""
    kind, key = 0, b""
    closer: list[Contact] = []
    providers: list[Contact] = []
    try:
        for number, wire, value in protobuf.fields(raw):
            if number == 1 and isinstance(value, int):
                kind = protobuf.int32(value)
            elif wire != protobuf.BYTES or isinstance(value, int):
                continue
            elif number == 2:
                key = value
            elif number in (8, 9):
                into = closer if number == 8 else providers
                contact = _read_contact(value)
                if contact is not None and len(into) < MAX_PEERS:
                    into.append(contact)
    except protobuf.ProtobufError as error:
        raise ProtocolViolation("kad_malformed", f"Kademlia message: {error}") from None
    if len(key) > MAX_KEY:
        raise ProtocolViolation("kad_malformed", f"a key of {len(key)} bytes")
    return Message(kind, key, tuple(closer), tuple(providers))


def _contact(contact: Contact) -> bytes:
    addresses = b"".join(put_bytes(2, a.raw) for a in contact.addresses)
    return put_bytes(1, contact.peer) + addresses


def _read_contact(raw: bytes) -> Contact | None:
    peer = b""
    addresses: list[bytes] = []
    for number, wire, value in protobuf.fields(raw):
        if wire == protobuf.BYTES and not isinstance(value, int):
            if number == 1:
                peer = value
            elif number == 2 and len(addresses) < MAX_ADDRESSES:
                addresses.append(value)
    try:
        return Contact(PeerId.from_bytes(peer), tuple(parse_addresses(addresses)))
    except ValueError:
        return None
