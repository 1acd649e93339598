"""A websocket connection: calls, and events pushed by query.

Each connection has a bounded queue of what is to be pushed. A client too slow to read it loses its
subscriptions with an error, as CometBFT does it, instead of growing our memory; it subscribes again
and reads the blocks it missed by height.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.market.ledger import comet
from leasehold.market.ledger.chain import Block
from leasehold.market.ledger.query import Query, parse
from leasehold.market.ledger.search import block_events, tx_events

if TYPE_CHECKING:
    from leasehold.market.ledger.rpc import Request, Rpc
    from leasehold.market.ledger.service import LedgerService

QUEUE = 1_000
"""Blocks waiting to be pushed to one connection."""

_encode = msgspec.json.encode


class Subscriber:
    """Serves one accepted websocket until either side ends it."""

    def __init__(self, rpc: Rpc, ledger: LedgerService, receive: Any, send: Any) -> None:
        self.rpc = rpc
        self.ledger = ledger
        self._receive = receive
        self._send = send
        self._queries: dict[str, tuple[Query, Any]] = {}
        self._queue: deque[Block] = deque()
        self._ready = asyncio.Event()
        self._sending = asyncio.Lock()
        self._overrun: list[Any] = []
        self._gone = False

    async def run(self) -> None:
        """Push and answer until the client leaves."""
        stop_listening = self.ledger.listen(self._new_block)
        try:
            async with asyncio.TaskGroup() as tasks:
                pushing = tasks.create_task(self._push())
                await self._answer()
                pushing.cancel()
        finally:
            stop_listening()

    def _new_block(self, block: Block) -> None:
        if not self._queries:
            return
        if len(self._queue) >= QUEUE:
            self._queue.clear()
            lost, self._queries = self._queries, {}
            self._overrun = [id for _, id in lost.values()]
        else:
            self._queue.append(block)
        self._ready.set()

    async def _answer(self) -> None:
        from leasehold.market.ledger.rpc import Request

        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text") or (message.get("bytes") or b"").decode("utf-8", "replace")
            try:
                request = msgspec.json.decode(text, type=Request)
            except (msgspec.MsgspecError, RecursionError) as error:
                await self._reply(None, error={"code": -32700, "message": str(error)[:300]})
                continue
            if request.method in ("subscribe", "unsubscribe", "unsubscribe_all"):
                await self._subscription(request)
            else:
                await self._text(await self.rpc.call(request))

    async def _subscription(self, request: Request) -> None:
        params = request.params
        text = params.get("query") if isinstance(params, dict) else (params or [""])[0]
        try:
            if request.method == "unsubscribe_all":
                self._queries.clear()
            elif not isinstance(text, str):
                raise LeaseholdError("bad_query", "failed to parse query: it is no text")
            elif request.method == "unsubscribe":
                if self._queries.pop(text, None) is None:
                    raise LeaseholdError("not_subscribed", "subscription not found")
            elif text in self._queries:
                raise LeaseholdError("already_subscribed", "already subscribed")
            elif len(self._queries) >= self.ledger.settings.max_subscriptions:
                raise LeaseholdError("too_many_subscriptions", "too many subscriptions")
            else:
                self._queries[text] = (parse(text), request.id)
        except LeaseholdError as error:
            await self._reply(
                request.id,
                error={"code": -32603, "message": "Internal error", "data": error.message},
            )
            return
        await self._reply(request.id, result={})

    async def _push(self) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._queue and not self._gone:
                block = self._queue.popleft()
                for query, id in list(self._queries.values()):
                    for result in self._results(query, block):
                        await self._reply(id, result=result)
            overrun, self._overrun = self._overrun, []
            for id in overrun:
                why = "subscription was cancelled: the client does not read fast enough"
                await self._reply(
                    id, error={"code": -32000, "message": "Server error", "data": why}
                )

    def _results(self, query: Query, block: Block) -> list[dict[str, Any]]:
        genesis = self.ledger.genesis
        kind = query.equals("tm.event")
        if kind == "Tx":
            return [
                _event(query, "Tx", events, {"TxResult": _tx_result(block, position)})
                for position in range(len(block.txs))
                if query.matches(events := tx_events(block, position))
            ]
        events = block_events(block)
        if kind == "NewBlock" and query.matches(events):
            value = comet.block_answer(genesis, block)
            results = comet.block_results(block)
            value["result_finalize_block"] = {
                "events": results["finalize_block_events"] or [],
                "tx_results": results["txs_results"] or [],
                "validator_updates": [],
                "app_hash": results["app_hash"],
            }
            return [_event(query, "NewBlock", events, value)]
        if kind == "NewBlockHeader":
            events["tm.event"] = ["NewBlockHeader"]
            if query.matches(events):
                value = {"header": comet.header(genesis, block)}
                return [_event(query, "NewBlockHeader", events, value)]
        if kind == "NewBlockEvents":
            events["tm.event"] = ["NewBlockEvents"]
            if query.matches(events):
                value = {
                    "height": str(block.height),
                    "events": comet.events(block.events),
                    "num_txs": str(len(block.txs)),
                }
                return [_event(query, "NewBlockEvents", events, value)]
        return []

    async def _reply(self, id: Any, *, result: Any = None, error: Any = None) -> None:
        answer = {"jsonrpc": "2.0", "id": id}
        await self._text({**answer, "error": error} if error else {**answer, "result": result})

    async def _text(self, answer: dict[str, Any]) -> None:
        async with self._sending:
            try:
                await self._send({"type": "websocket.send", "text": _encode(answer).decode()})
            except (OSError, RuntimeError):
                # The client left while we wrote; receive() says so in its turn.
                self._gone = True


def _event(query: Query, kind: str, events: dict[str, list[str]], value: Any) -> dict[str, Any]:
    return {
        "query": query.text,
        "data": {"type": f"tendermint/event/{kind}", "value": value},
        "events": events,
    }


def _tx_result(block: Block, position: int) -> dict[str, Any]:
    result = comet.tx_result(block.results[position])
    return {
        "height": str(block.height),
        "index": position,
        "tx": comet.b64(block.txs[position]),
        "result": {"data": result["data"], "events": result["events"]},
    }
