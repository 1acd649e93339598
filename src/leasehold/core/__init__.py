"""What every part stands on and nothing of what it does.

``errors``    the one error type and its HTTP, gRPC and exit codes
``service``   the lifecycle: start in order, stop in reverse, no orphan task
``clock``     system time and virtual time behind one interface
``ids``       ULIDs: sortable identifiers of events
``settings``  a typed tree: defaults < file < environment < flags, with provenance
``retry``     back-off with full jitter
``logs``      structured logs, JSON or for people
``metrics``   the Prometheus registry of the process
``web``       an ASGI application as a service; ports in use name their holder
``ops``       ``/metrics``, ``/livez``, ``/healthz`` and ``/readyz``
"""
