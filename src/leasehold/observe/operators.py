"""What operators see of the activities, and do to them."""

from __future__ import annotations

from typing import Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.observe.runs import PAUSES, Runs
from leasehold.observe.table import Table
from leasehold.observe.tasks import PAUSED, SLEEPING


class Operators:
    """An activity is named by its name and ``key``: the entity's id, and more for keyed ones."""

    def __init__(self, table: Table, runs: Runs) -> None:
        self.table = table
        self.runs = runs

    def counts(self) -> list[dict[str, Any]]:
        """One row a registration: how many activities it has, by state."""
        rows = []
        for registration in self.table.registrations.values():
            by_state: dict[str, int] = {SLEEPING: len(registration.asleep)}
            for task in registration.active.values():
                by_state[task.state] = by_state.get(task.state, 0) + 1
            rows.append(
                {
                    "activity": registration.name,
                    "kind": registration.entity_kind,
                    "limit": registration.limit,
                    "finished": len(registration.done),
                    **by_state,
                }
            )
        return rows

    def tasks(self, name: str = "", state: str = "") -> list[dict[str, Any]]:
        """One row an activity that is not simply asleep."""
        return [
            self.inspect(registration.name, key)
            for registration in self.table.registrations.values()
            if not name or registration.name == name
            for key, task in registration.active.items()
            if not state or task.state == state
        ]

    def inspect(self, name: str, key: str) -> dict[str, Any]:
        """Everything about one activity."""
        registration = self.table.registration(name)
        task = registration.active.get(key)
        row: dict[str, Any] = {
            "activity": name,
            "entity": f"{registration.entity_kind}:{key.partition(chr(0))[0]}",
            "key": key.partition("\0")[2],
        }
        if task is not None:
            row |= {
                "state": task.state,
                "tail": task.tail,
                "failures": task.failures,
                "error": msgspec.to_builtins(task.error),
                "timers": [timer.name for timer in task.timers],
            }
        elif key in registration.asleep:
            row |= {"state": SLEEPING, "tail": registration.asleep[key].tail}
        elif key in registration.done:
            row |= {"state": "finished", "tail": registration.done[key]}
        else:
            raise LeaseholdError(
                "activity_not_found", f"no activity {name} on {key!r}", kind=Kind.NOT_FOUND
            )
        return row

    def kick(self, name: str, key: str) -> None:
        """Run it now, whatever it waits for (unless paused)."""
        self.inspect(name, key)
        self.table.wake(self.table.activate(self.table.registration(name), key))

    async def pause(self, name: str, key: str) -> None:
        """Let what runs end, then start nothing until :meth:`resume`; survives a restart."""
        self.inspect(name, key)
        task = self.table.activate(self.table.registration(name), key)
        await self.runs.mark(PAUSES, task, b"paused")
        self.table.pause(task)

    async def resume(self, name: str, key: str) -> None:
        task = self.table.registration(name).active.get(key)
        if task is not None and task.paused:
            await self.runs.mark(PAUSES, task, None)
            task.paused = False
            if task.state == PAUSED:
                task.state = SLEEPING
                self.table.wake(task)

    async def clear(self, name: str, key: str) -> None:
        """Forget the stored error and try again."""
        task = self.table.registration(name).active.get(key)
        if task is not None:
            task.failures, task.failed_head = 0, None
            await self.runs.clear_error(task)
            self.table.wake(task)
