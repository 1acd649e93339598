"""Installs spells, updates them in place, removes them, and runs them.

A spell is a directory with one SQLite file. It is *installed* silent, then *subscribed*: so nothing
fires before the deployer has switched its alias. An update validates everything first and then
changes script, trigger and configuration in one transaction and one step of the bus; there is no
instant at which the old trigger is gone and the new one is not there, and resuming at boot takes
the same per-spell lock as a deploy, so that the two cannot undo each other.

One run at a time unless the trigger says ``overlap: allow``. Each run is recorded with its outcome;
a failure is kept whether or not the script reported it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, gauge, histogram
from leasehold.core.service import Service
from leasehold.node.blueprint import spell_code
from leasehold.node.distro import SpellDistro
from leasehold.node.settings import NodeSettings
from leasehold.node.spells import trigger as triggers
from leasehold.node.spells.bus import Bus
from leasehold.node.spells.files import SpellFiles
from leasehold.node.spells.functions import call_spell, data_of, store_function
from leasehold.node.spells.migration import migrate
from leasehold.node.spells.pool import Outcome, Pool
from leasehold.node.spells.store import Role, SpellMeta, SpellStore
from leasehold.node.spells.trigger import TriggerConfig, TriggerEvent

RUN_DRAIN = 3.0
"""Seconds runs may take to end when the node stops."""

T = TypeVar("T")
log = get_logger(__name__)

runs_total = counter("leasehold_spell_runs", "Runs of spells", ["outcome"])
runs_skipped = counter("leasehold_spell_runs_skipped", "Triggers not run", ["reason"])
runs_now = gauge("leasehold_spell_runs_in_progress", "Runs waiting or running")
lateness = histogram("leasehold_spell_lateness_seconds", "From due to started")
run_seconds = histogram("leasehold_spell_run_seconds", "Time a run took in its worker")


class Identity(msgspec.Struct, frozen=True):
    """Who a spell runs as: its alias, its scope, and the peer id that signs its runs."""

    id: str
    alias: str
    scope: str
    author: str
    host: str


class Host(Protocol):
    """What a run may reach beyond its own store; implemented by the node."""

    def identity(self, spell: str) -> Identity | None:
        """None when the spell is unknown or may not run now."""
        ...

    async def call(
        self, who: Identity, run: str, service: str, function: str, args: list[Any]
    ) -> Any: ...


class _State:
    """What is known of a spell in memory."""

    __slots__ = ("code", "config", "queued", "running", "script")

    def __init__(self) -> None:
        self.config = triggers.BLANK
        self.script: str | None = None
        self.code = ""
        self.running = 0
        self.queued: TriggerEvent | None = None


class SpellEngine(Service):
    """Every spell of the node, by id."""

    def __init__(
        self,
        root: Path,
        host: Host,
        pool: Pool,
        *,
        clock: Clock | None = None,
        settings: NodeSettings | None = None,
    ) -> None:
        super().__init__("spells", clock=clock)
        self.root = root
        self.host = host
        self.pool = pool
        self.settings = settings or NodeSettings()
        self.bus = Bus(self.fire, clock=self.clock, max_held=self.settings.max_held_events)
        self._states: dict[str, _State] = {}
        self.files = SpellFiles(root, self.settings.open_spell_files)
        self._locks: dict[str, asyncio.Lock] = {}
        self._in_progress = 0
        self._runs: set[asyncio.Task[Outcome]] = set()
        self.opened = asyncio.Event()
        self.on_run_ended: Callable[[str], None] | None = None
        self.on_log_subscribe: Callable[[str, TriggerConfig, int | None], None] | None = None
        """Told when a spell with log triggers is armed: ``(spell, config, cursor)``."""

    async def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    async def stop(self) -> None:
        # Runs are given a moment to end; one that is cut short is recorded as lost at the next
        # start, and its log events are delivered again.
        if self._runs:
            _, late = await asyncio.wait(self._runs, timeout=RUN_DRAIN)
            for run in late:
                run.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.files.close()

    def directory(self, spell: str) -> Path:
        return self.files.directory(spell)

    def on_disk(self) -> set[str]:
        """Ids of all spells that have a directory."""
        return self.files.on_disk()

    async def use(self, spell: str, action: Callable[[SpellStore], T]) -> T:
        """Do ``action`` with the store of ``spell`` in a thread."""
        return await self.files.use(spell, action)

    def lock(self, spell: str) -> asyncio.Lock:
        """Held by whoever changes ``spell``: a deploy, a resume, a removal."""
        return self._locks.setdefault(spell, asyncio.Lock())

    # -- install, update, remove ---------------------------------------------------------------

    async def install(self, spell: str, distro: SpellDistro) -> None:
        """Write ``spell`` under a new id, silent. Again with the same id is fine."""
        now = self.clock.now()
        if wrong := triggers.validate(distro.trigger, now, path=f"{distro.name}.trigger"):
            raise LeaseholdError.of(wrong)
        self.directory(spell).mkdir(parents=True, exist_ok=True)
        meta = SpellMeta(distro.script, distro.trigger, now, distro.schema, spell_code(distro))
        await self.use(spell, lambda store: store.write(meta, distro.kv))

    async def update(self, spell: str, distro: SpellDistro) -> bool:
        """Make ``spell`` what ``distro`` says, keeping its state; False when nothing changed.

        Raises before anything is touched when the new trigger is invalid, and with everything as
        it was when the migration fails.
        """
        async with self.lock(spell):
            old = await self.use(spell, lambda store: store.meta())
            code = spell_code(distro)
            if old is None:
                await self.install(spell, distro)
                return True
            drifted = old.trigger != distro.trigger or old.script != distro.script
            if old.code == code and not drifted:
                return False
            now = self.clock.now()
            same_trigger = old.trigger == distro.trigger
            if not same_trigger and (
                wrong := triggers.validate(distro.trigger, now, path=f"{distro.name}.trigger")
            ):
                raise LeaseholdError.of(wrong)
            if distro.schema < old.schema:
                raise LeaseholdError(
                    "schema_too_new",
                    f"{distro.name} has state of schema {old.schema}, newer than {distro.schema}; "
                    f"restore a backup from {self.directory(spell)} to go back",
                    kind=Kind.CONFLICT,
                    expected=f">= {old.schema}",
                    got=distro.schema,
                )
            meta = SpellMeta(
                distro.script,
                distro.trigger,
                old.armed_at if same_trigger else now,
                distro.schema,
                code,
            )
            if distro.schema > old.schema:
                await migrate(self.files, self.pool, spell, distro, old, meta, now)
            else:
                await self.use(spell, lambda store: store.write(meta, distro.kv))
            if not same_trigger:
                await self.use(spell, lambda store: store.forget_position())
            if self._states.pop(spell, None) is not None:
                await self._subscribe(spell)
            return True

    async def subscribe(self, spell: str) -> bool:
        """Arm ``spell`` as its file says, where it stopped; whether anything can fire it."""
        async with self.lock(spell):
            return await self._subscribe(spell)

    async def _subscribe(self, spell: str) -> bool:
        def read(store: SpellStore) -> tuple[SpellMeta | None, tuple[float | None, int | None]]:
            return store.meta(), store.position()

        meta, (last, cursor) = await self.use(spell, read)
        if meta is None:
            raise LeaseholdError(
                "spell_incomplete", f"spell {spell} was never written completely", got=spell
            )
        state = self._states.setdefault(spell, _State())
        state.config, state.script, state.code = meta.trigger, meta.script, meta.code
        armed = self.bus.subscribe(spell, meta.trigger, armed_at=meta.armed_at, last=last)
        if meta.trigger.log.kinds and self.on_log_subscribe is not None:
            self.on_log_subscribe(spell, meta.trigger, cursor)
        return armed

    def known_code(self, spell: str) -> str | None:
        """The hash of what ``spell``'s file says, None unless it is subscribed."""
        state = self._states.get(spell)
        return state.code if state is not None else None

    def unsubscribe(self, spell: str) -> None:
        """Nothing fires ``spell`` any more; a run under way goes on."""
        self.bus.unsubscribe(spell)
        self._states.pop(spell, None)

    async def set_trigger(self, spell: str, config: TriggerConfig) -> None:
        """Validate, store, and re-arm from now. Refused without a change when invalid."""
        now = self.clock.now()
        if wrong := triggers.validate(config, now):
            raise LeaseholdError.of(wrong)
        async with self.lock(spell):

            def write(store: SpellStore) -> None:
                store.set_trigger(config, now)
                store.forget_position()

            await self.use(spell, write)
            await self._subscribe(spell)

    async def remove(self, spell: str) -> None:
        """Silence ``spell``, then delete it. When deleting fails it stays, silent for good."""
        async with self.lock(spell):
            self.unsubscribe(spell)
            directory = self.directory(spell)
            if not directory.exists():
                return
            try:
                await self.use(
                    spell, lambda store: store.set_trigger(triggers.BLANK, self.clock.now())
                )
            except LeaseholdError as error:
                log.warning("spell.not_silenced", spell=spell, error=error.message)
            self.files.forget(spell)
            await asyncio.to_thread(shutil.rmtree, directory)
        self._locks.pop(spell, None)

    async def check(self, spell: str) -> None:
        """Raise when the file of ``spell`` cannot be read."""
        await self.use(spell, lambda store: store.meta())

    async def set_aside(self, spell: str) -> Path:
        """Move an unreadable file out of the way; returns where it is now."""
        async with self.lock(spell):
            return self.files.set_aside(spell, self.clock.now())

    # -- runs ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Let triggers through from now on."""
        self.bus.open()
        self.opened.set()

    def is_running(self, spell: str) -> bool:
        state = self._states.get(spell)
        return state is not None and state.running > 0

    def fire(
        self, spell: str, event: TriggerEvent, ended: Callable[[], None] | None = None
    ) -> None:
        """Run ``spell`` for ``event``, as its overlap policy says. Returns at once; ``ended`` is
        called after a run that took place."""
        state = self._states.get(spell)
        if state is None or self.stopping:
            return
        if state.running and state.config.overlap != "allow":
            if state.config.overlap == "queue":
                state.queued = event
            else:
                runs_skipped.labels("overlap").inc()
            return
        if self._in_progress >= self.settings.max_queued_runs:
            runs_skipped.labels("too_many").inc()
            return
        self._begin(spell, state, event, ended)

    def _begin(
        self,
        spell: str,
        state: _State,
        event: TriggerEvent,
        ended: Callable[[], None] | None = None,
    ) -> asyncio.Task[Outcome]:
        state.running += 1
        self._in_progress += 1
        runs_now.inc()
        task = self.spawn(self._perform(spell, state, event, ended), name=f"run {spell}")
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        return task

    async def run_now(self, spell: str) -> Outcome:
        """Run ``spell`` once, by hand, after a run under way."""
        state = self._states.get(spell)
        if state is None:
            state = _State()
            meta = await self.use(spell, lambda store: store.meta())
            if meta is None:
                raise not_found("spell", spell)
            state.script, state.config = meta.script, meta.trigger
        if state.running and state.config.overlap != "allow":
            raise LeaseholdError(
                "spell_is_running",
                f"spell {spell} is running; try again when it is done",
                kind=Kind.CONFLICT,
                retry_after=1.0,
            )
        return await self._begin(spell, state, TriggerEvent("manual"))

    async def _perform(
        self,
        spell: str,
        state: _State,
        event: TriggerEvent,
        ended: Callable[[], None] | None,
    ) -> Outcome:
        outcome = Outcome("error")
        recorded = False
        try:
            outcome = await self._perform_once(spell, state, event)
            recorded = outcome.outcome != "skipped"
        except LeaseholdError as error:
            log.warning("spell.run_failed", spell=spell, error=error.message)
            outcome.errors.append((error.code, error.message))
        except Exception as error:
            log.error("spell.run_failed", spell=spell, error=f"{type(error).__name__}: {error}")
            outcome.errors.append(("internal", str(error)))
        finally:
            state.running -= 1
            self._in_progress -= 1
            runs_now.dec()
        runs_total.labels(outcome.outcome).inc()
        if recorded and ended is not None:
            ended()
        if recorded and self.on_run_ended is not None:
            self.on_run_ended(spell)
        queued, state.queued = state.queued, None
        if queued is not None and self._states.get(spell) is state and not self.stopping:
            self._begin(spell, state, queued)
        return outcome

    async def _perform_once(self, spell: str, state: _State, event: TriggerEvent) -> Outcome:
        who = self.host.identity(spell)
        if who is None:
            runs_skipped.labels("inactive").inc()
            return Outcome("skipped")
        at = self.clock.now()
        n, run = await self.use(spell, lambda store: store.begin_run(spell, event, at))
        late = None if event.due is None else max(0.0, self.clock.now() - event.due)
        if late is not None:
            lateness.observe(late)
        job = {
            "name": who.alias,
            "script": state.script,
            "names": {
                "spell_id": spell,
                "host_id": who.host,
                "author_id": who.author,
                "scope": who.scope,
                "run_id": run,
                "trigger": event.for_script(),
            },
        }

        async def answer(what: str, args: list[Any]) -> Any:
            return await self._answer(who, run, what, args)

        began = time.monotonic()
        outcome = await self.pool.run(job, answer, ttl=self.settings.spell_ttl_sec)
        seconds = time.monotonic() - began
        run_seconds.observe(seconds)
        cursor = event.data.get("cursor") if event.kind == "log" else None
        await self.use(
            spell,
            lambda store: store.end_run(
                n,
                run,
                outcome.outcome,
                at=at,
                seconds=seconds,
                logs=outcome.logs,
                errors=outcome.errors,
                late=late,
                cursor=cursor,
            ),
        )
        return outcome

    async def _answer(self, who: Identity, run: str, what: str, args: list[Any]) -> Any:
        if what == "call":
            service, function, arguments = args
            if service in ("self", who.id):
                return await self.function(who.id, "spell", function, arguments, sender=who.author)
            return await self.host.call(who, run, service, function, arguments)
        if what == "kv":
            name, *rest = args
            return await self.use(who.id, lambda s: store_function(s, "spell", str(name), rest))
        if what == "data":
            return await self.use(who.id, lambda s: data_of(s, str(args[0])))
        if what == "response":
            fields = args[0] or {}
            await self.use(who.id, lambda s: s.set_many("spell", fields))
            return None
        if what == "now":
            return int(self.clock.now())
        if what == "mailbox_pop":
            return await self.use(who.id, lambda s: s.pop_mail())
        if what == "mailbox_get":
            return await self.use(who.id, lambda s: s.mail())
        raise LeaseholdError("unknown_request", f"a script cannot ask for {what!r}")

    async def function(
        self, spell: str, role: Role, function: str, args: list[Any], *, sender: str
    ) -> dict[str, Any]:
        """Call a spell like a service, see :mod:`leasehold.node.spells.functions`."""
        return await call_spell(
            self.files, self.bus, spell, role, function, args, sender=sender, at=self.clock.now()
        )
