"""Tasks from managers to workers, over one bidirectional stream each.

A worker tells managers over HTTP where it listens; a manager dials it back and opens a stream:
tasks go down, responses come up, and a task has exactly one outcome whatever dies meanwhile.

Open this for that:

``manager``        the service that takes tasks and gives responses: ``Manager.call(...)``
``worker``         the service that runs them, and the decorator for your own handlers
``task``           one task as its caller sees it: bounded buffer, order, credits, one outcome
``session``        one open stream to a worker: priorities, pings, who waits for which id
``pool``           the workers of one (network, chain id, version), who is next, who waits
``registry``       who pinged, its state, dialling, expiry and removal
``discovery``      the HTTP pings of a worker
``http``           ``/client_ping``, ``/get_workers``, ``/ws`` of a manager
``jsonrpc``        JSON-RPC 2.0 over a websocket
``wire``           the messages and their additive extensions
``transport``      what a transport must offer; ``grpc_transport`` is the real one and ``testing``
                   one in memory, with faults, for your own tests

Manager, session, pool and task know no transport: they are given one by its type's name.
"""
