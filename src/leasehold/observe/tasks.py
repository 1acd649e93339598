"""The engine's tables: which activities exist, and the little that is kept of a sleeping one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec

from leasehold.events.event import DueTimer, Entity
from leasehold.observe.activity import Activity, ActivityFactory

SLEEPING, READY, RUNNING, RETRYING, PARKED, PAUSED = (
    "sleeping",
    "ready",
    "running",
    "retrying",
    "parked",
    "paused",
)


class Sleeper(msgspec.Struct, gc=False):
    """How far it has read, and what it knew then (None: it must read everything again)."""

    tail: str | None
    saved: bytes | None = None


class StoredError(msgspec.Struct, frozen=True):
    """An error kept for operators. ``message`` is cut for display, ``full`` is all of it."""

    code: str
    message: str
    full: str
    at: float
    failures: int
    parked: bool = False


@dataclass(slots=True, eq=False)
class Registration:
    """One kind of activity, and all of its sleepers by key."""

    name: str
    entity_kind: str
    limit: str
    factory: ActivityFactory
    batch: bool
    every: bool
    """Whether each entity of the kind has one; else they are begun by other activities."""
    eager: bool = False
    asleep: dict[str, Sleeper] = field(default_factory=dict)
    active: dict[str, Task] = field(default_factory=dict)
    done: dict[str, str | None] = field(default_factory=dict)
    """Finished ones and the tail they had: only later news starts them again."""
    keys: dict[str, set[str]] = field(default_factory=dict)
    """The keyed ones of an entity id."""

    def task_name(self, key: str) -> str:
        extra = key.partition("\0")[2]
        return f"{self.name}#{extra}" if extra else self.name


@dataclass(slots=True, eq=False)
class Task:
    """An activity that is not simply asleep."""

    registration: Registration
    key: str
    tail: str | None = None
    saved: bytes | None = None
    saved_tail: str | None = None
    option: Any = None
    activity: Activity | None = None
    state: str = READY
    dirty: bool = False
    paused: bool = False
    woken_at: float = 0.0
    timers: list[DueTimer] = field(default_factory=list)
    failures: int = 0
    error: StoredError | None = None
    failed_head: str | None = None
    retry: asyncio.TimerHandle | None = None
    done: asyncio.Event | None = None

    @property
    def entity(self) -> Entity:
        return Entity(self.registration.entity_kind, self.key.partition("\0")[0])

    @property
    def name(self) -> str:
        return self.registration.task_name(self.key)


def task_key(id: str, extra: str = "") -> str:
    """Tasks of one entity are told apart by ``extra``, empty for the usual single one."""
    return f"{id}\0{extra}" if extra else id
