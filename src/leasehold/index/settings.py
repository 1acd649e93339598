"""Settings of the index."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MIB = 1 << 20


class IndexSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For a worker that reads one chain and a manager that stores it."""

    network: Annotated[str, Meta(description="network: ledger or cosmos")] = "ledger"
    chain_id: Annotated[str, Meta(description="chain id, as the chain itself says")] = "leasehold-1"
    rpc: Annotated[str, Meta(description="URL of the chain's CometBFT RPC")] = (
        "http://127.0.0.1:29657"
    )
    store: Annotated[
        str,
        Meta(
            description="SQLAlchemy URL of the index's database; empty: a SQLite file in the state"
            " folder"
        ),
    ] = ""
    rpc_timeout: Annotated[float, Meta(description="seconds for one RPC call", gt=0)] = 15.0
    rpc_concurrency: Annotated[
        int, Meta(description="heights a worker fetches at once", ge=1, le=256)
    ] = 20
    rpc_max_bytes: Annotated[int, Meta(description="bytes of one RPC answer", ge=MIB)] = 256 * MIB
    max_heights: Annotated[int, Meta(description="heights of one task", ge=1)] = 10_000
    part_bytes: Annotated[
        int, Meta(description="bytes of transactions in one message to the manager", ge=4096)
    ] = MIB
    slice: Annotated[
        int, Meta(description="heights of one task when a range is synchronised", ge=1, le=10_000)
    ] = 20
    parallel: Annotated[
        int, Meta(description="slices under way at the same time", ge=1, le=256)
    ] = 4
    task_timeout: Annotated[float, Meta(description="seconds a slice may take", gt=0)] = 120.0
    latest_window: Annotated[
        int, Meta(description="heights fetched at most when catching up with the head", ge=1)
    ] = 1000
    sync_window: Annotated[int, Meta(description="heights of one step of sync_range", ge=1)] = 300
    start_height: Annotated[
        int,
        Meta(
            description="first height to follow when nothing is stored; 0: the first the node has",
            ge=0,
        ),
    ] = 0
    poll_interval: Annotated[
        float, Meta(description="seconds between polls of the head while there is no push", gt=0)
    ] = 1.0
    check_interval: Annotated[
        float,
        Meta(
            description="seconds between looks at the head while pushes work, in case one is lost",
            gt=0,
        ),
    ] = 10.0
    push_silence: Annotated[
        float,
        Meta(description="seconds without an answered ping until a websocket is dead", gt=0),
    ] = 10.0
