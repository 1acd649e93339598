"""Certificate chains: signatures, time, revocation, weights, and the gate that asks."""

from __future__ import annotations

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.node import gate, trust
from leasehold.node.gate import TrustGate
from leasehold.node.identity import peer_id
from leasehold.node.trust import BadCertificate

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 8)]
IDS = [peer_id(key.public_key()) for key in KEYS]
NOW = 1_800_000_000


def chain(*peers: int, expires: int = NOW + 1000) -> list[trust.Link]:
    links = [trust.issue(KEYS[peers[0]], IDS[peers[0]], issued_at=NOW - 10, expires_at=expires)]
    for issuer, peer in itertools.pairwise(peers):
        links.append(trust.issue(KEYS[issuer], IDS[peer], issued_at=NOW - 10, expires_at=expires))
    return links


def test_peer_ids_round_trip() -> None:
    assert IDS[0].startswith("12D3KooW")
    assert peer_id(trust.public_key(IDS[3])) == IDS[3]
    for bad in ("", "0", "12D3KooW", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"):
        with pytest.raises(BadCertificate):
            trust.public_key(bad)


def test_weights_halve_and_add_up() -> None:
    chains = [chain(0, 1, 2), chain(0, 3), chain(4, 2)]
    for each in chains:
        trust.check_chain(each, NOW)
    roots = {IDS[0]: 5, IDS[4]: 2}
    weights = trust.weights(roots, chains, [], NOW)
    assert weights == {IDS[0]: 32, IDS[1]: 16, IDS[2]: 8 + 2, IDS[3]: 16, IDS[4]: 4}
    assert trust.weights({IDS[0]: 1}, chains, [], NOW).get(IDS[2], 0) == 0  # Longer than allowed.
    assert trust.weights(roots, chains, [], NOW + 1000).keys() == roots.keys()  # All expired.


def test_revocation_cuts_what_hangs_below() -> None:
    roots, chains = {IDS[0]: 5}, [chain(0, 1, 2)]
    revocation = trust.revoke(KEYS[0], IDS[1], at=NOW)
    trust.check_revocation(revocation)
    assert trust.weights(roots, chains, [revocation], NOW) == {IDS[0]: 32}
    old = trust.revoke(KEYS[0], IDS[1], at=NOW - 100)  # Before it was issued: says nothing.
    assert len(trust.weights(roots, chains, [old], NOW)) == 3
    with pytest.raises(BadCertificate):
        trust.check_revocation({**revocation, "issuer": IDS[2]})


@settings(max_examples=50, deadline=None)
@given(
    link=st.integers(0, 2),
    field=st.sampled_from(["issued_for", "issued_at", "expires_at", "signature"]),
)
def test_nothing_can_be_changed(link: int, field: str) -> None:
    links = chain(0, 1, 2)
    changed = {
        "issued_for": IDS[5],
        "issued_at": NOW - 11,
        "expires_at": NOW + 10**9,
        "signature": links[(link + 1) % 3]["signature"],
    }[field]
    links[link] = {**links[link], field: changed}
    with pytest.raises(BadCertificate):
        trust.check_chain(links, NOW)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ([], "1 to 16"),
        ([{}], "malformed"),
        (chain(0, 1, expires=NOW - 86_400 * 3), "expired 3 days ago"),
        ([chain(0)[0]] * 17, "1 to 16"),
        (["x"], "malformed"),
    ],
)
def test_bad_chains_say_why(links: list[trust.Link], message: str) -> None:
    with pytest.raises(BadCertificate, match=message):
        trust.check_chain(links, NOW)


def test_the_gate_lets_nobody_in_because_a_service_is_down(virtual: VirtualClock) -> None:
    weights, up = {"good": 4}, True

    async def ask() -> dict[str, int]:
        if not up:
            raise LeaseholdError("call_timeout", "no answer")
        return weights

    async def main() -> None:
        nonlocal up
        door = TrustGate("me", clock=virtual, weights=ask)
        assert door.accepts("me")
        assert not door.accepts("good")  # Not asked yet.
        async with running(door):
            await virtual.sleep(1)
            assert door.accepts("good")
            assert not door.accepts("bad")
            weights.pop("good")
            await virtual.sleep(6)
            assert not door.accepts("good")  # Revoked.
            weights["good"] = 1
            await virtual.sleep(6)
            up = False
            await virtual.sleep(500)
            assert door.accepts("good")  # Known, and not too long ago.
            assert not door.accepts("")
            await virtual.sleep(200)
            assert not door.accepts("good")
            assert door.accepts("me")
        assert TrustGate(clock=virtual, enforce=False).accepts("anybody")

    virtual.run(main)


def test_a_worker_proves_who_it_is(virtual: VirtualClock) -> None:
    body = b'{"id": "w1"}'
    headers = gate.sign(KEYS[1], body, 1000.0)
    assert gate.signer(body, headers, 1200.0) == IDS[1]
    wrong = [
        ({**headers, gate.PEER: IDS[2]}, body, 1000.0, "not that peer's"),
        (headers, b"other", 1000.0, "not that peer's"),
        (headers, body, 1400.0, "clocks"),
        ({**headers, gate.SIGNED_AT: "1399"}, body, 1400.0, "not that peer's"),
        ({**headers, gate.SIGNATURE: "!"}, body, 1000.0, "base64|padding|alphabet"),
        ({**headers, gate.PEER: "nobody"}, body, 1000.0, "proven"),
        ({}, body, 1000.0, "is missing"),
    ]
    for given_headers, given_body, now, message in wrong:
        with pytest.raises(LeaseholdError, match=message) as caught:
            gate.signer(given_body, given_headers, now)
        assert caught.value.code == "peer_unproven"
    own = TrustGate(IDS[1], clock=virtual)
    now = virtual.now()
    own.check_worker(body, gate.sign(KEYS[1], body, now))
    with pytest.raises(LeaseholdError, match="nobody vouches"):
        own.check_worker(body, gate.sign(KEYS[2], body, now))
    TrustGate(clock=virtual, enforce=False).check_worker(body, {})
