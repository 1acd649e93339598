"""Routes to index workers and to the schedule, for the operator.

Managers and schedulers have APIs of their own; where they run in the provider's process, these
routes spare the operator a second address and a second credential.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from litestar import get, post
from litestar.handlers import BaseRouteHandler

from leasehold.gateway.auth import operator


class Schedule(Protocol):
    """The rows of the schedule."""

    async def all(self) -> list[Any]: ...

    async def enable(self, id: str) -> Any: ...

    async def disable(self, id: str) -> Any: ...

    async def history(self, id: str, *, limit: int = 100, offset: int = 0) -> list[Any]: ...


Workers = Callable[[], dict[str, Any]]
"""Network to workers by id, how many there are, how many are online."""


def routes(
    workers: Workers, schedule: Schedule, wake: Callable[[], None]
) -> Sequence[BaseRouteHandler]:
    """``wake`` has the scheduler look at its rows again."""

    @get("/v1/workers", guards=[operator], tags=["work"], sync_to_thread=False)
    def list_workers() -> dict[str, Any]:
        """Index workers by network, with the tasks each one has."""
        return workers()

    @get("/v1/schedule", guards=[operator], tags=["work"], operation_id="listSchedule")
    async def list_schedule() -> Any:
        """Every periodic task."""
        return msgspec.to_builtins(await schedule.all())

    @get("/v1/schedule/{id:str}/runs", guards=[operator], tags=["work"])
    async def schedule_runs(id: str, limit: int = 20) -> Any:
        """Results of a task, newest first."""
        return msgspec.to_builtins(await schedule.history(id, limit=max(1, min(limit, 1000))))

    @post("/v1/schedule/{id:str}/enable", guards=[operator], tags=["work"], status_code=200)
    async def schedule_enable(id: str) -> Any:
        """Let a task run from now on."""
        task = await schedule.enable(id)
        wake()
        return msgspec.to_builtins(task)

    @post("/v1/schedule/{id:str}/disable", guards=[operator], tags=["work"], status_code=200)
    async def schedule_disable(id: str) -> Any:
        """Start it no more."""
        task = await schedule.disable(id)
        wake()
        return msgspec.to_builtins(task)

    return [list_workers, list_schedule, schedule_runs, schedule_enable, schedule_disable]
