"""Keeps histories short: a snapshot once in a while, and later nothing from before it.

After so many events (and at least as many as the state has lines, so that snapshots cost no more
than what they replace) the state is written into the history as a snapshot, at a moment when
nothing is under way. What was before it is trimmed when the snapshot is old enough that nobody
looks for the details any more. Whoever read less far begins at the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from leasehold.events.commands import Commands, Decision
from leasehold.events.event import Event
from leasehold.model.events import storage as facts
from leasehold.observe.activity import Context, Outcome, Reconciler
from leasehold.storage.commands import Repos
from leasehold.storage.state import RegistryState, RepoState

LINES = 2000
"""Lines of a registry in one event of its snapshot: some 300 KiB."""


class Policy(msgspec.Struct, frozen=True):
    """Snapshots after ``events``; the events before one go ``keep_s`` seconds later."""

    events: int = 1000
    keep_s: float = 30 * 86400.0


class Seen(msgspec.Struct):
    """Events since the newest snapshot, its first event and when it was taken."""

    count: int = 0
    snapshot: str = ""
    at: float = 0.0
    armed: str = ""


class _Trimming(Reconciler):
    fact: ClassVar[str]

    def __init__(self, context: Context, commands: Commands[Any], policy: Policy) -> None:
        super().__init__(context)
        self.commands = commands
        self.policy = policy
        self.seen = Seen()

    def save(self) -> bytes:
        return msgspec.msgpack.encode(self.seen)

    def restore(self, state: bytes) -> None:
        self.seen = msgspec.msgpack.decode(state, type=Seen)

    def fold(self, event: Event) -> None:
        # Types alone: an event nobody can read is no reason to keep it longer.
        if event.type != self.fact:
            self.seen.count += 1
        elif self.seen.count or not self.seen.snapshot:
            self.seen = Seen(0, event.id, event.at)

    async def settle(self) -> Outcome:
        seen = self.seen
        if seen.count >= self.policy.events:
            await self.commands.run(self.entity.id, self._decide)
        if seen.snapshot != seen.armed:
            await self.context.arm("trim", seen.at + self.policy.keep_s)
            seen.armed = seen.snapshot
        return Outcome.SLEEP

    def _decide(self, state: Any) -> Decision | None:
        parts = list(self.parts(state))
        return Decision(parts) if parts else None

    def parts(self, state: Any) -> Iterator[msgspec.Struct]:
        """The snapshot; nothing while something is under way or it would cost too much."""
        raise NotImplementedError

    async def fired(self, timer: str) -> Outcome:
        if self.seen.snapshot:
            await self.context.log.trim(self.entity, self.seen.snapshot)
        return Outcome.SLEEP


class RegistryTrimming(_Trimming):
    name: ClassVar[str] = "trim-registry"
    entity_kind: ClassVar[str] = "registry"
    fact: ClassVar[str] = "registry.snapshot"

    def __init__(self, context: Context, repos: Repos, policy: Policy) -> None:
        super().__init__(context, repos.registries, policy)

    def parts(self, state: RegistryState) -> Iterator[msgspec.Struct]:
        lines = [
            facts.RegistryLine(repo=repo, path=listed.path, host=listed.host)
            for repo, listed in state.repos.items()
        ]
        made = list(state.incarnations.items())
        size = max(len(lines), len(made))
        if self.seen.count < size or any(
            listed.move or not listed.added for listed in state.repos.values()
        ):
            return
        for start in range(0, max(size, 1), LINES):
            yield facts.RegistrySnapshot(
                first=start == 0,
                repos=lines[start : start + LINES],
                incarnations=dict(made[start : start + LINES]),
            )


class RepoTrimming(_Trimming):
    name: ClassVar[str] = "trim-repo"
    entity_kind: ClassVar[str] = "repo"
    fact: ClassVar[str] = "repo.snapshot"

    def __init__(self, context: Context, repos: Repos, policy: Policy) -> None:
        super().__init__(context, repos.repos, policy)

    def parts(self, state: RepoState) -> Iterator[msgspec.Struct]:
        under_way = state.busy or state.shadow_move or state.wants_gitlab or state.deleted
        if under_way or not state.shadow_path:
            return
        fields = facts.RepoSnapshot.__struct_fields__
        yield facts.RepoSnapshot(**{name: getattr(state, name) for name in fields})
