"""The overview: how leases are, what is promised of this machine, and what needs somebody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Source
from leasehold.dashboard.pages import leases
from leasehold.dashboard.tree import Node, h

SHOWN = 8
"""Leases and alerts shown here."""

PARKED = ("parked", "paused", "failed", "error", "weak")


class Overview(leases.LeaseList):
    title = "Overview"

    def prepare(self) -> None:
        super().prepare()
        self.inventory: dict[str, Any] = {}
        self.tasks: list[dict[str, Any]] = []
        self.volumes: list[dict[str, Any]] = []
        self.balance: dict[str, str] = {}

    def sources(self) -> Mapping[str, Source]:
        found: dict[str, Source] = {"leases": self.follow}
        if self.api.is_operator:
            found["capacity"] = lambda: self.on_news("capacity", ("lease", "order"), self._capacity)
            found["alerts"] = lambda: self.on_news("alerts", (), self._alerts)
        else:
            found["funds"] = lambda: self.on_news("funds", ("lease",), self._funds)
        return found

    async def _capacity(self) -> None:
        self.inventory = await self.api.get("/v1/inventory")

    async def _alerts(self) -> None:
        self.tasks = [t for t in await self.api.get("/v1/observe/tasks") if t.get("error")]
        self.volumes = [v for v in await self.api.get("/v1/volumes") if v["error"]]

    async def _funds(self) -> None:
        self.balance = await self.api.ledger.balance(self.api.owner)

    def view(self) -> list[Node | None]:
        if not self.has("leases"):
            return [self.waiting("leases")]
        counted = self.counts()
        live = [item for item in self.newest() if item["state"] != "closed"]
        return [
            parts.tiles(
                ("Healthy", counted["healthy"], "answer"),
                ("On their way", counted["waiting"] + counted["running"], "not answering yet"),
                ("Need somebody", counted["unhealthy"] + counted["failed"], "unhealthy or failed"),
                ("Closed", counted["closed"], "history"),
                *self._purse(),
            ),
            parts.panel("Alerts", *self._alert_lines(), key="alerts"),
            parts.panel("Capacity", *self._capacity_lines()) if self.api.is_operator else None,
            parts.panel(
                "Newest leases",
                parts.table("Newest leases", leases.COLUMNS, leases.rows(live[:SHOWN]),
                            none=leases.nothing(self)),
                aside=parts.link("All leases", "/ui/leases"),
            ),
        ]  # fmt: skip

    def _purse(self) -> list[tuple[str, Any, str]]:
        if self.api.is_operator or not self.has("funds"):
            return []
        return [("Balance", text.number(int(amount)), denom) for denom, amount in
                sorted(self.balance.items())]  # fmt: skip

    def _alert_lines(self) -> list[Node]:
        lines = []
        if self.inventory.get("unavailable"):
            lines.append(
                parts.notice(f"No new bids are made: {self.inventory['unavailable']}", key="pause")
            )
        lines += [
            parts.notice(
                [
                    parts.link(text.lease(item["lease"]), leases.place(item["lease"])),
                    f" is {item['state']}: {item['unmet'] or 'no reason was given'}",
                ],
                parts.BAD if item["state"] == "failed" else parts.WARN,
                key=f"lease-{item['lease']}",
            )
            for item in self.newest()
            if item["state"] in ("unhealthy", "failed")
        ]
        lines += [
            parts.notice(
                [
                    parts.link(f"{task['activity']} of {task['entity'][:60]}", "/ui/observers"),
                    f" is {task['state']}: {_why(task['error'])}",
                ],
                key=f"task-{task['activity']}-{task['entity']}",
            )
            for task in self.tasks
        ]
        lines += [
            parts.notice(
                [parts.link(f"Volume {volume['path']}", "/ui/volumes"), f": {volume['error']}"],
                key=f"volume-{volume['id']}",
            )
            for volume in self.volumes
        ]
        if not lines:
            return [h("p", parts.state("Nothing needs you.", parts.GOOD))]
        more = len(lines) - 20
        return [*lines[:20], *([h("p", f"and {more} more", class_="soft")] if more > 0 else [])]

    def _capacity_lines(self) -> list[Node]:
        if not self.has("capacity"):
            return [self.waiting("capacity")]
        nodes = self.inventory["nodes"]
        if not nodes:
            return [
                parts.empty("No node offers anything.", "See ", parts.command("leasehold doctor"))
            ]
        lines = []
        for kind, name, unit in (
            ("cpu", "CPU", text.cores),
            ("memory", "Memory", text.size),
            ("storage", "Storage", text.size),
            ("gpu", "GPU", text.number),
        ):
            whole = sum(node["offered"][kind] for node in nodes)
            if not whole:
                continue
            leased = sum(item["total"][kind] for item in self.inventory["leased"])
            pending = sum(item["total"][kind] for item in self.inventory["pending"])
            lines.append(
                parts.meter(
                    name,
                    [("leased", leased, "busy"), ("promised to bids", pending, "warn")],
                    whole,
                    unit,
                    rest="free",
                )
            )
        return lines


def _why(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("code") or error)
    return str(error)
