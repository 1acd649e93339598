"""Tokens: published vectors, the forms of claims, times, and what no input may do."""
# ruff: noqa: E501

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.clock import SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway import claims as claim_rules
from leasehold.gateway.claims import Claims, LeaseAccess, Principal
from leasehold.gateway.jwt import Tokens, key_of, parse, signed_bytes, verify_signature
from leasehold.gateway.settings import GatewaySettings
from leasehold.market.accounts import Key, PublicKey, sign_token

CASES = json.loads((Path(__file__).parents[2] / "data" / "jwt" / "cases_es256k.json").read_text())
VECTOR_KEY = PublicKey(
    "secp256k1", bytes.fromhex("03e1fde5cc17f56501ed53d87718df76c135b9a6401dceb53d198111a1eaf85f76")
)
"""The file names the address only. This key was recovered from its signatures: the one key that
both ES256K and ES256KADR36 signatures of the file give, and its hash is that address."""

VECTOR_ADDRESS = "akash1qufa3xzrf34qvwyejkhvnc4psf49fftaw0asmh"


def _part(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["description"])
def test_vectors(case: dict[str, Any]) -> None:
    assert VECTOR_KEY.address == VECTOR_ADDRESS
    head, body, signature = case["tokenString"].split(".")
    algorithm = json.loads(_part(head))["alg"]
    # The short vectors name no issuer; wallets put the signer's address into the document.
    message = signed_bytes(algorithm, f"{head}.{body}".encode(), VECTOR_ADDRESS)
    key = key_of(VECTOR_KEY.jwk())
    assert verify_signature(algorithm, key, _part(signature), message) is not case["mustFail"]


def test_the_wallets_vector_passes_whole() -> None:
    class Keys:
        async def public_key(self, address: str) -> dict[str, str] | None:
            return VECTOR_KEY.jwk() if address == VECTOR_ADDRESS else None

    class Then(SystemClock):
        def now(self) -> float:
            return 1760404940 + 60.0

    async def main() -> Claims:
        return await Tokens(Keys(), Then(), GatewaySettings()).check(CASES[2]["tokenString"])

    import asyncio

    claims = asyncio.run(main())
    assert claims.leases == LeaseAccess("scoped", ["status", "shell", "events", "logs"])


def jwt(header: Any, claims: Any, key: Key) -> str:
    def part(value: Any) -> bytes:
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    signed = part(header) + b"." + part(claims)
    message = signed
    if isinstance(header, dict) and header.get("alg") == "ES256KADR36":
        message = signed_bytes("ES256KADR36", signed, key.address)
    return (signed + b"." + part(key.sign(message))).decode()


ACCOUNT, EDWARDS = Key.generate(), Key.generate("ed25519")


class Known:
    asked = 0

    async def public_key(self, address: str) -> dict[str, str] | None:
        Known.asked += 1
        return {k.address: k.public.jwk() for k in (ACCOUNT, EDWARDS)}.get(address)


