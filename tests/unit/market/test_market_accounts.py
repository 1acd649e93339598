"""Addresses, keys, key files and tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import import_key

from leasehold.core.errors import LeaseholdError
from leasehold.market.accounts import Key, PublicKey, bech32, is_address, sign_token
from leasehold.market.accounts.certificates import make_certificate
from leasehold.market.accounts.keys import _ORDER
from leasehold.market.ledger.certificates import read_certificate

BIP173_VALID = [
    "A12UEL5L",
    "a12uel5l",
    "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
    "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
    "?1ezyfcl",
]
BIP173_INVALID = [
    "\x201nwldj5",
    "pzry9x0s0muk",
    "1pzry9x0s0muk",
    "x1b4n0q5v",
    "li1dgmt3",
    "de1lg7wt\xff",
    "A1G7SGD8",
    "10a06t8",
    "1qzzfhee",
]


@pytest.mark.parametrize("text", BIP173_VALID)
def test_bip173_valid_strings_have_a_right_checksum(text: str) -> None:
    # Some of the standard's strings are no whole bytes; what must hold is the checksum.
    values = [bech32._INDEX[c] for c in text.lower().rpartition("1")[2]]
    prefix = text.lower().rpartition("1")[0]
    assert bech32._polymod([*bech32._expand(prefix), *values]) == 1


@pytest.mark.parametrize("text", BIP173_INVALID)
def test_bip173_invalid_strings_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        bech32.decode(text)


@given(st.binary(min_size=0, max_size=40), st.data())
def test_one_changed_character_is_noticed(data: bytes, draw: st.DataObject) -> None:
    text = bech32.encode("akash", data)
    assert bech32.decode(text) == ("akash", data)
    at = draw.draw(st.integers(6, len(text) - 1))
    other = draw.draw(st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
    if other != text[at]:
        with pytest.raises(ValueError, match="checksum"):
            bech32.decode(text[:at] + other + text[at + 1 :])


def test_an_address_as_other_wallets_derive_it() -> None:
    """The secp256k1 generator point (secret 1), whose hash160 is known from Bitcoin."""
    key = Key.from_secret("secp256k1", (1).to_bytes(32, "big"))
    assert key.public.data.hex() == (
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    )
    _, digest = bech32.decode(key.address)
    assert digest.hex() == "751e76e8199196d454941c45d1b3a323f1433bd6"
    assert is_address(key.address)
    assert not is_address(key.address.upper())
    assert not is_address(bech32.encode("cosmos", digest))


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
def test_signatures_have_one_form(algorithm: str) -> None:
    key = Key.generate(algorithm)  # type: ignore[arg-type]
    for n in range(20):
        message = b"message %d" % n
        signature = key.sign(message)
        assert key.public.verify(signature, message)
        assert not key.public.verify(signature, message + b"!")
        assert not key.public.verify(signature[:-1], message)
        s = int.from_bytes(signature[32:], "big")
        if algorithm == "secp256k1":
            twin = signature[:32] + (_ORDER - s).to_bytes(32, "big")
            assert not key.public.verify(twin, message)
    assert not key.public.verify(bytes(64), b"")


def test_high_s_is_what_the_library_may_make() -> None:
    """If the library ever normalised by itself, the refusal above would test nothing."""
    private = ec.derive_private_key(7, ec.SECP256K1())
    from cryptography.hazmat.primitives import hashes

    made = [
        decode_dss_signature(private.sign(b"%d" % n, ec.ECDSA(hashes.SHA256())))[1]
        for n in range(40)
    ]
    assert any(s > _ORDER // 2 for s in made)


def test_a_key_file_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "acme.json"
    key = Key.generate()
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert Key.load(path).address == key.address
    assert [p.name for p in path.parent.iterdir()] == ["acme.json"]
    with pytest.raises(LeaseholdError) as refused:
        Key.generate().save(path)
    assert refused.value.code == "key_exists"
    assert Key.load(path).address == key.address
    path.chmod(0o644)
    with pytest.raises(LeaseholdError) as refused:
        Key.load(path)
    assert refused.value.code == "key_file_open"


@pytest.mark.parametrize("content", ["", "{}", '{"version": 2}', "\xff", '{"secret": "zz"}'])
def test_a_damaged_key_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "k.json"
    path.write_text(content, encoding="latin1")
    path.chmod(0o600)
    with pytest.raises(LeaseholdError) as refused:
        Key.load(path)
    assert refused.value.code == "key_file_damaged"
    with pytest.raises(LeaseholdError) as refused:
        Key.load(tmp_path / "none.json")
    assert refused.value.code == "key_not_found"


@pytest.mark.parametrize(("algorithm", "alg"), [("secp256k1", "ES256K"), ("ed25519", "EdDSA")])
def test_another_library_verifies_our_tokens(algorithm: str, alg: str) -> None:
    key = Key.generate(algorithm)  # type: ignore[arg-type]
    token = sign_token(key, 1_767_225_600.0, access="scoped", scope=["status", "logs"])
    public = import_key(key.public.jwk())
    decoded = jwt.decode(token, public, algorithms=[alg])
    assert decoded.claims["iss"] == key.address
    assert decoded.claims["exp"] - decoded.claims["iat"] == 900
    assert decoded.claims["leases"] == {"access": "scoped", "scope": ["status", "logs"]}


@pytest.mark.parametrize("data", [b"", bytes(33), b"\x05" + bytes(32), bytes(31)])
def test_bad_public_keys_verify_nothing(data: bytes) -> None:
    assert not PublicKey("secp256k1", data).verify(bytes(64), b"")
    assert not PublicKey("ed25519", data).verify(bytes(64), b"")


def test_certificates_are_the_owners_and_self_signed() -> None:
    owner = Key.generate().address
    pem, private = make_certificate(owner, 1_767_225_600.0)
    assert int(read_certificate(pem, owner)) > 0
    assert "PRIVATE KEY" in private
    other = Key.generate().address
    with pytest.raises(LeaseholdError, match="common name"):
        read_certificate(pem, other)
    for garbage in ("", "-----BEGIN CERTIFICATE-----", pem.replace("M", "N", 3), pem[:200]):
        with pytest.raises(LeaseholdError) as refused:
            read_certificate(garbage, owner)
        assert refused.value.code == "bad_certificate"


def test_ed25519_addresses_are_the_hash_of_the_key() -> None:
    key = Key.from_secret("ed25519", bytes(32))
    _, digest = bech32.decode(key.address)
    assert digest == hashlib.sha256(key.public.data).digest()[:20]
