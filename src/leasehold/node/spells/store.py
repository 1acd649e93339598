"""Everything one spell keeps, in one SQLite file.

*Configuration* keys belong to the package: they are re-applied at every boot, and those a new
version dropped are removed. *State* keys belong to the script: no deploy touches them. A key is one
or the other; writing a configuration key from a script is refused, because the next boot would
silently undo it.

A key holds a string, an unsigned 32-bit number or an ordered list of strings; setting one scalar
kind replaces the other, and reading the wrong kind finds it absent. Errors, log lines and mailbox
messages are bounded: the oldest yield.

The script, its trigger, the configuration and the schema version change in **one** transaction, so
a crash leaves the old spell or the new one, never half of each.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.node.spells.trigger import TriggerConfig, TriggerEvent

MAX_ERRORS = 50
"""Runs whose errors are kept."""
MAX_LOGS = 500
MAX_MAILBOX = 50
MAX_RUNS = 200
"""Run records kept."""
MAX_KEY = 256
MAX_VALUE = 1 << 20
"""Bytes of one value."""
MAX_LIST = 10_000
"""Items of one list."""
MAX_KEYS = 10_000
"""Keys of one spell."""

Role = Literal["spell", "host", "worker", "other", "deployer"]

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kv (key TEXT PRIMARY KEY, text TEXT, number INTEGER, config INTEGER NOT NULL DEFAULT 0)
    WITHOUT ROWID;
CREATE TABLE list (n INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL);
CREATE INDEX list_key ON list (key, n);
CREATE TABLE error (n INTEGER PRIMARY KEY, run TEXT NOT NULL, at REAL NOT NULL,
    idx INTEGER NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE log (n INTEGER PRIMARY KEY, run TEXT NOT NULL, at REAL NOT NULL, text TEXT NOT NULL);
CREATE TABLE mailbox (n INTEGER PRIMARY KEY, at REAL NOT NULL, sender TEXT NOT NULL,
    message TEXT NOT NULL);
CREATE TABLE run (n INTEGER PRIMARY KEY, id TEXT NOT NULL, at REAL NOT NULL, due REAL,
    trigger TEXT NOT NULL, outcome TEXT, seconds REAL, late REAL);
"""


class RunRecord(msgspec.Struct, frozen=True):
    """One run. ``outcome``: ok, error, timeout, killed, lost (the node ended meanwhile).

    ``late`` is the time in seconds from the tick to the start, None for other triggers.
    """

    n: int
    id: str
    at: float
    due: float | None
    trigger: str
    outcome: str | None
    seconds: float | None
    late: float | None = None


class SpellMeta(msgspec.Struct, frozen=True):
    """What is stored beside the state. ``code`` is the hash of what the package decides."""

    script: str
    trigger: TriggerConfig
    armed_at: float
    schema: int
    code: str


def may_write(role: Role, key: str) -> bool:
    """Who may write ``key``: prefix ``h_`` adds the host, ``w_`` the worker, ``hw_`` both; the
    spell itself may always. Everybody may read."""
    if role in ("spell", "deployer"):
        return True
    if role == "host":
        return key.startswith(("h_", "hw_"))
    if role == "worker":
        return key.startswith(("w_", "hw_"))
    return False


