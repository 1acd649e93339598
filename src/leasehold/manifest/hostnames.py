"""Who may use which host name.

A name belongs to a group of a deployment (owner/dseq/gseq) from the first accepted manifest that
asks for it until the group no longer does or its lease ends. Other owners are refused; another
group of the same owner does not get it until the owner moves it there (it is *withheld*: accepted
but not routed). All of it is one stream of events on one entity, changed by compare-and-set, so
two instances cannot give one name to two tenants, and a restart forgets nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.events.commands import Commands, Decision
from leasehold.events.event import Event
from leasehold.events.log import Log
from leasehold.manifest.ports import Resolver
from leasehold.model.events.manifest import HostnamesChanged
from leasehold.model.hostname import blocked_by
from leasehold.model.market import GroupId

ENTITY_KIND = "hostnames"
ENTITY_ID = "all"


@dataclass(slots=True)
class Holders:
    """Host to group and group to hosts, as texts; hosts in lower case."""

    group_of: dict[str, str] = field(default_factory=dict)
    hosts_of: dict[str, set[str]] = field(default_factory=dict)

    def give(self, host: str, group: str) -> None:
        self.drop(host)
        self.group_of[host] = group
        self.hosts_of.setdefault(group, set()).add(host)

    def drop(self, host: str) -> None:
        group = self.group_of.pop(host, None)
        if group is not None:
            held = self.hosts_of[group]
            held.discard(host)
            if not held:
                del self.hosts_of[group]


def _fold(state: Holders, event: Event) -> Holders:
    if event.type == "hostnames.changed":
        changed: HostnamesChanged = event.payload
        for host in changed.released:
            if state.group_of.get(host) == changed.group:
                state.drop(host)
        for host in changed.taken:
            state.give(host, changed.group)
    return state


class Hostnames:
    """Reserve, transfer and release. Every call is durable when it returns."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        *,
        blocklist: Sequence[str] = (),
        resolver: Resolver | None = None,
        proof_prefix: str = "_leasehold",
    ) -> None:
        self.blocklist = tuple(blocklist)
        self.resolver = resolver
        self.proof_prefix = proof_prefix
        self._commands: Commands[Holders] = Commands(
            log, clock, kind=ENTITY_KIND, initial=lambda _id: Holders(), fold=_fold
        )

    async def holder(self, host: str) -> GroupId | None:
        """The group that holds ``host``."""
        group = (await self._state()).group_of.get(host.lower())
        return GroupId.parse(group) if group else None

    async def held_by(self, group: GroupId) -> list[str]:
        """The hosts of a group, sorted."""
        return sorted((await self._state()).hosts_of.get(str(group), ()))

    async def conflicts(self, hosts: Iterable[str], owner: str) -> list[Violation]:
        """Why ``owner`` may not have ``hosts``: blocked, another's, or ownership not proven."""
        names = _lower(hosts)
        state = await self._state()
        found = list(self._conflicts(state, names, owner))
        if self.resolver is not None and not found:
            for host in names:
                if host not in state.group_of:
                    found += [v async for v in self._unproven(host, owner)]
        return found

    async def reserve(self, hosts: Iterable[str], group: GroupId) -> list[str]:
        """Give ``hosts`` to ``group`` and drop what it held but no longer asks for.

        Returns the withheld ones: another group of the same owner has them. CONFLICT, and nothing
        changed, when another owner has one; INVALID when one is blocked.
        """
        names, me = _lower(hosts), str(group)
        withheld: list[str] = []

        def decide(state: Holders) -> Decision | None:
            _raise(list(self._conflicts(state, names, group.owner)))
            withheld[:] = [h for h in names if state.group_of.get(h, me) != me]
            taken = [h for h in names if h not in state.group_of]
            dropped = sorted(state.hosts_of.get(me, set()) - set(names))
            return _change(me, taken, dropped)

        await self._commands.run(ENTITY_ID, decide, optimistic=True)
        return withheld

    async def transfer(self, hosts: Iterable[str], group: GroupId) -> list[str]:
        """Move ``hosts`` that another group of the same owner holds to ``group``: all or nothing.

        Returns what moved. Names nobody holds are ignored; another owner's raise CONFLICT.
        """
        names, me = _lower(hosts), str(group)
        moved: list[str] = []

        def decide(state: Holders) -> Decision | None:
            _raise(list(self._conflicts(state, names, group.owner, blocklist=())))
            moved[:] = [h for h in names if state.group_of.get(h, me) != me]
            return _change(me, moved, [])

        await self._commands.run(ENTITY_ID, decide)
        return moved

    async def release(self, group: GroupId) -> list[str]:
        """Give up everything ``group`` holds; returns it."""
        me = str(group)
        dropped: list[str] = []

        def decide(state: Holders) -> Decision | None:
            dropped[:] = sorted(state.hosts_of.get(me, ()))
            return _change(me, [], dropped)

        await self._commands.run(ENTITY_ID, decide)
        return dropped

    async def _state(self) -> Holders:
        return await self._commands.state(ENTITY_ID)

    def _conflicts(
        self,
        state: Holders,
        hosts: Iterable[str],
        owner: str,
        *,
        blocklist: Sequence[str] | None = None,
    ) -> Iterator[Violation]:
        rules = self.blocklist if blocklist is None else blocklist
        for host in hosts:
            rule = blocked_by(host, rules)
            if rule is not None:
                yield Violation(
                    "hostname_blocked",
                    f"this provider does not serve {host!r}",
                    "hosts",
                    f"a host not blocked by {rule}",
                    host,
                )
            holder = state.group_of.get(host)
            if holder is not None and GroupId.parse(holder).owner != owner:
                yield Violation(
                    "hostname_taken",
                    f"host name {host!r} belongs to another tenant of this provider",
                    "hosts",
                    "a free host name",
                    host,
                )

    async def _unproven(self, host: str, owner: str) -> AsyncIterator[Violation]:
        assert self.resolver is not None
        name = f"{self.proof_prefix}.{host}"
        texts = await self.resolver.txt(name)
        if owner not in (text.strip() for text in texts):
            yield Violation(
                "hostname_unproven",
                f"prove that {host!r} is yours: set TXT record {name} to {owner}",
                "hosts",
                f"{name} TXT {owner}",
                ", ".join(texts)[:200] or "no record",
            )


def _lower(hosts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(host.lower() for host in hosts))


def _change(group: str, taken: list[str], released: list[str]) -> Decision | None:
    if not taken and not released:
        return None
    return Decision([HostnamesChanged(group=group, taken=taken, released=released)])


def _raise(violations: list[Violation]) -> None:
    if violations:
        raise refusal(violations)


def refusal(violations: list[Violation]) -> LeaseholdError:
    """CONFLICT when somebody else has a name, INVALID when names are blocked or not proven."""
    taken = any(v.code == "hostname_taken" for v in violations)
    return LeaseholdError.of(
        sorted(violations, key=lambda v: v.code != "hostname_taken"),
        kind=Kind.CONFLICT if taken else Kind.INVALID,
    )
