"""Periodic tasks that survive restarts and run once, however many instances there are.

A task is a row: what to call, how often, when next, how far it came, and who runs it right now.
Instances share nothing but the database.

``store``      the rows: claims with a lease, results fenced by an epoch, history with pruning
``scheduler``  the service: claims what is due, runs it, renews, gives back
``runners``    what a task does: ``lastdata`` and ``syncrange``
``targets``    where to: fixed ones, and managers that have a worker online
``rpc``        JSON-RPC over a websocket that comes back after it broke
``api``        HTTP with basic authentication, and the page ``ui.html``
"""
