"""Waits for what may fire a spell, and says so.

One loop sleeps until the earliest clock is due. Commands (:meth:`subscribe`, :meth:`unsubscribe`)
hold when they return. Until :meth:`open` nothing is delivered: commands are served, clocks run, and
connection and mailbox events are kept (bounded; the oldest yield), so that no spell fires before
the packages it needs are in place.

Wall-clock time decides what is due. A clock set forward fires what it skipped by each spell's
catch-up policy; a clock set back is noticed by comparing it with the monotonic one, and periodic
spells go on from the new time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, gauge
from leasehold.core.service import Service
from leasehold.node.spells.schedule import Schedule
from leasehold.node.spells.trigger import TriggerConfig, TriggerEvent

LOOK_AGAIN = 60.0
"""Seconds after which the wall clock is compared with the monotonic one even if nothing is due."""

SET_BACK = 1.0
"""Seconds the wall clock must lose against the monotonic one to count as set back."""

log = get_logger(__name__)

events_dropped = counter("leasehold_spell_events_dropped", "Trigger events lost to a bound")
armed = gauge("leasehold_spells_subscribed", "Spells that something can fire")

Handler = Callable[[str, TriggerEvent], None]
"""Told ``(spell, event)``; must not block."""


class Bus(Service):
    """Subscriptions by spell id. ``look_again`` is for tests that cover centuries."""

    def __init__(
        self,
        handler: Handler,
        *,
        clock: Clock | None = None,
        max_held: int = 10_000,
        look_again: float = LOOK_AGAIN,
    ) -> None:
        super().__init__("spell bus", clock=clock)
        self.handler = handler
        self.look_again = look_again
        self.opened = False
        self._schedule = Schedule()
        self._configs: dict[str, TriggerConfig] = {}
        self._held: deque[tuple[str, TriggerEvent]] = deque()
        self._max_held = max_held
        self._wake = asyncio.Event()
        self._offset = self.clock.now() - self.clock.monotonic()

    async def start(self) -> None:
        self.spawn(self._loop(), name="loop")

    async def stop(self) -> None:
        armed.dec(len(self._configs))
        self._configs.clear()

    # -- commands ------------------------------------------------------------------------------

    def subscribe(
        self, spell: str, config: TriggerConfig, *, armed_at: float, last: float | None = None
    ) -> bool:
        """Replace every subscription of ``spell``; returns whether anything can fire it.

        ``armed_at`` is when the configuration was set, ``last`` the tick it fired last (both Unix
        seconds): together they keep its phase over restarts.
        """
        self.unsubscribe(spell)
        clock = self._schedule.arm(
            spell, config, armed_at=armed_at, now=self.clock.now(), last=last
        )
        other = (
            config.connections.connect
            or config.connections.disconnect
            or config.mailbox
            or bool(config.log.kinds)
        )
        if not clock and not other:
            return False
        self._configs[spell] = config
        armed.inc()
        self._wake.set()
        return True

    def unsubscribe(self, spell: str) -> None:
        """Remove everything of ``spell``, held events included; unknown ids are fine."""
        if self._configs.pop(spell, None) is not None:
            armed.dec()
        self._schedule.disarm(spell)
        if any(held == spell for held, _ in self._held):
            self._held = deque(item for item in self._held if item[0] != spell)

    def subscribed(self, spell: str) -> TriggerConfig | None:
        return self._configs.get(spell)

    def open(self) -> None:
        """Deliver from now on, beginning with what was held."""
        self.opened = True
        while self._held:
            self.handler(*self._held.popleft())
        self._wake.set()

    # -- events --------------------------------------------------------------------------------

    def connection(self, peer: str, *, connected: bool) -> None:
        """A peer connected or disconnected."""
        event = TriggerEvent("peer", {"peer_id": peer, "connected": connected})
        for spell, config in list(self._configs.items()):
            wants = config.connections.connect if connected else config.connections.disconnect
            if wants:
                self._deliver(spell, event)

    def mail(self, spell: str, sender: str) -> None:
        """A message was pushed into the mailbox of ``spell``."""
        config = self._configs.get(spell)
        if config is not None and config.mailbox:
            self._deliver(spell, TriggerEvent("mailbox", {"sender": sender}))

    def _deliver(self, spell: str, event: TriggerEvent) -> None:
        if self.opened:
            self.handler(spell, event)
            return
        self._held.append((spell, event))
        if len(self._held) > self._max_held:
            self._held.popleft()
            events_dropped.inc()

    # -- the loop ------------------------------------------------------------------------------

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            now = self.clock.now()
            self._notice_set_back(now)
            if self.opened:
                for spell, due in self._schedule.pop(now):
                    event = TriggerEvent("timer", {"timestamp": int(due)}, due)
                    config = self._configs.get(spell)
                    if spell not in self._schedule and config is not None:
                        self._clock_ended(spell, config)
                    self.handler(spell, event)
            due_at = self._schedule.next_due() if self.opened else None
            wait = self.look_again
            if due_at is not None:
                wait = min(wait, max(0.0, due_at - self.clock.now()))
            try:
                async with self.clock.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _clock_ended(self, spell: str, config: TriggerConfig) -> None:
        """The last tick was fired: other triggers stay subscribed, a clock alone is done."""
        if not (
            config.connections.connect
            or config.connections.disconnect
            or config.mailbox
            or config.log.kinds
        ):
            self._configs.pop(spell, None)
            armed.dec()

    def _notice_set_back(self, now: float) -> None:
        offset = now - self.clock.monotonic()
        if offset < self._offset - SET_BACK:
            log.warning("clock.set_back", seconds=round(self._offset - offset, 1))
            self._schedule.set_back(now)
        self._offset = offset