class SpellStore:
    """The file of one spell. Blocking; safe to use from several threads, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._synced = True
        if not path.exists():
            _create(path)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            # FULL in WAL mode: one fsync a commit. Records of runs do without, see transaction.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA wal_autocheckpoint=256")
            self._db.execute("SELECT count(*) FROM meta").fetchone()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise LeaseholdError(
                "spell_store_corrupt",
                f"the data of the spell in {path} cannot be read: {error}",
                kind=Kind.INTERNAL,
                got=str(path),
            ) from None

    def close(self) -> None:
        with self.lock:
            self._db.close()

    @contextlib.contextmanager
    def transaction(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing.

        With ``synced=False`` it survives the end of this process at any instant, but the newest
        may be lost with the machine's power: right for the records of runs, of which there may be
        hundreds a second.
        """
        with self.lock:
            if self._db.in_transaction:
                yield self._db
                return
            if synced != self._synced:
                self._db.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
                self._synced = synced
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # -- what the package decides --------------------------------------------------------------

    def meta(self) -> SpellMeta | None:
        """None for a spell that was never written completely."""
        with self.lock:
            rows = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
        if "code" not in rows:
            return None
        return SpellMeta(
            rows["script"],
            msgspec.json.decode(rows["trigger"], type=TriggerConfig),
            float(rows["armed_at"]),
            int(rows["schema"]),
            rows["code"],
        )

    def write(self, meta: SpellMeta, kv: Mapping[str, Any]) -> None:
        """Put script, trigger, configuration and schema in place; state keys stay."""
        with self.transaction() as db:
            rows = {
                "script": meta.script,
                "trigger": msgspec.json.encode(meta.trigger).decode(),
                "armed_at": repr(meta.armed_at),
                "schema": str(meta.schema),
                "code": meta.code,
            }
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows.items())
            dropped = {k for (k,) in db.execute("SELECT key FROM kv WHERE config = 1")} - set(kv)
            db.executemany("DELETE FROM kv WHERE key = ?", [(key,) for key in dropped])
            for key, value in kv.items():
                text = msgspec.json.encode(value).decode()
                db.execute("DELETE FROM list WHERE key = ?", (key,))
                db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?, NULL, 1)", (key, text))

    def set_trigger(self, trigger: TriggerConfig, armed_at: float) -> None:
        """Change the trigger alone; the package's next deploy sees that it differs."""
        with self.transaction() as db:
            rows = [
                ("trigger", msgspec.json.encode(trigger).decode()),
                ("armed_at", repr(armed_at)),
                ("code", ""),
            ]
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def clear_state(self) -> None:
        """Drop every state key, for a schema without a migration."""
        with self.transaction() as db:
            db.execute("DELETE FROM kv WHERE config = 0")
            db.execute("DELETE FROM list")

    def backup(self, to: Path) -> None:
        """A consistent copy of the whole file, durable before this returns."""
        temporary = to.with_suffix(".partial")
        temporary.unlink(missing_ok=True)
        with self.lock:
            self._db.execute("VACUUM INTO ?", (str(temporary),))
        fd = os.open(temporary, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        temporary.rename(to)

    # -- keys ----------------------------------------------------------------------------------

    def get_string(self, key: str) -> str | None:
        row = self._scalar(key)
        return None if row is None else row[0]

    def get_u32(self, key: str) -> int | None:
        row = self._scalar(key)
        return None if row is None else row[1]

    def _scalar(self, key: str) -> tuple[str | None, int | None] | None:
        with self.lock:
            row: tuple[str | None, int | None] | None = self._db.execute(
                "SELECT text, number FROM kv WHERE key = ?", (key,)
            ).fetchone()
        return row

    def set_string(self, role: Role, key: str, value: str) -> None:
        self._set(role, key, _text(value), None)

    def set_u32(self, role: Role, key: str, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise LeaseholdError(
                "bad_value", f"{key} takes a number from 0 to 4294967295", path=key, got=value
            )
        self._set(role, key, None, value)

    def _set(self, role: Role, key: str, text: str | None, number: int | None) -> None:
        with self.transaction() as db:
            self._check(db, role, key)
            db.execute("DELETE FROM list WHERE key = ?", (key,))
            db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?, ?, 0)", (key, text, number))

    def set_many(self, role: Role, fields: Mapping[str, Any]) -> None:
        """Each top-level field as JSON text, all in one transaction."""
        with self.transaction():
            for key, value in fields.items():
                self.set_string(role, key, msgspec.json.encode(value).decode())

    def remove(self, role: Role, key: str) -> None:
        """Remove ``key`` of whatever kind; absent keys are fine."""
        with self.transaction() as db:
            self._check(db, role, key)
            db.execute("DELETE FROM kv WHERE key = ?", (key,))
            db.execute("DELETE FROM list WHERE key = ?", (key,))

    def exists(self, key: str) -> bool:
        return self._scalar(key) is not None or bool(self.list_get(key))

    def list_get(self, key: str) -> list[str]:
        with self.lock:
            rows = self._db.execute("SELECT value FROM list WHERE key = ? ORDER BY n", (key,))
            return [value for (value,) in rows]

    def list_push(self, role: Role, key: str, value: str) -> None:
        with self.transaction() as db:
            self._check(db, role, key)
            (count,) = db.execute("SELECT count(*) FROM list WHERE key = ?", (key,)).fetchone()
            if count >= MAX_LIST:
                raise LeaseholdError("list_full", f"{key} holds {MAX_LIST} items", path=key)
            db.execute("DELETE FROM kv WHERE key = ?", (key,))
            db.execute("INSERT INTO list (key, value) VALUES (?, ?)", (key, _text(value)))

    def list_pop(self, role: Role, key: str) -> str | None:
        """Remove and return the last item."""
        with self.transaction() as db:
            self._check(db, role, key)
            row = db.execute(
                "SELECT n, value FROM list WHERE key = ? ORDER BY n DESC LIMIT 1", (key,)
            ).fetchone()
            if row is None:
                return None
            db.execute("DELETE FROM list WHERE n = ?", (row[0],))
            return str(row[1])

    def list_remove(self, role: Role, key: str, value: str) -> int:
        """Remove every item equal to ``value``; returns how many there were."""
        with self.transaction() as db:
            self._check(db, role, key)
            return db.execute("DELETE FROM list WHERE key = ? AND value = ?", (key, value)).rowcount

    def _check(self, db: sqlite3.Connection, role: Role, key: str) -> None:
        if not isinstance(key, str) or not key or len(key) > MAX_KEY:
            raise LeaseholdError("bad_key", f"a key has 1 to {MAX_KEY} characters", got=key)
        if not may_write(role, key):
            theirs = {
                "host": "; its keys begin with h_ or hw_",
                "worker": "; its keys begin with w_ or hw_",
            }
            raise LeaseholdError(
                "key_forbidden",
                f"{role} may not write {key!r}{theirs.get(role, '')}",
                kind=Kind.FORBIDDEN,
                path=key,
            )
        row = db.execute("SELECT config FROM kv WHERE key = ?", (key,)).fetchone()
        if row is not None and row[0]:
            raise LeaseholdError(
                "key_is_config",
                f"{key!r} is configuration of the package and is set again at every start; "
                "keep state under another key",
                kind=Kind.FORBIDDEN,
                path=key,
            )
        if row is None:
            (count,) = db.execute("SELECT count(*) FROM kv").fetchone()
            if count >= MAX_KEYS:
                raise LeaseholdError("too_many_keys", f"a spell has at most {MAX_KEYS} keys")

    def dump(self) -> dict[str, dict[str, Any]]:
        """Every key: ``{key: {"value": …, "kind": string|u32|list, "config": bool}}``."""
        out: dict[str, dict[str, Any]] = {}
        with self.lock:
            for key, text, number, config in self._db.execute("SELECT * FROM kv ORDER BY key"):
                kind, value = ("u32", number) if text is None else ("string", text)
                out[key] = {"value": value, "kind": kind, "config": bool(config)}
            for (key,) in self._db.execute("SELECT DISTINCT key FROM list").fetchall():
                out[key] = {"value": self.list_get(key), "kind": "list", "config": False}
        return out

    # -- runs ----------------------------------------------------------------------------------

    def begin_run(self, spell: str, event: TriggerEvent, at: float) -> tuple[int, str]:
        """Count the run and store its trigger, durably: ``(number, run id)``. Ids never repeat."""
        with self.transaction(synced=False) as db:
            (last,) = db.execute("SELECT coalesce(max(n), 0) FROM run").fetchone()
            row = db.execute("SELECT number FROM kv WHERE key = 'hw_counter'").fetchone()
            n = max(last, (row[0] or 0) if row else 0) + 1
            run = f"spell_{spell}_{n}"
            trigger = msgspec.json.encode(event.for_script()).decode()
            db.execute("INSERT OR REPLACE INTO kv VALUES ('hw_counter', NULL, ?, 0)", (n,))
            db.execute("INSERT OR REPLACE INTO kv VALUES ('hw_trigger', ?, NULL, 0)", (trigger,))
            db.execute(
                "INSERT INTO run (n, id, at, due, trigger) VALUES (?, ?, ?, ?, ?)",
                (n, run, at, event.due, event.kind),
            )
            db.execute("DELETE FROM run WHERE n <= ?", (n - MAX_RUNS,))
            if event.due is not None:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('last_due', ?)", (repr(event.due),))
        return n, run

    def end_run(
        self,
        n: int,
        run: str,
        outcome: str,
        *,
        at: float,
        seconds: float,
        logs: list[str],
        errors: list[tuple[str, str]],
        late: float | None = None,
        cursor: int | None = None,
    ) -> None:
        """The outcome, the lines it printed, its errors as ``(code, message)``."""
        with self.transaction(synced=False) as db:
            db.execute(
                "UPDATE run SET outcome = ?, seconds = ?, late = ? WHERE n = ?",
                (outcome, seconds, late, n),
            )
            db.executemany(
                "INSERT INTO log (run, at, text) VALUES (?, ?, ?)",
                [(run, at, line) for line in logs[-MAX_LOGS:]],
            )
            db.execute("DELETE FROM log WHERE n <= (SELECT max(n) FROM log) - ?", (MAX_LOGS,))
            db.executemany(
                "INSERT INTO error (run, at, idx, code, message) VALUES (?, ?, ?, ?, ?)",
                [(run, at, i, code, text[:4096]) for i, (code, text) in enumerate(errors)],
            )
            if errors:
                db.execute(
                    "DELETE FROM error WHERE run NOT IN (SELECT DISTINCT run FROM error "
                    "ORDER BY n DESC LIMIT ?)",
                    (MAX_ERRORS,),
                )
            if cursor is not None:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('log_cursor', ?)", (str(cursor),))

    def set_cursor(self, cursor: int) -> None:
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('log_cursor', ?)", (str(cursor),))

    def position(self) -> tuple[float | None, int | None]:
        """The tick fired last and the log position handled last; marks runs cut short as lost."""
        with self.transaction() as db:
            db.execute("UPDATE run SET outcome = 'lost' WHERE outcome IS NULL")
            rows = dict(
                db.execute("SELECT key, value FROM meta WHERE key IN ('last_due', 'log_cursor')")
            )
        last, cursor = rows.get("last_due"), rows.get("log_cursor")
        return (float(last) if last else None), (int(cursor) if cursor else None)

    def forget_position(self) -> None:
        """A new trigger starts anew."""
        with self.transaction() as db:
            db.execute("DELETE FROM meta WHERE key IN ('last_due', 'log_cursor')")

    def runs(self, limit: int = 20) -> list[RunRecord]:
        with self.lock:
            rows = self._db.execute("SELECT * FROM run ORDER BY n DESC LIMIT ?", (limit,))
            return [RunRecord(*row) for row in rows]

    def errors(self, limit: int = MAX_ERRORS) -> list[dict[str, Any]]:
        with self.lock:
            rows = self._db.execute(
                "SELECT run, at, idx, code, message FROM error ORDER BY n DESC LIMIT ?", (limit,)
            )
            names = ("run", "at", "index", "code", "message")
            return [dict(zip(names, row, strict=True)) for row in rows]

    def logs(self, limit: int = MAX_LOGS) -> list[dict[str, Any]]:
        with self.lock:
            rows = self._db.execute(
                "SELECT run, at, text FROM log ORDER BY n DESC LIMIT ?", (limit,)
            ).fetchall()
        return [{"run": run, "at": at, "text": text} for run, at, text in reversed(rows)]

    # -- mailbox -------------------------------------------------------------------------------

    def push_mail(self, sender: str, message: str, at: float) -> None:
        """Anyone may; the oldest message yields when there are 50."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO mailbox (at, sender, message) VALUES (?, ?, ?)",
                (at, sender, _text(message)),
            )
            db.execute(
                "DELETE FROM mailbox WHERE n NOT IN "
                "(SELECT n FROM mailbox ORDER BY n DESC LIMIT ?)",
                (MAX_MAILBOX,),
            )

    def mail(self, limit: int = MAX_MAILBOX) -> list[dict[str, Any]]:
        """Newest first."""
        with self.lock:
            rows = self._db.execute(
                "SELECT at, sender, message FROM mailbox ORDER BY n DESC LIMIT ?", (limit,)
            )
            return [{"at": at, "sender": who, "message": text} for at, who, text in rows]

    def pop_mail(self) -> dict[str, Any] | None:
        """Remove and return the newest message."""
        with self.transaction() as db:
            row = db.execute(
                "DELETE FROM mailbox WHERE n = (SELECT max(n) FROM mailbox) "
                "RETURNING at, sender, message"
            ).fetchone()
        return None if row is None else {"at": row[0], "sender": row[1], "message": row[2]}


@cache
def _template() -> bytes:
    """The bytes of an empty store: a copy costs one write where building it costs five fsyncs."""
    with tempfile.TemporaryDirectory(prefix="leasehold-") as folder:
        path = os.path.join(folder, "empty.db")
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript("BEGIN;" + SCHEMA + "COMMIT;")
        db.close()
        with open(path, "rb") as file:
            return file.read()


def _create(path: Path) -> None:
    """An empty store at ``path``, complete or not at all."""
    temporary = path.with_suffix(".new")
    with open(temporary, "wb") as file:
        file.write(_template())
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise LeaseholdError("bad_value", "expected a string", expected="string", got=type(value))
    if len(value.encode(errors="surrogatepass")) > MAX_VALUE:
        raise LeaseholdError("value_too_large", f"a value has at most {MAX_VALUE} bytes")
    return value
