"""What this node has installed: instances, aliases, packages and worker scopes, in one SQLite file.

Rows are the truth and everything else (processes, directories, control groups, sockets) follows
them: an instance is written down before anything of it exists, and forgotten only after everything
of it is gone. So whatever a crash leaves behind has a row that says what to do with it, or no row
and may be removed.

Every change is one transaction of several :class:`Change` objects, durable when :meth:`commit`
returns. Reads come from memory.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from leasehold.core.errors import Kind, LeaseholdError

ROOT_SCOPE = "host"

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE instance (id TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE alias (scope TEXT NOT NULL, alias TEXT NOT NULL, instance TEXT NOT NULL
    REFERENCES instance (id), PRIMARY KEY (scope, alias)) WITHOUT ROWID;
CREATE TABLE package (name TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE scope (id TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;
"""


class Instance(msgspec.Struct, frozen=True, omit_defaults=True):
    """A service or spell that is or was installed.

    ``state``: ``candidate`` was created and is not in use yet; ``live``; ``retiring`` is being
    removed. ``code`` is its hash without, ``blueprint`` with the package's configuration.
    ``spec`` is what is needed to start it again.
    """

    id: str
    kind: Literal["process", "container", "builtin", "spell"]
    name: str
    package: str
    version: str
    blueprint: str
    code: str
    owner: str
    scope: str = ROOT_SCOPE
    state: Literal["candidate", "live", "retiring", "stopped"] = "candidate"
    spec: dict[str, Any] = {}
    created_at: float = 0.0

    @property
    def is_spell(self) -> bool:
        return self.kind == "spell"


class PackageRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last deploy of a package.

    ``status``: ready, degraded, failed, blocked, held, disabled. ``initialised`` is the key of the
    initialisation that succeeded last.
    """

    name: str
    version: str
    fingerprint: str
    status: str
    message: str = ""
    warnings: tuple[str, ...] = ()
    initialised: str = ""
    on_disable: str = "remove"
    source: str = ""
    at: float = 0.0


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tenant's sandbox for services and spells, made for one lease."""

    id: str
    lease: str
    creator: str
    active: bool = True
    created_at: float = 0.0


class Put(msgspec.Struct, frozen=True):
    """Insert or replace a row."""

    row: Instance | PackageRow | Scope


class Drop(msgspec.Struct, frozen=True):
    """Delete a row and, of an instance, its aliases."""

    kind: Literal["instance", "package", "scope"]
    key: str


class PutAlias(msgspec.Struct, frozen=True):
    scope: str
    alias: str
    instance: str


class DropAlias(msgspec.Struct, frozen=True):
    scope: str
    alias: str


Change = Put | Drop | PutAlias | DropAlias

R = TypeVar("R", Instance, PackageRow, Scope)
Batch = list[tuple[Sequence[Change], "asyncio.Future[None]"]]
_TABLES: dict[type, str] = {Instance: "instance", PackageRow: "package", Scope: "scope"}


class Journal:
    """The rows by key. Open it once per state folder."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.instances: dict[str, Instance] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.packages: dict[str, PackageRow] = {}
        self.scopes: dict[str, Scope] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="node-journal")
        self._queue: Batch = []
        self._writer: asyncio.Task[None] | None = None
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._load()
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            raise LeaseholdError(
                "node_journal_unreadable",
                f"{path} cannot be read: {error}; restore it from a backup, or move the whole "
                "folder away to start with an empty node",
                kind=Kind.INTERNAL,
                path=str(path),
            ) from None

    def _load(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema {version}, expected {SCHEMA_VERSION}")
        self.instances = self._rows(Instance)
        self.packages = self._rows(PackageRow)
        self.scopes = self._rows(Scope)
        for scope, alias, instance in self._db.execute("SELECT * FROM alias"):
            self.aliases[scope, alias] = instance

    def _rows(self, cls: type[R]) -> dict[str, R]:
        decode = msgspec.json.Decoder(cls).decode
        rows = self._db.execute(f"SELECT * FROM {_TABLES[cls]}")
        return {key: decode(text) for key, text in rows}

    async def commit(self, *changes: Change) -> None:
        """All of ``changes`` or none; durable when it returns.

        What several callers commit at the same time shares one transaction and one fsync.
        """
        if not changes:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((changes, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._drain())
        # A caller that leaves early does not undo it: memory and file stay the same.
        await asyncio.shield(done)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                failures = await loop.run_in_executor(self._thread, self._write, batch)
            except BaseException as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (changes, done), failure in zip(batch, failures, strict=True):
                if failure is None:
                    for change in changes:
                        self._apply(change)
                if not done.done():
                    done.set_result(None) if failure is None else done.set_exception(failure)

    def _write(self, batch: Batch) -> list[Exception | None]:
        """One transaction for the batch; the changes of each caller all or none."""
        db = self._db
        failures: list[Exception | None] = []
        db.execute("BEGIN IMMEDIATE")
        try:
            for changes, _ in batch:
                db.execute("SAVEPOINT caller")
                try:
                    for change in changes:
                        self._change(change)
                    failures.append(None)
                except sqlite3.IntegrityError as error:
                    db.execute("ROLLBACK TO caller")
                    failures.append(error)
                db.execute("RELEASE caller")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
        return failures

    def _change(self, change: Change) -> None:
        db = self._db
        match change:
            case Put(row):
                key = row.name if isinstance(row, PackageRow) else row.id
                key_name = "name" if isinstance(row, PackageRow) else "id"
                db.execute(
                    f"INSERT INTO {_TABLES[type(row)]} VALUES (?, ?) "
                    f"ON CONFLICT ({key_name}) DO UPDATE SET row = excluded.row",
                    (key, msgspec.json.encode(row).decode()),
                )
            case Drop("instance", key):
                db.execute("DELETE FROM alias WHERE instance = ?", (key,))
                db.execute("DELETE FROM instance WHERE id = ?", (key,))
            case Drop(kind, key):
                key_name = "name" if kind == "package" else "id"
                db.execute(f"DELETE FROM {kind} WHERE {key_name} = ?", (key,))
            case PutAlias(scope, alias, instance):
                db.execute(
                    "INSERT INTO alias VALUES (?, ?, ?) ON CONFLICT (scope, alias) "
                    "DO UPDATE SET instance = excluded.instance",
                    (scope, alias, instance),
                )
            case DropAlias(scope, alias):
                db.execute("DELETE FROM alias WHERE scope = ? AND alias = ?", (scope, alias))

    def _apply(self, change: Change) -> None:
        match change:
            case Put(Instance() as row):
                self.instances[row.id] = row
            case Put(PackageRow() as row):
                self.packages[row.name] = row
            case Put(Scope() as row):
                self.scopes[row.id] = row
            case Drop("instance", key):
                self.instances.pop(key, None)
                for held in [a for a, i in self.aliases.items() if i == key]:
                    del self.aliases[held]
            case Drop("package", key):
                self.packages.pop(key, None)
            case Drop(_, key):
                self.scopes.pop(key, None)
            case PutAlias(scope, alias, instance):
                self.aliases[scope, alias] = instance
            case DropAlias(scope, alias):
                self.aliases.pop((scope, alias), None)

    def aliases_of(self, instance: str) -> list[tuple[str, str]]:
        """``(scope, alias)`` pairs pointing at ``instance``."""
        return [key for key, id in self.aliases.items() if id == instance]

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._db.close()
