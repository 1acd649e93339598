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
import resource
import shutil
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from leasehold.node.spells.pool import Outcome, Pool
from leasehold.node.spells.store import Role, SpellMeta, SpellStore
from leasehold.node.spells.trigger import TriggerConfig, TriggerEvent

STORE_THREADS = 4
KEPT_BACKUPS = 3
RUN_DRAIN = 3.0
"""Seconds runs may take to end when the node stops."""

MIGRATION_TTL = 60.0
"""Seconds a migration may take."""

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
        self._stores: OrderedDict[str, SpellStore] = OrderedDict()
        self._keep_open = _files_to_keep(self.settings.open_spell_files)
        self._busy: dict[str, int] = defaultdict(int)
        self._cache = threading.Lock()
        self._locks: dict[str, asyncio.Lock] = {}
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="spell-store")
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
        await asyncio.to_thread(self._threads.shutdown)
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    # -- files ---------------------------------------------------------------------------------

    def directory(self, spell: str) -> Path:
        return self.root / spell

    def on_disk(self) -> set[str]:
        """Ids of all spells that have a directory."""
        return {path.name for path in self.root.iterdir() if path.is_dir()}

    async def use(self, spell: str, action: Callable[[SpellStore], T]) -> T:
        """Do ``action`` with the store of ``spell`` in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._use, spell, action)

    def _use(self, spell: str, action: Callable[[SpellStore], T]) -> T:
        with self._open(spell) as store:
            return action(store)

    @contextmanager
    def _open(self, spell: str) -> Iterator[SpellStore]:
        with self._cache:
            self._busy[spell] += 1
            store = self._stores.get(spell)
            if store is not None:
                self._stores.move_to_end(spell)
        try:
            if store is None:
                store = self._opened(spell)
            yield store
        finally:
            with self._cache:
                self._busy[spell] -= 1
                if not self._busy[spell]:
                    del self._busy[spell]
                spare = len(self._stores) - self._keep_open
                idle = [s for s in self._stores if s not in self._busy][: max(0, spare)]
                closing = [self._stores.pop(s) for s in idle]
            for each in closing:
                each.close()

    def _opened(self, spell: str) -> SpellStore:
        directory = self.directory(spell)
        if not directory.is_dir():
            raise not_found("spell", spell)
        store = SpellStore(directory / "spell.db")
        with self._cache:
            known = self._stores.setdefault(spell, store)
        if known is not store:
            store.close()  # Two threads opened it at once; one is enough.
        return known

    def _forget(self, spell: str) -> None:
        with self._cache:
            store = self._stores.pop(spell, None)
        if store is not None:
            store.close()

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
                await self._migrate(spell, distro, old, meta)
            else:
                await self.use(spell, lambda store: store.write(meta, distro.kv))
            if not same_trigger:
                await self.use(spell, lambda store: store.forget_position())
            if self._states.pop(spell, None) is not None:
                await self._subscribe(spell)
            return True

    async def _migrate(
        self, spell: str, distro: SpellDistro, old: SpellMeta, meta: SpellMeta
    ) -> None:
        """Change the state on a copy and put the copy in place; the original stays as a backup."""
        directory = self.directory(spell)
        backup = directory / f"backup-schema-{old.schema}-{int(self.clock.now())}.db"
        await self.use(spell, lambda store: store.backup(backup))
        copy = directory / "migrating.db"
        for leftover in directory.glob("migrating.db*"):
            leftover.unlink()
        shutil.copyfile(backup, copy)
        store = SpellStore(copy)
        try:
            store.write(meta, distro.kv)
            if distro.migration:
                await self._run_migration(spell, distro, old.schema, store)
            else:
                store.clear_state()
                log.warning("spell.state_set_aside", spell=distro.name, backup=str(backup))
        finally:
            store.close()
        self._forget(spell)
        for suffix in ("-wal", "-shm"):
            (directory / f"spell.db{suffix}").unlink(missing_ok=True)
        copy.rename(directory / "spell.db")
        backups = sorted(directory.glob("backup-*.db"), key=lambda path: path.stat().st_mtime)
        for path in backups[:-KEPT_BACKUPS]:
            path.unlink()

    async def _run_migration(
        self, spell: str, distro: SpellDistro, old: int, store: SpellStore
    ) -> None:
        async def answer(what: str, args: list[Any]) -> Any:
            if what == "kv":
                return store_function(store, "spell", str(args[0]), args[1:])
            raise LeaseholdError("not_in_migration", f"a migration cannot {what}")

        job = {
            "name": f"{distro.name} migration",
            "script": distro.migration,
            "names": {"from_schema": old, "to_schema": distro.schema, "spell_id": spell},
        }
        outcome = await self.pool.run(job, answer, ttl=MIGRATION_TTL)
        if outcome.outcome != "ok":
            raise LeaseholdError(
                "migration_failed",
                f"{distro.name}: the state could not be brought from schema {old} to "
                f"{distro.schema}: {outcome.errors[0][1] if outcome.errors else outcome.outcome}",
                path=distro.name,
            )

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
            self._forget(spell)
            await asyncio.to_thread(shutil.rmtree, directory)
        self._locks.pop(spell, None)

    async def check(self, spell: str) -> None:
        """Raise when the file of ``spell`` cannot be read."""
        await self.use(spell, lambda store: store.meta())

    async def set_aside(self, spell: str) -> Path:
        """Move an unreadable file out of the way; returns where it is now."""
        async with self.lock(spell):
            self._forget(spell)
            directory = self.directory(spell)
            aside = directory / f"corrupt-{int(self.clock.now())}.db"
            (directory / "spell.db").rename(aside)
            for suffix in ("-wal", "-shm"):
                (directory / f"spell.db{suffix}").unlink(missing_ok=True)
            return aside

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
            return await self.use(who.id, lambda s: _data(s, str(args[0])))
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

    # -- a spell as a service ------------------------------------------------------------------

    async def function(
        self, spell: str, role: Role, function: str, args: list[Any], *, sender: str
    ) -> dict[str, Any]:
        """Call a spell like a service: its KV, mailbox, errors and trigger.

        Replies have ``success`` and ``error``; reads add ``value``, and scalars ``absent``.
        """
        try:
            value = await self._function(spell, role, function, args, sender)
        except LeaseholdError as error:
            return {"success": False, "error": error.message}
        except (TypeError, ValueError) as error:
            return {"success": False, "error": f"{function}: {error}"}
        out: dict[str, Any] = {"success": True, "error": "", "value": value}
        if function in ("get_string", "get_u32"):
            out["absent"] = value is None
        return out

    async def _function(
        self, spell: str, role: Role, function: str, args: list[Any], sender: str
    ) -> Any:
        if function == "push_mailbox":
            (message,) = args
            at = self.clock.now()
            await self.use(spell, lambda s: s.push_mail(sender, message, at))
            self.bus.mail(spell, sender)
            return None
        if function in ("pop_mailbox", "store_error") and role != "spell":
            raise LeaseholdError(
                "spell_only", f"only the spell itself may {function}", kind=Kind.FORBIDDEN
            )
        if function == "get_script":
            meta = await self.use(spell, lambda s: s.meta())
            return meta.script if meta else None
        readers: dict[str, Callable[[SpellStore], Any]] = {
            "pop_mailbox": lambda s: s.pop_mail(),
            "get_mailbox": lambda s: s.mail(),
            "get_errors": lambda s: s.errors(),
            "get_logs": lambda s: s.logs(),
            "get_runs": lambda s: msgspec.to_builtins(s.runs()),
            "get_trigger_config": lambda s: msgspec.to_builtins(s.meta()).get("trigger"),
        }
        reader = readers.get(function)
        if reader is not None:
            return await self.use(spell, reader)
        return await self.use(spell, lambda s: store_function(s, role, function, args))


def store_function(store: SpellStore, role: Role, name: str, args: list[Any]) -> Any:
    """One operation on the keys of a spell, by name."""
    writers: dict[str, Callable[..., Any]] = {
        "set_string": store.set_string,
        "set_u32": store.set_u32,
        "set_many": store.set_many,
        "remove": store.remove,
        "list_push": store.list_push,
        "list_pop": store.list_pop,
        "list_remove": store.list_remove,
    }
    readers: dict[str, Callable[..., Any]] = {
        "get_string": store.get_string,
        "get_u32": store.get_u32,
        "exists": store.exists,
        "list_get": store.list_get,
    }
    if name in writers:
        return writers[name](role, *args)
    if name in readers:
        return readers[name](*args)
    raise LeaseholdError(
        "unknown_function",
        f"a spell has no function {name!r}",
        kind=Kind.NOT_FOUND,
        expected=", ".join([*writers, *readers]),
    )


def _data(store: SpellStore, key: str) -> Any:
    """The value of ``key`` parsed as JSON; a missing key is an error."""
    text = store.get_string(key)
    if text is None:
        raise LeaseholdError("key_absent", f"the spell has no string key {key!r}", path=key)
    return msgspec.json.decode(text)


def _files_to_keep(wanted: int) -> int:
    """Stores to keep open: each takes three descriptors, and half of them are for others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(STORE_THREADS, min(wanted, soft // 6))
