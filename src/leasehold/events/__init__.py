"""The log: every state change of Leasehold is an event on an entity's stream.

``event``     what an event, an entity and a signal are
``log``       the interface of a log and what each call promises
``commands``  pure decisions appended by compare-and-set, retried on conflict
``memory``    a log for simulators and users' tests
``sqlite``    the embedded log: one group-committing writer thread
``postgres``  the log several provider instances share
``rpc``       the log over gRPC streams, for observers in other processes
``conformance``  the one test suite every backend passes
"""
