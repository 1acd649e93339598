"""The bytes on the wire, written down by hand from the field numbers."""

from __future__ import annotations

import pytest

from leasehold.dispatch.grpc_transport import (
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from leasehold.dispatch.wire import Request, Response

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
    assert decode_request(bytes.fromhex(frame)) == request_


@pytest.mark.parametrize(("response", "frame"), RESPONSES)
def test_responses(response: Response, frame: str) -> None:
    assert encode_response(response).hex() == frame.replace(" ", "")
    assert decode_response(bytes.fromhex(frame)) == response


def test_unknown_fields_and_an_empty_error_are_harmless() -> None:
    extra = bytes.fromhex("120175 1a0154 fa0f0378797a")  # field 255
    assert decode_request(extra).id == "u"
    empty = bytes.fromhex("120175 1a0154 3200")
    assert decode_response(empty).error == ""


@pytest.mark.parametrize("frame", ["ff", "12ff", "0a0180", "1201"])
def test_garbage_is_an_error(frame: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        decode_response(bytes.fromhex(frame))
