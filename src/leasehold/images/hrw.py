"""Which node fetches a digest: rendezvous hashing, so that everybody names the same without asking.

A node's score for a digest is SHA-256 of its name followed by the digest's text; the highest score
is rank 0. Membership changes move only the digests of the nodes that came or went. Scores cost one
hash a member, so a view keeps the order of the digests it was asked about: a responder that is
asked ten thousand times for its rank hashes once.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from leasehold.model.digest import Digest

MEMO = 256
"""Digests whose order a view remembers; at 10,000 members one order takes about 160 KiB."""


def score(node: str, digest: Digest) -> bytes:
    """32 bytes; the lexicographically larger one wins."""
    return hashlib.sha256((node + digest).encode()).digest()


def top(nodes: Iterable[str], digest: Digest, count: int) -> list[str]:
    """The ``count`` best of ``nodes``, best first; equal scores by the larger name."""
    return heapq.nlargest(count, nodes, key=lambda node: (score(node, digest), node))


def rank(nodes: Iterable[str], digest: Digest, node: str) -> int:
    """The place of ``node`` (0 is best), -1 when it is not among ``nodes``."""
    mine = (score(node, digest), node)
    better, present = 0, False
    for other in nodes:
        if other == node:
            present = True
        elif (score(other, digest), other) > mine:
            better += 1
    return better if present else -1


class Ranking:
    """The orders of one view of the members. Make a new one when the view changes."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = nodes
        self._ranks: OrderedDict[Digest, dict[str, int]] = OrderedDict()

    def _order(self, digest: Digest) -> dict[str, int]:
        found = self._ranks.get(digest)
        if found is None:
            ordered = sorted(self.nodes, key=lambda n: (score(n, digest), n), reverse=True)
            found = self._ranks[digest] = {node: place for place, node in enumerate(ordered)}
            if len(self._ranks) > MEMO:
                self._ranks.popitem(last=False)
        else:
            self._ranks.move_to_end(digest)
        return found

    def top(self, digest: Digest, count: int) -> list[str]:
        """The ``count`` best, best first."""
        out: list[str] = []
        for node in self._order(digest):
            if len(out) == count:
                break
            out.append(node)
        return out

    def rank(self, digest: Digest, node: str) -> int:
        """The place of ``node``, -1 when this view does not know it."""
        return self._order(digest).get(node, -1)
