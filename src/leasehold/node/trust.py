"""Certificate chains: who vouches for whom, and what that is worth.

A certificate is a chain of links. The first names the root and is signed by the root itself; each
following one is signed by the peer the link before was issued for. A link is valid between
``issued_at`` and ``expires_at`` (Unix seconds) unless its issuer revoked it. A root weighs
``2 ** max_chain_len``; each link halves that, and a chain may not be longer than the root allows. A
peer's weight is the sum over the roots of its best chain from each; 0 means nobody vouches for it.

Pure functions; the service ``trust-graph`` keeps the chains, ``gate`` asks it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from leasehold.node.identity import BASE58, PREFIX, peer_id

Link = dict[str, Any]
"""``issued_for``, ``issued_at``, ``expires_at``, ``signature`` (base64)."""

MAX_CHAIN = 16
"""Links of a chain, whatever a root allows."""

CLOCK_SKEW = 300
"""Seconds a link may be from the future, for clocks that are not quite right."""


class BadCertificate(ValueError):
    """Why a chain is refused; ``expired`` tells an old one from a false one."""

    def __init__(self, message: str, *, expired: bool = False) -> None:
        super().__init__(message)
        self.expired = expired


def public_key(peer: str) -> Ed25519PublicKey:
    """The key a peer id stands for; BadCertificate when it is none of Ed25519."""
    number = 0
    for char in peer:
        value = BASE58.find(char)
        if value < 0:
            raise BadCertificate(f"{peer!r} is no peer id")
        number = number * 58 + value
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    raw = b"\0" * (len(PREFIX) + 32 - len(raw)) + raw
    if len(raw) != len(PREFIX) + 32 or not raw.startswith(PREFIX):
        raise BadCertificate(f"{peer!r} is no Ed25519 peer id")
    return Ed25519PublicKey.from_public_bytes(raw[len(PREFIX) :])


def _signed(issuer: str, link: Mapping[str, Any]) -> bytes:
    return json.dumps(
        ["leasehold trust 1", issuer, link["issued_for"], link["issued_at"], link["expires_at"]]
    ).encode()


def issue(key: Ed25519PrivateKey, issued_for: str, *, issued_at: int, expires_at: int) -> Link:
    """A link by the holder of ``key`` for the peer ``issued_for``."""
    link: Link = {"issued_for": issued_for, "issued_at": issued_at, "expires_at": expires_at}
    signature = key.sign(_signed(peer_id(key.public_key()), link))
    return {**link, "signature": base64.b64encode(signature).decode()}


def revoke(key: Ed25519PrivateKey, peer: str, *, at: int) -> dict[str, Any]:
    """The issuer's word that everything it issued for ``peer`` until ``at`` counts no more."""
    issuer = peer_id(key.public_key())
    signature = key.sign(json.dumps(["leasehold revocation 1", issuer, peer, at]).encode())
    return {
        "issuer": issuer,
        "peer": peer,
        "at": at,
        "signature": base64.b64encode(signature).decode(),
    }


def check_revocation(revocation: Mapping[str, Any]) -> None:
    """Raise BadCertificate unless its issuer signed it."""
    body = ["leasehold revocation 1", revocation["issuer"], revocation["peer"], revocation["at"]]
    _verify(revocation["issuer"], json.dumps(body).encode(), revocation["signature"], "revocation")


def check_chain(chain: list[Link], now: int) -> None:
    """Raise BadCertificate unless every link is signed by the one before and valid at ``now``."""
    if not isinstance(chain, list) or not 1 <= len(chain) <= MAX_CHAIN:
        raise BadCertificate(f"a chain has 1 to {MAX_CHAIN} links")
    for index, link in enumerate(chain):
        try:
            issuer = chain[max(0, index - 1)]["issued_for"]
            _verify(issuer, _signed(issuer, link), link["signature"], f"link {index}")
            issued_at, expires_at = int(link["issued_at"]), int(link["expires_at"])
        except (KeyError, TypeError) as error:
            raise BadCertificate(f"link {index} is malformed: {error}") from None
        if expires_at <= now:
            raise BadCertificate(
                f"the certificate of {link['issued_for']} expired {(now - expires_at) // 86400} "
                f"days ago (link {index})",
                expired=True,
            )
        if issued_at > now + CLOCK_SKEW:
            raise BadCertificate(f"link {index} is not valid yet; is the clock right?")


def _verify(peer: str, data: bytes, signature: object, what: str) -> None:
    try:
        public_key(peer).verify(base64.b64decode(str(signature), validate=True), data)
    except (InvalidSignature, ValueError) as error:
        if isinstance(error, BadCertificate):
            raise
        raise BadCertificate(f"{what} is not signed by {peer}") from None


def weights(
    roots: Mapping[str, int],
    chains: Iterable[list[Link]],
    revocations: Iterable[Mapping[str, Any]],
    now: int,
) -> dict[str, int]:
    """The weight of every peer at ``now``. ``chains`` were checked when they came in; here only
    time and revocations can make a difference."""
    revoked: dict[tuple[str, str], int] = {}
    for entry in revocations:
        key = (entry["issuer"], entry["peer"])
        revoked[key] = max(revoked.get(key, 0), int(entry["at"]))
    best: dict[tuple[str, str], int] = {(r, r): 2**length for r, length in roots.items()}
    for chain in chains:
        root = chain[0]["issued_for"]
        if root not in roots or len(chain) - 1 > roots[root]:
            continue
        weight = 2 ** roots[root]
        issuer = root
        for index, link in enumerate(chain):
            if not link["issued_at"] <= now + CLOCK_SKEW or link["expires_at"] <= now:
                break
            if revoked.get((issuer, link["issued_for"]), -1) >= link["issued_at"] and index:
                break
            if index:
                weight //= 2
            key = (root, link["issued_for"])
            best[key] = max(best.get(key, 0), weight)
            issuer = link["issued_for"]
    total: dict[str, int] = {}
    for (_, peer), weight in best.items():
        total[peer] = total.get(peer, 0) + weight
    return total
