"""Forgetting old blocks, if the settings say so.

Every ``keep_blocks`` blocks the state is written into the history as a *checkpoint*: a genesis that
goes on after the newest block, with the state in parts. When the next one is due, everything before
the last one is trimmed. So at least ``keep_blocks`` are always there for who reads behind, at most
twice as many, and a crash at any point leaves a history that begins with a whole state. While
somebody reads all of it, trimming waits for the next one, up to ``PATIENCE`` times ``keep_blocks``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.market.ledger.blocks import Chain
from leasehold.market.ledger.chain import Genesis
from leasehold.market.ledger.export import checkpoint_of
from leasehold.market.ledger.history import History

log = get_logger(__name__)

PATIENCE = 8
"""Longer than this many times ``keep_blocks`` nothing is kept for a reader who does not end."""


class Checkpoints:
    """``keep`` blocks at least; 0 keeps all."""

    def __init__(self, history: History, keep: int) -> None:
        self._history = history
        self._keep = keep
        self._marked = history.first - 1
        self._whole: Genesis | None = None

    async def due(self, chain: Chain) -> Coroutine[Any, Any, None] | None:
        """What to run beside the ledger when a checkpoint is due.

        Its first event is written here, right after the newest block, where it belongs.
        """
        if not self._keep or chain.height - self._marked < self._keep:
            return None
        self._marked = chain.height
        genesis, pieces = checkpoint_of(chain)
        try:
            await self._history.mark(genesis)
        except LeaseholdError as error:
            _failed(error)
            return None
        return self._write(chain, genesis, pieces)

    def _read(self, chain: Chain) -> bool:
        kept = chain.height - self._history.first
        return self._history.readers > 0 and kept < PATIENCE * self._keep

    async def _write(self, chain: Chain, genesis: Genesis, pieces: Iterator[bytes]) -> None:
        try:
            if self._whole is not None and not self._read(chain):
                chain.genesis, self._whole = self._whole, None
                await self._history.forget_before(chain.genesis)
                log.info("ledger.forgot", before=chain.genesis.initial_height)
            await self._history.fill(genesis, _on_a_thread(pieces))
        except LeaseholdError as error:
            _failed(error)
        else:
            self._whole = genesis


def _failed(error: LeaseholdError) -> None:
    """A log that cannot take it now may take the next one; nothing else may go wrong."""
    if error.kind is not Kind.UNAVAILABLE:
        raise error
    log.warning("ledger.checkpoint_failed", problem=error.message)


async def _on_a_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
