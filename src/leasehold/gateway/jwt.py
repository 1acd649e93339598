"""Tenants' tokens: who signed them, and whether they hold now.

Three algorithms. ES256K and EdDSA sign the token as every JWT does. ES256KADR36 signs what wallets
sign: a small JSON document with the token's signing input in base64 and the signer's address. The
key is the one the market knows for ``iss``; an address is the hash of its key, so a key found once
is good for ever. A verified token is remembered by its hash until it expires, because checking a
secp256k1 signature costs a quarter of a millisecond.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections import OrderedDict
from typing import Any, Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway import claims as claim_rules
from leasehold.gateway.claims import Claims
from leasehold.gateway.settings import GatewaySettings

ALGORITHMS = ("ES256K", "ES256KADR36", "EdDSA")
MAX_ADDRESS = 128
KNOWN_KEYS = 10_000
"""Account keys remembered."""

CHECKED = metrics.counter("leasehold_gateway_tokens_total", "tokens checked", ["outcome"])

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_ECDSA = ec.ECDSA(hashes.SHA256())

AccountKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class AccountKeys(Protocol):
    """Where public keys of accounts come from."""

    async def public_key(self, address: str) -> dict[str, str] | None:
        """As a JWK (EC secp256k1, or OKP Ed25519); None for an account nobody knows a key of."""
        ...


class Header(msgspec.Struct, frozen=True):
    alg: str = ""
    typ: str = "JWT"
    crit: Any = None


class Token(msgspec.Struct, frozen=True):
    """A token taken apart; nothing of it is proven."""

    header: Header
    claims: Claims
    signed: bytes
    signature: bytes


_header = msgspec.json.Decoder(Header)
_claims = msgspec.json.Decoder(Claims)


def parse(text: str, limit: int = 16 * 1024) -> Token:
    """Take a token apart; kind MALFORMED when it is none."""
    if len(text) > limit:
        raise _malformed(f"the token has more than {limit} bytes")
    parts = text.split(".")
    if len(parts) != 3:
        raise _malformed("a token has three parts between dots")
    try:
        header = _header.decode(_unbase64(parts[0]))
        body = _unbase64(parts[1])
        signature = _unbase64(parts[2])
    except (msgspec.MsgspecError, ValueError) as error:
        raise _malformed(str(error)) from None
    if header.alg not in ALGORITHMS:
        raise LeaseholdError(
            "token_algorithm",
            f"tokens are signed with {' or '.join(ALGORITHMS)}",
            kind=Kind.MALFORMED,
            expected=", ".join(ALGORITHMS),
            got=header.alg[:40],
        )
    if header.crit is not None:
        raise _malformed("critical header extensions are not supported")
    try:
        claims = _claims.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise LeaseholdError(
            "token_claims", f"invalid claims: {reason}", kind=Kind.MALFORMED, path=path.rstrip("`")
        ) from None
    return Token(header, claims, f"{parts[0]}.{parts[1]}".encode(), signature)


def signed_bytes(algorithm: str, signed: bytes, signer: str) -> bytes:
    """What the signature is over."""
    if algorithm != "ES256KADR36":
        return signed
    document = {
        "account_number": "0",
        "chain_id": "",
        "fee": {"amount": [], "gas": "0"},
        "memo": "",
        "msgs": [
            {
                "type": "sign/MsgSignData",
                "value": {"data": base64.b64encode(signed).decode(), "signer": signer},
            }
        ],
        "sequence": "0",
    }
    return msgspec.json.encode(document, order="sorted")


def key_of(jwk: dict[str, str]) -> AccountKey:
    """The key in a JWK; kind INTERNAL when it is none (the market keeps only good ones)."""
    try:
        x = _unbase64(jwk["x"])
        if jwk.get("kty") == "OKP" and jwk.get("crv") == "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(x)
        if jwk.get("kty") == "EC" and jwk.get("crv") == "secp256k1":
            point = b"\x04" + x.rjust(32, b"\0") + _unbase64(jwk["y"]).rjust(32, b"\0")
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), point)
    except (KeyError, ValueError) as error:
        raise LeaseholdError(
            "account_key", f"an account's key is unusable: {error}", kind=Kind.INTERNAL
        ) from None
    raise LeaseholdError("account_key", f"unknown key type {jwk.get('kty')}", kind=Kind.INTERNAL)


def verify(token: Token, key: AccountKey) -> bool:
    """Whether ``key`` signed ``token``, with the algorithm the header names."""
    message = signed_bytes(token.header.alg, token.signed, token.claims.iss)
    return verify_signature(token.header.alg, key, token.signature, message)


def verify_signature(algorithm: str, key: AccountKey, signature: bytes, message: bytes) -> bool:
    """Raw 64-byte signatures only; for secp256k1 only the low ``s``, as on chain."""
    if len(signature) != 64:
        return False
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            if algorithm != "EdDSA":
                return False
            key.verify(signature, message)
            return True
        if algorithm not in ("ES256K", "ES256KADR36"):
            return False
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        if not 0 < s <= _ORDER // 2:
            return False
        key.verify(encode_dss_signature(r, s), message, _ECDSA)
    except (InvalidSignature, ValueError):
        return False
    return True


class Tokens:
    """Verifies tokens; remembers the verified ones."""

    def __init__(self, keys: AccountKeys, clock: Clock, settings: GatewaySettings) -> None:
        self.keys = keys
        self.clock = clock
        self.settings = settings
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()
        self._known: OrderedDict[str, AccountKey] = OrderedDict()

    async def check(self, text: str) -> Claims:
        """The claims of a token that holds now.

        UNAUTHENTICATED when it is expired, not yet valid, or not signed by its issuer; MALFORMED
        when it is no token or its claims contradict themselves; UNAVAILABLE without a market.
        """
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        claims = self._verified.get(digest)
        if claims is not None:
            self._in_time(claims)
            return claims
        try:
            token = parse(text, self.settings.max_token_bytes)
            claims = token.claims
            wrong = claim_rules.check(claims)
            if wrong:
                raise LeaseholdError.of(wrong, kind=Kind.MALFORMED)
            self._in_time(claims)
            key = await self._key(claims.iss)
            if key is None or not verify(token, key):
                raise LeaseholdError(
                    "token_signature",
                    f"the token is not signed by {claims.iss[:MAX_ADDRESS]}",
                    kind=Kind.UNAUTHENTICATED,
                )
        except LeaseholdError:
            CHECKED.labels("refused").inc()
            raise
        CHECKED.labels("verified").inc()
        if self.settings.token_cache:
            self._verified[digest] = claims
            if len(self._verified) > self.settings.token_cache:
                self._verified.popitem(last=False)
        return claims

    def _in_time(self, claims: Claims) -> None:
        now, skew = self.clock.now(), self.settings.token_skew_s
        if not all(math.isfinite(t) for t in (claims.exp, claims.nbf, claims.iat)):
            raise _malformed("times are numbers of seconds")
        if now >= claims.exp:
            raise LeaseholdError(
                "token_expired",
                f"the token expired {now - claims.exp:.0f} s ago; sign a new one",
                kind=Kind.UNAUTHENTICATED,
            )
        if now + skew < max(claims.nbf, claims.iat):
            raise LeaseholdError(
                "token_not_yet_valid",
                "the token is not valid yet; is the clock right?",
                kind=Kind.UNAUTHENTICATED,
            )

    async def _key(self, address: str) -> AccountKey | None:
        if len(address) > MAX_ADDRESS:
            return None
        key = self._known.get(address)
        if key is None:
            jwk = await self.keys.public_key(address)
            if jwk is None:
                return None
            key = self._known[address] = key_of(jwk)
            if len(self._known) > KNOWN_KEYS:
                self._known.popitem(last=False)
        return key


def _unbase64(text: str) -> bytes:
    """base64url without padding, strictly."""
    if "=" in text or not text.isascii():
        raise ValueError("base64url without padding is expected")
    try:
        data = text.encode() + b"=" * (-len(text) % 4)
        out = base64.b64decode(data, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    return out


def _malformed(why: str) -> LeaseholdError:
    return LeaseholdError(
        "token_malformed", f"this is no token: {why}", kind=Kind.MALFORMED, expected="a JWT"
    )
