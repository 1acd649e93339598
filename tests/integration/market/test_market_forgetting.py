"""A ledger that forgets old blocks: what stays is whole, whenever it is looked at or killed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.clock import SystemClock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.core.service import Group, running
from leasehold.events.event import Entity, Event
from leasehold.events.sqlite import SqliteLog
from leasehold.market.accounts import Key
from leasehold.market.ledger import export as exports
from leasehold.market.ledger import messages as m
from leasehold.market.ledger.money import Coin
from leasehold.market.ledger.rpc import Request, Rpc
from leasehold.market.ledger.service import LedgerService
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import DirectClient

KEEP = 30


class Ledgers:
    """One ledger in a folder, started again and again."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = SystemClock()
        self.folder = folder
        self.key, self.other = Key.generate("ed25519"), Key.generate("ed25519")
        self.settings = MarketSettings(
            port=0, folder=str(folder / "ledger"), block_interval_s=0.0, block_cache=16,
            **{"keep_blocks": KEEP, **settings},
        )  # fmt: skip

    def start(self) -> Any:
        self.log = SqliteLog(self.folder / "log.db", self.clock)
        genesis = LedgerService.default_genesis(
            self.settings, self.clock.now(), balances={self.key.address: "1000000"}
        )
        self.ledger = LedgerService(
            self.log, self.clock, self.settings, genesis=genesis, serve=False
        )
        return running(Group([self.log, self.ledger], clock=self.clock))

    async def send(self, count: int) -> None:
        client = DirectClient(self.ledger, self.key)
        for _ in range(count):
            await client.transfer(self.other.address, 1)

    async def events(self) -> list[Event]:
        entity = Entity("ledger", self.settings.chain_id)
        return [e async for e in self.log.read(entity) if isinstance(e, Event)]

    async def history(self) -> list[bytes]:
        return [line async for line in exports.history_lines(self.ledger.history)]


@pytest.mark.parametrize("snapshot", [True, False])
async def test_old_blocks_go_and_the_rest_still_follows(tmp_path: Path, snapshot: bool) -> None:
    ledgers = Ledgers(tmp_path)
    async with ledgers.start():
        old = m.sign(
            ledgers.key,
            "leasehold-1",
            0,
            [m.Send(to=ledgers.other.address, amount=Coin("uakt", "1"))],
        )
        await ledgers.ledger.commit(old)
        await ledgers.send(10 * KEEP)
        ledger = ledgers.ledger
        first = ledger.history.first
        assert ledger.chain.height - 2 * KEEP - 1 <= first <= ledger.chain.height - KEEP + 1
        assert len(await ledgers.events()) < 2 * KEEP + 10
        rpc = Rpc(ledger)
        status = (await rpc.call(Request("status")))["result"]["sync_info"]
        assert int(status["earliest_block_height"]) == first
        for height, there in ((first, True), (first - 1, False), (1, False)):
            answer = await rpc.call(Request("block", {"height": str(height)}))
            assert ("result" in answer) is there
        gone = await rpc.call(Request("tx", {"hash": hashlib.sha256(old).hexdigest()}))
        assert "error" in gone
        with pytest.raises(LeaseholdError) as replayed:
            await ledger.commit(old)  # forgotten, but never twice
        assert replayed.value.code == "wrong_sequence"
        app_hash, digest = ledger.chain.last.app_hash, ledger.chain.state.digest()
        again = exports.replay(await ledgers.history())
        assert (again.app_hash, again.digest) == (app_hash.hex(), digest)
    if not snapshot:
        (tmp_path / "ledger" / "ledger-state").unlink()
    async with ledgers.start():
        chain = ledgers.ledger.chain
        assert (chain.last.app_hash, chain.state.digest()) == (app_hash, digest)
        await ledgers.send(3 * KEEP)
        assert ledgers.ledger.history.first > first
        assert exports.replay(await ledgers.history()).height == chain.height
        exported = b"".join(exports.export(chain))
        assert exports.genesis_of(exported).initial_height == chain.height + 1


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_broken_off_at_any_point_nothing_is_lost(
    tmp_path: Path, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log stops taking anything at the nth step of forgetting; then the process is gone."""
    monkeypatch.setattr("leasehold.market.ledger.export.PART_BYTES", 200)  # many parts
    ledgers = Ledgers(tmp_path)
    async with ledgers.start():
        log, steps = ledgers.log, 0
        append, trim = log.append, log.trim

        async def counted(entity: Entity, parent: str | None, events: Any, **more: Any) -> Any:
            nonlocal steps
            if events[0].type in ("ledger.genesis", "ledger.state"):
                steps += 1
                if steps >= 3 * nth:
                    raise unavailable("disk_full", "no room")
            return await append(entity, parent, events, **more)

        async def trimmed(entity: Entity, keep_from: str) -> int:
            if nth == 4:
                raise unavailable("disk_full", "no room")
            return await trim(entity, keep_from)

        monkeypatch.setattr(log, "append", counted)
        monkeypatch.setattr(log, "trim", trimmed)
        await ledgers.send(5 * KEEP)
        chain = ledgers.ledger.chain
        app_hash, digest = chain.last.app_hash, chain.state.digest()
    (tmp_path / "ledger" / "ledger-state").unlink(missing_ok=True)
    async with ledgers.start():
        chain = ledgers.ledger.chain
        assert (chain.last.app_hash, chain.state.digest()) == (app_hash, digest)
        before = len(await ledgers.events())
        await ledgers.send(5 * KEEP)  # and it goes on forgetting
        assert len(await ledgers.events()) < before + 3 * KEEP
        assert exports.replay(await ledgers.history()).height == chain.height


async def test_a_piece_whose_fate_is_unknown_does_not_stop_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log commits pieces of a checkpoint and says that it does not know."""
    monkeypatch.setattr("leasehold.market.ledger.export.PART_BYTES", 200)
    ledgers = Ledgers(tmp_path)
    async with ledgers.start():
        append, unknown = ledgers.log.append, 0

        async def unsure(entity: Entity, parent: str | None, events: Any, **more: Any) -> Any:
            nonlocal unknown
            done = await append(entity, parent, events, **more)
            if events[0].type == "ledger.state" and unknown < 3:
                unknown += 1
                raise unavailable("log_unavailable", "who knows")
            return done

        monkeypatch.setattr(ledgers.log, "append", unsure)
        await ledgers.send(8 * KEEP)
        assert unknown == 3
        chain = ledgers.ledger.chain
        assert ledgers.ledger.history.first > 1  # later checkpoints were whole
        assert exports.replay(await ledgers.history()).height == chain.height


async def test_who_reads_all_of_it_is_not_trimmed_under(tmp_path: Path) -> None:
    """Seen to fail with "block … does not follow" when trimming did not wait for the reader."""
    ledgers = Ledgers(tmp_path)
    async with ledgers.start():
        await ledgers.send(3 * KEEP)
        kept = exports.history_lines(ledgers.ledger.history)
        lines = [await anext(kept)]
        first = ledgers.ledger.history.first
        await ledgers.send(3 * KEEP)
        assert ledgers.ledger.history.first == first
        lines += [line async for line in kept]
        assert exports.replay(lines).height == ledgers.ledger.chain.height
        await ledgers.send(2 * KEEP)
        assert ledgers.ledger.history.first > first  # it goes on when nobody reads

        stalled = exports.history_lines(ledgers.ledger.history)
        await anext(stalled)
        await ledgers.send(10 * KEEP)
        assert ledgers.ledger.history.first > first + 5 * KEEP  # not for ever
        await stalled.aclose()
