"""Who said to hold what, until when. Bounded by keys and by holders of a key; memory only."""

from __future__ import annotations

from collections import OrderedDict

from leasehold.core.clock import Clock
from leasehold.p2p.kad.messages import Contact
from leasehold.p2p.keys import PeerId
from leasehold.p2p.multiaddr import Multiaddr

VALIDITY = 48 * 3600.0
"""Seconds a record counts (libp2p's default); holders say it again before half of it is over."""

MAX_KEYS = 100_000
MAX_HOLDERS = 256
"""Of one key. At ten thousand holders nobody needs them all; the newest are kept."""


class ProviderRecords:
    """The records this node keeps for others."""

    def __init__(self, clock: Clock, validity: float = VALIDITY) -> None:
        self._clock = clock
        self._validity = validity
        self._keys: OrderedDict[bytes, OrderedDict[PeerId, tuple[float, tuple[Multiaddr, ...]]]] = (
            OrderedDict()
        )

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes, peer: PeerId, addresses: tuple[Multiaddr, ...]) -> None:
        holders = self._keys.setdefault(key, OrderedDict())
        holders[peer] = (self._clock.monotonic() + self._validity, addresses)
        holders.move_to_end(peer)
        if len(holders) > MAX_HOLDERS:
            holders.popitem(last=False)
        self._keys.move_to_end(key)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)

    def remove(self, key: bytes, peer: PeerId) -> None:
        holders = self._keys.get(key)
        if holders is not None:
            holders.pop(peer, None)
            if not holders:
                del self._keys[key]

    def get(self, key: bytes) -> list[Contact]:
        """The holders of ``key``, those that said so last first."""
        holders = self._keys.get(key)
        if holders is None:
            return []
        now = self._clock.monotonic()
        for peer in [p for p, (until, _) in holders.items() if until <= now]:
            del holders[peer]
        if not holders:
            del self._keys[key]
        return [Contact(peer, addresses) for peer, (_, addresses) in reversed(holders.items())]
