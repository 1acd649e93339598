"""Blocks and transactions of chains: fetched by workers, stored, searched, followed.

Open this for that:

``rpc``         CometBFT's JSON-RPC: ``status``, ``block``, ``block_results``, ``tx_search``, websocket
``cometbft``    its answers, in every shape from 0.34 to 0.38, as the common structures
``cosmos``      what a Cosmos transaction means: messages, fee, memo, transfers
``handlers``    the tasks a worker offers: ``GetTransactions``, ``GetLatestMark``
``sync``        a range of heights, cut in slices, fetched by workers, written to the store
``store``       blocks, transactions and coverage in SQLite or PostgreSQL
``follower``    new blocks as they come, none left out
``ranges``      arithmetic of heights: consecutive runs, windows, what is missing
"""

from leasehold.index.handlers import worker_handlers

__all__ = ["worker_handlers"]
