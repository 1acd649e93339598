"""The settings of the market: the embedded ledger, bidding, funds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class MarketSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are seconds; amounts are base units of the denomination in decimal text."""

    rpc: Annotated[
        str,
        Meta(
            description="RPC of another provider's market to take part in, http://host:29657; "
            "empty: this provider keeps a market of its own"
        ),
    ] = ""
    chain_id: Annotated[str, Meta(description="name of the market's ledger")] = "leasehold-1"
    denom: Annotated[
        str,
        Meta(description="denomination of deposits, prices and balances", pattern="^[a-z]\\w+$"),
    ] = "uakt"
    host: Annotated[str, Meta(description="address the ledger's RPC listens on")] = "127.0.0.1"
    port: Annotated[int, Meta(description="port of the ledger's RPC", ge=0, le=65535)] = 29657
    block_interval_s: Annotated[
        float, Meta(description="least time between two blocks, seconds", ge=0)
    ] = 0.005
    charge_period_s: Annotated[
        float,
        Meta(description="time one price unit pays for, seconds; 0 charges by block", ge=0),
    ] = 6.0
    max_tx_bytes: Annotated[
        int, Meta(description="largest transaction, bytes", ge=1024, le=512 * 1024)
    ] = 256 * 1024
    max_block_txs: Annotated[int, Meta(description="most transactions in a block", ge=1)] = 500
    max_pending: Annotated[int, Meta(description="most transactions waiting for a block", ge=1)] = (
        10_000
    )
    tx_index: Annotated[
        int, Meta(description="newest transactions that can be found by their hash", ge=1000)
    ] = 1_000_000
    block_cache: Annotated[int, Meta(description="newest blocks kept in memory", ge=16)] = 512
    keep_blocks: Annotated[
        int,
        Meta(
            description="newest blocks kept at least; older ones are forgotten when a checkpoint of"
            " the state stands for them. 0 keeps all",
            ge=0,
        ),
    ] = 0
    max_subscriptions: Annotated[
        int, Meta(description="websocket subscriptions of one connection", ge=1)
    ] = 16
    max_connections: Annotated[int, Meta(description="websocket connections at once", ge=1)] = 256
    folder: Annotated[
        str,
        Meta(description="folder of the validator's key and the state snapshot; empty: neither"),
    ] = ""
    snapshot_txs: Annotated[
        int,
        Meta(description="transactions after which a snapshot is due; grows with the state", ge=1),
    ] = 5_000

    attributes: Annotated[
        dict[str, str],
        Meta(description="what this provider is, as tenants may require it: region = us-west"),
    ] = {}
    reclamation_window_s: Annotated[
        int,
        Meta(description="longest notice this provider gives before it reclaims, seconds", ge=0),
    ] = 0
    bid_deposit: Annotated[str, Meta(description="deposit of a bid, base units")] = "500000"
    min_deposit: Annotated[str, Meta(description="least deposit of a deployment, base units")] = (
        "500000"
    )
    bid_timeout_s: Annotated[
        float, Meta(description="close a bid nobody accepted for so long, seconds", gt=0)
    ] = 300.0
    tx_timeout_s: Annotated[
        float, Meta(description="give up on a transaction's answer, seconds", gt=0)
    ] = 30.0
    price_strategy: Annotated[
        str,
        Meta(description="scale, random_range or script", pattern="^(scale|random_range|script)$"),
    ] = "scale"
    price_cpu: Annotated[
        str, Meta(description="scale: base units a block per thousandth of a core")
    ] = "0.004"
    price_memory: Annotated[
        str, Meta(description="scale: base units a block per MiB of memory")
    ] = "0.0016"
    price_storage: Annotated[
        str, Meta(description="scale: base units a block per MiB of storage")
    ] = "0.00002"
    price_storage_classes: Annotated[
        dict[str, str],
        Meta(description="scale: base units a block per MiB of persistent storage, by class"),
    ] = {}
    price_endpoint: Annotated[str, Meta(description="scale: base units a block per endpoint")] = (
        "0.05"
    )
    price_ip: Annotated[
        str, Meta(description="scale: base units a block per leased IP address")
    ] = "5"
    price_gpu: Annotated[str, Meta(description="scale: base units a block per GPU")] = "1000"
    price_script: Annotated[
        str, Meta(description="script: program that reads the order as JSON and prints a price")
    ] = ""
    price_script_timeout_s: Annotated[
        float, Meta(description="kill the price script after, seconds", gt=0)
    ] = 10.0
    price_script_parallel: Annotated[
        int, Meta(description="price scripts running at once", ge=1)
    ] = 32
    max_volumes: Annotated[
        int, Meta(description="most volumes of one resource unit this provider takes", ge=1)
    ] = 4
    auditor_cache_s: Annotated[
        float, Meta(description="auditors' signatures are asked for again after, seconds", gt=0)
    ] = 18 * 3600.0
    funds_check_s: Annotated[
        float, Meta(description="longest time between two looks at a lease's funds, seconds", gt=0)
    ] = 600.0
    withdrawal_s: Annotated[
        float, Meta(description="withdraw what was earned every, seconds", gt=0)
    ] = 24 * 3600.0
