"""Metrics of the index; names the original had are kept."""

from __future__ import annotations

from leasehold.core.metrics import counter, gauge, histogram

CALL_TIME = histogram(
    "indexers_manager_client_call_duration", "Duration of an operation of the manager", ["call"]
)
HEIGHTS_TO_GET = histogram(
    "indexers_manager_client_requests_to_get",
    "Heights asked for in one operation",
    ["type"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000),
)
HEAD = gauge("leasehold_index_head_height", "Newest height the chain has", ["chain"])
WATERMARK = gauge(
    "leasehold_index_watermark_height", "Height up to which everything is stored", ["chain"]
)
PUSHED = gauge("leasehold_index_push_alive", "1 while new blocks are pushed", ["chain"])
PUSH_LOST = counter("leasehold_index_push_lost", "Websockets that ended", ["chain"])
PUSH_MISSED = counter(
    "leasehold_index_push_missed", "Blocks found by looking that no push announced", ["chain"]
)
STORED_BLOCKS = counter("leasehold_index_stored_blocks", "Blocks written", ["chain"])
STORED_TXS = counter("leasehold_index_stored_transactions", "Transactions written", ["chain"])
WRITE_TIME = histogram("leasehold_index_write_seconds", "One write of one or more heights")
RPC_TIME = histogram("leasehold_index_rpc_seconds", "One RPC call", ["method"])

REQUESTS = counter("indexers_worker_client_cosmos_received_requests", "Tasks received", ["type"])
RESPONSES = counter(
    "indexers_worker_client_cosmos_responses_sent", "Responses to tasks", ["type", "final"]
)
ENDPOINT_TIME = histogram(
    "indexers_worker_client_cosmos_endpoint_duration", "One task of an index worker", ["type"]
)
CONVERSION_TIME = histogram(
    "indexerworker_api_conversion_duration", "A height's answers to the common structures"
)
TX_NUM = counter("indexerworker_api_tx_num", "Transactions converted")
BLOCK_TX_NUM = histogram(
    "indexerworker_api_block_tx_num",
    "Transactions of a block",
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000),
)
TX_UNKNOWN = counter(
    "indexerworker_api_tx_unknown", "Transactions that are no Cosmos transaction; events tell"
)
DATABASE_PING = histogram(
    "health_database_ping", "Round trip to the database", ["database_type", "name"]
)
DATABASE_SIZE = gauge("health_database_size", "Bytes of the database", ["database_type", "name"])
