"""The embedded ledger as a service: transactions in, durable blocks out.

Three steps run beside each other. *Arrivals* are decoded and queued at once. The *verifier* checks
signatures of all that wait, on threads (the check leaves Python's lock). The *producer* takes all
that are verified, executes them, and appends the block; while it is being made durable the next
one gathers. Nobody is answered, and no query sees a block, before it is durable.

A block is made when there is something to say: a transaction, or funds that ran out. There is at
most one each ``block_interval_s``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff, retrying
from leasehold.core.service import Service, not_running, running
from leasehold.core.web import HttpServer
from leasehold.events.log import Log
from leasehold.market.accounts import Key
from leasehold.market.ledger import views
from leasehold.market.ledger.blocks import Chain
from leasehold.market.ledger.chain import Block, Genesis, GenesisAccount, Param, TxResult
from leasehold.market.ledger.checkpoints import Checkpoints
from leasehold.market.ledger.export import genesis_of
from leasehold.market.ledger.history import History
from leasehold.market.ledger.index import TxIndex
from leasehold.market.ledger.messages import Received, receive, verified
from leasehold.market.ledger.snapshot import Snapshots
from leasehold.market.settings import MarketSettings

log = get_logger(__name__)

BLOCKS = metrics.counter("leasehold_ledger_blocks_total", "blocks made")
TXS = metrics.counter("leasehold_ledger_txs_total", "transactions", ["outcome"])
REFUSED, COMMITTED = TXS.labels("refused"), TXS.labels("committed")
HEIGHT = metrics.gauge("leasehold_ledger_height", "height of the newest block")
COMMIT = metrics.histogram("leasehold_ledger_commit_seconds", "arrival of a transaction to durable")

CHUNK = 16
"""Signatures checked by one thread at a time: the producer goes on with those that are done while
the next are checked."""

INLINE_CHECKS = 2
"""Signatures checked without a thread: a hop there and back costs as much."""


@dataclass(slots=True, eq=False)
class Pending:
    """A transaction on its way. ``checked`` says it may go into a block, ``done`` that it did."""

    received: Received
    arrived: float
    checked: asyncio.Future[None]
    done: asyncio.Future[Committed]


@dataclass(frozen=True, slots=True)
class Committed:
    """Where a transaction landed."""

    height: int
    position: int
    result: TxResult
    block: Block = field(repr=False)


class LedgerService(Service):
    """The ledger with its RPC on ``settings.host:port``.

    ``genesis`` is used when the log holds no ledger yet (default: an empty one whose authority is
    nobody; see :meth:`default_genesis`). ``folder`` of the settings keeps the validator's key and
    the state snapshot.
    """

    def __init__(
        self,
        log: Log,
        clock: Clock | None = None,
        settings: MarketSettings | None = None,
        *,
        genesis: Genesis | None = None,
        serve: bool = True,
    ) -> None:
        super().__init__("ledger", clock=clock)
        self.settings = settings or MarketSettings()
        self.history = History(log, self.settings.chain_id, self.settings.block_cache)
        self.index = TxIndex(self.settings.tx_index)
        self.url = ""
        self._genesis = genesis
        self._serve = serve
        self._arrived: deque[Pending] = deque()
        self._verified: deque[Pending] = deque()
        self._by_hash: dict[bytes, Pending] = {}
        self._arrival = asyncio.Event()
        self._work = asyncio.Event()
        self._durable = asyncio.Event()
        self._durable.set()
        self._listeners: set[Callable[[Block], None]] = set()
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "ledger-verify")
        self._snapshots = Snapshots(self.settings)
        self.searching = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    @staticmethod
    def default_genesis(
        settings: MarketSettings,
        now: float,
        *,
        balances: dict[str, str] | None = None,
        authority: str = "",
    ) -> Genesis:
        """A genesis with ``balances`` (address to base units of the settings' denomination)."""
        return Genesis(
            chain_id=settings.chain_id,
            time=int(now * 1e9),
            authority=authority,
            accounts=[
                GenesisAccount(address, {settings.denom: amount})
                for address, amount in (balances or {}).items()
            ],
            params=Param(
                charge_period_s=settings.charge_period_s,
                min_deposit=settings.min_deposit,
                bid_deposit=settings.bid_deposit,
            ),
        )

    async def start(self) -> None:
        self.resources.callback(self._threads.shutdown, wait=False)
        await self._load()
        HEIGHT.set(self.chain.height)
        self.spawn(self._verify(), name="verify")
        self.spawn(self._produce(), name="produce")
        if self._serve:
            from leasehold.market.ledger.rpc import Rpc

            self.rpc = Rpc(self)
            server = HttpServer(
                self.rpc,
                host=self.settings.host,
                port=self.settings.port,
                name="ledger RPC",
                setting="market.port",
                clock=self.clock,
                ws="websockets-sansio",
                ws_max_size=2 * self.settings.max_tx_bytes,
                ws_ping_interval=10.0,
                ws_ping_timeout=15.0,
            )
            await self.resources.enter_async_context(running(server))
            self.url = server.url
            log.info("ledger.ready", url=self.url, height=self.chain.height)

    async def stop(self) -> None:
        """Finish what was accepted, then keep a snapshot for a quick start."""
        while self._by_hash:
            await asyncio.wait([p.done for p in self._by_hash.values()])
        await self._durable.wait()
        if self._writing is not None:
            await asyncio.wait({self._writing})
        if write := self._snapshots.due(self.chain, self.index, stopping=True):
            await asyncio.to_thread(write)

    # -- loading -------------------------------------------------------------------------------

    async def _load(self) -> None:
        validator = self._validator()
        genesis = await self.history.genesis()
        if genesis is None:
            genesis = self._imported() or self._genesis
            genesis = genesis or self.default_genesis(self.settings, self.clock.now())
            genesis = _with_validator(genesis, validator)
            Chain(genesis)  # refuse a bad genesis before it is written
            await self.history.found(genesis)
            genesis = msgspec.structs.replace(genesis, continued=bool(genesis.state))
        if genesis.validator != validator.public.data:
            raise LeaseholdError(
                "validator_key_changed",
                "the ledger was made with another validator key; restore the key file "
                f"in {self.settings.folder or 'the state folder'}",
                kind=Kind.CONFLICT,
                expected=genesis.validator.hex(),
                got=validator.public.data.hex(),
            )
        self.chain = Chain(msgspec.structs.replace(genesis, state=b""), validator.sign)
        loaded = await self._snapshots.load(self.chain, self.index, self.history)
        if genesis.continued and not loaded:
            self.chain.load(await self.history.state())
        self._checkpoints = Checkpoints(self.history, self.settings.keep_blocks)
        replayed = 0
        async for block in self.history.blocks(self.chain.height):
            self.chain.replay(block)
            self.index.add(block)
            replayed += 1
            if replayed % 50 == 0:
                await asyncio.sleep(0)
        self.chain.machine.watch_all()
        await self.history.replayed()

    def _imported(self) -> Genesis | None:
        """An exported ledger in the folder: this one continues it."""
        file = Path(self.settings.folder, IMPORT) if self.settings.folder else None
        if file is None or not file.exists():
            return None
        genesis = genesis_of(file.read_bytes())
        log.info("ledger.imported", file=str(file), height=genesis.initial_height - 1)
        return genesis

    def _validator(self) -> Key:
        """The key that signs blocks. Without a folder it follows from the chain id: it then
        proves nothing, which suits a ledger in memory."""
        if not self.settings.folder:
            return Key.from_secret(
                "ed25519", hashlib.sha256(self.settings.chain_id.encode()).digest()
            )
        return Key.ensure(Path(self.settings.folder) / "validator.json", "ed25519")

    # -- transactions --------------------------------------------------------------------------

    async def check(self, raw: bytes) -> Pending:
        """Accept a transaction for the next block: decoded, signature and sequence looked at.

        One that landed before is answered with where it did. Raises the refusal.
        """
        pending = await self._enter(raw)
        await asyncio.shield(pending.checked)
        return pending

    async def commit(self, raw: bytes) -> Committed:
        """Send a transaction and wait until it is durable. Raises the refusal."""
        pending = await self._enter(raw)
        return await asyncio.shield(pending.done)

    async def _enter(self, raw: bytes) -> Pending:
        if self.stopping:
            raise not_running("the ledger")
        try:
            received = receive(raw, self.settings.max_tx_bytes)
        except LeaseholdError:
            REFUSED.inc()
            raise
        waiting = self._by_hash.get(received.hash)
        if waiting is not None:
            return waiting
        loop = asyncio.get_running_loop()
        pending = Pending(
            received, self.clock.monotonic(), loop.create_future(), loop.create_future()
        )
        if self.index.height(received.hash) is not None:
            landed = await self.find(received.hash)
            if landed is not None:
                pending.checked.set_result(None)
                pending.done.set_result(landed)
                return pending
        if len(self._by_hash) >= self.settings.max_pending:
            TXS.labels("busy").inc()
            raise unavailable(
                "ledger_busy", "too many transactions are waiting; try again", retry_after=1.0
            )
        for future in (pending.checked, pending.done):
            future.add_done_callback(_retrieved)
        self._by_hash[received.hash] = pending
        self._arrived.append(pending)
        self._arrival.set()
        return pending

    def _refuse(self, pending: Pending, error: LeaseholdError) -> None:
        REFUSED.inc()
        self._by_hash.pop(pending.received.hash, None)
        for future in (pending.checked, pending.done):
            if not future.done():
                future.set_exception(error)

    async def _verify(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            batch = list(self._arrived)
            self._arrived.clear()
            if len(batch) <= INLINE_CHECKS:
                self._judge(batch, _verify_all(batch))
                continue
            chunks = [batch[i : i + CHUNK] for i in range(0, len(batch), CHUNK)]
            jobs = [loop.run_in_executor(self._threads, _verify_all, chunk) for chunk in chunks]
            for chunk, job in zip(chunks, jobs, strict=True):
                self._judge(chunk, await job)

    def _judge(self, batch: list[Pending], verdicts: list[bool]) -> None:
        """Pass on what is signed by who it says, in the order of arrival; refuse the others."""
        for pending, genuine in zip(batch, verdicts, strict=True):
            try:
                if not genuine:
                    raise _bad_signature()
                self.chain.check(pending.received, early=True)
            except LeaseholdError as error:
                self._refuse(pending, error)
                continue
            if not pending.checked.done():
                pending.checked.set_result(None)
            self._verified.append(pending)
        if self._verified:
            self._work.set()

    # -- blocks --------------------------------------------------------------------------------

    async def _produce(self) -> None:
        while True:
            await self._wait_for_work()
            began = self.clock.monotonic()
            await self._make_block()
            rest = self.settings.block_interval_s - (self.clock.monotonic() - began)
            if rest > 0:
                await self.clock.sleep(rest)

    async def _wait_for_work(self) -> None:
        """Until a transaction is ready, or an escrow runs dry."""
        if self._verified or self.chain.behind:
            return
        self._work.clear()
        wait = None
        dry = self.chain.machine.next_dry()
        if dry is not None and self.chain.machine.period:
            due = self.genesis.time + dry * self.chain.machine.period
            wait = max(0.0, due / 1e9 - self.clock.now())
        try:
            async with self.clock.timeout(wait):
                await self._work.wait()
        except TimeoutError:
            pass

    async def _make_block(self) -> None:
        chain = self.chain
        taken: list[tuple[Pending, TxResult]] = []
        self._durable.clear()
        chain.begin(int(self.clock.now() * 1e9))
        size = 0
        while (
            self._verified
            and not chain.behind
            and len(taken) < self.settings.max_block_txs
            and size < MAX_DATA
        ):
            pending = self._verified.popleft()
            try:
                taken.append((pending, chain.execute(pending.received)))
                size += len(pending.received.raw)
            except LeaseholdError as error:
                self._refuse(pending, error)
        block = chain.finish()
        if block is not None:
            await self._append(block)
            self.index.add(block)
        self._durable.set()
        if block is None:
            return
        BLOCKS.inc()
        HEIGHT.set(block.height)
        now = self.clock.monotonic()
        for position, (pending, result) in enumerate(taken):
            self._by_hash.pop(pending.received.hash, None)
            COMMITTED.inc()
            COMMIT.observe(now - pending.arrived)
            if not pending.done.done():
                pending.done.set_result(Committed(block.height, position, result, block))
        for listener in list(self._listeners):
            listener(block)
        if self.stopping:
            return  # stop() writes the snapshot
        idle = self._writing is None or self._writing.done()
        if idle and (write := self._snapshots.due(chain, self.index)):
            self._writing = self.spawn(asyncio.to_thread(write), name="snapshot")
        elif idle and (work := await self._checkpoints.due(chain)):
            if self.stopping:
                work.close()
            else:
                self._writing = self.spawn(work, name="checkpoint")

    async def _append(self, block: Block) -> None:
        """Until the log has it: the state has moved on, there is no way back. The same ids make
        trying again safe. What cannot be mended by trying ends the service, and a restart replays
        what is durable."""
        await retrying(
            lambda: self.history.append(block),
            clock=self.clock,
            backoff=Backoff(first=0.05, cap=5.0, attempts=None),
            retry_on=lambda e: isinstance(e, LeaseholdError) and e.kind is Kind.UNAVAILABLE,
        )

    def listen(self, listener: Callable[[Block], None]) -> Callable[[], None]:
        """Call ``listener`` with each block once it is durable; answers how to end that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # -- questions -----------------------------------------------------------------------------

    @property
    def genesis(self) -> Genesis:
        """How what is kept of this ledger began, without its state."""
        return self.chain.genesis

    async def find(self, hash: bytes) -> Committed | None:
        """Where the transaction ``hash`` landed; None when it is unknown or was long ago."""
        height = self.index.height(hash)
        if height is None or height < self.history.first:
            return None
        block = await self.history.block(height)
        for position, raw in enumerate(block.txs):
            if hashlib.sha256(raw).digest() == hash:
                return Committed(height, position, block.results[position], block)
        return None

    async def ask(self, path: str, data: bytes) -> Any:
        """A question about the state (see ``views``), answered from what is durable."""
        await self.settled()
        return views.ask(self.chain.machine, path, data, int(self.clock.now() * 1e9))

    def waiting(self) -> list[bytes]:
        """Transactions on their way into a block, oldest first."""
        return [pending.received.raw for pending in self._by_hash.values()]

    async def inspect(self, raw: bytes) -> None:
        """Look at a transaction without taking it; raises what would refuse it at once."""
        received = receive(raw, self.settings.max_tx_bytes)
        if not verified(received):
            raise _bad_signature()
        await self.settled()
        self.chain.check(received)

    async def settled(self) -> None:
        """Wait until no block is on its way to the disk; UNAVAILABLE when that takes too long."""
        try:
            async with self.clock.timeout(DURABLE_S):
                await self._durable.wait()
        except TimeoutError:
            raise unavailable(
                "ledger_not_durable",
                "the ledger cannot write its newest block; is the disk full?",
                retry_after=DURABLE_S,
            ) from None


IMPORT = "import.jsonl"
"""An export in the folder of the settings, taken over when there is no ledger yet."""

DURABLE_S = 5.0
"""Seconds a question waits for a block that is being written."""

MAX_DATA = 512 * 1024
"""Bytes of transactions after which a block is closed."""


def _verify_all(batch: list[Pending]) -> list[bool]:
    return [verified(pending.received) for pending in batch]


def _bad_signature() -> LeaseholdError:
    return LeaseholdError(
        "bad_signature",
        "the signature is not the signer's for this transaction",
        kind=Kind.UNAUTHENTICATED,
    )


def _with_validator(genesis: Genesis, validator: Key) -> Genesis:
    return msgspec.structs.replace(genesis, validator=validator.public.data)


def _retrieved(future: asyncio.Future[Any]) -> None:
    """A caller may have left: a refusal nobody reads is no error of ours."""
    if not future.cancelled():
        future.exception()
