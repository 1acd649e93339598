"""What ingress knows: which host leads to which target, and which replicas serve a target.

A target is one exposed port of one service of one lease. It gets one of a fixed pool of backends
in the proxy, its replicas get server slots there. Changing the table at runtime means a handful of
commands; a change that the pool has no room for, or whose options need a backend of their own,
needs a reload with a new configuration. Either way the same table is what is written to disk, so a
proxy that is started again comes up with what it had.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

SLOTS = 8
"""Servers of a pooled backend: old and new replicas of an update side by side need both."""

FIRST_POOL = 64
"""Backends of the first configuration; doubled by a reload whenever they run out."""


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """How requests are treated; bytes and milliseconds. The market's defaults."""

    max_body: int = 1 << 20
    read_timeout_ms: int = 60_000
    send_timeout_ms: int = 60_000
    tries: int = 3


class Server(msgspec.Struct, frozen=True, order=True):
    """One replica's address and port inside the node's network."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


class Target(msgspec.Struct, omit_defaults=True):
    """``slots`` maps slot numbers (1..) to servers; ``draining`` are those taking no new ones."""

    backend: int
    hosts: list[str] = []
    slots: dict[int, Server] = {}
    draining: list[int] = []
    options: Options = Options()

    @property
    def serving(self) -> set[Server]:
        return {server for slot, server in self.slots.items() if slot not in self.draining}


class Table(msgspec.Struct):
    """All of it; JSON on disk."""

    targets: dict[str, Target] = {}
    pool: int = FIRST_POOL
    slots: int = SLOTS

    def free_backend(self) -> int | None:
        used = {target.backend for target in self.targets.values()}
        return next((number for number in range(self.pool) if number not in used), None)

    def by_host(self) -> Iterator[tuple[str, Target]]:
        for target in self.targets.values():
            for host in target.hosts:
                yield host, target


def name(backend: int) -> str:
    return f"b{backend}"
