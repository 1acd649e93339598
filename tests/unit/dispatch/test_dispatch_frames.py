"""The bytes on the wire, written down by hand from the field numbers."""

from __future__ import annotations

import pytest

from leasehold.dispatch.grpc_transport import (
    MANAGER_CODEC,
    WORKER_CODEC,
    decode_requests,
    decode_responses,
    encode_request,
    encode_response,
)
from leasehold.dispatch.wire import FEATURES, Hello, Request, Response

REQUESTS = [
    # what an old manager sends: id (2), type (3), from (4), payload (5)
    (Request("u", "PING", b"", "m"), "120175 1a0450494e47 22016d"),
    (Request("u", "T", b"{}", "m", "v"), "0a0176 120175 1a0154 22016d 2a027b7d"),
    # what is added for a worker that asked for it: timeout (16), attempt (17), credit (18)
    (
        Request("u", "T", b"", "", "", timeout=1.5, attempt=2, credit=64),
        "120175 1a0154 8001dc0b 880102 900140",
    ),
]
RESPONSES = [
    (Response("u", "PONG", 0, True), "120175 1a04504f4e47 2801"),
    (Response("u", "B", 300, False, b"{}", version="v"), "0a0176 120175 1a0142 20ac02 3a027b7d"),
    # error (6) is a message of msg (1) and type (2)
    (
        Response("u", "END", 1, True, b"", "no", "t"),
        "120175 1a03454e44 2001 2801 32070a026e6f120174",
    ),
]


@pytest.mark.parametrize(("request_", "frame"), REQUESTS)
def test_requests(request_: Request, frame: str) -> None:
    assert encode_request(request_).hex() == frame.replace(" ", "")
    assert decode_requests(bytes.fromhex(frame)) == [request_]


@pytest.mark.parametrize(("response", "frame"), RESPONSES)
def test_responses(response: Response, frame: str) -> None:
    assert encode_response(response).hex() == frame.replace(" ", "")
    assert decode_responses(bytes.fromhex(frame)) == [response]


def test_unknown_fields_and_an_empty_error_are_harmless() -> None:
    extra = bytes.fromhex("120175 1a0154 fa0f0378797a")  # field 255
    assert decode_requests(extra)[0].id == "u"
    empty = bytes.fromhex("120175 1a0154 3200")
    assert decode_responses(empty)[0].error == ""


@pytest.mark.parametrize("frame", ["ff", "12ff", "0a0180", "1201"])
def test_garbage_is_an_error(frame: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        decode_responses(bytes.fromhex(frame))


def test_messages_travel_together_only_to_a_peer_that_takes_them_so() -> None:
    old, new = Hello(), Hello(features=FEATURES)
    long = Response("w", "B", 0, False, b"x" * 300)
    responses = [Response("u", "PONG", 0, True), long, Response("x", "END", 1, True)]
    assert WORKER_CODEC.frames(responses, old) == [encode_response(r) for r in responses]
    (frame,) = WORKER_CODEC.frames(responses, new)
    first, second, third = (encode_response(r).hex() for r in responses)
    # more (16) twice: two bytes of tag, the length as varint, the message
    assert frame.hex() == f"{first}8201b502{second}82010c{third}"
    assert MANAGER_CODEC.decode(frame) == responses
    requests = [Request("u", "PING", b"", "m"), Request("v", "T", b"{}", "m", attempt=1)]
    (frame,) = MANAGER_CODEC.frames(requests, new)
    first, second = (encode_request(r).hex() for r in requests)
    assert frame.hex() == f"{first}9a0110{second}"  # more (19)
    assert WORKER_CODEC.decode(frame) == requests
    with pytest.raises(ValueError, match="at most 64"):
        WORKER_CODEC.decode(bytes.fromhex("120175" + 64 * "9a0100"))
    nested = "120175 9a010c 120176 9a0106 120177 9a0100"
    assert [r.id for r in WORKER_CODEC.decode(bytes.fromhex(nested))] == ["u", "v"]
