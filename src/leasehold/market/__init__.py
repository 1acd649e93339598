"""The market: who asks for what, who offers it, who pays whom.

``accounts``  keys, addresses, key files, tokens
``ledger``    the embedded market: signed transactions in durable blocks, escrow, RPC
``client``    signs transactions, asks about the state; the ledger's reader and writer
``connections``  kept HTTP connections of the client
``feed``      blocks of the index become market events on the log, exactly once
``bids``      one activity an order: should we bid, reserve, price, bid, win or give back
``funds``     watches escrows of own leases, withdraws what was earned
``ports``     what is needed of others: blocks, inventory; a market to read and write
``settings``  all of it

Entities ``ledger``, ``deployment``, ``order``, ``lease``, ``feed``. A won lease is ``lease.won`` on
the lease's entity; everything after that belongs to manifest and deploy.
"""
