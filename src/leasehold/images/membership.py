"""Who is in the cluster: the nodes an election is held among.

A :class:`View` is an immutable picture of the members with the rank orders of the digests asked
about; a change makes a new one. Where members come from differs, what is done with them does not:

* :class:`Members` itself: set by hand (tests, simulators) or by one of the following;
* :class:`FileMembers`: a JSON file, read again when it changes; a broken file keeps the last view;
* :class:`AnnouncedMembers`: nodes announce themselves (:mod:`leasehold.images.gossip`) and are
  forgotten some time after their last word, but never all at once: *unknown is not unhealthy*;
* :mod:`leasehold.images.kubernetes`: annotations on the pods of a DaemonSet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.images.hrw import Ranking
from leasehold.images.ports import Holder
from leasehold.p2p.keys import PeerId

RELOAD_SECONDS = 2.0
ANNOUNCEMENT_TTL = 90.0
"""Seconds after which a silent node leaves the view; nodes announce themselves every 30."""

MAX_MEMBERS = 100_000

KNOWN = metrics.gauge("leasehold_images_members", "Nodes of the fleet, this one too")

log = get_logger(__name__)


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node: its name, who it is, where it listens.

    ``addresses`` are libp2p multiaddrs, ``transfer`` is ``host:port`` of the peer transfer.
    """

    node: str
    peer_id: str = ""
    addresses: tuple[str, ...] = ()
    transfer: str = ""
    zone: str = ""

    @property
    def peer(self) -> PeerId | None:
        return PeerId.parse(self.peer_id) if self.peer_id else None

    def holder(self, *, complete: bool = True, puller: bool = False) -> Holder:
        """This node as somebody to fetch from."""
        return Holder(self.node, self.transfer, self.peer_id or None, complete, puller)


class View:
    """The members at one time, by name, and the orders among them."""

    def __init__(self, members: Iterable[Member] = (), version: int = 0) -> None:
        self.version = version
        self.members: Mapping[str, Member] = {
            m.node: m for m in sorted(members, key=lambda m: m.node)
        }
        self.ranking = Ranking(list(self.members))
        self.by_peer: Mapping[PeerId, Member] = {
            peer: m for m in self.members.values() if (peer := m.peer) is not None
        }
        self._zones: dict[str, Ranking] = {}

    def __len__(self) -> int:
        return len(self.members)

    def zone(self, name: str) -> Ranking:
        """The orders among the nodes of one zone; of the whole cluster when it has none."""
        found = self._zones.get(name)
        if found is None:
            nodes = [m.node for m in self.members.values() if m.zone == name]
            found = self._zones[name] = Ranking(nodes) if nodes else self.ranking
        return found


class Members(Service):
    """Holds the current view. ``set`` replaces it; ``changed`` are called with the new one."""

    def __init__(
        self,
        members: Iterable[Member] = (),
        *,
        name: str = "members",
        clock: Clock | None = None,
    ) -> None:
        super().__init__(name, clock=clock)
        self.view = View(members)
        self.changed: list[Callable[[View], None]] = []

    @property
    def known(self) -> View:
        """Everybody to find one another by; some may not be elected yet."""
        return self.view

    def announce_own(self, member: Member) -> None:
        """This node is there, and others should learn of it; nothing to do where they do."""

    def unready(self) -> list[str]:
        """Why this node is not a member yet; empty when it is."""
        return []

    def set(self, members: Iterable[Member]) -> None:
        """A new view, unless nothing changed."""
        view = View(members, self.view.version + 1)
        if view.members == self.view.members:
            return
        self.view = view
        KNOWN.set(len(view))
        for notify in self.changed:
            notify(view)


class FileMembers(Members):
    """A JSON file ``[{"node": ..., "peer_id": ..., "addresses": [...], "transfer": ...}, ...]``."""

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        super().__init__(name="members file", clock=clock)
        self.path = path
        self._stamp: tuple[int, int] | None = None

    async def start(self) -> None:
        self.read()
        self.spawn(self._follow(), name="follow")

    def read(self) -> None:
        """Read the file now; raises when it is missing or says something else."""
        stat = self.path.stat()
        self._stamp = (stat.st_mtime_ns, stat.st_size)
        self.set(parse_members(self.path.read_bytes(), str(self.path)))

    async def _follow(self) -> None:
        while True:
            await self.clock.sleep(RELOAD_SECONDS)
            try:
                stat = self.path.stat()
                if (stat.st_mtime_ns, stat.st_size) != self._stamp:
                    self.read()
            except (OSError, LeaseholdError) as error:
                # Whoever edits the file may be half-way; members do not vanish because of it.
                log.warning("members.file_unreadable", path=str(self.path), error=str(error))


class AnnouncedMembers(Members):
    """Nodes that say they are there: ``announce`` again within ``ttl`` seconds to stay.

    When every other node went silent at once it is this node that lost the others: they stay in
    the view until somebody is heard again.
    """

    def __init__(
        self,
        own: Member | None = None,
        *,
        ttl: float = ANNOUNCEMENT_TTL,
        clock: Clock | None = None,
    ) -> None:
        super().__init__([own] if own is not None else [], name="announced members", clock=clock)
        self.own = own
        self.ttl = ttl
        self._heard: dict[str, tuple[Member, float]] = {}

    async def start(self) -> None:
        self.spawn(self._expire(), name="expire")

    def announce_own(self, member: Member) -> None:
        self.own = member
        self.announce(member)

    def announce(self, member: Member, *, age: float = 0.0) -> None:
        """``member`` is there, or was ``age`` seconds ago."""
        if member.node not in self._heard and len(self._heard) >= MAX_MEMBERS:
            raise LeaseholdError(
                "too_many_members", f"more than {MAX_MEMBERS} nodes", kind=Kind.RATE_LIMITED
            )
        known = self._heard.get(member.node)
        self._heard[member.node] = (member, self.clock.monotonic() - age)
        if known is None or known[0] != member:
            self._publish()

    def leave(self, node: str) -> None:
        """``node`` said good-bye."""
        if self._heard.pop(node, None) is not None:
            self._publish()

    async def _expire(self) -> None:
        while True:
            await self.clock.sleep(self.ttl / 6)
            oldest = self.clock.monotonic() - self.ttl
            silent = [node for node, (_, at) in self._heard.items() if at < oldest]
            if silent and len(silent) < len(self._heard):
                for node in silent:
                    del self._heard[node]
                self._publish()

    def _publish(self) -> None:
        members = {node: member for node, (member, _) in self._heard.items()}
        if self.own is not None:
            members[self.own.node] = self.own
        self.set(members.values())


def parse_members(raw: bytes, where: str) -> list[Member]:
    """The members of a JSON list; every name once, every peer id a peer id."""
    try:
        members = msgspec.json.decode(raw, type=list[Member])
        for member in members:
            _ = member.peer
    except (msgspec.MsgspecError, ValueError) as error:
        raise LeaseholdError(
            "members_malformed", f"{where}: {error}", kind=Kind.MALFORMED, path=where
        ) from None
    if len({m.node for m in members}) != len(members):
        raise LeaseholdError("members_malformed", f"{where}: a node is listed twice", path=where)
    return members
