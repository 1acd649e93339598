"""Websockets of the gateway for commands: opened with the tenant's token, refused in plain words.

A refusal comes as an HTTP status before the websocket opens, later as a close code; both become
the error the gateway meant.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from leasehold.cli.client import Api, refusal
from leasehold.core.errors import Kind, LeaseholdError

MAX_FRAME = 1 << 20
"""Bytes of one frame."""

_CLOSED = {4001: Kind.NOT_FOUND, 4002: Kind.UNAVAILABLE}


@contextlib.contextmanager
def connect(api: Api, path: str) -> Iterator[Any]:
    """The open websocket at ``path``. Iterating it ends when the server is done."""
    import ssl

    from websockets.exceptions import ConnectionClosedError, InvalidStatus
    from websockets.sync.client import connect as dial

    url = api.url.replace("http", "ws", 1) + path
    headers = {"Authorization": f"Bearer {api.token()}"}
    context = ssl.create_default_context() if url.startswith("wss") else None
    try:
        with dial(
            url, additional_headers=headers, max_size=MAX_FRAME, ssl=context, proxy=None
        ) as socket:
            yield socket
    except InvalidStatus as error:
        body = error.response.body or b""
        try:
            said = json.loads(body)
        except ValueError:
            said = {}
        raise refusal(error.response.status_code, said, body.decode(errors="replace")) from None
    except ConnectionClosedError as error:
        code = error.rcvd.code if error.rcvd else 1006
        why = error.rcvd.reason if error.rcvd else "the connection was lost"
        raise LeaseholdError(
            f"stream_closed_{code}",
            why or "the provider ended the stream",
            kind=_CLOSED.get(code, Kind.UNAVAILABLE if code == 1006 else Kind.INTERNAL),
        ) from None
    except (OSError, TimeoutError) as error:
        raise LeaseholdError(
            "gateway_unreachable",
            f"the gateway at {api.url} does not answer: {error}",
            kind=Kind.UNAVAILABLE,
            retry_after=1.0,
        ) from None
