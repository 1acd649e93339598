"""Blocks and transactions of chains: fetched by workers, stored, searched, followed.

Open this for that:

``rpc``         a node's JSON-RPC and websocket
``cometbft``    its answers, in every shape from 0.34 to 0.38, as the common structures
``cosmos``      what a Cosmos transaction means: messages, fee, memo, transfers
``handlers``    the tasks a worker offers: ``GetTransactions``, ``GetLatestMark``
``sync``        a range of heights, cut in slices, fetched by workers, written to the store
``store``       blocks, transactions and coverage in SQLite or PostgreSQL (``schema``, ``rows``);
                ``writing`` is what happens in one transaction
``search``      finding transactions
``accounts``    an account's balances, rewards and delegations, as the node's state says
``earnings``    the same a day at a time
``operations``  what a manager does with all that; ``api`` is it over HTTP
``follower``    new blocks as they come, none left out
``ranges``      arithmetic of heights: consecutive runs, windows, what is missing
"""
