"""The directories of spells, and their SQLite files, of which some are kept open.

Files are used in threads. At most so many are open at a time; the one not used for longest goes.
"""

from __future__ import annotations

import asyncio
import resource
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from leasehold.core.errors import not_found
from leasehold.node.spells.store import SpellStore

STORE_THREADS = 4

T = TypeVar("T")


class SpellFiles:
    """Everything below ``root``, one directory a spell."""

    def __init__(self, root: Path, keep_open: int) -> None:
        self.root = root
        self._stores: OrderedDict[str, SpellStore] = OrderedDict()
        self._keep_open = _files_to_keep(keep_open)
        self._busy: dict[str, int] = defaultdict(int)
        self._cache = threading.Lock()
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="spell-store")

    async def close(self) -> None:
        """Finish what was begun and close every file."""
        await asyncio.to_thread(self._threads.shutdown)
        for store in self._stores.values():
            store.close()
        self._stores.clear()

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

    def forget(self, spell: str) -> None:
        """Close the file of ``spell``, which is about to change or go."""
        with self._cache:
            store = self._stores.pop(spell, None)
        if store is not None:
            store.close()

    def set_aside(self, spell: str, at: float) -> Path:
        """Move an unreadable file out of the way; returns where it is now."""
        self.forget(spell)
        directory = self.directory(spell)
        aside = directory / f"corrupt-{int(at)}.db"
        (directory / "spell.db").rename(aside)
        for suffix in ("-wal", "-shm"):
            (directory / f"spell.db{suffix}").unlink(missing_ok=True)
        return aside


def _files_to_keep(wanted: int) -> int:
    """Stores to keep open: each takes three descriptors, and half of them are for others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(STORE_THREADS, min(wanted, soft // 6))
