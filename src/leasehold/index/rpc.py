"""CometBFT's JSON-RPC, as much of it as an index needs.

Calls are POSTs of one JSON-RPC request each. Answers come as raw JSON of the result, for
:mod:`cometbft` to decode. :meth:`Rpc.new_blocks` is the websocket: heights as they are announced,
with pings, so that a connection that died without saying so is noticed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import websockets
from websockets.asyncio.client import connect

from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.index import metrics
from leasehold.index.http1 import HttpFailure, Poster

SUBSCRIBE = "tm.event='NewBlock'"

PING_TIMEOUT_SHARE = 0.5
"""Pings go out at this part of ``push_silence`` and must be answered within the rest."""

log = get_logger(__name__)


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Any = None


class _Answer(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"")
    error: _Error | None = None


_answers = msgspec.json.Decoder(_Answer)


class Rpc:
    """One node. Close it with :meth:`close`, or use it as an async context manager."""

    def __init__(
        self, url: str, *, timeout: float = 15.0, max_bytes: int = 256 << 20, connections: int = 32
    ) -> None:
        self.url = url.rstrip("/")
        self.max_bytes = max_bytes
        self._http = Poster(self.url, timeout=timeout, connections=connections, max_bytes=max_bytes)

    async def __aenter__(self) -> Rpc:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.close()

    async def call(self, method: str, **params: Any) -> bytes:
        """The raw JSON of the result.

        LeaseholdError ``rpc_unreachable`` or ``rpc_bad_answer`` when there is no proper answer,
        ``rpc_refused`` with the node's own words when it says no.
        """
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        try:
            with metrics.RPC_TIME.labels(method).time():
                status, content = await self._http.post(body)
        except HttpFailure as error:
            raise unavailable(
                "rpc_unreachable", f"{self.url} does not answer {method}: {error}", got=self.url
            ) from None
        try:
            decoded = _answers.decode(content)
        except msgspec.MsgspecError as error:
            raise _bad(method, f"HTTP {status}: {error}") from None
        if decoded.error is not None:
            data = f": {decoded.error.data}" if decoded.error.data else ""
            raise LeaseholdError(
                "rpc_refused",
                f"{method}: {decoded.error.message}{data}",
                kind=Kind.UNAVAILABLE,
                got=decoded.error.code,
            )
        if not decoded.result:
            raise _bad(method, f"HTTP {status}: neither result nor error")
        return bytes(decoded.result)

    async def status(self) -> bytes:
        return await self.call("status")

    async def block(self, height: int) -> bytes:
        return await self.call("block", height=str(height))

    async def block_results(self, height: int) -> bytes:
        return await self.call("block_results", height=str(height))

    async def tx_search(self, query: str, *, page: int = 1, per_page: int = 100) -> bytes:
        return await self.call(
            "tx_search",
            query=query,
            prove=False,
            page=str(page),
            per_page=str(per_page),
            order_by="asc",
        )

    async def abci_query(self, path: str, data: bytes, height: int = 0) -> bytes:
        return await self.call(
            "abci_query", path=path, data=data.hex(), height=str(height), prove=False
        )

    @property
    def websocket_url(self) -> str:
        scheme, _, rest = self.url.partition("://")
        return f"{'wss' if scheme == 'https' else 'ws'}://{rest}/websocket"

    async def new_blocks(self, *, silence: float) -> AsyncIterator[int]:
        """Heights announced from now on; 0 first, when the subscription stands.

        Ends by LeaseholdError ``push_ended`` when the connection breaks or when it stays silent:
        a ping goes out every half of ``silence`` seconds and must be answered within the other.
        """
        half = silence * PING_TIMEOUT_SHARE
        try:
            async with connect(
                self.websocket_url,
                open_timeout=silence,
                ping_interval=half,
                ping_timeout=half,
                close_timeout=1.0,
                max_size=self.max_bytes,
            ) as socket:
                await socket.send(
                    msgspec.json.encode(
                        {
                            "jsonrpc": "2.0",
                            "id": 1,
                            "method": "subscribe",
                            "params": {"query": SUBSCRIBE},
                        }
                    ).decode()
                )
                async for message in socket:
                    yield _announced(message)
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            raise _push_ended(self.websocket_url, str(error) or type(error).__name__) from None
        raise _push_ended(self.websocket_url, "closed by the node")


class _Header(msgspec.Struct):
    height: int


class _Block(msgspec.Struct):
    header: _Header


class _Value(msgspec.Struct):
    block: _Block | None = None


class _Data(msgspec.Struct):
    value: _Value | None = None


class _NewBlock(msgspec.Struct):
    data: _Data | None = None


class _Pushed(msgspec.Struct):
    result: _NewBlock | None = None
    error: _Error | None = None


_pushed = msgspec.json.Decoder(_Pushed, strict=False)  # heights are JSON strings


def _announced(message: str | bytes) -> int:
    """The height of a NewBlock message; 0 for the answer to the subscription."""
    try:
        pushed = _pushed.decode(message)
    except msgspec.MsgspecError as error:
        raise _push_ended("websocket", f"bad message: {error}") from None
    if pushed.error is not None:
        raise _push_ended("websocket", f"{pushed.error.message}: {pushed.error.data}")
    data = pushed.result.data if pushed.result else None
    if data is None or data.value is None or data.value.block is None:
        return 0
    return data.value.block.header.height


def _push_ended(url: str, reason: str) -> LeaseholdError:
    return unavailable("push_ended", f"no more pushes from {url}: {reason}", got=url)


def _bad(method: str, why: str) -> LeaseholdError:
    return LeaseholdError(
        "rpc_bad_answer", f"bad answer to {method}: {why}", kind=Kind.UNAVAILABLE, got=method
    )
