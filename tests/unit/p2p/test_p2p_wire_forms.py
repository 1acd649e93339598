"""Varints, protobuf, base58, addresses, keys and peer ids: vectors and round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.p2p import multibase, protobuf, varint
from leasehold.p2p.keys import ECDSA, RSA, SECP256K1, KeyPair, PeerId, verify
from leasehold.p2p.multiaddr import Multiaddr


@given(st.integers(0, 2**63 - 1), st.binary(max_size=8))
def test_varint_round_trip(value: int, tail: bytes) -> None:
    encoded = varint.encode(value)
    assert varint.decode(encoded + tail) == (value, len(encoded))
    for cut in range(len(encoded)):
        assert varint.decode(encoded[:cut]) is None


def test_varint_overflow_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(varint.VarintError):
        varint.decode(b"\xff" * 9)


def _reference() -> type:
    """A message class of the standard library of protocol buffers, with one field of each kind."""
    file = descriptor_pb2.FileDescriptorProto(name="wire_test.proto", syntax="proto3")
    message = file.message_type.add(name="M")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, kind in enumerate(
        (kinds.TYPE_STRING, kinds.TYPE_INT32, kinds.TYPE_BYTES, kinds.TYPE_BOOL, kinds.TYPE_INT64),
        start=1,
    ):
        message.field.add(name=f"f{number}", number=number, type=kind, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("M"))


M = _reference()


@given(
    st.text(max_size=20),
    st.integers(-(2**31), 2**31 - 1),
    st.binary(max_size=300),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
)
def test_our_encoding_is_the_standard_one(s: str, i: int, b: bytes, f: bool, w: int) -> None:
    theirs = M(f1=s, f2=i, f3=b, f4=f, f5=w).SerializeToString(deterministic=True)
    ours = (
        protobuf.put_text(1, s)
        + protobuf.put_int(2, i)
        + (protobuf.put_bytes(3, b) if b else b"")
        + protobuf.put_int(4, f)
        + protobuf.put_int(5, w)
    )
    assert ours == theirs
    read = {number: value for number, _, value in protobuf.fields(theirs)}
    assert protobuf.text(read.get(1, b"")) == s
    assert protobuf.int32(read.get(2, 0)) == i
    assert read.get(3, b"") == b
    assert protobuf.int64(read.get(5, 0)) == w


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_fields_or_an_error(data: bytes) -> None:
    try:
        for _, wire, value in protobuf.fields(data):
            assert wire in (0, 1, 2, 5)
            assert isinstance(value, int) or len(value) <= len(data)
    except protobuf.ProtobufError:
        pass


@given(st.binary(max_size=64))
def test_base58_and_base32_round_trip(data: bytes) -> None:
    assert multibase.b58decode(multibase.b58encode(data)) == data
    assert multibase.b32decode(multibase.b32encode(data)) == data


def test_base58_vectors() -> None:
    assert multibase.b58encode(b"Hello World!") == "2NEpo7TZRRrLZSi2U"
    assert multibase.b58decode("11233QC4") == bytes.fromhex("0000287fb4cd")


# libp2p's peer id specification: private and public Ed25519 keys in protobuf form.
SPEC_PRIVATE = (
    "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d1ed1e8fae2c4a144b8be8f"
    "d4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
)
SPEC_PUBLIC = "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"


def test_keys_of_the_specification() -> None:
    pair = KeyPair.from_protobuf(bytes.fromhex(SPEC_PRIVATE))
    assert pair.public.hex() == SPEC_PUBLIC
    assert pair.to_protobuf().hex() == SPEC_PRIVATE
    text = str(pair.peer_id)
    assert text.startswith("12D3KooW")
    assert PeerId.parse(text) == pair.peer_id
    cid = "b" + multibase.b32encode(b"\x01\x72" + pair.peer_id)
    assert PeerId.parse(cid) == pair.peer_id
    assert pair.peer_id.public_key == pair.public


def test_foreign_key_kinds_verify() -> None:
    data = b"message"
    secp = ec.generate_private_key(ec.SECP256K1())
    p256 = ec.generate_private_key(ec.SECP256R1())
    big = rsa.generate_private_key(65537, 2048)
    der = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    point = (serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    for kind, raw, signature in (
        (
            SECP256K1,
            secp.public_key().public_bytes(*point),
            secp.sign(data, ec.ECDSA(hashes.SHA256())),
        ),
        (ECDSA, p256.public_key().public_bytes(*der), p256.sign(data, ec.ECDSA(hashes.SHA256()))),
        (
            RSA,
            big.public_key().public_bytes(*der),
            big.sign(data, padding.PKCS1v15(), hashes.SHA256()),
        ),
    ):
        key = protobuf.put_int(1, kind) + protobuf.put_bytes(2, raw)
        assert verify(key, data, signature)
        assert not verify(key, data + b"!", signature)
    assert not verify(b"", data, b"")
    assert not verify(protobuf.put_int(1, 9) + protobuf.put_bytes(2, b"x"), data, b"")


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_verify_never_raises(key: bytes, signature: bytes) -> None:
    assert not verify(key, b"data", signature)


def test_identity_file_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "identity"
    pair = KeyPair.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyPair.load_or_create(path).peer_id == pair.peer_id
    path.write_bytes(b"junk")
    with pytest.raises(LeaseholdError, match="no node identity"):
        KeyPair.load_or_create(path)
    assert list(path.parent.iterdir()) == [path]


PEER = "12D3KooWQdkyFjDnwygx8aejVu5PGmTexpiuZ6eenVWpKxjZRCv3"


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("/ip4/127.0.0.1/tcp/1234", "047f0000010604d2"),
        ("/ip4/127.0.0.1/udp/1234/quic-v1", "047f000001910204d2cd03"),
        ("/ip6/2601:9:4f81:9700:803e::21/tcp/80", "29260100094f819700803e000000000021060050"),
        ("/dns4/example.com/tcp/443/wss", "360b6578616d706c652e636f6d0601bbde03"),
    ],
)  # fmt: skip
def test_multiaddr_vectors(text: str, raw: str) -> None:
    """The first three are of the multiaddr test suites, the fourth by its table."""
    assert Multiaddr.parse(text).raw.hex() == raw
    assert str(Multiaddr.from_bytes(bytes.fromhex(raw))) == text


def test_multiaddr_parts() -> None:
    address = Multiaddr.parse(f"/ip4/10.0.0.7/tcp/29401/p2p/{PEER}")
    assert address.tcp() == ("10.0.0.7", 29401)
    assert str(address.peer_id) == PEER
    assert address.without_peer().with_peer(PeerId.parse(PEER)) == address
    assert Multiaddr.from_bytes(address.raw) == address
    assert Multiaddr.parse("/ip4/10.0.0.7/udp/1/quic-v1").tcp() is None
    assert Multiaddr.of_tcp("::1", 5).tcp() == ("::1", 5)
    assert Multiaddr.of_tcp("node.example", 5).tcp() == ("node.example", 5)


@pytest.mark.parametrize(
    "text",
    ["", "/", "ip4/1.2.3.4", "/ip4", "/ip4/1.2.3", "/tcp/70000", "/tcp/-1", "/nope/1", "/p2p/x"],
)
def test_multiaddr_refusals(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Multiaddr.parse(text)


@given(st.binary(max_size=80))
def test_multiaddr_of_arbitrary_bytes_reads_back_or_raises(raw: bytes) -> None:
    try:
        address = Multiaddr.from_bytes(raw)
    except ValueError:
        return
    assert Multiaddr.parse(str(address)) == address
    assert Multiaddr.from_bytes(address.raw) == address
