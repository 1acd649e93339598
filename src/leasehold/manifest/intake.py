"""The activity of a won lease: it gets its manifest, or its bid is closed.

Folded from the lease's own events, so its deadline is the time the lease was won plus the
watchdog's time, whenever and however often this process is started. A manifest received *for this
lease* disarms it, nothing else does. When the time is up the bid is closed: awaited, tried again
with back-off until it is closed by whomever; a lease in its reclamation window is closed when the
window ends.

A lease won while a manifest of its deployment is already known is served at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

import msgspec

from leasehold.core import metrics
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.events.event import Event, NewEvent
from leasehold.events.log import VersionConflict
from leasehold.manifest.ports import MANIFEST_TIMEOUT, MarketWriter
from leasehold.manifest.settings import ManifestSettings
from leasehold.model.events.manifest import ManifestOverdue, WatchdogClosedBid
from leasehold.model.market import LeaseId
from leasehold.observe.activity import Context, Outcome, Reconciler

log = get_logger(__name__)

TIMER = "watchdog"
CLOSED = metrics.counter(
    "leasehold_manifest_watchdog_total", "watchdogs that fired, by outcome", ["outcome"]
)
ALREADY = (Kind.NOT_FOUND, Kind.CONFLICT)
"""Kinds of an error that mean that the bid is not open any more."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """What the activity calls."""

    provider: str
    writer: MarketWriter
    settings: ManifestSettings
    backoff: Backoff
    serve: Callable[[LeaseId], Awaitable[bool]]
    closed: Callable[[LeaseId], Awaitable[None]]


class _Saved(msgspec.Struct):
    won_at: float = 0.0
    received: bool = False
    closed: bool = False
    overdue: bool = False
    reclaim: float = 0.0
    armed: bool = False
    disarmed: bool = False
    attempts: int = 0


class LeaseIntake(Reconciler):
    """One a lease. Register it with a factory that adds the :class:`Ports`."""

    name: ClassVar[str] = "manifest"
    entity_kind: ClassVar[str] = "lease"

    def __init__(self, context: Context, ports: Ports) -> None:
        super().__init__(context)
        self.ports = ports
        self.id = LeaseId.parse(context.entity.id)
        self.state = _Saved()

    def fold(self, event: Event) -> None:
        state = self.state
        match event.type:
            case "lease.won":
                state.won_at = state.won_at or event.at
            case "manifest.received":
                state.received = True
            case "manifest.overdue":
                state.overdue = True
            case "lease.reclaiming":
                state.reclaim = event.payload.deadline
            case "lease.closed" | "manifest.bid_closed":
                state.closed = True

    def save(self) -> bytes:
        return msgspec.msgpack.encode(self.state)

    def restore(self, state: bytes) -> None:
        self.state = msgspec.msgpack.decode(state, type=_Saved)

    @property
    def deadline(self) -> float | None:
        """When the bid is closed for want of a manifest; None: never."""
        state, timeout = self.state, self.ports.settings.watchdog_s
        if not state.won_at or state.received or state.closed or timeout == 0:
            return None
        return state.won_at + timeout

    async def settle(self) -> Outcome:
        state = self.state
        if self.id.provider != self.ports.provider:
            return Outcome.DONE
        if state.closed:
            await self._disarm()
            await self.ports.closed(self.id)
            return Outcome.DONE
        if state.won_at and not state.received:
            if not state.armed and self.deadline is not None:
                await self.context.arm(TIMER, self.deadline)
                state.armed = True
            # What it appends comes back as news and disarms the watchdog.
            await self.ports.serve(self.id)
        elif state.received:
            await self._disarm()
        return Outcome.SLEEP

    async def _disarm(self) -> None:
        if self.state.armed and not self.state.disarmed:
            await self.context.arm(TIMER, None)
            self.state.disarmed = True

    async def fired(self, timer: str) -> Outcome:
        """The tenant's time is up. The log may know more than we had folded: look first."""
        tail: str | None = None
        async for event in self.context.log.read(self.entity):
            if isinstance(event, Event):
                self.fold(event)
                tail = event.id
        deadline, now = self.deadline, self.context.clock.now()
        if deadline is None:
            return await self.settle()
        due = max(deadline, self.state.reclaim)
        if due > now:
            await self.context.arm(TIMER, due)
            return Outcome.SLEEP
        if not self.state.overdue:
            # Compare-and-set: a manifest that is being accepted right now either comes first, or
            # is refused. It is never accepted for a lease whose bid is being closed.
            overdue = NewEvent.of(ManifestOverdue(id=self.id), clock=self.context.clock)
            try:
                await self.context.log.append(self.entity, tail, [overdue])
            except VersionConflict:
                return await self.fired(timer)
            self.state.overdue = True
        self.state.attempts += 1
        try:
            async with self.context.outside():
                async with self.context.clock.timeout(self.ports.settings.broadcast_timeout_s):
                    await self.ports.writer.close_bid(self.id, MANIFEST_TIMEOUT)
        except TimeoutError:
            return await self._again(now, "timeout", "the market did not answer in time")
        except LeaseholdError as error:
            if error.kind not in ALREADY or error.code == "reclamation_required":
                return await self._again(now, error.code, error.message, error.retry_after)
            return await self._close(already=True)
        return await self._close(already=False)

    async def _close(self, *, already: bool) -> Outcome:
        CLOSED.labels("already" if already else "closed").inc()
        log.info("watchdog.closed_bid", lease=str(self.id), attempts=self.state.attempts)
        await self.context.emit(
            WatchdogClosedBid(
                id=self.id,
                reason=MANIFEST_TIMEOUT,
                attempts=self.state.attempts,
                already=already,
            ),
            key="bid_closed",
        )
        self.state.closed = True
        await self.ports.closed(self.id)
        return Outcome.SLEEP

    async def _again(
        self, now: float, code: str, message: str, after: float | None = None
    ) -> Outcome:
        CLOSED.labels("failed").inc()
        wait = max(after or 0.0, self.ports.backoff.delay(self.state.attempts))
        log.warning(
            "watchdog.close_failed",
            lease=str(self.id),
            attempts=self.state.attempts,
            code=code,
            error=message,
            retry_s=round(wait, 3),
        )
        await self.context.arm(TIMER, self.context.clock.now() + wait)
        return Outcome.SLEEP