def claims_of(key: Key = ACCOUNT, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    base = {
        "iss": key.address,
        "iat": now,
        "nbf": now,
        "exp": now + 60,
        "version": "v1",
        "leases": {"access": "full"},
    }
    return {k: v for k, v in {**base, **changes}.items() if v is not ...}


async def check(token: str) -> Claims:
    return await Tokens(Known(), SystemClock(), GatewaySettings()).check(token)


@pytest.mark.parametrize(
    ("alg", "key"), [("ES256K", ACCOUNT), ("ES256KADR36", ACCOUNT), ("EdDSA", EDWARDS)]
)
async def test_three_algorithms(alg: str, key: Key) -> None:
    token = jwt({"alg": alg, "typ": "JWT"}, claims_of(key), key)
    assert (await check(token)).iss == key.address


@pytest.mark.parametrize(
    ("code", "header", "claims", "key"),
    [
        ("token_algorithm", {"alg": "none"}, {}, ACCOUNT),
        ("token_algorithm", {"alg": "HS256"}, {}, ACCOUNT),
        ("token_algorithm", {}, {}, ACCOUNT),
        ("token_malformed", {"alg": "ES256K", "crit": ["x"]}, {}, ACCOUNT),
        ("token_malformed", b"{", {}, ACCOUNT),
        ("token_signature", {"alg": "EdDSA"}, {}, ACCOUNT),
        ("token_signature", {"alg": "ES256K"}, {"iss": EDWARDS.address}, ACCOUNT),
        ("token_signature", {"alg": "ES256K"}, {"iss": "akash1nobody"}, ACCOUNT),
        ("token_claims", {"alg": "ES256K"}, {"exp": ...}, ACCOUNT),
        ("token_claims", {"alg": "ES256K"}, {"leases": ...}, ACCOUNT),
        ("token_claims", {"alg": "ES256K"}, {"leases": {"access": "root"}}, ACCOUNT),
        ("token_claims", {"alg": "ES256K"}, {"exp": "soon"}, ACCOUNT),
        ("version", {"alg": "ES256K"}, {"version": "v2"}, ACCOUNT),
        ("token_expired", {"alg": "ES256K"}, {"exp": 1}, ACCOUNT),
        ("token_not_yet_valid", {"alg": "ES256K"}, {"nbf": 2**40, "exp": 2**41}, ACCOUNT),
    ],
)
async def test_refused(code: str, header: Any, claims: dict[str, Any], key: Key) -> None:
    with pytest.raises(LeaseholdError) as caught:
        await check(jwt(header, claims_of(**claims), key))
    assert caught.value.code == code
    assert caught.value.kind in (Kind.MALFORMED, Kind.UNAUTHENTICATED)


async def test_a_verified_token_is_remembered_only_until_it_expires() -> None:
    now = [time.time()]

    class Clock(SystemClock):
        def now(self) -> float:
            return now[0]

    tokens = Tokens(Known(), Clock(), GatewaySettings(token_cache=2))
    token = sign_token(ACCOUNT, now[0], lifetime=60)
    for n in range(5):
        await tokens.check(token)
        await tokens.check(sign_token(ACCOUNT, now[0], lifetime=60 + n))
    assert len(tokens._verified) == 2
    now[0] += 61
    with pytest.raises(LeaseholdError) as caught:
        await tokens.check(token)
    assert caught.value.code == "token_expired"


def test_a_high_s_is_another_form_of_the_same_signature_and_refused() -> None:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    signature = ACCOUNT.sign(b"x")
    high = signature[:32] + (order - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    key = key_of(ACCOUNT.public.jwk())
    assert verify_signature("ES256K", key, signature, b"x")
    assert not verify_signature("ES256K", key, high, b"x")


@pytest.mark.parametrize(
    ("code", "leases"),
    [
        ("scope", {"access": "full", "scope": ["logs"]}),
        ("permissions", {"access": "full", "permissions": [{"provider": "p", "access": "full"}]}),
        ("scope", {"access": "scoped"}),
        ("scope", {"access": "scoped", "scope": ["logs", "logs"]}),
        ("scope", {"access": "scoped", "scope": ["root"]}),
        ("permissions", {"access": "granular"}),
        ("permissions", {"access": "granular", "permissions": [{"provider": "p", "access": "full"}] * 2}),
        ("scope", {"access": "granular", "permissions": [{"provider": "p", "access": "scoped"}]}),
        ("deployments", {"access": "granular", "permissions": [{"provider": "p", "access": "granular"}]}),
        ("lease", {"access": "granular", "permissions": [{"provider": "p", "access": "granular",
            "deployments": [{"dseq": 1, "oseq": 1, "scope": ["logs"]}]}]}),
        ("lease", {"access": "granular", "permissions": [{"provider": "p", "access": "granular",
            "deployments": [{"dseq": 1, "scope": ["logs"]}] * 2}]}),
        ("scope", {"access": "granular", "permissions": [{"provider": "p", "access": "granular",
            "deployments": [{"dseq": 1}]}]}),
    ],
)  # fmt: skip
def test_contradicting_claims(code: str, leases: dict[str, Any]) -> None:
    claims = msgspec.convert(claims_of(leases=leases), Claims)
    assert code in [v.code for v in claim_rules.check(claims)]


def test_granular_permissions_are_exactly_what_they_say() -> None:
    access = msgspec.convert(
        {
            "access": "granular",
            "permissions": [
                {
                    "provider": "me",
                    "access": "granular",
                    "deployments": [
                        {"dseq": 1, "scope": ["logs"], "services": ["web"]},
                        {"dseq": 1, "gseq": 2, "scope": ["logs"], "services": ["db"]},
                        {"dseq": 2, "gseq": 1, "oseq": 3, "scope": ["shell"]},
                    ],
                },
                {"provider": "other", "access": "full"},
            ],
        },
        LeaseAccess,
    )
    me = Principal("o", access, "me")
    assert me.services("logs", 1, 1, 1) == {"web"}
    assert me.services("logs", 1, 2, 1) == {"web", "db"}
    assert me.permits("logs", 1, 1, 1, "web") and not me.permits("logs", 1, 1, 1, "db")
    assert not me.permits("shell", 1, 1, 1) and me.permits("shell", 2, 1, 3)
    assert not me.permits("shell", 2, 1, 4) and not me.permits("shell", 2)
    assert me.reaches("shell", 2) and not me.reaches("logs", 2)
    assert Principal("o", access, "other").permits("shell", 9, 9, 9)
    assert not Principal("o", access, "nobody").permits("logs", 1)


@given(st.text(max_size=300) | st.from_regex(r"[\w-]{0,60}\.[\w-]{0,60}\.[\w-]{0,90}"))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(LeaseholdError):
        parse(text)


def test_a_huge_token_is_refused_unread() -> None:
    with pytest.raises(LeaseholdError):
        parse("a" * 10_000_000)
