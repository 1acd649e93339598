"""Keys of accounts: who somebody is on the market.

An account is an address, the hash of a public key. Two algorithms: ``secp256k1`` (the default;
what the originals' wallets use, tokens are ES256K) and ``ed25519`` (four times faster to verify,
tokens are EdDSA). Signatures over secp256k1 are the 64 bytes ``r || s`` with the low ``s``, so that
a signature has one form only and a transaction one hash.

A private key lives in a file of mode 0600, written whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import bech32

Algorithm = Literal["secp256k1", "ed25519"]

PREFIX = "akash"
"""Of addresses; the originals', so that one key is the same account on both."""

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_SHA256 = ec.ECDSA(hashes.SHA256())


ADDRESSES = 65_536
"""Addresses remembered, of keys and as checked: an account usually comes back."""


LOADED = 4_096
"""Keys kept unpacked: unpacking one of secp256k1 costs a third of a check."""


@lru_cache(ADDRESSES)
def _address(type: Algorithm, data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    if type == "secp256k1":
        return bech32.encode(PREFIX, hashlib.new("ripemd160", digest).digest())
    return bech32.encode(PREFIX, digest[:20])


@lru_cache(LOADED)
def _load(type: Algorithm, data: bytes) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    if type == "ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(data)
    if len(data) != 33:
        raise ValueError("33 bytes are needed")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), data)


class PublicKey(msgspec.Struct, frozen=True, dict=True):
    """``data`` is 33 bytes compressed for secp256k1, 32 bytes for ed25519."""

    type: Algorithm
    data: bytes

    @cached_property
    def address(self) -> str:
        """The account of this key: ``akash1…``."""
        return _address(self.type, self.data)

    @property
    def loaded(self) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
        """The key for the cryptography library; LeaseholdError ``bad_public_key``."""
        try:
            return _load(self.type, self.data)
        except ValueError as error:
            raise LeaseholdError(
                "bad_public_key", f"this is no {self.type} public key: {error}", kind=Kind.MALFORMED
            ) from None

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether this key signed ``message``. Never raises for a wrong signature."""
        if len(signature) != 64:
            return False
        try:
            key = self.loaded
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
            else:
                r = int.from_bytes(signature[:32], "big")
                s = int.from_bytes(signature[32:], "big")
                if not 0 < s <= _ORDER // 2:
                    return False
                key.verify(encode_dss_signature(r, s), message, _SHA256)
        except (InvalidSignature, ValueError, LeaseholdError):
            return False
        return True

    def jwk(self) -> dict[str, str]:
        """As a JSON Web Key, for libraries that verify tokens."""
        if self.type == "ed25519":
            return {"kty": "OKP", "crv": "Ed25519", "x": _b64(self.data)}
        key = self.loaded
        assert isinstance(key, ec.EllipticCurvePublicKey)
        numbers = key.public_numbers()
        x, y = (n.to_bytes(32, "big") for n in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "secp256k1", "x": _b64(x), "y": _b64(y)}


class Key:
    """A private key and its account. Make one with :meth:`generate`, keep it with :meth:`save`."""

    def __init__(self, private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self._private = private
        if isinstance(private, ed25519.Ed25519PrivateKey):
            self.public = PublicKey("ed25519", private.public_key().public_bytes_raw())
        else:
            point = private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
            self.public = PublicKey("secp256k1", point)

    @property
    def address(self) -> str:
        return self.public.address

    @property
    def algorithm(self) -> Algorithm:
        return self.public.type

    @classmethod
    def generate(cls, algorithm: Algorithm = "secp256k1") -> Key:
        if algorithm == "ed25519":
            return cls(ed25519.Ed25519PrivateKey.generate())
        return cls(ec.generate_private_key(ec.SECP256K1()))

    @classmethod
    def from_secret(cls, algorithm: Algorithm, secret: bytes) -> Key:
        """From the 32 secret bytes; ``ValueError`` when they are none."""
        if algorithm == "ed25519":
            return cls(ed25519.Ed25519PrivateKey.from_private_bytes(secret))
        return cls(ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1()))

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes. Never log them."""
        if isinstance(self._private, ed25519.Ed25519PrivateKey):
            return self._private.private_bytes_raw()
        return self._private.private_numbers().private_value.to_bytes(32, "big")

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        if isinstance(self._private, ed25519.Ed25519PrivateKey):
            return self._private.sign(message)
        r, s = decode_dss_signature(self._private.sign(message, _SHA256))
        return r.to_bytes(32, "big") + min(s, _ORDER - s).to_bytes(32, "big")

    def save(self, path: Path, *, name: str = "") -> None:
        """Write the key file (mode 0600, directory 0700); refuses to replace one that exists."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = msgspec.json.encode(
            _KeyFile(
                name=name or path.stem,
                algorithm=self.algorithm,
                address=self.address,
                secret=self.secret.hex(),
            )
        )
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(content) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            raise LeaseholdError(
                "key_exists",
                f"{path} exists; choose another name, or remove it if you are sure",
                kind=Kind.CONFLICT,
                got=path,
            ) from None
        finally:
            temporary.unlink()
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @classmethod
    def load(cls, path: Path) -> Key:
        """Read a key file; refuses one that others may read."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise LeaseholdError(
                    "key_file_open",
                    f"{path} can be read by others; run: chmod 600 {path}",
                    kind=Kind.FORBIDDEN,
                    expected="mode 0600",
                    got=f"{mode:04o}",
                )
            stored = msgspec.json.decode(path.read_bytes(), type=_KeyFile)
            key = cls.from_secret(stored.algorithm, bytes.fromhex(stored.secret))
        except FileNotFoundError:
            raise LeaseholdError(
                "key_not_found",
                f"there is no key file {path}; make one with `leasehold account new`",
                kind=Kind.NOT_FOUND,
                got=path,
            ) from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise LeaseholdError(
                "key_file_damaged", f"{path} is no key file: {error}", kind=Kind.MALFORMED
            ) from None
        if key.address != stored.address:
            raise LeaseholdError(
                "key_file_damaged",
                f"{path} says {stored.address} but its secret belongs to {key.address}",
                kind=Kind.MALFORMED,
            )
        return key

    @classmethod
    def ensure(cls, path: Path, algorithm: Algorithm = "secp256k1") -> Key:
        """The key in ``path``, made if there is none."""
        with contextlib.suppress(LeaseholdError):
            if not path.exists():
                cls.generate(algorithm).save(path)
        return cls.load(path)


class _KeyFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    name: str
    algorithm: Algorithm
    address: str
    secret: str


@lru_cache(ADDRESSES)
def is_address(text: str) -> bool:
    """Whether ``text`` is an address of this market, checksum included."""
    try:
        prefix, data = bech32.decode(text)
    except ValueError:
        return False
    return prefix == PREFIX and len(data) == 20 and text == text.lower()


def _b64(data: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
