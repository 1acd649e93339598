"""The coordination frames: golden bytes, the protocol compiler's reading of them, hostile input."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.images.coord.messages import (
    Intent,
    PleasePullRequest,
    PleasePullResponse,
    PullIntentRequest,
    PullResult,
    decode,
    encode,
)
from leasehold.images.ports import ContentKind, FailureClass
from leasehold.p2p import varint
from leasehold.p2p.errors import ProtocolViolation

DIGEST = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
HEX = DIGEST.encode().hex()
ROOT = Path(__file__).resolve().parents[3]

GOLDEN = [
    (PullIntentRequest(DIGEST), "4b0a490a47" + HEX),
    (
        PleasePullRequest(
            (DIGEST,), "registry.example.com", "library/nginx", ContentKind.MANIFEST
        ),
        "721a700a47" + HEX + "1214" + b"registry.example.com".hex()
        + "1a0d" + b"library/nginx".hex() + "2002",
    ),
    (
        Intent(in_flight=True, started_at=1700000000.5, hrw_rank=0),
        "12121010011a0c0880e2cfaa061080cab5ee01",
    ),
    (Intent(hrw_rank=-1), "0d120b20ffffffffffffffffff01"),
    (Intent(), "021200"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "frame"), GOLDEN)
def test_golden_frames(message: Any, frame: str) -> None:
    raw = bytes.fromhex(frame)
    assert encode(message) == raw
    assert decode(body(raw)) == message


def body(frame: bytes) -> bytes:
    size, start = varint.decode(frame) or (0, 0)
    assert len(frame) == start + size
    return frame[start:]


@pytest.fixture(scope="module")
def envelope() -> Any:
    """``Envelope`` as the protocol compiler understands proto/gantry/coord.proto."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.pb"
        import grpc_tools

        include = Path(grpc_tools.__file__).parent / "_proto"
        code = protoc.main(
            ["protoc", f"-I{ROOT / 'proto/gantry'}", f"-I{include}", "--include_imports",
             f"--descriptor_set_out={out}", "coord.proto"]
        )  # fmt: skip
        assert code == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gantry.coord.v1.Envelope"))


times = st.none() | st.integers(0, 4_000_000_000_000).map(lambda ms: ms / 1000)
failures = st.none() | st.sampled_from(FailureClass)
texts = st.text(max_size=30)
intents = st.builds(
    Intent,
    has_cached=st.booleans(),
    in_flight=st.booleans(),
    started_at=times,
    hrw_rank=st.integers(-1, 2**31 - 1),
    recently_failed=st.booleans(),
    cooldown_until=times,
    failure=failures,
)
results = st.builds(
    PullResult,
    digest=texts,
    outcome=st.integers(0, 4),
    started_at=times,
    cooldown_until=times,
    failure=failures,
)
requests = st.builds(
    PleasePullRequest,
    digests=st.lists(texts, max_size=5).map(tuple),
    registry=texts,
    repository=texts,
    kind=st.sampled_from(ContentKind),
    authorization=texts,
)
messages = (
    st.builds(PullIntentRequest, digest=texts)
    | intents
    | requests
    | st.builds(PleasePullResponse, results=st.lists(results, max_size=4).map(tuple))
)


@settings(max_examples=150, deadline=None)
@given(messages)
def test_the_protocol_compiler_reads_and_writes_the_same_bytes(envelope: Any, message: Any) -> None:
    ours = body(encode(message))
    theirs = envelope.FromString(ours)
    assert theirs.SerializeToString(deterministic=True) == ours
    assert decode(theirs.SerializeToString()) == message
    fields = {
        PullIntentRequest: "pull_intent_request",
        Intent: "pull_intent_response",
        PleasePullRequest: "please_pull_request",
        PleasePullResponse: "please_pull_response",
    }
    assert theirs.WhichOneof("msg") == fields[type(message)]


@given(
    st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 2**40), st.none() | st.integers(1, 2**40)
)
def test_durations_survive_and_old_readers_skip_them(
    age: float, silence: float, received: int, size: int | None
) -> None:
    said = Intent(
        in_flight=True, started_at=1.0, told=True, age=age, silence=silence, received=received,
        size=size,
    )  # fmt: skip
    heard = decode(body(encode(said, durations=True)))
    assert isinstance(heard, Intent)
    assert heard.told
    assert heard.age == pytest.approx(age, abs=0.001)
    assert heard.silence == pytest.approx(silence, abs=0.001)
    assert (heard.received, heard.size) == (received, size)
    assert not decode(body(encode(said))).told, "version 1.0.0 carries none"


def test_sizes_go_with_digests_or_not_at_all() -> None:
    request = PleasePullRequest(("a", "b"), "r", "n", ContentKind.BLOB, (7, 0))
    assert decode(body(encode(request))) == request
    odd = PleasePullRequest(("a", "b"), "r", "n", ContentKind.BLOB, (7,))
    assert decode(body(encode(odd))).sizes == ()


@pytest.mark.parametrize("raw", [b"", b"\x0a", b"\x0a\x05ab", b"\x08\x01", b"\x0a\x03\x0a\x01\xff"])
def test_what_is_no_message_is_a_violation(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode(raw)


def test_unknown_fields_and_kinds_are_let_be(envelope: Any) -> None:
    raw = body(encode(PullIntentRequest(DIGEST))) + b"\x98\x06\x01"
    assert decode(raw) == PullIntentRequest(DIGEST)
    later = b"\x1a\x02\x20\x63"  # kind 99
    assert decode(later) == PleasePullRequest(kind=ContentKind.BLOB)
    envelope.FromString(later)


@settings(max_examples=300, deadline=None)
@given(messages, st.data())
def test_flipped_and_cut_bytes_are_read_as_the_standard_reads_them_or_refused(
    envelope: Any, message: Any, data: st.DataObject
) -> None:
    """Where the standard library refuses, we refuse; where both read, the digest is the same."""
    raw = bytearray(body(encode(message)))
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        theirs = envelope.FromString(bytes(raw))
    except DecodeError:
        theirs = None
    try:
        ours = decode(bytes(raw))
    except ProtocolViolation:
        return
    if theirs is not None and isinstance(ours, PullIntentRequest):
        assert theirs.pull_intent_request.digest == ours.digest
    if theirs is not None and isinstance(ours, Intent):
        assert theirs.pull_intent_response.hrw_rank == ours.hrw_rank
        assert theirs.pull_intent_response.has_cached == ours.has_cached
