"""The keys of this node, kept in its state folder and readable by its owner alone.

``host`` is the node itself, ``management`` whoever administers it. Both are named by their libp2p
peer id: base58 of an identity multihash of the Ed25519 public key.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
"""Identity multihash of 36 bytes: protobuf {type: Ed25519, data: 32 bytes}."""


def peer_id(public: Ed25519PublicKey) -> str:
    """``12D3Koo…``"""
    number = int.from_bytes(PREFIX + public.public_bytes(Encoding.Raw, PublicFormat.Raw), "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = BASE58[rest] + digits
    return "1" + digits  # The leading zero byte.


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """The key in ``path``, made on first use; written completely or not at all."""
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except FileNotFoundError:
        pass
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    return key
