"""Index workers and the tasks each one has now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h


class Workers(Page):
    title = "Workers"
    operator_only = True

    def prepare(self) -> None:
        self.networks: dict[str, Any] = {}

    def sources(self) -> Mapping[str, Source]:
        return {"workers": lambda: self.every("workers", self._load)}

    async def _load(self) -> None:
        self.networks = await self.api.get("/v1/workers")

    def view(self) -> list[Node | None]:
        if not self.has("workers"):
            return [self.waiting("workers")]
        if not self.networks:
            return [parts.empty("No worker is known.", "Start one with ",
                                parts.command("leasehold worker"))]  # fmt: skip
        return [self._network(name, found) for name, found in self.networks.items()]

    def _network(self, name: str, found: dict[str, Any]) -> Node:
        rows, tasks = [], []
        for id, worker in found["workers"].items():
            connection = (worker["connection"] or [{}])[0]
            addresses = connection.get("addresses") or [{}]
            busy = worker["tasks"]["ResponseMap"]
            rows.append(
                (
                    id,
                    [h("code", id[:8], title=id),
                     h("div", parts.state(worker["state_name"]),
                       h("div", worker["problem"], class_="soft") if worker["problem"] else None),
                     worker["chain_id"], connection.get("version", "–"),
                     addresses[0].get("address", "–"),
                     text.duration((worker.get("latency") or 0) * 1000), str(len(busy))],
                )
            )  # fmt: skip
            tasks += [
                (task, [h("code", task, class_="wrap"), h("code", id[:8]),
                        parts.state("working" if entry["state"] else "done"),
                        str(entry["created"])[11:19]])
                for task, entry in busy.items()
            ]  # fmt: skip
        return parts.panel(
            name,
            parts.table(f"Workers of {name}", ("Worker", "State", "Chain", "Version", "Address",
                        "Latency", "Tasks"), rows, numbers=(5, 6)),
            h("h3", "Tasks under way"),
            parts.table(f"Tasks of {name}", ("Task", "Worker", "State", "Since (UTC)"), tasks,
                        none=h("p", "None just now.", class_="soft")),
            aside=f"{found['active']} of {found['all']} online",
        )  # fmt: skip
