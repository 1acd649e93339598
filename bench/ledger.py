"""The embedded ledger.

``value``: signed transactions a second made durable, 64 senders with one transaction each on its
way (ed25519 transfers, signed beforehand, handed to the service in process). ``peer``: the log's
own appends of events as large, from 64 writers, on the same disk in the same run. Extras: the same
through HTTP; from an order to an accepted lease with the bid engine; 100,000 leases in memory and
over a restart; settling 10,000 active leases that run dry in one block.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from bench.harness import interleaved, median, percentile, result
from leasehold.core import ids, logs
from leasehold.core.clock import SystemClock
from leasehold.core.service import Group, running
from leasehold.events.event import Entity, NewEvent
from leasehold.events.sqlite import SqliteLog
from leasehold.market.accounts import Key
from leasehold.market.bids import BidActivity, Bidder
from leasehold.market.client import LedgerClient
from leasehold.market.feed import Feed
from leasehold.market.ledger import messages as m
from leasehold.market.ledger.blocks import Chain
from leasehold.market.ledger.chain import Block
from leasehold.market.ledger.history import History
from leasehold.market.ledger.index import TxIndex
from leasehold.market.ledger.messages import Received, Tx
from leasehold.market.ledger.money import Coin
from leasehold.market.ledger.service import LedgerService
from leasehold.market.ledger.snapshot import Snapshots
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import GROUP, LedgerBlocks, MemoryInventory
from leasehold.model.market import LeaseId
from leasehold.model.resources import GroupSpec
from leasehold.observe.engine import Engine

SENDERS = 64


def run(quick: bool) -> dict[str, Any]:
    logs.configure("warning")
    leases = 10_000 if quick else 100_000
    throughput = asyncio.run(_throughput(runs=3 if quick else 5, each=50 if quick else 150))
    latency = asyncio.run(_latency(20 if quick else 200))
    size = _size(leases)
    return result(
        "ledger",
        throughput["value"],
        "tx/s",
        peer="appends of the same log",
        peer_value=throughput["peer"],
        higher_is_better=True,
        aim="ratio >= 0.3",
        http_tx_per_s=throughput["http"],
        **latency,
        **size,
        settle_10k_dry_ms=_settle(10_000),
        settle_idle_us=_settle_idle(10_000),
    )


async def _throughput(runs: int, each: int) -> dict[str, float]:
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        settings = MarketSettings(port=0, folder=f"{folder}/ledger")
        keys = [Key.generate("ed25519") for _ in range(SENDERS)]
        genesis = LedgerService.default_genesis(
            settings, clock.now(), balances={key.address: "1000000" for key in keys}
        )
        log = SqliteLog(Path(folder) / "log.db", clock)
        ledger = LedgerService(log, clock, settings, genesis=genesis)
        async with running(Group([log, ledger], clock=clock)):
            sequences = dict.fromkeys(range(SENDERS), 0)

            def signed(sender: int, count: int) -> list[bytes]:
                out = []
                for _ in range(count):
                    message = m.Send(
                        to=keys[(sender + 1) % SENDERS].address, amount=Coin("uakt", "1")
                    )
                    out.append(
                        m.sign(keys[sender], settings.chain_id, sequences[sender], [message])
                    )
                    sequences[sender] += 1
                return out

            async def ours() -> float:
                batches = [signed(sender, each) for sender in range(SENDERS)]

                async def sender(batch: list[bytes]) -> None:
                    for raw in batch:
                        await ledger.commit(raw)

                began = time.perf_counter()
                await asyncio.gather(*map(sender, batches))
                return SENDERS * each / (time.perf_counter() - began)

            async def http() -> float:
                batches = [signed(sender, each // 5) for sender in range(SENDERS)]
                client = LedgerClient(ledger.url)

                async def sender(batch: list[bytes]) -> None:
                    for raw in batch:
                        await client.send(raw)

                began = time.perf_counter()
                await asyncio.gather(*map(sender, batches))
                rate = SENDERS * (each // 5) / (time.perf_counter() - began)
                await client.close()
                return rate

            async def appends() -> float:
                data = signed(0, 1)[0]
                sequences[0] -= 1

                async def writer(number: int) -> None:
                    entity = Entity("bench", ids.new(clock.now()))
                    parent = None
                    for _ in range(each):
                        body = json.dumps({"height": 1, "part": 1, "data": data.decode("latin1")})
                        event = NewEvent(ids.new(clock.now()), "ledger.part", body.encode())
                        await log.append(entity, parent, [event])
                        parent = event.id

                began = time.perf_counter()
                await asyncio.gather(*(writer(n) for n in range(SENDERS)))
                return SENDERS * each / (time.perf_counter() - began)

            await ours()
            values = await interleaved(runs, ours, appends, http)
    return {
        "value": median(values[0]),
        "peer": median(values[1]),
        "http": round(median(values[2])),
    }


async def _latency(rounds: int) -> dict[str, Any]:
    """Order created to lease.won on the log, the tenant accepting the first bid it sees."""
    clock = SystemClock()
    tenant, provider = Key.generate("ed25519"), Key.generate("ed25519")
    with tempfile.TemporaryDirectory() as folder:
        settings = MarketSettings(port=0, folder=f"{folder}/ledger")
        genesis = LedgerService.default_genesis(
            settings,
            clock.now(),
            balances={tenant.address: "10000000000", provider.address: "10000000000"},
        )
        log = SqliteLog(Path(folder) / "log.db", clock)
        ledger = LedgerService(log, clock, settings, genesis=genesis)
        async with running(Group([log, ledger], clock=clock)):
            mine, theirs = LedgerClient(ledger.url, provider), LedgerClient(ledger.url, tenant)
            await mine.set_provider("https://provider.example")
            bidder = Bidder(
                provider.address, mine, mine, MemoryInventory(), clock=clock, settings=settings
            )
            engine = Engine(log, clock)
            engine.register(bidder.activity, kind=BidActivity)
            feed = Feed(log, LedgerBlocks(ledger), provider.address, clock=clock, reader=mine)
            took = []
            async with running(Group([engine, feed], clock=clock)):
                for _ in range(rounds):
                    began = time.perf_counter()
                    did = await theirs.create_deployment([GROUP], "ab" * 32)
                    lease = LeaseId(did.owner, did.dseq, 1, 1, provider.address)
                    await _seen(log, Entity("order", str(lease.order)), "bid.created")
                    await theirs.create_lease(lease)
                    await _seen(log, Entity("lease", str(lease)), "lease.won")
                    took.append((time.perf_counter() - began) * 1000)
                    await theirs.close_deployment(did.dseq)
            await mine.close()
            await theirs.close()
    return {
        "order_to_lease_p50_ms": round(percentile(took, 0.5), 2),
        "order_to_lease_p99_ms": round(percentile(took, 0.99), 2),
        "order_to_lease_aim": "p50 < 50 ms",
    }


async def _seen(log: SqliteLog, entity: Entity, type: str) -> None:
    async for event in log.read(entity, watch=True):
        if getattr(event, "type", "") == type:
            return


class _Unsigned:
    """Transactions of made-up accounts, executed without their signatures."""

    def __init__(self, accounts: int, leases: int) -> None:
        self.settings = MarketSettings()
        self.keys = [Key.generate("ed25519") for _ in range(accounts)]
        self.provider = Key.generate("ed25519")
        self.sequences: dict[str, int] = {}
        balances = {key.address: str(500_000 * leases // accounts * 2) for key in self.keys}
        balances[self.provider.address] = str(500_000 * leases * 2)
        self.genesis = msgspec.structs.replace(
            LedgerService.default_genesis(self.settings, 1_767_225_600.0, balances=balances),
            validator=Key.from_secret("ed25519", bytes(32)).public.data,
        )
        self.chain = Chain(self.genesis)
        self.spec = msgspec.convert(GROUP, GroupSpec)

    def send(self, key: Key, *messages: Any) -> None:
        sequence = self.sequences.get(key.address, 0)
        self.sequences[key.address] = sequence + 1
        body = m.Body(chain_id=self.settings.chain_id, sequence=sequence, messages=list(messages))
        tx = Tx(body=msgspec.json.encode(body).decode(), key=key.public, signature=bytes(64))
        raw = msgspec.json.encode(tx)
        self.chain.execute(Received(raw, raw[:32], body, tx))

    def lease(self, key: Key, dseq: int, deposit: str = "500000") -> None:
        coin = Coin("uakt", deposit)
        self.send(
            key, m.CreateDeployment(dseq=dseq, hash="ab" * 32, groups=[self.spec], deposit=coin)
        )
        bid = m.CreateBid(
            owner=key.address,
            dseq=dseq,
            gseq=1,
            oseq=1,
            price=Coin("uakt", "0.01"),
            deposit=Coin("uakt", "500000"),
        )
        self.send(self.provider, bid)
        self.send(key, m.CreateLease(dseq=dseq, gseq=1, oseq=1, provider=self.provider.address))

    def filled(self, leases: int, per_block: int = 500) -> list[Block]:
        """Blocks that make ``leases`` leases."""
        blocks = []
        time = self.genesis.time
        made = 0
        self.chain.begin(time + 1)
        self.send(self.provider, m.SetProvider(host_uri="https://provider.example"))
        while made < leases:
            for _ in range(min(per_block, leases - made)):
                self.lease(self.keys[made % len(self.keys)], made // len(self.keys) + 1)
                made += 1
            block = self.chain.finish()
            assert block is not None
            blocks.append(block)
            time += 1_000_000
            self.chain.begin(time)
        return blocks


def _size(leases: int) -> dict[str, Any]:
    """Memory of a ledger with so many active leases, and how long a restart takes.

    Made by one process and started by another, so that what is counted is the ledger's.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for work in (_build, _restart):
            with ProcessPoolExecutor(1, mp_context=context) as process:
                told = process.submit(work, folder, leases).result()
    return {"leases": leases, **told, "restart_aim": "< 3 s"}


