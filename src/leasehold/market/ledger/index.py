"""Which block a transaction landed in: the newest million, by the first eight bytes of the hash.

Eight bytes are enough to find the block; the block itself tells whether the hash is really in it.
"""

from __future__ import annotations

import hashlib
from array import array

from leasehold.market.ledger.chain import Block


class TxIndex:
    """``limit`` newest transactions; about 100 bytes each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heights: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._heights)

    def add(self, block: Block) -> None:
        for raw in block.txs:
            self._heights[_short(hashlib.sha256(raw).digest())] = block.height
        while len(self._heights) > self._limit:
            del self._heights[next(iter(self._heights))]

    def height(self, hash: bytes) -> int | None:
        return self._heights.get(_short(hash))

    def dump(self) -> tuple[bytes, bytes]:
        """Packed hashes and heights, for a snapshot."""
        return array("Q", self._heights).tobytes(), array("Q", self._heights.values()).tobytes()

    def load(self, hashes: bytes, heights: bytes) -> None:
        keys, values = array("Q"), array("Q")
        keys.frombytes(hashes)
        values.frombytes(heights)
        self._heights = dict(zip(keys, values, strict=True))


def _short(hash: bytes) -> int:
    return int.from_bytes(hash[:8], "little")
