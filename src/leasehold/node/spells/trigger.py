"""What may fire a spell.

A clock fires at ``start``, ``start + period``, … before ``end`` (Unix seconds, UTC). ``start`` 0 is
no clock at all, a start in the past means *now* (1 is the idiom for "at once"), ``period`` 0 fires
once, ``end`` 0 never ends. The instant a clock was armed is stored with the spell, so its ticks
stay where they were over restarts.

A configuration is *validated* once, when it is set: then an end in the past is an error. At boot it
is *resumed*: a clock that ended meanwhile is dropped and every other trigger stays.
"""

from __future__ import annotations

import fnmatch
from typing import Annotated, Any, Literal

import msgspec

from leasehold.core.errors import LeaseholdError, Violation
from leasehold.node.settings import MAX_PERIOD_SEC

U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class ClockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Unix seconds; see the module for what 0 and 1 mean."""

    start_sec: U32 = 0
    end_sec: U32 = 0
    period_sec: U32 = 0


class ConnectionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fire when a peer connects or disconnects."""

    connect: bool = False
    disconnect: bool = False


class BlockchainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Stored for compatibility, never used, as in the original."""

    start_block: U32 = 0
    end_block: U32 = 0


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fire on events of the log: entity kinds, and event types as shell patterns (`lease.*`)."""

    kinds: tuple[str, ...] = ()
    types: tuple[str, ...] = ("*",)

    def matches(self, kind: str, type_: str) -> bool:
        return kind in self.kinds and any(fnmatch.fnmatchcase(type_, t) for t in self.types)


class TriggerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All triggers of a spell and how its runs relate.

    ``overlap``: what a trigger does while a run is under way: ``skip`` it (default), ``queue`` one
    run after it, or ``allow`` both. ``catch_up``: what happens to ticks missed while the node was
    down or asleep: ``none``, ``once`` for all of them (default), or ``all`` (at most 100).
    """

    clock: ClockConfig = ClockConfig()
    connections: ConnectionConfig = ConnectionConfig()
    blockchain: BlockchainConfig = BlockchainConfig()
    log: LogConfig = LogConfig()
    mailbox: bool = False
    overlap: Literal["skip", "queue", "allow"] = "skip"
    catch_up: Literal["none", "once", "all"] = "once"

    @property
    def empty(self) -> bool:
        """True when nothing can fire it: valid, and nothing is subscribed."""
        return not (
            self.clock.start_sec
            or self.connections.connect
            or self.connections.disconnect
            or self.log.kinds
            or self.mailbox
        )


BLANK = TriggerConfig()
"""Fires never. Written before a spell is removed, so that a failed removal leaves it silent."""


def parse(raw: object, *, path: str = "trigger") -> TriggerConfig:
    """A configuration out of decoded JSON or TOML; LeaseholdError names the field."""
    try:
        return msgspec.convert(raw, TriggerConfig)
    except msgspec.ValidationError as error:
        raise LeaseholdError(
            "bad_trigger", f"trigger config: {error}", path=path, got=repr(raw)[:120]
        ) from None


def validate(config: TriggerConfig, now: float, *, path: str = "trigger") -> list[Violation]:
    """Everything wrong with ``config`` when it is set at ``now``."""
    clock, wrong = config.clock, []
    if clock.period_sec > MAX_PERIOD_SEC:
        wrong.append(
            Violation(
                "period_too_big",
                "period is too big: 100 years at most",
                path=f"{path}.clock.period_sec",
                expected=f"<= {MAX_PERIOD_SEC}",
                got=str(clock.period_sec),
            )
        )
    if clock.start_sec and clock.end_sec:
        if clock.end_sec < clock.start_sec:
            wrong.append(
                Violation(
                    "end_before_start",
                    "the clock ends before it starts",
                    path=f"{path}.clock.end_sec",
                    expected=f">= start_sec ({clock.start_sec})",
                    got=str(clock.end_sec),
                )
            )
        elif clock.end_sec <= now:
            wrong.append(
                Violation(
                    "end_in_past",
                    "the clock ended in the past",
                    path=f"{path}.clock.end_sec",
                    expected=f"> {int(now)} (now)",
                    got=str(clock.end_sec),
                )
            )
    return wrong


def first_tick(clock: ClockConfig, armed_at: float) -> float | None:
    """When a clock armed at ``armed_at`` fires first; None for no clock."""
    return None if clock.start_sec == 0 else max(float(clock.start_sec), armed_at)


class TriggerEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What fired a run. ``due`` is the clock tick; ``data`` is what the script sees."""

    kind: Literal["timer", "peer", "mailbox", "log", "manual"]
    data: dict[str, Any] = {}
    due: float | None = None

    def for_script(self) -> dict[str, list[dict[str, Any]]]:
        """The original's shape: exactly one list has exactly one item."""
        shape: dict[str, list[dict[str, Any]]] = {"timer": [], "peer": []}
        if self.kind not in shape:
            shape[self.kind] = []
        shape[self.kind] = [self.data]
        return shape
