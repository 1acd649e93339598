"""The embedded ledger: an append-only market with signed transactions in blocks.

``messages``       what can be asked, and the signed transaction that carries it
``money``          exact amounts
``state``          tables of immutable objects with a journal
``escrow``         accounts, escrow and payments over time
``machine``        the rules: money, deployments, groups and orders; which handler has which message
``offers``         the rules of bids and leases
``records``        the rules of certificates, providers and auditors
``words``          close reasons, ids as events write them, refusals the rules share
``chain``          genesis, block, results and events as they are written
``blocks``         making a block and replaying one
``hashing``        CometBFT's hashes of headers, parts, commits
``history``        blocks on the log, found by height
``export``         the state as lines of JSON, the history, and replaying it
``checkpoints``    forgetting old blocks behind a state in the history
``snapshot``       the state beside the log, for a quick start
``index``          transaction hash to height
``service``        the running ledger: verify, execute, append, answer
``views``          questions about the state, with paging
``comet``          the shapes of CometBFT's answers
``rpc``            JSON-RPC over HTTP and websocket
``methods``        its methods
``subscriptions``  websocket subscriptions by query
``query``          CometBFT's query language
``search``         searching the history

Entity ``ledger:<chain id>``; events ``ledger.genesis``, ``ledger.block``, ``ledger.part``,
``ledger.state``.
"""
