"""The market: orders, bids and blocks, each block as it is made. A tenant sees their own orders."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from leasehold.core.errors import unavailable
from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h

BLOCKS = 20
ROWS = 50
"""Blocks, and orders or bids, drawn."""

SUBSCRIBE = msgspec.json.encode(
    {"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": {"query": "tm.event='NewBlock'"}}
).decode()


class Market(Page):
    title = "Market"

    def prepare(self) -> None:
        self.status: dict[str, Any] = {}
        self.blocks: deque[dict[str, Any]] = deque(maxlen=BLOCKS)
        self.orders: list[dict[str, Any]] = []
        self.bids: list[dict[str, Any]] = []

    def sources(self) -> Mapping[str, Source]:
        return {"market": self._follow}

    async def _follow(self) -> None:
        """Look once, then again with every block the ledger announces."""
        url = "ws" + self.api.ledger_url.removeprefix("http") + "/websocket"
        try:
            async with connect(url, compression=None, max_size=16 << 20) as socket:
                await socket.send(SUBSCRIBE)
                async for _ in socket:
                    await self._look()
                    self.got("market")
        except (WebSocketException, OSError) as error:
            raise unavailable("ledger_unreachable", f"no answer: {error}") from None
        raise unavailable("ledger_unreachable", "the market closed the connection")

    async def _look(self) -> None:
        ledger = self.api.ledger
        self.status = (await ledger.status())["sync_info"]
        newest = int(self.status["latest_block_height"])
        first = max(1, newest - BLOCKS + 1)
        known = self.blocks[0]["height"] if self.blocks else 0
        if newest > known:
            found = await ledger.call(
                "blockchain", minHeight=str(max(first, known + 1)), maxHeight=str(newest)
            )
            for meta in reversed(found["block_metas"]):
                header = meta["header"]
                self.blocks.appendleft(
                    {"height": int(header["height"]), "time": header["time"],
                     "txs": int(meta["num_txs"]), "hash": meta["block_id"]["hash"]}
                )  # fmt: skip
        mine: dict[str, Any] = {} if self.api.is_operator else {"owner": self.api.owner}
        self.orders = await self._newest("orders", mine)
        self.bids = await self._newest("bids", mine)

    async def _newest(self, table: str, mine: dict[str, Any]) -> list[dict[str, Any]]:
        kept: deque[dict[str, Any]] = deque(maxlen=ROWS)
        async for item in self.api.ledger.list(table, **mine):
            kept.appendleft(item)
        return list(kept)

    def view(self) -> list[Node | None]:
        if not self.has("market"):
            return [self.waiting("market")]
        open_orders = sum(order["state"] == "open" for order in self.orders)
        return [
            parts.tiles(
                ("Height", text.number(int(self.status["latest_block_height"])),
                 f"block of {self.status['latest_block_time'][11:19]} UTC"),
                ("Open orders", open_orders, "can be bid on"),
                ("Open bids", sum(b["state"] == "open" for b in self.bids), "not decided"),
            ),
            parts.panel("Orders", parts.table(
                "Orders", ("Order", "State", "Since block", "Closed in"),
                [(o["id"], [h("span", _short(o["id"]), title=o["id"]), parts.state(o["state"]),
                            text.number(o["created"]), text.number(o["closed"] or None)])
                 for o in self.orders],
                none=parts.empty("No order yet.", "An order is made by a deployment: ",
                                 parts.command("leasehold deploy FILE")), numbers=(2, 3))),
            parts.panel("Bids", parts.table(
                "Bids", ("Order", "State", "Price a block", "From", "Since block"),
                [(b["id"], [h("span", _short(b["id"].rpartition("/")[0]), title=b["id"]),
                            parts.state(b["state"]), f"{b['price']} {b['denom']}",
                            text.address(b["id"].rpartition("/")[2]), text.number(b["created"])])
                 for b in self.bids],
                none=parts.empty("No bid yet.", "Providers bid on orders that fit; see ",
                                 parts.command("leasehold order ls")), numbers=(2, 4))),
            parts.panel("Blocks", parts.table(
                "Blocks", ("Height", "Time (UTC)", "Transactions", "Hash"),
                [(str(b["height"]), [text.number(b["height"]), b["time"][:23].replace("T", " "),
                                     str(b["txs"]), h("code", b["hash"][:16], title=b["hash"])])
                 for b in self.blocks], numbers=(0, 2))),
        ]  # fmt: skip


def _short(order: str) -> str:
    owner, _, rest = order.partition("/")
    return f"{text.address(owner)}/{rest}"
