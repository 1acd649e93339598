"""Metrics of managers and workers; names the original had are kept."""

from __future__ import annotations

import functools

from prometheus_client import Counter, Histogram

from leasehold.core.metrics import counter, gauge, histogram

CHILDREN = 1024
"""Label combinations looked up without asking the metric; they are asked for once per task."""

WORKERS = gauge(
    "leasehold_dispatch_workers", "Workers a manager has records of", ["network", "state"]
)
IN_FLIGHT = gauge("leasehold_dispatch_in_flight", "Tasks given to workers, not yet ended", ["pool"])
QUEUED = gauge("leasehold_dispatch_queued", "Tasks waiting for a free worker", ["pool"])
OUTCOMES = counter("leasehold_dispatch_outcomes", "Tasks that ended, by how", ["type", "outcome"])
REDISPATCHES = counter(
    "leasehold_dispatch_redispatches", "Tasks given to another worker", ["reason"]
)
RECONNECTS = counter("leasehold_dispatch_connects", "Streams opened to workers", ["result"])
LATE = counter("leasehold_dispatch_late_responses", "Responses of tasks that had ended")
REJECTED = counter(
    "leasehold_dispatch_rejected_responses", "Responses that break the protocol", ["reason"]
)
REFUSED_PINGS = counter("leasehold_dispatch_refused_pings", "Announcements refused", ["reason"])
QUEUE_WAIT = histogram("leasehold_dispatch_queue_wait_seconds", "Accepted until given to a worker")
DISPATCH_TIME = histogram(
    "leasehold_dispatch_first_response_seconds", "Given to a worker until its first response"
)
RUN_TIME = histogram("leasehold_dispatch_task_seconds", "Accepted until its one outcome", ["type"])
PING_TIME = histogram("leasehold_dispatch_ping_seconds", "PING until PONG")

WORKER_RUNNING = gauge("leasehold_worker_running_tasks", "Handlers running")
WORKER_STREAMS = gauge("leasehold_worker_streams", "Managers connected")
WORKER_TIME = histogram("leasehold_worker_task_seconds", "Run time of handlers", ["type"])
WORKER_IGNORED = counter("leasehold_worker_ignored_requests", "Requests not run", ["reason"])

CHECKS_TIME = histogram(
    "indexers_worker_connectivity_checks_timing", "Announcement round trip", ["address"]
)
CHECKS_STATUS = counter(
    "indexers_worker_connectivity_checks_status",
    "Announcements by answer; code 600: no HTTP answer",
    ["address", "code", "error"],
)
NEW_STREAMS = counter("indexers_worker_client_cosmos_new_streams", "Streams managers opened")
GRPC_REQUESTS = counter(
    "indexers_transport_grpc_requests", "Requests received", ["from", "type", "error"]
)
GRPC_RESPONSES = counter("indexers_transport_grpc_responses", "Responses sent", ["type", "error"])


@functools.lru_cache(maxsize=CHILDREN)
def outcome(type: str, how: str) -> Counter:
    return OUTCOMES.labels(type, how)


@functools.lru_cache(maxsize=CHILDREN)
def run_time(type: str) -> Histogram:
    return RUN_TIME.labels(type)


@functools.lru_cache(maxsize=CHILDREN)
def worker_time(type: str) -> Histogram:
    return WORKER_TIME.labels(type)


@functools.lru_cache(maxsize=CHILDREN)
def grpc_request(sender: str, type: str, error: str) -> Counter:
    return GRPC_REQUESTS.labels(sender, type, error)


@functools.lru_cache(maxsize=CHILDREN)
def grpc_response(type: str, error: str) -> Counter:
    return GRPC_RESPONSES.labels(type, error)
