"""multistream-select: however the bytes are cut up, the two sides agree or part in peace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.p2p.errors import PeerError, ProtocolViolation
from leasehold.p2p.multistream import HEADER, MAX_PROPOSALS, Initiator, Responder, line

names = st.sampled_from(["/a/1.0.0", "/b/1.0.0", "/c/2.0.0"])


def converse(initiator: Initiator, responder: Responder, cut: int) -> tuple[str | None, str | None]:
    """Run both machines, delivering at most ``cut`` bytes at a time."""
    to_responder, to_initiator = bytearray(initiator.start()), bytearray()
    at_responder, at_initiator = bytearray(), bytearray()
    mine = theirs = None
    while to_responder or to_initiator:
        at_responder += to_responder[:cut]
        del to_responder[:cut]
        if theirs is None:
            reply, theirs = responder.feed(at_responder)
            to_initiator += reply
        at_initiator += to_initiator[:cut]
        del to_initiator[:cut]
        if mine is None:
            reply, mine = initiator.feed(at_initiator)
            to_responder += reply
    return mine, theirs


@given(st.lists(names, min_size=1, unique=True), st.sets(names, min_size=1), st.integers(1, 60))
def test_agreement(proposed: list[str], spoken: set[str], cut: int) -> None:
    expected = next((p for p in proposed if p in spoken), None)
    initiator, responder = Initiator(proposed), Responder(spoken.__contains__)
    if expected is None:
        with pytest.raises(PeerError) as refusal:
            converse(initiator, responder, cut)
        assert refusal.value.code == "protocol_unsupported"
    else:
        assert converse(initiator, responder, cut) == (expected, expected)


def test_optimistic_request_stays_in_the_buffer() -> None:
    buffer = bytearray(HEADER + line(b"/a") + b"request")
    assert Responder({"/a"}.__contains__).feed(buffer) == (HEADER + line(b"/a"), "/a")
    assert buffer == b"request"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 12,
        b"\x00",
        b"\x81\x10" + b"x" * 3000,
        b"\x05hello",
        b"\x02\xff\n",
        HEADER + b"\x03\xff\xfe\n",
        HEADER + b"\x02\xff\n",
    ],
)
def test_malformed_lines_are_violations(data: bytes) -> None:
    """Among them the invalid UTF-8 that ends other implementations' processes."""
    with pytest.raises(ProtocolViolation):
        Responder(lambda _: False).feed(bytearray(data))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise_anything_else(data: bytes) -> None:
    for machine in (Responder({"/a"}.__contains__), Initiator(["/a", "/b"])):
        if isinstance(machine, Initiator):
            machine.start()
        try:
            machine.feed(bytearray(data))
        except PeerError:
            pass


def test_endless_proposals_end() -> None:
    with pytest.raises(ProtocolViolation, match="too many"):
        Responder(lambda _: False).feed(bytearray(HEADER + line(b"/x") * MAX_PROPOSALS))
