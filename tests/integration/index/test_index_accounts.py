"""Balances, rewards and delegations over time, and transactions somebody hands in.

The node's answers are made with the protobuf library from the chain's published field numbers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.task import Call
from leasehold.index.accounts import PAGE
from leasehold.index.api import application
from leasehold.index.operations import Operations
from leasehold.index.testing import FakeNode, FakeTx, indexing
from leasehold.market.accounts import Key
from leasehold.market.testing import DirectClient, market
from leasehold.model.chain import AccountBalance, AccountDelegations, Amount, HeightAccount

STRING, BYTES, UINT64, MESSAGE = 9, 12, 4, 11

SHAPES: dict[str, list[tuple[int, str, int, str]]] = {
    "PageRequest": [(1, "key", BYTES, ""), (3, "limit", UINT64, "")],
    "PageResponse": [(1, "next_key", BYTES, "")],
    "Coin": [(1, "denom", STRING, ""), (2, "amount", STRING, "")],
    "Question": [(1, "address", STRING, ""), (2, "pagination", MESSAGE, "PageRequest")],
    "Balances": [(1, "balances", MESSAGE, "*Coin"), (2, "pagination", MESSAGE, "PageResponse")],
    "ValidatorReward": [(1, "validator", STRING, ""), (2, "reward", MESSAGE, "*Coin")],
    "Rewards": [(1, "rewards", MESSAGE, "*ValidatorReward"), (2, "total", MESSAGE, "*Coin")],
    "Delegation": [(1, "delegator", STRING, ""), (2, "validator", STRING, ""),
                   (3, "shares", STRING, "")],
    "DelegationResponse": [(1, "delegation", MESSAGE, "Delegation"),
                           (2, "balance", MESSAGE, "Coin")],
    "Delegations": [(1, "responses", MESSAGE, "*DelegationResponse"),
                    (2, "pagination", MESSAGE, "PageResponse")],
}  # fmt: skip


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="chain.proto", package="c", syntax="proto3")
    for name, shape in SHAPES.items():
        message = file.message_type.add(name=name)
        for number, field, kind, of in shape:
            made = message.field.add(name=field, number=number, type=kind)
            made.label = 3 if of.startswith("*") else 1
            if of:
                made.type_name = f".c.{of.removeprefix('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"c.{name}"))
        for name in SHAPES
    }


M = _messages()
ME = "cosmos1me"


def coin(denom: str, amount: int) -> Any:
    return M["Coin"](denom=denom, amount=str(amount))


class Chain:
    """Rewards of 10 uatom a height; a transaction at heights 30 and 60 withdraws them all."""

    def __init__(self) -> None:
        self.since = 0

    def answer(self, path: str, data: bytes, height: int) -> bytes | None:
        asked = M["Question"].FromString(data)
        if asked.address != ME:
            return None
        if path.endswith("AllBalances"):
            assert asked.pagination.limit == PAGE
            if not asked.pagination.key:  # two pages
                page = M["PageResponse"](next_key=b"more")
                made = M["Balances"](balances=[coin("uatom", height)], pagination=page)
            else:
                assert asked.pagination.key == b"more"
                made = M["Balances"](balances=[coin("uosmo", 7)])
        elif path.endswith("DelegationTotalRewards"):
            since = max((h for h in (30, 60) if h <= height), default=0)
            made = M["Rewards"](
                rewards=[M["ValidatorReward"](validator="v", reward=[coin("uatom", 1)])],
                total=[coin("uatom", (height - since) * 10 * 10**18 + 5 * 10**17)],
            )
        elif path.endswith("DelegatorDelegations"):
            one = M["Delegation"](delegator=ME, validator="v", shares=str(3 * 10**18))
            made = M["Delegations"](
                responses=[M["DelegationResponse"](delegation=one, balance=coin("uatom", 3))]
            )
        else:
            return None
        out: bytes = made.SerializeToString()
        return out


def withdrawal(delegator: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    named = [("delegator", ME)] if delegator else []
    return [
        ("message", [("action", "withdraw_delegator_reward"), ("sender", ME)]),
        ("withdraw_rewards", [("amount", "300uatom"), ("validator", "v"), *named]),
        ("transfer", [("sender", "pool"), ("recipient", ME), ("amount", "300uatom")]),
    ]


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with running(FakeNode(chain_id="c")) as made:
        made.queries = Chain().answer
        for height in range(1, 91):
            taken = height in (30, 60)
            made.make([FakeTx(f"{height}".encode(), withdrawal(height == 30))] if taken else [])
        yield made


@pytest.fixture
async def operations(node: FakeNode, tmp_path: Path) -> AsyncIterator[Operations]:
    async with indexing(node, tmp_path, http=True, app=application) as made:
        yield made


WHERE = {"network": "cosmos", "chain_id": "c", "account": ME}


async def test_rewards_and_balances_by_day(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leasehold.index.earnings.DAY", 30_000_000)  # a block a second
    day = {**WHERE, "start_time": "2026-01-01T00:00:11Z", "end_time": "2026-01-01T00:01:11Z"}
    async with httpx.AsyncClient(base_url=operations.manager.url) as http:
        early = await http.get("/rewards", params=day)
        assert (early.status_code, early.json()["code"]) == (503, "not_indexed")
        await operations.range("cosmos", "c", 1, 90)
        # Three withdrawals of 300 in all; rewards grow by 10 a height over 61 and 30 heights.
        said = (await http.get("/rewards", params=day)).json()
        assert [(d["start"], d["end"]) for d in said] == [
            ("2026-01-01T00:00:11Z", "2026-01-01T00:00:41Z"),
            ("2026-01-01T00:00:41Z", "2026-01-01T00:01:11Z"),
        ]
        assert said[0]["time"] == "2026-01-01T00:00:41Z"
        earned = [msgspec.convert(d["rewards"], list[Amount]) for d in said]
        assert [[(a.currency, a.numeric, a.exp) for a in day_] for day_ in earned] == [
            [("uatom", (110 + 300 - 100) * 10**18, 18)],  # from 10 to 41, 300 taken at 30
            [("uatom", (110 + 300 - 110) * 10**18, 18)],  # from 41 to 71, 300 taken at 60
        ]
        said = (await http.get("/account/balance", params=day)).json()
        assert [(d["height"], [b["text"] for b in d["balances"]]) for d in said] == [
            (41, ["41uatom", "7uosmo"]),
            (71, ["71uatom", "7uosmo"]),
        ]
        for wrong in (
            {"end_time": "soon"}, {"end_time": day["start_time"]}, {"account": ""},
            {"end_time": "2026-12-31T00:00:00Z"},
        ):  # fmt: skip
            for path in ("/rewards", "/account/balance"):
                refused = await http.get(path, params={**day, **wrong})
                assert refused.status_code == 400, (path, wrong, refused.text)
        missing = {key: value for key, value in day.items() if key != "account"}
        assert (await http.get("/rewards", params=missing)).status_code == 400
        await operations.store.forget("cosmos", "c", 50, 52)
        gap = await http.get("/rewards", params=day)
        assert (gap.status_code, gap.json()["code"]) == (503, "not_indexed")


async def test_the_tasks_of_an_account(operations: Operations) -> None:
    async def ask(type_: str, account: str = ME) -> bytes:
        asked = HeightAccount(height=40, account=account, chain_id="c", network="cosmos")
        call = Call(network="cosmos", chain_id="c", type=type_, payload=msgspec.json.encode(asked))
        (response,) = await operations.manager.call(call)
        assert response.type == type_.removeprefix("Get")
        return response.payload

    found = msgspec.json.decode(await ask("GetAccountDelegations"), type=AccountDelegations)
    (delegation,) = found.delegations
    assert (delegation.validator, delegation.balance.text) == ("v", "3uatom")
    assert (delegation.shares.numeric, delegation.shares.exp) == (3 * 10**18, 18)
    for account in ("cosmos1other", ""):
        with pytest.raises(LeaseholdError) as refused:
            await ask("GetReward", account)
        assert refused.value.code == "task_failed"


async def test_transactions_handed_in_are_fetched_not_believed(operations: Operations) -> None:
    async with httpx.AsyncClient(base_url=operations.manager.url) as http:
        await operations.range("cosmos", "c", 30, 30)
        found = await http.post("/transactions_search", json={"network": "cosmos"})
        (real,) = found.json()
        forged = {**real, "hash": "AB" * 32, "height": 31}
        await operations.store.forget("cosmos", "c", 30, 30)
        told = await http.post("/transactions_insert/cosmos", json=[real, forged])
        assert told.json() == {"stored": 1, "unknown": ["AB" * 32]}
        found = await http.post("/transactions_search", json={"network": "cosmos"})
        assert [tx["hash"] for tx in found.json()] == [real["hash"]]
        assert await operations.store.coverage("cosmos", "c") == [(30, 31)]
        for body, status in (
            ([{**real, "chain_id": ""}], 400), ([{**real, "height": 4000}], 503), ({}, 400),
        ):  # fmt: skip
            refused = await http.post("/transactions_insert/cosmos", json=body)
            assert refused.status_code == status, refused.text


async def test_a_balance_of_the_ledger(tmp_path: Path) -> None:
    key, other = Key.generate("ed25519"), Key.generate("ed25519")
    async with market(key, other, serve=True) as ledger:
        await DirectClient(ledger, key).transfer(other.address, "0.5")
        await DirectClient(ledger, key).transfer(other.address, "1")
        async with (
            running(FakeNode(chain_id="leasehold-1")) as node,
            indexing(node, tmp_path, network="ledger", rpc=ledger.url) as operations,
        ):
            height = ledger.chain.height
            for at, fine in ((height, True), (height - 1, False)):
                asked = HeightAccount(
                    height=at, account=other.address, chain_id="leasehold-1", network="ledger"
                )
                call = Call(
                    network="cosmos", chain_id="leasehold-1", type="GetAccountBalance",
                    payload=msgspec.json.encode(asked),
                )  # fmt: skip
                if fine:
                    (response,) = await operations.manager.call(call)
                    said = msgspec.json.decode(response.payload, type=AccountBalance)
                    (amount,) = said.balances
                    assert (amount.currency, amount.exp) == ("uakt", 1)
                    assert amount.numeric % 10 == 5
                else:
                    with pytest.raises(LeaseholdError):
                        await operations.manager.call(call)
