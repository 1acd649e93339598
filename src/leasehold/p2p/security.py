"""Ties a Noise key to a peer id: each side signs its static key with its identity.

The second and third Noise messages carry a small protobuf: identity key, signature over
``noise-libp2p-static-key:`` and the Noise key, and the stream muxers the sender speaks, so that
the muxer needs no round trip of its own when both name one.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from leasehold.p2p import protobuf
from leasehold.p2p.errors import ProtocolViolation
from leasehold.p2p.keys import KeyPair, PeerId, verify
from leasehold.p2p.noise import Cipher, Handshake, NoiseError

PROTOCOL = "/noise"
_PREFIX = b"noise-libp2p-static-key:"


@dataclass(frozen=True, slots=True)
class Secured:
    """What a finished handshake yields."""

    peer: PeerId
    public_key: bytes
    muxers: tuple[str, ...]
    send: Cipher
    receive: Cipher


class SecureHandshake:
    """The three messages with their libp2p payloads; drive it like :class:`Handshake`.

    ``expect`` is the peer we mean to reach; anybody else is refused.
    """

    def __init__(
        self,
        keys: KeyPair,
        *,
        initiator: bool,
        muxers: tuple[str, ...],
        expect: PeerId | None = None,
    ) -> None:
        static = X25519PrivateKey.generate()
        self._noise = Handshake(initiator=initiator, static=static)
        signature = keys.sign(_PREFIX + static.public_key().public_bytes_raw())
        extensions = b"".join(protobuf.put_text(2, muxer) for muxer in muxers)
        self._payload = (
            protobuf.put_bytes(1, keys.public)
            + protobuf.put_bytes(2, signature)
            + protobuf.put_bytes(4, extensions)
        )
        self._expect = expect
        self._peer: tuple[PeerId, bytes, tuple[str, ...]] | None = None

    def first(self) -> bytes:
        """Initiator: the first message, without a payload."""
        return self._noise.write()

    def read_first(self, message: bytes) -> bytes:
        """Responder: takes the first message, gives the second."""
        self._read(message)
        return self._write()

    def read_second(self, message: bytes) -> bytes:
        """Initiator: checks who answered, gives the third message."""
        self._check(self._read(message))
        return self._write()

    def read_third(self, message: bytes) -> None:
        """Responder: checks who called."""
        self._check(self._read(message))

    def finish(self) -> Secured:
        assert self._peer is not None
        peer, public_key, muxers = self._peer
        send, receive = self._noise.split()
        return Secured(peer, public_key, muxers, send, receive)

    def _write(self) -> bytes:
        try:
            return self._noise.write(self._payload)
        except NoiseError as error:
            # Writing mixes in the other side's key, so a bad one shows here as well.
            raise ProtocolViolation("handshake_failed", f"Noise handshake: {error}") from None

    def _read(self, message: bytes) -> bytes:
        try:
            return self._noise.read(message)
        except (NoiseError, ValueError) as error:
            raise ProtocolViolation("handshake_failed", f"Noise handshake: {error}") from None

    def _check(self, payload: bytes) -> None:
        key = signature = b""
        muxers: list[str] = []
        try:
            for number, _, value in protobuf.fields(payload):
                if isinstance(value, int):
                    continue
                if number == 1:
                    key = value
                elif number == 2:
                    signature = value
                elif number == 4:
                    for inner, _, muxer in protobuf.fields(value):
                        if inner == 2 and len(muxers) < 16:
                            muxers.append(protobuf.text(muxer))
        except protobuf.ProtobufError as error:
            raise ProtocolViolation("handshake_failed", f"handshake payload: {error}") from None
        if not key or not verify(key, _PREFIX + self._noise.remote_static, signature):
            raise ProtocolViolation("handshake_failed", "the peer's identity is not proven")
        peer = PeerId.of(key)
        if self._expect is not None and peer != self._expect:
            raise ProtocolViolation("wrong_peer", f"expected {self._expect}, got {peer}")
        self._peer = (peer, key, tuple(muxers))
