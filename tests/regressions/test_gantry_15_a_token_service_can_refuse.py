"""Credentials refused by a token service are refused, not a passing failure.

The original classed every failing token endpoint as transient, so bad credentials were tried again
and again and the other nodes never learnt of them. Raise TRANSIENT for the 401 in
``Authorizer.answer`` and this fails.
"""

from __future__ import annotations

import httpx
import pytest

from leasehold.core.clock import SystemClock
from leasehold.images.challenge import Authorizer
from leasehold.images.ports import Credentials, FailureClass, OriginError

CHALLENGE = 'Bearer realm="https://auth.example/token",service="r.example"'


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (401, FailureClass.AUTH),
        (403, FailureClass.AUTH),
        (429, FailureClass.RATE_LIMITED),
        (503, FailureClass.TRANSIENT),
    ],
)
async def test_the_class_of_a_token_failure(status: int, failure: FailureClass) -> None:
    async def send(url: httpx.URL, headers: dict[str, str]) -> httpx.Response:
        assert url.params["service"] == "r.example" and headers["Authorization"]
        return httpx.Response(status)

    with pytest.raises(OriginError) as caught:
        await Authorizer(SystemClock()).answer(
            "r.example", "repository:a:pull", CHALLENGE, Credentials("u", "p"), send
        )
    assert caught.value.failure is failure
