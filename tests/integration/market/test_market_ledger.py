"""The ledger as a service: its RPC against recorded answers, refusals, time, restarts."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import websockets

from leasehold.core.clock import SystemClock, VirtualClock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.service import Group, running
from leasehold.events.event import Entity
from leasehold.events.memory import MemoryLog
from leasehold.events.sqlite import SqliteLog
from leasehold.market.accounts import Key, PublicKey
from leasehold.market.client import LedgerClient
from leasehold.market.ledger import hashing
from leasehold.market.ledger import messages as m
from leasehold.market.ledger.export import export
from leasehold.market.ledger.money import Coin
from leasehold.market.ledger.service import IMPORT, LedgerService
from leasehold.market.settings import MarketSettings
from leasehold.market.testing import GROUP, DirectClient, market
from leasehold.model.market import LeaseId, OrderId
from leasehold.model.resources import GroupSpec

DATA = Path(__file__).parents[2] / "data/cometbft/kvstore_v0_38"
HASH = "ab" * 32


def recorded(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())["result"]


def shape(value: Any) -> Any:
    """Keys and the kinds of values; lists by their first element, None fits anything."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def fits(ours: Any, theirs: Any, path: str = "") -> None:
    """Every key a real node answers with is in our answer, with the same kind of value."""
    if theirs is None or ours is None or ours == [] or theirs == []:
        return
    assert type(ours) is type(theirs), f"{path}: {ours!r} is not like {theirs!r}"
    if isinstance(theirs, dict):
        assert set(theirs) <= set(ours), f"{path}: {sorted(set(theirs) - set(ours))} missing"
        for key in theirs:
            fits(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        fits(ours[0], theirs[0], f"{path}[0]")


async def lease_something(
    tenant: LedgerClient, provider: LedgerClient, deposit: str = "5000000"
) -> LeaseId:
    await provider.set_provider("https://p.example")
    did = await tenant.create_deployment([GROUP], HASH, deposit)
    lease = LeaseId(did.owner, did.dseq, 1, 1, provider.address)
    await provider.create_bid(lease.order, "50")
    await tenant.create_lease(lease)
    return lease


async def test_answers_have_the_shape_of_a_real_node() -> None:
    key, other = Key.generate(), Key.generate("ed25519")
    async with market(key, other, serve=True) as ledger:
        async with LedgerClient(ledger.url, key) as tenant, LedgerClient(ledger.url, other) as p:
            await lease_something(tenant, p)
            fits(await tenant.call("status"), recorded("status"))
            fits(await tenant.call("genesis"), recorded("genesis"))
            fits(await tenant.call("abci_info"), recorded("abci_info"))
            fits(await tenant.call("block", height="2"), recorded("block_at_height_10"))
            fits(await tenant.call("block", height=1), recorded("block_at_height_1"))
            fits(
                await tenant.call("block_results", height="2"),
                recorded("block_results_at_height_10"),
            )
            found = await tenant.call("tx_search", query="tx.height>0", prove=True)
            fits(found, recorded("tx_search_with_prove"))
            assert found["total_count"] == "4"
            one = await tenant.call("tx", hash=found["txs"][0]["hash"], prove=True)
            assert one == found["txs"][0]
            fits(
                await tenant.call("block_search", query="block.height>1"), recorded("block_search")
            )
            raw = m.sign(key, "leasehold-1", 2, [m.Send(to=p.address, amount=Coin("uakt", "1"))])
            tx = base64.b64encode(raw).decode()
            fits(await tenant.call("broadcast_tx_commit", tx=tx), recorded("broadcast_tx_commit"))
            fits(await tenant.call("broadcast_tx_sync", tx=tx), recorded("broadcast_tx_sync"))
        async with httpx.AsyncClient(base_url=ledger.url, trust_env=False) as http:
            got = (await http.get("/blockchain", params={"minHeight": "1"})).json()["result"]
            theirs = recorded("blockchain_from_1_to_10")
            # The recording is of a node before the key was renamed.
            fits(got["block_metas"], theirs["block_metas"])
            assert (await http.get("/block?height=1")).json()["result"]["block"]["header"]
            assert (await http.get("/block?height=99")).status_code == 500
            assert (await http.get("/nothing")).status_code == 404
            quoted = await http.get('/tx_search?query="tx.height=1"&page="1"')
            assert quoted.json()["result"]["total_count"] == "1"
            batch = await http.post("/", content=json.dumps([
                {"jsonrpc": "2.0", "id": n, "method": "health"} for n in range(3)
            ]))  # fmt: skip
            assert [answer["id"] for answer in batch.json()] == [0, 1, 2]


async def test_a_light_client_can_check_every_block() -> None:
    """Links, commits and hashes of the RPC's own words, as a verifying client would."""
    key, other = Key.generate(), Key.generate("ed25519")
    async with market(key, other) as ledger:
        tenant, provider = DirectClient(ledger, key), DirectClient(ledger, other)
        await lease_something(tenant, provider)
        await tenant.close_deployment(1)
        member = (await tenant.call("validators"))["validators"][0]
        validator = PublicKey("ed25519", base64.b64decode(member["pub_key"]["value"]))
        before = None
        for height in range(1, ledger.chain.height + 1):
            said = await tenant.call("block", height=height)
            head, id = said["block"]["header"], said["block_id"]
            if before is not None:
                assert head["last_block_id"] == before
            txs = [base64.b64decode(tx) for tx in said["block"]["data"]["txs"]]
            assert head["data_hash"] == hashing.data_hash(txs).hex().upper()
            commit = (await tenant.call("commit", height=height))["signed_header"]["commit"]
            assert commit["block_id"] == id
            block = await ledger.history.block(height)
            hash, parts = bytes.fromhex(id["hash"]), bytes.fromhex(id["parts"]["hash"])
            signed = hashing.precommit(
                "leasehold-1", height, block.time, hash, parts, id["parts"]["total"]
            )
            signature = base64.b64decode(commit["signatures"][0]["signature"])
            assert validator.verify(signature, signed)
            before = id


async def test_blocks_and_transactions_are_pushed() -> None:
    key, other = Key.generate("ed25519"), Key.generate("ed25519")
    async with market(key, other, serve=True) as ledger:
        address = ledger.url.replace("http", "ws") + "/websocket"
        async with LedgerClient(ledger.url, key) as tenant, websockets.connect(address) as socket:
            for id, query in enumerate(["tm.event='NewBlock'", "tm.event='Tx' AND tx.height>0"]):
                ask = {
                    "jsonrpc": "2.0",
                    "method": "subscribe",
                    "id": id,
                    "params": {"query": query},
                }
                await socket.send(json.dumps(ask))
                assert json.loads(await socket.recv()) == {"jsonrpc": "2.0", "id": id, "result": {}}
            await tenant.transfer(other.address, 5)
            block, tx = json.loads(await socket.recv()), json.loads(await socket.recv())
            for ours, theirs in ((block, "subscribe_newblock_1"), (tx, "subscribe_txs_0")):
                real = recorded(theirs)
                assert set(ours["result"].pop("events")) >= {
                    key for key in real.pop("events") if key.startswith("t")
                }
                fits(ours["result"], real)
            assert (block["id"], tx["id"]) == (0, 1)
            for text in ("tm.event", '{"x":', "[]"):
                ask = {"jsonrpc": "2.0", "method": "subscribe", "id": 9, "params": {"query": text}}
                await socket.send(json.dumps(ask) if text == "tm.event" else text)
                assert "error" in json.loads(await socket.recv())
            ask = {"jsonrpc": "2.0", "method": "unsubscribe_all", "id": 3}
            await socket.send(json.dumps(ask))
            assert json.loads(await socket.recv())["id"] == 3
            await tenant.transfer(other.address, 5)
            await socket.send('{"jsonrpc": "2.0", "method": "health", "id": 4}')
            assert json.loads(await socket.recv())["id"] == 4


def garbage(rng: random.Random, key: Key, valid: bytes) -> bytes:
    """Something that is not quite a transaction."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        at = rng.randrange(len(valid))
        return valid[:at] + bytes([valid[at] ^ 1 << rng.randrange(7)]) + valid[at + 1 :]
    if kind == 2:
        return valid[: rng.randrange(len(valid))]
    if kind == 3:
        return b"[" * rng.randrange(1, 5000)
    if kind == 4:
        body = {"chain_id": "leasehold-1", "sequence": rng.choice([-1, 0, 7, 1 << 60, "x", None])}
        return json.dumps({"body": json.dumps(body), "key": {}, "signature": ""}).encode()
    message = m.Send(to=key.address, amount=Coin(rng.choice(["uakt", "", "x" * 500]), "-1e9"))
    return m.sign(key, rng.choice(["leasehold-1", "other"]), rng.randrange(3), [message])


async def test_ten_thousand_garbage_transactions_change_nothing() -> None:
    key = Key.generate("ed25519")
    rng = random.Random(7)
    async with market(key) as ledger:
        client = DirectClient(ledger, key)
        valid = m.sign(key, "leasehold-1", 0, [m.Send(to=key.address, amount=Coin("uakt", "1"))])
        before = ledger.chain.state.digest()
        refused = 0

        async def send(raw: bytes) -> None:
            nonlocal refused
            if raw == valid:
                return
            with pytest.raises(LeaseholdError):
                await ledger.commit(raw)
            refused += 1

        for _ in range(100):
            await asyncio.gather(*(send(garbage(rng, key, valid)) for _ in range(100)))
        assert refused > 9_900
        assert ledger.chain.state.digest() == before
        assert ledger.chain.height == 0
        assert ledger.waiting() == []
        assert (await ledger.commit(valid)).height == 1
        too_large = m.sign(
            key,
            "leasehold-1",
            1,
            [m.CreateCertificate(pem="x" * 8000)] * 16,
            memo="x" * 200,
        )
        small = MarketSettings(max_tx_bytes=100_000, port=0)
        with pytest.raises(LeaseholdError) as over:
            m.receive(too_large, small.max_tx_bytes)
        assert over.value.code == "tx_too_large"
        assert (await client.balance(key.address))["uakt"] == "1000000000"


REFUSALS: list[tuple[str, Any]] = [
    ("insufficient_funds", lambda w: w.tenant.transfer(w.other, "99999999999")),
    ("bad_address", lambda w: w.tenant.transfer("akash1nobody", 1)),
    ("bad_amount", lambda w: w.tenant.transfer(w.other, "0")),
    ("bad_amount", lambda w: w.tenant.transfer(w.other, "1.0000001")),
    ("not_authority", lambda w: w.provider.mint(w.other, 1)),
    ("supply_exceeded", lambda w: w.tenant.mint(w.other, 10**12)),
    ("deposit_too_small", lambda w: w.tenant.create_deployment([GROUP], HASH, "1")),
    ("price", lambda w: w.tenant.create_deployment([priced("10000001")], HASH)),
    ("cpu_out_of_range", lambda w: w.tenant.create_deployment([sized(cpu="9")], HASH)),
    ("memory_out_of_range", lambda w: w.tenant.create_deployment([sized(memory="1")], HASH)),
    ("deployment_exists", lambda w: w.tenant.create_deployment([GROUP], HASH, dseq=1)),
    ("denom_mismatch", lambda w: w.tenant.create_deployment([GROUP], HASH, Coin("ufoo", "9"))),
    ("deployment_not_found", lambda w: w.tenant.close_deployment(77)),
    ("deployment_not_found", lambda w: w.provider.close_deployment(1)),
    ("bid_not_open", lambda w: w.tenant.create_lease(w.lease)),
    ("bid_not_found", lambda w: w.provider.create_lease(w.lease)),
    ("order_not_open", lambda w: w.provider.create_bid(w.lease.order, "1")),
    ("order_not_found", lambda w: w.provider.create_bid(OrderId(w.lease.owner, 9, 1, 1), "1")),
    ("provider_unknown", lambda w: w.tenant.create_bid(w.open, "1")),
    ("price_too_high", lambda w: w.provider.create_bid(w.open, "50.000001")),
    ("deposit_too_small", lambda w: w.provider.create_bid(w.open, "1", "1")),
    ("no_reclamation", lambda w: w.provider.reclaim_lease(w.lease)),
    ("lease_not_found", lambda w: w.tenant.withdraw(w.lease)),
    ("bad_reason", lambda w: w.provider.close_bid(w.lease, 1)),
    ("group_not_paused", lambda w: w.tenant.start_group(w.lease.group)),
    ("certificate_not_found", lambda w: w.tenant.revoke_certificate("5")),
    ("bad_certificate", lambda w: w.tenant.create_certificate("nonsense")),
    ("provider_not_found", lambda w: w.tenant.sign_attributes(w.other, {"a1": "b"})),
]  # fmt: skip


def priced(amount: str) -> dict[str, Any]:
    group = json.loads(json.dumps(GROUP))
    group["resources"][0]["price"]["amount"] = amount
    return dict(group)


def sized(cpu: str = "100", memory: str = "134217728") -> dict[str, Any]:
    group = json.loads(json.dumps(GROUP))
    group["resources"][0]["resource"]["cpu"]["units"]["val"] = cpu
    group["resources"][0]["resource"]["memory"]["size"]["val"] = memory
    return dict(group)


async def test_what_is_not_allowed_is_refused_and_changes_nothing() -> None:
    class World:
        tenant: DirectClient
        provider: DirectClient
        other = Key.generate().address
        lease: LeaseId
        open: OrderId

    key, other = Key.generate("ed25519"), Key.generate("ed25519")
    async with market(key, other) as ledger:
        w = World()
        w.tenant, w.provider = DirectClient(ledger, key), DirectClient(ledger, other)
        w.lease = await lease_something(w.tenant, w.provider)
        second = await w.tenant.create_deployment([GROUP], HASH)
        w.open = OrderId(second.owner, second.dseq, 1, 1)
        before = ledger.chain.state.digest()
        for code, attempt in REFUSALS:
            with pytest.raises(LeaseholdError) as refused:
                await attempt(w)
            assert refused.value.code == code, refused.value
            assert ledger.chain.state.digest() == before, code
        assert ledger.chain.state.total("uakt") == 2 * 10**9 * 10**6


async def test_a_signature_a_sequence_and_a_chain_are_checked() -> None:
    key, stranger = Key.generate("ed25519"), Key.generate("ed25519")
    send = [m.Send(to=key.address, amount=Coin("uakt", "1"))]
    async with market(key) as ledger:
        attempts = {
            "account_unknown": m.sign(stranger, "leasehold-1", 0, send),
            "wrong_chain": m.sign(key, "leasehold-2", 0, send),
            "wrong_sequence": m.sign(key, "leasehold-1", 1, send),
            "bad_signature": m.sign(key, "leasehold-1", 0, send).replace(b"uakt", b"uakT"),
        }
        for code, raw in attempts.items():
            with pytest.raises(LeaseholdError) as refused:
                await ledger.commit(raw)
            assert refused.value.code == code
        first = m.sign(key, "leasehold-1", 0, send)
        landed = await ledger.commit(first)
        again = await ledger.commit(first)
        assert (again.height, again.position) == (landed.height, landed.position)
        with pytest.raises(LeaseholdError) as refused:
            await ledger.commit(m.sign(key, "leasehold-1", 0, send, memo="another"))
        assert refused.value.code == "wrong_sequence"
        assert refused.value.expected == "1"
        assert ledger.chain.height == 1


async def test_all_messages_of_a_transaction_happen_or_none() -> None:
    key, other = Key.generate("ed25519"), Key.generate("ed25519")
    async with market(key, other) as ledger:
        client = DirectClient(ledger, key)
        good = m.Send(to=other.address, amount=Coin("uakt", "5"))
        with pytest.raises(LeaseholdError) as refused:
            await client.broadcast(good, m.CloseDeployment(dseq=1))
        assert refused.value.path == "messages[1]"
        assert (await client.balance(other.address))["uakt"] == "1000000000"
        await client.broadcast(good, good)
        assert (await client.balance(other.address))["uakt"] == "1000000010"


def test_an_idle_ledger_closes_what_ran_dry_by_itself(virtual: VirtualClock) -> None:
    """50 uakt each 6 s out of 500000 uakt: 60000 s, and the 10001st period cannot be paid."""

    async def main() -> None:
        key, other = Key.generate("ed25519"), Key.generate("ed25519")
        async with market(key, other, clock=virtual) as ledger:
            tenant, provider = DirectClient(ledger, key), DirectClient(ledger, other)
            lease = await lease_something(tenant, provider, deposit="500000")
            height = ledger.chain.height
            await virtual.sleep(59_990)
            assert (await tenant.escrow(lease.deployment))["ticks_left"] == 2
            await virtual.sleep(6)
            assert ledger.chain.height == height
            await virtual.sleep(20)
            assert ledger.chain.height == height + 1
            block = await ledger.history.block(ledger.chain.height)
            assert block.txs == []
            assert any("EventLeaseClosed" in event.type for event in block.events)
            found = await provider.lease(lease)
            assert found is not None
            assert found.state == "insufficient_funds"
            assert (await provider.balance(other.address))["uakt"] == "1000500000"
            assert (await tenant.balance(key.address))["uakt"] == "999500000"
            await virtual.sleep(10**6)
            assert ledger.chain.height == height + 1

    virtual.run(main)


def test_a_reclaiming_lease_may_be_closed_after_its_window(virtual: VirtualClock) -> None:
    async def main() -> None:
        key, other = Key.generate("ed25519"), Key.generate("ed25519")
        async with market(key, other, clock=virtual) as ledger:
            tenant, provider = DirectClient(ledger, key), DirectClient(ledger, other)
            await provider.set_provider("https://p.example")
            did = await tenant.create_deployment([GROUP], HASH, reclamation_window=3600)
            lease = LeaseId(did.owner, did.dseq, 1, 1, provider.address)
            with pytest.raises(LeaseholdError) as refused:
                await provider.create_bid(lease.order, "50")
            assert refused.value.code == "reclamation_window_short"
            await provider.create_bid(lease.order, "50", reclamation_window=7200)
            await tenant.create_lease(lease)
            with pytest.raises(LeaseholdError) as refused:
                await provider.close_bid(lease, 10001)
            assert refused.value.code == "reclamation_required"
            await provider.reclaim_lease(lease)
            await virtual.sleep(7000)
            with pytest.raises(LeaseholdError) as refused:
                await provider.close_bid(lease, 10001)
            assert refused.value.retry_after == pytest.approx(200, abs=2)
            await virtual.sleep(201)
            await provider.close_bid(lease, 10001)
            await provider.close_bid(lease, 10001)

    virtual.run(main)


async def test_lists_come_in_pages_that_survive_changes() -> None:
    key = Key.generate("ed25519")
    async with market(key) as ledger:
        client = DirectClient(ledger, key)
        for _ in range(25):
            await client.create_deployment([GROUP], HASH)
        assert len([o async for o in client.list("orders", page=7, state="open")]) == 25
        seen = []
        async for order in client.list("orders", page=5, state="open"):
            seen.append(order["id"])
            # What was just shown leaves the list, so the next page starts from what is gone.
            await client.close_deployment(int(order["id"].split("/")[1]))
        assert len(seen) == len(set(seen)) == 25
        with pytest.raises(LeaseholdError) as refused:
            [x async for x in client.list("orders", nonsense=1)]
        assert refused.value.code == "bad_filter"
        for path, data in (("/nothing/get", b""), ("/orders/list", b"{"), ("/orders/get", b"x")):
            with pytest.raises(LeaseholdError):
                await client.ask(path, data)


async def test_a_huge_block_continues_in_parts() -> None:
    """Deployments that end in one block say more than one event can hold."""
    key, log = Key.generate("ed25519"), MemoryLog()
    quick = MarketSettings(port=0, block_interval_s=0.0, min_deposit="1")
    create = m.CreateDeployment(hash=HASH, groups=[spec()], deposit=Coin("uakt", "1"))
    count = 120
    async with market(key, log=log, settings=quick) as ledger:
        for n in range(count):
            await ledger.commit(m.sign(key, "leasehold-1", n, [create] * 16))
    slow = MarketSettings(port=0, block_interval_s=0.5)
    async with market(key, log=log, settings=slow) as ledger:
        closing = [[m.CloseDeployment(dseq=n * 16 + i) for i in range(1, 17)] for n in range(count)]
        landed = await asyncio.gather(
            *(
                ledger.commit(m.sign(key, "leasehold-1", count + n, messages))
                for n, messages in enumerate(closing)
            )
        )
        digest, height = ledger.chain.state.digest(), ledger.chain.height
        assert landed[-1].height == height
    kinds = [(e.type, len(e.data)) async for e in log.read(Entity("ledger", "leasehold-1"))]
    assert any(kind == "ledger.part" for kind, _ in kinds)
    assert max(size for _, size in kinds) < 1 << 20
    async with market(key, log=log, settings=slow) as again:
        assert again.chain.state.digest() == digest
        big = await again.history.block(height)
        assert len(big.txs) == len(big.results) > 16


def spec() -> Any:
    return msgspec.convert(GROUP, GroupSpec)


@pytest.mark.parametrize("damage", ["none", "flip", "cut", "foreign", "gone"])
async def test_a_restart_comes_to_the_same_state(tmp_path: Path, damage: str) -> None:
    clock = SystemClock()
    key, other = Key.generate("ed25519"), Key.generate("ed25519")
    settings = MarketSettings(
        port=0, folder=str(tmp_path / "ledger"), snapshot_txs=1, block_interval_s=0.0
    )
    genesis = LedgerService.default_genesis(
        settings, clock.now(), balances={key.address: "100000000", other.address: "1000"}
    )

    def make() -> tuple[SqliteLog, LedgerService]:
        log = SqliteLog(tmp_path / "log.db", clock)
        return log, LedgerService(log, clock, settings, genesis=genesis, serve=False)

    log, ledger = make()
    async with running(Group([log, ledger], clock=clock)):
        client = DirectClient(ledger, key)
        for _ in range(210):
            await client.transfer(other.address, 1)
        raw = m.sign(key, "leasehold-1", 210, [m.Send(to=other.address, amount=Coin("uakt", "1"))])
        landed = await ledger.commit(raw)
        digest = ledger.chain.state.digest()
    file = tmp_path / "ledger" / "ledger-state"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "cut":
        file.write_bytes(data[:-50])
    elif damage == "foreign":
        file.write_bytes(b"something else")
    elif damage == "gone":
        file.unlink()
    log, ledger = make()
    async with running(Group([log, ledger], clock=clock)):
        assert ledger.chain.state.digest() == digest
        assert (await ledger.commit(raw)).height == landed.height
        await DirectClient(ledger, key).transfer(other.address, 1)
        assert ledger.chain.height == landed.height + 1


async def test_another_validator_key_is_noticed(tmp_path: Path) -> None:
    log = MemoryLog()
    settings = MarketSettings(port=0, folder=str(tmp_path / "a"))
    async with market(log=log, settings=settings):
        pass
    with pytest.raises(LeaseholdError) as refused:
        async with market(log=log, settings=MarketSettings(port=0, folder=str(tmp_path / "b"))):
            pass
    assert refused.value.code == "validator_key_changed"


def test_an_exported_ledger_goes_on_elsewhere(virtual: VirtualClock, tmp_path: Path) -> None:
    async def main() -> None:
        key, other = Key.generate("ed25519"), Key.generate("ed25519")
        async with market(key, other, clock=virtual) as ledger:
            tenant, provider = DirectClient(ledger, key), DirectClient(ledger, other)
            lease = await lease_something(tenant, provider, deposit="500000")
            await virtual.sleep(600)
            lines = b"".join(export(ledger.chain))
            height, total = ledger.chain.height, ledger.chain.state.total("uakt")
        (tmp_path / IMPORT).write_bytes(lines)
        log = MemoryLog(virtual)
        settings = MarketSettings(port=0, folder=str(tmp_path))
        for _ in range(2):
            async with market(log=log, clock=virtual, settings=settings) as taken:
                assert taken.chain.height == height
                assert taken.chain.state.total("uakt") == total
        async with market(log=log, clock=virtual, settings=settings) as taken:
            tenant, provider = DirectClient(taken, key), DirectClient(taken, other)
            await virtual.sleep(600)
            await provider.withdraw(lease)
            assert taken.chain.height == height + 1
            # 1200 s at 50 uakt each 6 s, within a period.
            earned = int((await provider.balance(other.address))["uakt"]) - 10**9 + 500_000
            assert earned == pytest.approx(10_000, abs=100)
            await tenant.close_deployment(1)
            assert taken.chain.state.total("uakt") == total

    virtual.run(main)


async def test_without_a_period_every_block_is_charged() -> None:
    key, other = Key.generate("ed25519"), Key.generate("ed25519")
    settings = MarketSettings(port=0, block_interval_s=0.0, charge_period_s=0.0, min_deposit="200")
    async with market(key, other, settings=settings) as ledger:
        tenant, provider = DirectClient(ledger, key), DirectClient(ledger, other)
        lease = await lease_something(tenant, provider, deposit="220")
        for _ in range(3):
            await tenant.transfer(other.address, 1)
        funds = await tenant.escrow(lease.deployment)
        assert (funds["funds"], funds["ticks_left"]) == ("70", 1)
        await provider.withdraw(lease)
        assert (await tenant.escrow(lease.deployment))["funds"] == "20"
        landed = await tenant.transfer(other.address, 1)
        block = await ledger.history.block(landed.height)
        assert any("EventLeaseClosed" in event.type for event in block.events)
        assert len(block.txs) == 1
        view = await provider.lease(lease)
        assert view is not None
        assert view.state == "insufficient_funds"
        # The last 20 do not pay a block: the only lease gets them all.
        assert (await tenant.escrow(lease.deployment))["spent"] == "220"


def test_many_escrows_that_end_together_take_several_blocks(virtual: VirtualClock) -> None:
    async def main() -> None:
        key, other = Key.generate("ed25519"), Key.generate("ed25519")
        async with market(key, other, clock=virtual) as ledger:
            tenant, provider = DirectClient(ledger, key), DirectClient(ledger, other)
            await provider.set_provider("https://p.example")
            for _ in range(250):
                await lease_something(tenant, provider, deposit="500000")
            await virtual.sleep(59_000)
            height = ledger.chain.height
            total = ledger.chain.state.total("uakt")
            await virtual.sleep(2_000)
            states = {lease.state for lease in ledger.chain.state.leases.values()}
            assert states == {"insufficient_funds"}
            assert ledger.chain.height >= height + 2
            assert ledger.chain.state.total("uakt") == total
            earned = int((await provider.balance(other.address))["uakt"]) - 10**9
            assert earned == 250 * 500_000

    virtual.run(main)


async def test_providers_compete_and_the_cheapest_can_be_had() -> None:
    """Two providers bid on one order by their own prices; the loser gets its deposit back."""
    keys = [Key.generate("ed25519") for _ in range(3)]
    async with market(*keys) as ledger:
        tenant, *providers = (DirectClient(ledger, key) for key in keys)
        did = await tenant.create_deployment([GROUP], HASH)
        order = OrderId(did.owner, did.dseq, 1, 1)
        for price, provider in zip(("7.5", "7.25"), providers, strict=True):
            await provider.set_provider("https://p.example")
            await provider.create_bid(order, price)
        bids = [bid async for bid in tenant.list("bids", owner=did.owner, dseq=1, state="open")]
        assert [bid["price"] for bid in bids] == ["7.5", "7.25"]
        await tenant.create_lease(LeaseId.parse(bids[1]["id"]))
        assert (await providers[0].balance(providers[0].address))["uakt"] == "1000000000"
        assert (await providers[1].balance(providers[1].address))["uakt"] == "999500000"
        with pytest.raises(LeaseholdError) as refused:
            await tenant.create_lease(LeaseId.parse(bids[0]["id"]))
        assert refused.value.code == "bid_not_open"
        assert "lost" in refused.value.message


def test_a_log_that_cannot_write_loses_nothing(virtual: VirtualClock) -> None:
    """A full disk: questions and transactions are told so, and go through when there is room."""

    class Full(MemoryLog):
        full = False

        async def append(self, *args: Any, **options: Any) -> Any:
            if self.full:
                raise unavailable("log_write_failed", "no space left on device")
            return await super().append(*args, **options)

    async def main() -> None:
        key, other = Key.generate("ed25519"), Key.generate("ed25519")
        log = Full(virtual)
        async with market(key, clock=virtual, log=log) as ledger:
            client = DirectClient(ledger, key)
            await client.transfer(other.address, 1)
            log.full = True
            raw = m.sign(
                key, "leasehold-1", 1, [m.Send(to=other.address, amount=Coin("uakt", "1"))]
            )
            sending = asyncio.create_task(ledger.commit(raw))
            await virtual.sleep(1)
            with pytest.raises(LeaseholdError) as refused:
                await client.balance(other.address)
            assert refused.value.code == "ledger_not_durable"
            with pytest.raises(LeaseholdError) as refused:
                await client.status()
            assert refused.value.kind is Kind.UNAVAILABLE
            assert not sending.done()
            log.full = False
            await virtual.sleep(10)
            assert (await sending).height == 2
            assert await client.balance(other.address) == {"uakt": "2"}

    virtual.run(main)
