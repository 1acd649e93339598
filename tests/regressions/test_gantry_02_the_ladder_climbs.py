"""Each failure after a cooldown makes the next one longer.

The original forgot an expired entry, with its count, in the look-up that precedes every attempt, so
every cooldown was the first step. Delete an entry in ``NegativeCache.lookup`` as soon as it is over
and the second step here is 10 s again.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.images.negative import NegativeCache
from leasehold.images.ports import FailureClass
from leasehold.model.digest import Digest


def test_ten_thirty_ninety_and_so_on(virtual: VirtualClock) -> None:
    async def main() -> None:
        cache, digest = NegativeCache(virtual), Digest.of(b"x")
        for expected in (10, 30, 90, 270, 600, 600):
            assert cache.lookup(digest) is None, "the attempt is allowed"
            assert round(cache.failed(digest, FailureClass.TRANSIENT).remaining) == expected
            assert cache.lookup(digest) is not None
            await virtual.sleep(expected + 0.1)
        cache.succeeded(digest)
        assert round(cache.failed(digest, FailureClass.TRANSIENT).remaining) == 10

    virtual.run(main)
