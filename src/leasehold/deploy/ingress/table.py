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

from leasehold.deploy.ingress.options import Options, Shape

SLOTS = 8
"""Servers of a pooled backend: old and new replicas of an update side by side need both."""

FIRST_POOL = 64
"""Backends of the first configuration; doubled by a reload whenever they run out."""

FIRST_PLAIN = 48
"""Those of them for services with one replica; the others are made for several."""

PLAIN, SEVERAL = Shape.of(Options()), Shape.of(Options(replicas=2))
"""The shapes of services that ask for nothing special."""


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
    shapes: dict[int, Shape] = msgspec.field(
        default_factory=lambda: dict.fromkeys(range(FIRST_PLAIN, FIRST_POOL), SEVERAL)
    )
    """By backend, where it is not ``PLAIN``; a backend keeps its shape when its target goes."""
    certificates: list[str] = []
    """Names of the certificate files in ``certs/``."""
    challenges: dict[str, str] = {}
    """What a certificate authority asks for at ``/.well-known/acme-challenge/``, by token."""

    def shape(self, backend: int) -> Shape:
        return self.shapes.get(backend, PLAIN)

    def free_backend(self, shape: Shape) -> int | None:
        """A backend for a new target: best one whose text needs no change."""
        used = {target.backend for target in self.targets.values()}
        free = [number for number in range(self.pool) if number not in used]
        fitting = (number for number in free if self.shape(number) == shape)
        # Plain backends are kept for plain targets as long as there are others.
        shaped = (number for number in free if number in self.shapes)
        return next(fitting, next(shaped, next(reversed(free), None)))

    def reshape(self, backend: int, shape: Shape) -> bool:
        """Give a backend another shape; True when that is a change."""
        if self.shape(backend) == shape:
            return False
        self.shapes[backend] = shape
        if shape == PLAIN:
            del self.shapes[backend]
        return True

    def by_host(self) -> Iterator[tuple[str, Target]]:
        for target in self.targets.values():
            for host in target.hosts:
                yield host, target


def name(backend: int) -> str:
    return f"b{backend}"
