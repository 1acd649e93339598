"""The log: every state change of Leasehold is an event on an entity's stream.

``event``     what an event, an entity and a signal are
``log``       the interface of a log and what each call promises
``commands``  pure decisions appended by compare-and-set, retried on conflict
``memory``    a log for simulators and users' tests
``sqlite``    the embedded log (``sqlite_writer``: its one writer; ``recent``: what is fresh)
``postgres``  the log several provider instances share (``partitions``: who owns what)
``rpc``       the log over gRPC streams (``rpc_server``, ``rpc_client``), for other processes
``batch``     what an append becomes, the same for all; ``group``: group commit
``schema``    the tables; ``migrate``: from one revision to the next
``conformance``  the one test suite every backend passes
"""
