"""The messages of a stream and what Leasehold adds to them.

The base protocol: a manager sends ``Request`` with a fresh UUID; the worker answers with any
number of ``Response`` of the same id, numbered from 0, one of them final. ``PING`` is answered by
``PONG`` without going through a handler. A worker that has nothing more to say than "done" sends
``END``.

What is added is negotiated in the stream's metadata and never sent to a peer that did not ask
for it, so an old peer sees exactly what it always saw:

* ``CANCEL`` (payload: the id of the task) stops a task nobody waits for any more. It has an id
  of its own, because old workers answer unknown types with a final error for that id.
* ``CREDIT`` (payload: id and how many) lets a worker send more responses of one task.
* ``GOODBYE`` from a worker: it is draining, give it nothing new.
* ``timeout``, ``attempt`` and ``credit`` of a request.
* ``batch``: what waits to be sent goes together in one message of the transport, which costs
  several times more than what is in it.
"""

from __future__ import annotations

import os

import msgspec

PING = "PING"
PONG = "PONG"
END = "END"
CANCEL = "CANCEL"
CREDIT = "CREDIT"
GOODBYE = "GOODBYE"

FEATURES = frozenset({"batch", "cancel", "credit", "goodbye", "timeout"})
"""What this version can do beyond the base protocol."""

BATCH = 64
"""Requests or responses in one message of the transport."""

BATCH_BYTES = 256 * 1024
"""Bytes of payload after which such a message is full."""

REFUSED = "refused"
"""``error_type`` of a task the worker never started: any task may be given to another worker."""

DEFAULT_VERSION = "0.0.1"


class Request(msgspec.Struct, gc=False):
    """One message to a worker. ``timeout`` in seconds; 0 means none for it and for ``credit``."""

    id: str
    type: str
    payload: bytes = b""
    sender: str = ""
    version: str = ""
    timeout: float = 0.0
    attempt: int = 0
    credit: int = 0


class Response(msgspec.Struct, gc=False):
    """One message from a worker. ``error`` is empty when there is none."""

    id: str
    type: str
    order: int = 0
    final: bool = False
    payload: bytes = b""
    error: str = ""
    error_type: str = ""
    version: str = ""


class Grant(msgspec.Struct):
    """The payload of ``CREDIT``."""

    id: str
    n: int


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who the other end of a stream says it is; all defaults for a peer of the base protocol."""

    features: frozenset[str] = frozenset()
    concurrency: int = 0
    peer: str = ""
    """Host and port, as the transport sees it."""
    id: str = ""
    network: str = ""
    chain_id: str = ""
    version: str = DEFAULT_VERSION


def new_id() -> str:
    """A fresh task id: a UUID of version 4, as old workers parse it."""
    # As uuid.uuid4(), without the object in between: one is made for every task and ping.
    h = os.urandom(16).hex()
    variant = "89ab"[int(h[16], 16) & 3]
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{variant}{h[17:20]}-{h[20:]}"
