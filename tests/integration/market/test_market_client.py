"""The client: lost answers, restarts, other signers of the same key; and slow subscribers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.memory import MemoryLog
from leasehold.market.accounts import Key
from leasehold.market.client import LedgerClient
from leasehold.market.connections import Connections
from leasehold.market.ledger.rpc import Rpc
from leasehold.market.ledger.service import LedgerService
from leasehold.market.ledger.subscriptions import QUEUE, Subscriber
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import DirectClient, market

Answer = bytes | None


async def server(*answers: Answer) -> tuple[asyncio.Server, str, list[bytes]]:
    """Answers the nth request with the nth answer; None hangs up without one."""
    asked: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                asked.append(await reader.readexactly(length))
                answer = left.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    return listening, f"http://127.0.0.1:{port}", asked


def http(body: bytes, *, chunked: bool = False, status: str = "200 OK") -> bytes:
    if not chunked:
        return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = [body[i : i + 3] for i in range(0, len(body), 3)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    return f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + coded


async def test_answers_in_chunks_and_over_kept_connections() -> None:
    listening, url, asked = await server(
        http(b"one"), http(b"a longer answer", chunked=True), http(b"bad", status="500 Oops")
    )
    async with listening:
        connections = Connections(url)
        got = [await connections.post(b"%d" % n) for n in range(3)]
        assert got == [b"one", b"a longer answer", b"bad"]
        assert asked == [b"0", b"1", b"2"]
        connections.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 3000000,
        None,
    ],
)
async def test_a_bad_answer_is_an_error_not_a_hang(answer: Answer) -> None:
    listening, url, _ = await server(answer)
    async with listening:
        with pytest.raises(OSError):
            async with asyncio.timeout(10):
                await Connections(url).post(b"x")


async def test_a_lost_answer_is_asked_for_again() -> None:
    result = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {}}).encode()
    listening, url, asked = await server(None, None, http(result))
    async with listening, LedgerClient(url) as client:
        assert await client.call("health") == {}
        assert len(asked) == 3
        assert len(set(asked)) == 1


async def test_a_ledger_that_is_away_is_said_to_be_away() -> None:
    async with LedgerClient("http://127.0.0.1:9", timeout=0.3) as client:
        with pytest.raises(LeaseholdError) as refused:
            await client.status()
    assert refused.value.code == "ledger_unreachable"
    for url in ("nonsense", "ftp://x", "http://"):
        with pytest.raises(LeaseholdError):
            LedgerClient(url)


async def test_two_clients_with_one_key_take_turns() -> None:
    key, other = Key.generate("ed25519"), Key.generate("ed25519")
    async with market(key, serve=True) as ledger:
        async with LedgerClient(ledger.url, key) as one, LedgerClient(ledger.url, key) as two:
            for n in range(6):
                await (one, two)[n % 2].transfer(other.address, 1)
            await asyncio.gather(*(one.transfer(other.address, 1) for _ in range(10)))
            assert (await one.balance(other.address)) == {"uakt": "16"}


async def test_a_client_goes_on_over_a_restart_of_the_ledger() -> None:
    key, log = Key.generate("ed25519"), MemoryLog()
    async with market(key, log=log, serve=True) as ledger:
        url = ledger.url
        client = LedgerClient(url, key)
        await client.transfer(key.address, 1)
    waiting = asyncio.create_task(client.transfer(key.address, 1))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    settings = MarketSettings(port=int(url.rpartition(":")[2]))
    async with running(LedgerService(log, None, settings)) as again:
        landed = await waiting
        assert landed.height == again.chain.height == 2
    await client.close()


async def test_a_subscriber_that_does_not_read_is_cut_off_not_waited_for() -> None:
    key = Key.generate("ed25519")
    async with market(key) as ledger:
        client = DirectClient(ledger, key)
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        sent: list[dict[str, Any]] = []
        reading = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            if len(sent) >= 1:
                await reading.wait()
            sent.append(json.loads(message["text"]))

        subscriber = Subscriber(Rpc(ledger), ledger, inbox.get, send)
        serving = asyncio.create_task(subscriber.run())
        ask = {"method": "subscribe", "id": 5, "params": {"query": "tm.event='NewBlock'"}}
        await inbox.put({"type": "websocket.receive", "text": json.dumps(ask)})
        await asyncio.sleep(0.05)
        block = (await client.transfer(key.address, 1)).height
        kept = await ledger.history.block(block)
        for _ in range(QUEUE + 5):
            subscriber._new_block(kept)
        await client.transfer(key.address, 1)
        assert len(subscriber._queue) <= QUEUE
        reading.set()
        await asyncio.sleep(0.1)
        assert sent[-1]["error"]["code"] == -32000
        assert sent[-1]["id"] == 5
        await inbox.put({"type": "websocket.disconnect"})
        await serving