def _ledger(folder: str) -> tuple[SqliteLog, MarketSettings]:
    settings = MarketSettings(folder=f"{folder}/ledger", snapshot_txs=1)
    return SqliteLog(Path(folder) / "log.db", SystemClock()), settings


def _build(folder: str, leases: int) -> None:
    """Write the history and a snapshot of a ledger with so many leases."""
    made = _Unsigned(accounts=1000, leases=leases)

    async def write() -> None:
        log, settings = _ledger(folder)
        async with running(log):
            service = LedgerService(log, None, settings, genesis=made.genesis, serve=False)
            validator = service._validator()
            genesis = msgspec.structs.replace(made.genesis, validator=validator.public.data)
            history = History(log, settings.chain_id, 16)
            await history.found(genesis)
            index = TxIndex(settings.tx_index)
            for block in made.filled(leases):
                await history.append(block)
                index.add(block)
            snapshot = Snapshots(settings).due(made.chain, index, stopping=True)
            assert snapshot is not None
            snapshot()

    asyncio.run(write())


def _restart(folder: str, leases: int) -> dict[str, Any]:
    logs.configure("warning")

    async def start() -> dict[str, Any]:
        log, settings = _ledger(folder)
        async with running(log):
            before = _rss()
            began = time.perf_counter()
            async with running(LedgerService(log, None, settings, serve=False)) as service:
                took = time.perf_counter() - began
                assert len(service.chain.state.provider_leases.popitem()[1]) == leases
                gc.collect()
                snapshot = Path(settings.folder) / "ledger-state"
                return {
                    "restart_s": round(took, 2),
                    "memory_mb": round((_rss() - before) / 1e6),
                    "snapshot_mb": round(snapshot.stat().st_size / 1e6, 1),
                }

    return asyncio.run(start())


def _settle(leases: int) -> float:
    """Milliseconds of a block in which all leases run out of funds."""
    made = _Unsigned(accounts=100, leases=leases)
    made.filled(leases, per_block=1000)
    began = time.perf_counter()
    made.chain.begin(made.genesis.time + 10_000 * 365 * 86400 * 1_000_000_000)
    while made.chain.finish() is not None:
        made.chain.begin(made.chain.last.time + 1)
    took = time.perf_counter() - began
    assert not any(lease.state == "active" for lease in made.chain.state.leases.values())
    return round(took * 1000, 1)


def _settle_idle(leases: int) -> float:
    """Microseconds a block takes to see that nothing ran dry among so many active leases."""
    made = _Unsigned(accounts=100, leases=leases)
    made.filled(leases, per_block=1000)
    now = made.chain.last.time
    began = time.perf_counter()
    for step in range(1000):
        made.chain.begin(now + step * 6_000_000_000)
        made.chain.finish()
    return round((time.perf_counter() - began) * 1000, 2)


def _rss() -> int:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize()
