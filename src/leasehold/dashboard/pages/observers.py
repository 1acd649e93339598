"""Observers: the activities over the log, by kind and state, and a way to push those that stick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h

DRAWN = 100


class Observers(Page):
    title = "Observers"
    operator_only = True

    def prepare(self) -> None:
        self.counts: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.only = "stuck"

    def sources(self) -> Mapping[str, Source]:
        return {"observers": lambda: self.on_news("observers", (), self._load)}

    async def _load(self) -> None:
        self.counts = await self.api.get("/v1/observe")
        self.tasks = await self.api.get("/v1/observe/tasks")

    def show_only(self, which: str) -> None:
        self.only = which

    async def tell(self, what: str, task: dict[str, Any]) -> None:
        body = {name: task[name] for name in ("activity", "entity", "key")}
        done = await self.api.post(f"/v1/observe/{what}", body)
        await self._load()
        self.visit.say(f"{done['activity']} of {done['entity'][:40]} is {done['state']}.")

    def view(self) -> list[Node | None]:
        if not self.has("observers"):
            return [self.waiting("observers")]
        named = {state for row in self.counts for state in row}
        states = sorted(named - {"activity", "kind", "limit", "finished", "sleeping"})
        columns = ["Activity", "Entities", "Queue", "Sleeping"]
        columns += [*map(str.capitalize, states), "Finished"]
        found = [
            t for t in self.tasks
            if self.only == "all" or t.get("error") or t["state"] not in ("sleeping", "running")
        ]  # fmt: skip
        return [
            parts.panel("Activities", parts.table(
                "Activities by kind", columns,
                [(row["activity"], [row["activity"], row["kind"], row["limit"],
                                    text.number(row["sleeping"]),
                                    *(text.number(row.get(s, 0)) for s in states),
                                    text.number(row["finished"])])
                 for row in self.counts],
                none=parts.empty("No activity is registered."),
                numbers=tuple(range(3, 5 + len(states))))),
            parts.panel(
                "Awake",
                parts.choice("Show", "which", [("stuck", "those with errors, waiting or paused"),
                                               ("all", "all that are awake")],
                             self.only, self.show_only),
                parts.table("Awake activities", ("Activity", "Entity", "State", "Failures", "Says",
                                                 ""),
                            [(f"{t['activity']} {t['entity']} {t['key']}", self._row(t))
                             for t in found[:DRAWN]],
                            none=parts.empty("Nothing is stuck."), numbers=(3,)),
                h("p", f"and {len(found) - DRAWN} more", class_="soft")
                if len(found) > DRAWN else None,
            ),
        ]  # fmt: skip

    def _row(self, task: dict[str, Any]) -> list[Any]:
        error = task.get("error") or {}
        said = error.get("message", "") if isinstance(error, dict) else str(error)
        what = f"{task['activity']} of {task['entity'][:40]}"
        resume = task["state"] == "paused"
        return [
            task["activity"],
            parts.link(task["entity"][:64], f"/ui/events?entity={task['entity']}"),
            parts.state(task["state"]),
            str(task.get("failures", 0)),
            said or ", ".join(task.get("timers", ())) or "–",
            h("div",
              parts.button("Kick", lambda: self.tell("kick", task), aria_label=f"Kick {what}"),
              parts.button("Resume" if resume else "Pause",
                           lambda: self.tell("resume" if resume else "pause", task),
                           aria_label=f"{'Resume' if resume else 'Pause'} {what}"),
              parts.button("Clear", lambda: self.tell("clear", task),
                           aria_label=f"Clear {what}") if said else None,
              class_="row"),
        ]  # fmt: skip
