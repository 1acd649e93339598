"""Answers of real nodes, recorded, and all shapes from 0.34 to 0.38."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.index.cometbft import decode_height, decode_search, decode_status
from leasehold.index.cosmos import action_name, fields, meaning
from leasehold.index.handlers import parts
from leasehold.index.rows import microseconds
from leasehold.index.sync import Gathering
from leasehold.model.chain import Amount, Event, IndexedBlock, Transaction

DATA = Path(__file__).parents[2] / "data" / "cometbft"


def result(name: str) -> bytes:
    return json.dumps(json.loads((DATA / name).read_text())["result"]).encode()


def changed(name: str, **values: Any) -> bytes:
    return json.dumps({**json.loads((DATA / name).read_text())["result"], **values}).encode()


def test_status_of_both_generations() -> None:
    old, new = (
        decode_status(result("gaia/status.json")),
        decode_status(result("kvstore_v0_38/status.json")),
    )
    assert (old.chain_id, old.version, old.latest_height) == ("ibc-0", "v0.34.9", 165)
    assert (new.chain_id, new.version) == ("dockerchain", "0.38.0-alpha.1")


def test_a_block_of_0_34_with_events_of_its_own() -> None:
    whole = decode_height(
        result("gaia/block_at_height_10.json"), result("gaia/block_results_at_height_10.json")
    )
    assert whole.height == 10
    assert whole.hash == "EB917FF229E0987637F20EDB8114CAC3F967D843C5CC480969D64D7A368F077F"
    assert whole.transactions == ()
    first = whole.events[0]
    assert (first.type, first.get("amount")) == ("transfer", "6179stake")
    assert first.get("recipient").startswith("cosmos1")


def test_a_real_block_of_62_begin_events_and_four_transactions() -> None:
    name = "gaia/block_results_at_height_4555980.json"
    raw = [b"one", b"two", b"three", b"four"]  # the block itself was not recorded
    block = changed(
        "gaia/block_at_height_10.json",
        block={
            "header": {
                "height": "4555980", "time": "2022-01-01T00:00:00Z", "chain_id": "injective-1"
            },
            "data": {"txs": [base64.b64encode(tx).decode() for tx in raw]},
        },
    )  # fmt: skip
    whole = decode_height(block, result(name))
    recorded = json.loads((DATA / name).read_text())["result"]
    assert len(whole.events) == 62 + 1
    assert whole.events[0].as_dict()["amount"] == "54688740222118024inj"
    assert len(whole.transactions) == 4
    for transaction, source in zip(whole.transactions, recorded["txs_results"], strict=True):
        assert len(transaction.raw_events) == len(source["events"])
        for event, theirs in zip(transaction.raw_events, source["events"], strict=True):
            assert [a.value for a in event.attributes] == [
                base64.b64decode(a["value"]).decode() for a in theirs["attributes"]
            ]
        assert transaction.gas_used == int(source["gas_used"])
    cancel = whole.transactions[0]
    assert "/injective.exchange.v1beta1.MsgBatchCancelSpotOrders" in [
        e.get("action") for e in cancel.raw_events
    ]
    assert cancel.events[0].module in ("exchange", "")


def test_a_block_of_0_38_where_everything_is_null() -> None:
    whole = decode_height(
        result("kvstore_v0_38/block_at_height_10.json"),
        result("kvstore_v0_38/block_results_at_height_10.json"),
    )
    assert (whole.transactions, whole.events, whole.block.chain_id) == ((), (), "dockerchain")


def test_search_of_0_38_is_plain_text() -> None:
    for name in ("tx_search_no_prove", "tx_search_with_prove"):
        found, total = decode_search(result(f"kvstore_v0_38/{name}.json"), version="0.38.0")
        assert (len(found), total) == (9, 9)
        assert found[0].raw == b"async-key=value"
        assert found[0].hash == hashlib.sha256(found[0].raw).hexdigest().upper()
        assert found[0].raw_events[0].get("creator") == "Cosmoshi Netowoko"
        guessed, _ = decode_search(result(f"kvstore_v0_38/{name}.json"))
        assert guessed == found


@pytest.mark.parametrize(
    ("version", "encoded", "minor"),
    [
        ("0.34.9", True, 34), ("0.37.1", False, 37), ("0.38.2", False, 38),
        ("", True, 34), ("", False, 37), ("", False, 38),
    ],
)  # fmt: skip
def test_every_shape_gives_the_same(version: str, encoded: bool, minor: int) -> None:
    def text(value: str) -> str:
        return base64.b64encode(value.encode()).decode() if encoded else value

    def events(*kinds: str) -> list[dict[str, Any]]:
        return [
            {
                "type": kind,
                "attributes": [
                    {"key": text("amount"), "value": text("12uakt"), "index": True},
                    {"key": text("sender"), "value": text("akash1zoë")},
                    {"key": text("empty"), "value": None},
                ],
            }
            for kind in kinds
        ]

    block = json.dumps(
        {
            "block_id": {"hash": "AB"},
            "block": {
                "header": {"height": "7", "time": "2026-01-01T00:00:00.5Z", "chain_id": "c"},
                "data": {"txs": [base64.b64encode(b"tx").decode()]},
            },
        }
    ).encode()
    tx = {"code": 3, "log": "out of gas", "gas_wanted": "5", "gas_used": "6",
          "events": events("transfer")}  # fmt: skip
    results: dict[str, Any] = {"height": "7", "txs_results": [tx]}
    if minor >= 38:
        results["finalize_block_events"] = events("begin", "end")
    else:
        results["begin_block_events"], results["end_block_events"] = events("begin"), events("end")
    whole = decode_height(block, json.dumps(results).encode(), version=version)
    assert [e.type for e in whole.events] == ["begin", "end"]
    (transaction,) = whole.transactions
    for event in (*whole.events, *transaction.raw_events):
        assert event.as_dict() == {"amount": "12uakt", "sender": "akash1zoë", "empty": ""}
    assert (transaction.code, transaction.has_errors, transaction.gas_used) == (3, True, 6)
    assert transaction.raw_log == b"out of gas"
    (event,) = transaction.events
    assert event.sub[0].error == {"message": "out of gas"}
    assert event.sub[0].sender[0].amounts == (Amount("12uakt", "uakt", 12),)


def test_results_of_another_block_are_refused() -> None:
    block = result("kvstore_v0_38/block_at_height_10.json")
    for wrong in (
        changed("kvstore_v0_38/block_results_at_height_10.json", height="11"),
        changed("kvstore_v0_38/block_results_at_height_10.json", txs_results=[{"code": 0}]),
        b"[]",
        b"{",
    ):
        with pytest.raises(LeaseholdError) as refused:
            decode_height(block, wrong)
        assert refused.value.code == "rpc_bad_answer"


def protobuf(*parts_: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([n << 3 | 2, len(data)]) + data for n, data in parts_)


def test_a_cosmos_transaction() -> None:
    message = protobuf((1, b"/cosmos.staking.v1beta1.MsgUndelegate"), (2, b"\x0a\x01x"))
    body = protobuf((1, message), (1, protobuf((1, b"/cosmos.bank.v1beta1.MsgSend"))), (2, b"hi"))
    fee = protobuf((1, protobuf((1, b"uakt"), (2, b"123456789012345678901234567890"))))
    raw = protobuf((1, body), (2, protobuf((2, fee))), (3, b"signature"))
    got = meaning(raw, [], "", 0)
    assert got["memo"] == "hi"
    assert got["transaction_fee"][0].numeric == 123456789012345678901234567890
    assert [(e.kind, e.module) for e in got["events"]] == [
        ("begin_unbonding", "staking"),
        ("send", "bank"),
    ]
    assert action_name("/akash.market.v1beta4.MsgCreateBid") == ("create_bid", "market")
    tx = Transaction(hash="H", block_hash="B", height=1, **got)
    assert msgspec.json.decode(msgspec.json.encode(tx), type=Transaction) == tx


@given(st.binary(max_size=200))
def test_any_bytes_may_be_a_transaction(raw: bytes) -> None:
    meaning(raw, [Event("message"), Event("transfer")], "", 0)
    try:
        list(fields(raw))
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("a", "b", "total", "difference"),
    [
        ((1, 0), (2, 0), (3, 0), (-1, 0)),
        ((100, 2), (1, 0), (200, 2), (0, 2)),
        ((1, 0), (100, 2), (200, 2), (0, 2)),
        ((5, 3), (95, 2), (955, 3), (-945, 3)),
        ((99, 2), (1, 2), (100, 2), (98, 2)),
        ((0, 0), (7, 1), (7, 1), (-7, 1)),
        ((-5, 1), (5, 1), (0, 1), (-10, 1)),
        ((10**30, 18), (1, 0), (10**30 + 10**18, 18), (10**30 - 10**18, 18)),
    ],
)
def test_amounts_are_exact(
    a: tuple[int, int], b: tuple[int, int], total: tuple[int, int], difference: tuple[int, int]
) -> None:
    mine, theirs = Amount("", "uakt", *a), Amount("", "uakt", *b)
    assert mine.add(theirs) == Amount("", "uakt", *total)
    assert mine.sub(theirs) == Amount("", "uakt", *difference)
    with pytest.raises(LeaseholdError):
        mine.add(Amount("", "uatom", 1, 0))


def test_times_to_the_nanosecond_and_back() -> None:
    assert microseconds("1970-01-01T00:00:01.5Z") == 1_500_000
    assert microseconds("2023-05-17T14:12:53.088875124Z") == 1684332773088875
    assert microseconds("2000-01-01T02:00:00+02:00") == microseconds("2000-01-01T00:00:00Z")
    for wrong in ("", "2023-02-30T00:00:00Z", "2023-01-01", "now", "2023-01-01T25:00:00Z"):
        with pytest.raises(LeaseholdError):
            microseconds(wrong)


@given(st.lists(st.integers(0, 4000), max_size=12), st.integers(100, 5000))
def test_heights_survive_being_cut_in_parts(sizes: list[int], limit: int) -> None:
    template = decode_height(
        result("gaia/block_at_height_10.json"), result("gaia/block_results_at_height_10.json")
    )
    height = IndexedBlock(
        block=msgspec.structs.replace(template.block, num_txs=len(sizes)),
        events=template.events,
        transactions=tuple(
            Transaction(hash=f"{i}", block_hash="B", height=10, index=i, raw=b"x" * size)
            for i, size in enumerate(sizes)
        ),
    )
    gathering = Gathering(10, 10)
    got = [
        whole for reply in parts(height, limit) for whole in gathering.add("Height", reply.payload)
    ]
    assert got == [height]
    assert gathering.finish() == []
