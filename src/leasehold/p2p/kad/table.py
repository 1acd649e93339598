"""Whom we know: one bucket for each length of the prefix a peer's position shares with ours.

A full bucket keeps its old members as long as they answer (they tend to stay); a newcomer replaces
only one that failed. So strangers cannot push good peers out by coming in numbers.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable

from leasehold.p2p.kad import K
from leasehold.p2p.keys import PeerId

BITS = 256
FAILURES = 2
"""Requests in a row a peer may leave unanswered before it goes."""


def position(key: bytes) -> int:
    """Where a key or peer id lies."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


class RoutingTable:
    """``own`` is this node; ``size`` is the number of peers in it."""

    def __init__(self, own: PeerId, *, bucket: int = K) -> None:
        self._own_id = own
        self._own = position(own)
        self._bucket = bucket
        self._buckets: dict[int, dict[PeerId, int]] = {}
        self._positions: dict[PeerId, int] = {}
        self._failures: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._positions

    def add(self, peer: PeerId) -> bool:
        """``peer`` answered or introduced itself; False when there is no room for it."""
        if peer == self._own_id:
            return False
        if peer in self._positions:
            self._failures.pop(peer, None)
            return True
        where = position(peer)
        bucket = self._buckets.setdefault(BITS - (where ^ self._own).bit_length(), {})
        if len(bucket) >= self._bucket:
            failing = next((p for p in bucket if self._failures.get(p)), None)
            if failing is None:
                return False
            self.remove(failing)
        bucket[peer] = where
        self._positions[peer] = where
        return True

    def failed(self, peer: PeerId) -> None:
        """``peer`` did not answer."""
        if peer in self._positions:
            self._failures[peer] = self._failures.get(peer, 0) + 1
            if self._failures[peer] >= FAILURES:
                self.remove(peer)

    def remove(self, peer: PeerId) -> None:
        where = self._positions.pop(peer, None)
        self._failures.pop(peer, None)
        if where is not None:
            self._buckets[BITS - (where ^ self._own).bit_length()].pop(peer, None)

    def closest(
        self, where: int, count: int = K, *, but: Callable[[PeerId], bool] | None = None
    ) -> list[PeerId]:
        """The ``count`` known peers nearest to a position, nearest first, without those ``but``."""
        candidates = (
            (w ^ where, p) for p, w in self._positions.items() if but is None or not but(p)
        )
        return [peer for _, peer in heapq.nsmallest(count, candidates)]

    def peers(self) -> list[PeerId]:
        return list(self._positions)
