"""Who a peer is: a key pair, and the peer id that is (or hashes) its public key.

Our own identities are Ed25519, kept in one file of mode 0600 in libp2p's protobuf form, so other
libp2p programs can read it. Peers may also bring RSA, Secp256k1 or ECDSA keys: we verify those,
we never make them. A peer id is the multihash of the protobuf public key: the *identity* hash
(the key itself) up to 42 bytes, sha2-256 beyond, hence ``12D3KooW…`` for Ed25519 and ``Qm…``.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.p2p import multibase, protobuf

RSA, ED25519, SECP256K1, ECDSA = 0, 1, 2, 3

INLINE_KEY_BYTES = 42
"""Public keys up to this size are the peer id itself (libp2p's peer id specification)."""

MAX_KEY_BYTES = 4096
"""A protobuf public key: RSA 8192 needs about 1 KiB."""

_IDENTITY, _SHA256 = 0x00, 0x12
_LIBP2P_KEY = 0x72


class PeerId(bytes):
    """The multihash bytes of a peer id; ``str`` gives the base58 form people see."""

    __slots__ = ()

    def __str__(self) -> str:
        return multibase.b58encode(self)

    def __repr__(self) -> str:
        return f"PeerId({self})"

    @classmethod
    def of(cls, public_key: bytes) -> PeerId:
        """The id that belongs to a public key in protobuf form."""
        if len(public_key) <= INLINE_KEY_BYTES:
            return cls(bytes((_IDENTITY, len(public_key))) + public_key)
        return cls(bytes((_SHA256, 32)) + hashlib.sha256(public_key).digest())

    @classmethod
    def from_bytes(cls, raw: bytes) -> PeerId:
        """A peer id from its multihash; ``ValueError`` when it is none."""
        if len(raw) >= 2 and raw[1] == len(raw) - 2:
            if raw[0] == _SHA256 and raw[1] == 32:
                return cls(raw)
            if raw[0] == _IDENTITY and 0 < raw[1] <= INLINE_KEY_BYTES:
                return cls(raw)
        raise ValueError("not a peer id")

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """``12D3KooW…``, ``Qm…`` or the CID form ``bafz…``; ``ValueError`` when it is none."""
        if text.startswith("b"):
            raw = multibase.b32decode(text[1:])
            prefix = bytes((1, _LIBP2P_KEY))
            if not raw.startswith(prefix):
                raise ValueError("not the CID of a peer id")
            return cls.from_bytes(raw[2:])
        return cls.from_bytes(multibase.b58decode(text))

    @property
    def public_key(self) -> bytes | None:
        """The protobuf public key, when the id carries it."""
        return bytes(self[2:]) if self[0] == _IDENTITY else None


class KeyPair:
    """An Ed25519 key pair. ``public`` is the protobuf form others verify and hash."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes_raw()
        self.public = protobuf.put_int(1, ED25519) + protobuf.put_bytes(2, raw)
        self.peer_id = PeerId.of(self.public)

    @classmethod
    def generate(cls) -> KeyPair:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """A pair from 32 bytes; the same bytes give the same identity."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def private(self) -> Ed25519PrivateKey:
        """The key itself, for certificates that are pinned to this identity."""
        return self._private

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)

    def to_protobuf(self) -> bytes:
        """libp2p's private key message: seed and public key in one field of 64 bytes."""
        seed = self._private.private_bytes_raw()
        data = seed + self._private.public_key().public_bytes_raw()
        return protobuf.put_int(1, ED25519) + protobuf.put_bytes(2, data)

    @classmethod
    def from_protobuf(cls, raw: bytes) -> KeyPair:
        kind, data = _key_message(raw)
        # Old writers append the public key once more (96 bytes); the seed is first in all forms.
        if kind != ED25519 or len(data) not in (32, 64, 96):
            raise ValueError("not an Ed25519 private key")
        pair = cls.from_seed(data[:32])
        if len(data) > 32 and not pair.public.endswith(data[32:64]):
            raise ValueError("the public half does not belong to the private half")
        return pair

    @classmethod
    def load_or_create(cls, path: Path) -> KeyPair:
        """The identity in ``path``; made there (mode 0600, atomically) when there is none."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return cls._create(path)
        try:
            return cls.from_protobuf(raw)
        except ValueError as error:
            raise LeaseholdError(
                "identity_unreadable",
                f"{path} holds no node identity ({error}); restore it or delete it",
                kind=Kind.INVALID,
                path=str(path),
            ) from None

    @classmethod
    def _create(cls, path: Path) -> KeyPair:
        pair = cls.generate()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(pair.to_protobuf())
                file.flush()
                os.fsync(file.fileno())
            # link, not rename: of two processes that start at once, the first one's key stays.
            try:
                os.link(temporary, path)
            except FileExistsError:
                return cls.from_protobuf(path.read_bytes())
        finally:
            temporary.unlink(missing_ok=True)
        return pair


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the owner of ``public_key`` (protobuf form, any kind) signed ``data``."""
    try:
        kind, raw = _key_message(public_key)
        if kind == ED25519:
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, data)
        elif kind == SECP256K1:
            secp = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), raw)
            secp.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif kind in (RSA, ECDSA):
            key = serialization.load_der_public_key(raw)
            if kind == RSA and isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 8192:
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            elif kind == ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            else:
                return False
        else:
            return False
    except (InvalidSignature, ValueError, TypeError):
        return False
    except Exception as error:  # the parser of a foreign key format may raise its own kinds
        if type(error).__module__.startswith("cryptography"):
            return False
        raise
    return True


def _key_message(raw: bytes) -> tuple[int, bytes]:
    if len(raw) > MAX_KEY_BYTES:
        raise ValueError("key is too long")
    kind, data = None, None
    for number, _, value in protobuf.fields(raw):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            data = value
    if data is None:
        raise ValueError("key without data")
    return kind or RSA, data
