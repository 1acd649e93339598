"""Tokens: a tenant proves to a provider who it is by a JWT signed with its account key.

The provider looks the public key of ``iss`` up on the market. secp256k1 keys sign ES256K, ed25519
keys sign EdDSA. ``leases`` says what the bearer may do: ``{"access": "full"}`` is everything,
``scoped`` needs ``scope``, ``granular`` needs ``permissions``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from leasehold.market.accounts.keys import Key

TOKEN_LIFETIME = 15 * 60.0
"""Seconds a token is valid for, as the originals' client does."""


def sign_token(
    key: Key,
    now: float,
    *,
    lifetime: float = TOKEN_LIFETIME,
    access: str = "full",
    scope: Sequence[str] = (),
    permissions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A compact JWT of ``key``'s account, valid from ``now`` (seconds UTC) for ``lifetime`` s."""
    leases: dict[str, Any] = {"access": access}
    if scope:
        leases["scope"] = list(scope)
    if permissions:
        leases["permissions"] = [dict(p) for p in permissions]
    claims = {
        "iss": key.address,
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now + lifetime),
        "version": "v1",
        "leases": leases,
    }
    algorithm = "ES256K" if key.algorithm == "secp256k1" else "EdDSA"
    header = msgspec.json.encode({"alg": algorithm, "typ": "JWT"})
    signed = _b64(header) + b"." + _b64(msgspec.json.encode(claims))
    return (signed + b"." + _b64(key.sign(signed))).decode()


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
