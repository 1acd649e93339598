"""SIGKILL of the ledger's process at random instants: what was acknowledged stays, and a
transaction whose answer was lost lands exactly once when it is sent again as it was."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path

from leasehold.core.errors import LeaseholdError
from leasehold.market.accounts import Key
from leasehold.market.client import LedgerClient
from leasehold.market.ledger import messages as m
from leasehold.market.ledger.export import replay
from leasehold.market.ledger.money import Coin

KILLS = 5
SENDERS = 8

PROCESS = """
import asyncio, sys
from pathlib import Path
from leasehold.core.clock import SystemClock
from leasehold.core.service import Group, running
from leasehold.events.sqlite import SqliteLog
from leasehold.market.ledger.export import history_lines
from leasehold.market.ledger.service import LedgerService
from leasehold.market.settings import MarketSettings

async def main(folder, *addresses):
    clock = SystemClock()
    settings = MarketSettings(port=0, folder=folder + "/ledger", snapshot_txs=50)
    log = SqliteLog(Path(folder) / "log.db", clock)
    genesis = LedgerService.default_genesis(
        settings, clock.now(), balances={a: "1000000" for a in addresses}
    )
    ledger = LedgerService(log, clock, settings, genesis=genesis)
    async with running(Group([log, ledger], clock=clock)):
        Path(folder, "url.new").write_text(ledger.url)
        Path(folder, "url.new").rename(Path(folder, "url"))
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


class Ledger:
    """The ledger in a process of its own, to kill."""

    def __init__(self, folder: Path, keys: list[Key]) -> None:
        self.folder = folder
        self.keys = keys
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> str:
        url = self.folder / "url"
        url.unlink(missing_ok=True)
        self.process = subprocess.Popen(  # noqa: ASYNC220 - forks once a kill
            [sys.executable, "-c", PROCESS, str(self.folder), *(k.address for k in self.keys)],
            stdout=subprocess.DEVNULL,
        )
        async with asyncio.timeout(30):
            while not url.exists():
                assert self.process.poll() is None
                await asyncio.sleep(0.02)
        return url.read_text()

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


async def test_what_was_acknowledged_survives_and_nothing_lands_twice(tmp_path: Path) -> None:
    rng = random.Random(11)
    keys = [Key.generate("ed25519") for _ in range(SENDERS)]
    ledger = Ledger(tmp_path, keys)
    url = await ledger.start()
    acknowledged = dict.fromkeys(range(SENDERS), 0)
    open_txs: dict[int, bytes] = {}

    async def sender(number: int, url: str) -> None:
        """One transaction after the other; after a kill the open one is sent again first."""
        to = keys[(number + 1) % SENDERS].address
        async with LedgerClient(url, timeout=0.2) as client:
            while True:
                if number not in open_txs:
                    message = m.Send(to=to, amount=Coin("uakt", "1"))
                    sequence = acknowledged[number]
                    open_txs[number] = m.sign(keys[number], "leasehold-1", sequence, [message])
                await client.send(open_txs[number])
                del open_txs[number]
                acknowledged[number] += 1

    for _ in range(KILLS):
        tasks = [asyncio.create_task(sender(n, url)) for n in range(SENDERS)]
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        ledger.kill()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            # The only thing a sender may hear is that nobody answers.
            assert isinstance(outcome, LeaseholdError)
            assert outcome.code == "ledger_unreachable", outcome
        url = await ledger.start()
    assert sum(acknowledged.values()) > 50

    async with LedgerClient(url) as client:
        for number, raw in list(open_txs.items()):
            await client.send(raw)
            acknowledged[number] += 1
        for number, key in enumerate(keys):
            account = await client.get("accounts", key.address)
            assert account["sequence"] == acknowledged[number]
            received = acknowledged[(number - 1) % SENDERS]
            assert account["coins"]["uakt"] == str(10**6 - acknowledged[number] + received)
    lines = await asyncio.to_thread(_history, url)
    with contextlib.suppress(subprocess.TimeoutExpired):
        ledger.kill()
    assert replay(lines).txs == sum(acknowledged.values())


def _history(url: str) -> list[bytes]:
    import httpx

    return httpx.get(f"{url}/history", trust_env=False).content.splitlines()
