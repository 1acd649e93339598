"""The schedule: periodic tasks, when they are due, and what came of the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h


class Schedule(Page):
    title = "Schedule"
    operator_only = True

    def prepare(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.chosen = ""

    def sources(self) -> Mapping[str, Source]:
        return {"schedule": lambda: self.every("schedule", self._load)}

    async def _load(self) -> None:
        self.tasks = await self.api.get("/v1/schedule")
        if self.chosen:
            self.runs = await self.api.get(f"/v1/schedule/{self.chosen}/runs")

    async def choose(self, id: str) -> None:
        self.chosen, self.runs = ("" if self.chosen == id else id), []
        await self._load()

    async def switch(self, id: str, on: bool) -> None:
        await self.api.post(f"/v1/schedule/{id}/{'enable' if on else 'disable'}")
        await self._load()

    def view(self) -> list[Node | None]:
        if not self.has("schedule"):
            return [self.waiting("schedule")]
        rows = [
            (
                task["id"],
                [h("div", h("strong", task["task_id"]), h("div", task["kind"], class_="soft")),
                 f"{task['network']} {task['chain_id']}",
                 h("div", parts.state("enabled" if task["enabled"] else "disabled"),
                   h("span", task["status"], class_="soft")),
                 f"every {text.duration(task['interval'] * 1000)}",
                 parts.moment(task["due_at"]) if task["enabled"] else "–",
                 str(task["failures"]),
                 h("div",
                   parts.button("Results", partial(self.choose, task["id"]),
                                aria_label=f"Results of {task['task_id']}"),
                   parts.button("Disable" if task["enabled"] else "Enable",
                                partial(self.switch, task["id"], not task["enabled"]),
                                aria_label=f"{'Disable' if task['enabled'] else 'Enable'} "
                                f"{task['task_id']}"), class_="row")],
            )
            for task in self.tasks
        ]  # fmt: skip
        columns = ("Task", "Chain", "State", "How often", "Due (UTC)", "Failures", "")
        add = parts.command("leasehold schedule add")
        none = parts.empty("Nothing is scheduled.", "Add a task with ", add)
        return [
            parts.table("Tasks", columns, rows, none=none, numbers=(5,)),
            self._runs() if self.chosen else None,
        ]  # fmt: skip

    def _runs(self) -> Node:
        rows = [
            (
                f"{run['at']}-{run['height']}",
                [parts.moment(run["at"]), parts.state("failed" if run["error"] else "done"),
                 text.duration(run["seconds"] * 1000), text.number(run["height"]),
                 run["error"] or "–"],
            )
            for run in self.runs
        ]  # fmt: skip
        return parts.panel(
            "Results",
            parts.table("Results, newest first", ("At (UTC)", "Outcome", "Took", "Height", "Error"),
                        rows, none=parts.empty("It has not run yet."), numbers=(2, 3)),
        )  # fmt: skip
