"""A snapshot of the state beside the log, so that a start need not replay the whole history.

It is only ever a short cut: the log decides. The file names the block it belongs to and ends with
its own sha256; when either does not fit it is ignored and everything is replayed. Since objects are
never changed in place, a snapshot is a copy of references, encoded piece by piece on a thread
while the ledger goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.market.ledger.blocks import Chain
from leasehold.market.ledger.chain import Sealed
from leasehold.market.ledger.history import History
from leasehold.market.ledger.index import TxIndex
from leasehold.market.ledger.state import TABLES, State
from leasehold.market.settings import MarketSettings

log = get_logger(__name__)

MAGIC = b"leasehold-ledger-1\n"
PIECE = 2_000
"""Objects encoded at a time: about a millisecond."""

SHARE = 96
"""A snapshot is due once there were as many transactions as this part of the objects: executing so
many again takes about as long as reading the snapshot, so a start after a crash is at most twice as
slow as one after a stop, and a ledger at its limit spends a quarter of its time on snapshots."""

MIN_AT_STOP = 200
"""Transactions since the last snapshot that make one worth writing at a stop."""

Work = Callable[[], None]

_encoder = msgspec.msgpack.Encoder()


class _Head(Struct, frozen=True):
    chain_id: str
    height: int
    last: Sealed
    counts: dict[str, int]
    hashes: bytes
    heights: bytes


class Snapshots:
    """Writes and reads ``folder/ledger-state``; does nothing without a folder."""

    def __init__(self, settings: MarketSettings) -> None:
        self._path = Path(settings.folder) / "ledger-state" if settings.folder else None
        self._least = settings.snapshot_txs
        self._executed = 0

    async def load(self, chain: Chain, index: TxIndex, history: History) -> bool:
        """Bring ``chain`` to the snapshot's height, if there is one that belongs to the log."""
        if self._path is None or not self._path.exists():
            return False
        try:
            head, tables = await asyncio.to_thread(_read, self._path)
            block = await history.block(head.height)
        except (OSError, ValueError, msgspec.MsgspecError, LeaseholdError) as error:
            log.warning("ledger.snapshot_ignored", reason=str(error)[:200])
            return False
        if head.chain_id != chain.genesis.chain_id or block.sealed != head.last:
            log.warning("ledger.snapshot_ignored", reason="it belongs to another history")
            return False
        _fill(chain.machine.state, tables)
        chain.height, chain.last = head.height, head.last
        chain.machine.begin(head.height, head.last.time)
        index.load(head.hashes, head.heights)
        return True

    def due(self, chain: Chain, index: TxIndex, *, stopping: bool = False) -> Work | None:
        """What to run on a thread when a snapshot is due, else None.

        The work is proportional to the state, so it is due after as many transactions
        as make that worth while; the state is captured now.
        """
        if self._path is None:
            return None
        since = chain.executed - self._executed
        size = sum(len(rows) for rows in chain.machine.state.tables.values())
        if since < (MIN_AT_STOP if stopping else max(self._least, size // SHARE)):
            return None
        tables = {name: list(rows.values()) for name, rows in chain.machine.state.tables.items()}
        head = _Head(
            chain.genesis.chain_id,
            chain.height,
            chain.last,
            {name: len(rows) for name, rows in tables.items()},
            *index.dump(),
        )
        self._executed = chain.executed
        return partial(_write, self._path, head, tables)


def _write(path: Path, head: _Head, tables: dict[str, list[Any]]) -> None:
    temporary = path.with_suffix(".new")
    digest = hashlib.sha256()
    with temporary.open("wb") as file:

        def put(data: bytes) -> None:
            data = len(data).to_bytes(8, "big") + data
            digest.update(data)
            file.write(data)

        file.write(MAGIC)
        put(_encoder.encode(head))
        for name in TABLES:
            rows = tables[name]
            for at in range(0, len(rows), PIECE):
                put(_encoder.encode(rows[at : at + PIECE]))
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    with contextlib.suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _read(path: Path) -> tuple[_Head, dict[str, list[Any]]]:
    data = memoryview(path.read_bytes())
    if bytes(data[: len(MAGIC)]) != MAGIC or len(data) < len(MAGIC) + 40:
        raise ValueError("not a snapshot")
    body = data[len(MAGIC) : -32]
    if hashlib.sha256(body).digest() != bytes(data[-32:]):
        raise ValueError("its checksum is wrong")
    at = 0

    def take() -> memoryview:
        nonlocal at
        size = int.from_bytes(body[at : at + 8], "big")
        piece = body[at + 8 : at + 8 + size]
        at += 8 + size
        return piece

    head = msgspec.msgpack.decode(take(), type=_Head)
    tables: dict[str, list[Any]] = {}
    for name, cls in TABLES.items():
        decoder = msgspec.msgpack.Decoder(list[cls])  # type: ignore[valid-type]
        rows: list[Any] = []
        while len(rows) < head.counts[name]:
            rows.extend(decoder.decode(take()))
        tables[name] = rows
    return head, tables


def _fill(state: State, tables: dict[str, list[Any]]) -> None:
    for name, rows in tables.items():
        table = state.tables[name]
        table.clear()
        table.update((obj.id, obj) for obj in rows)
    state.reindex()
