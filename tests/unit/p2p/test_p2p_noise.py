"""Noise XX against published vectors, and against whoever changes a byte."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.p2p.errors import ProtocolViolation
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.noise import Cipher, Handshake, NoiseError
from leasehold.p2p.security import SecureHandshake


def key(first: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes(range(first, first + 32)))


# The vector "Noise_XX_25519_ChaChaPoly_SHA256" as published with flynn/noise (vectors.txt).
VECTOR = [
    ("", "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254"),
    (
        "",
        "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d484663414af878d3e46a2f58911a816"
        "d6e8346d4ea17a6f2a0bb4ef4ed56c133cff4560a34e36ea82109f26cf2e5a5caf992b608d55c747f615e5a342"
        "5a7a19eefb8f",
    ),
    (
        "",
        "87f864c11ba449f46a0a4f4e2eacbb7b0457784f4fca1937f572c93603e9c4d97e5ea11b16f3968710b23a3be3"
        "202dc1b5e1ce3c963347491e74f5c0768a9b42",
    ),
    (
        "79656c6c6f777375626d6172696e65",
        "a52ef02ba60e12696d1d6b9ef4245c88fca757b6134ad6e76b56e310a6adf6",
    ),
    (
        "7375626d6172696e6579656c6c6f77",
        "2445aa438ebd649281c636cc7269ca82f1d9023d72520943aeabf909cdf521",
    ),
]


def test_published_vector() -> None:
    alice = Handshake(initiator=True, static=key(0x00), ephemeral=key(0x20))
    bob = Handshake(initiator=False, static=key(0x01), ephemeral=key(0x41))
    for (payload, expected), (writer, reader) in zip(
        VECTOR, [(alice, bob), (bob, alice), (alice, bob)], strict=False
    ):
        message = writer.write(bytes.fromhex(payload))
        assert message.hex() == expected
        assert reader.read(message).hex() == payload
    assert alice.hash == bob.hash
    alice_send, alice_receive = alice.split()
    bob_send, bob_receive = bob.split()
    for (payload, expected), (send, receive) in zip(
        VECTOR[3:], [(alice_send, bob_receive), (bob_send, alice_receive)], strict=True
    ):
        sealed = send.encrypt(bytes.fromhex(payload))
        assert sealed.hex() == expected
        assert receive.decrypt(sealed).hex() == payload


@settings(max_examples=60, deadline=None)
@given(step=st.integers(0, 2), where=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(step: int, where: int, flip: int) -> None:
    """A flipped bit anywhere in the three messages makes some later read fail, never succeed."""
    alice = SecureHandshake(KeyPair.from_seed(b"a" * 32), initiator=True, muxers=("/yamux/1.0.0",))
    bob = SecureHandshake(KeyPair.from_seed(b"b" * 32), initiator=False, muxers=("/yamux/1.0.0",))

    def tamper(now: int, message: bytes) -> bytes:
        if now != step:
            return message
        changed = bytearray(message)
        changed[where % len(changed)] ^= flip
        return bytes(changed)

    # X25519 ignores the top bit of a public key, but Noise hashes it: that does not pass either.
    with pytest.raises(ProtocolViolation, match=r"handshake|identity"):
        bob.read_third(
            tamper(2, alice.read_second(tamper(1, bob.read_first(tamper(0, alice.first())))))
        )


def test_both_sides_learn_who_the_other_is() -> None:
    a, b = KeyPair.from_seed(b"a" * 32), KeyPair.from_seed(b"b" * 32)
    alice = SecureHandshake(a, initiator=True, muxers=("/yamux/1.0.0",), expect=b.peer_id)
    bob = SecureHandshake(b, initiator=False, muxers=("/yamux/1.0.0", "/other"))
    bob.read_third(alice.read_second(bob.read_first(alice.first())))
    at_alice, at_bob = alice.finish(), bob.finish()
    assert (at_alice.peer, at_bob.peer) == (b.peer_id, a.peer_id)
    assert at_alice.muxers == ("/yamux/1.0.0", "/other")
    assert at_bob.receive.decrypt(at_alice.send.encrypt(b"hello")) == b"hello"


def test_another_peer_than_the_expected_one_is_refused() -> None:
    other = KeyPair.generate().peer_id
    alice = SecureHandshake(KeyPair.generate(), initiator=True, muxers=(), expect=other)
    bob = SecureHandshake(KeyPair.generate(), initiator=False, muxers=())
    with pytest.raises(ProtocolViolation) as refusal:
        alice.read_second(bob.read_first(alice.first()))
    assert refusal.value.code == "wrong_peer"


def test_an_identity_that_signed_another_noise_key_is_refused() -> None:
    """Replaying somebody's payload with an own Noise key proves nothing."""
    victim = SecureHandshake(KeyPair.generate(), initiator=False, muxers=())
    thief = SecureHandshake(KeyPair.generate(), initiator=False, muxers=())
    thief._payload = victim._payload
    alice = SecureHandshake(KeyPair.generate(), initiator=True, muxers=())
    with pytest.raises(ProtocolViolation, match="not proven"):
        alice.read_second(thief.read_first(alice.first()))


def test_a_low_order_key_is_refused() -> None:
    bob = Handshake(initiator=False, static=key(1))
    bob.read(bytes(32))
    with pytest.raises(NoiseError, match="low order"):
        bob.write()


def test_out_of_turn_and_early_split_are_refused() -> None:
    alice = Handshake(initiator=True, static=key(0))
    with pytest.raises(NoiseError):
        alice.read(b"")
    with pytest.raises(NoiseError):
        alice.split()


def test_a_replayed_or_reordered_message_does_not_decrypt() -> None:
    send, receive = Cipher(b"k" * 32), Cipher(b"k" * 32)
    first, second = send.encrypt(b"1"), send.encrypt(b"2")
    with pytest.raises(NoiseError):
        receive.decrypt(second)
    receive = Cipher(b"k" * 32)
    assert receive.decrypt(first) == b"1"
    with pytest.raises(NoiseError):
        receive.decrypt(first)
