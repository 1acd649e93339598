"""Who may name, call and remove what.

A name is an instance id or, failing that, an alias of the caller's scope, then of the root scope.
``spell``, ``self``, ``node``, ``worker`` and ``log`` are reserved: in a run they mean the node.

The host owns what packages install. The management identity, and the host, may alias and remove
anything; in a worker's scope the worker and whoever created it may too. Strangers are refused.
"""

from __future__ import annotations

import msgspec

from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.node.distro import NAME, RESERVED
from leasehold.node.journal import ROOT_SCOPE, DropAlias, Instance, Journal, PutAlias

WORKER_SPELL = "worker-spell"
"""The alias of the spell the decider keeps in each worker's scope."""


class Principals(msgspec.Struct, frozen=True):
    """The identities of this node: ``host`` owns, ``management`` administers."""

    host: str
    management: str

    def is_management(self, who: str) -> bool:
        return bool(who) and who in (self.host, self.management)


class Instances:
    """Lookup, aliases and permissions over the journal."""

    def __init__(self, journal: Journal, principals: Principals) -> None:
        self.journal = journal
        self.principals = principals

    def find(self, name: str, scope: str = ROOT_SCOPE) -> Instance | None:
        """By id, then by alias in ``scope``, then in the root scope."""
        instances, aliases = self.journal.instances, self.journal.aliases
        if name in instances:
            return instances[name]
        id = aliases.get((scope, name)) or aliases.get((ROOT_SCOPE, name))
        return instances.get(id) if id else None

    def get(self, name: str, scope: str = ROOT_SCOPE, *, what: str = "service") -> Instance:
        """As :meth:`find`; raises when there is none."""
        found = self.find(name, scope)
        if found is None:
            raise not_found(what, name, hint=f"`leasehold node {what}s ls` lists them.")
        return found

    def author(self, instance: Instance) -> str:
        """The identity runs and calls of ``instance`` carry: the host, or its worker's scope."""
        return self.principals.host if instance.scope == ROOT_SCOPE else instance.scope

    def may_administer(self, who: str, scope: str) -> bool:
        """Whether ``who`` may install into, alias in and remove from ``scope``."""
        if self.principals.is_management(who):
            return True
        row = self.journal.scopes.get(scope)
        return row is not None and who in (row.id, row.creator)

    async def add_alias(self, who: str, scope: str, alias: str, target: str) -> None:
        """Point ``alias`` at ``target``; whoever held it keeps running without it."""
        self.check_alias(who, scope, alias, target)
        await self.journal.commit(PutAlias(scope, alias, target))

    def check_alias(self, who: str, scope: str, alias: str, target: str) -> None:
        """Raise when :meth:`add_alias` would be refused."""
        allowed = self.may_administer(who, scope)
        if alias == WORKER_SPELL:
            allowed = self.principals.is_management(who)
        if not allowed:
            raise _forbidden(f"{who or 'nobody'} may not set alias {alias!r} in {scope}", who)
        if alias in RESERVED or not NAME.match(alias) or alias in self.journal.instances:
            raise LeaseholdError(
                "bad_alias", f"{alias!r} cannot be an alias: it is reserved or an id", got=alias
            )
        if target not in self.journal.instances:
            raise not_found("service", target)

    async def remove_alias(self, who: str, scope: str, alias: str) -> None:
        if not self.may_administer(who, scope):
            raise _forbidden(f"{who or 'nobody'} may not remove alias {alias!r}", who)
        await self.journal.commit(DropAlias(scope, alias))

    def check_removal(self, who: str, instance: Instance, *, spell: bool) -> None:
        """Raise unless ``who`` may remove ``instance`` by the entry point for spells/services."""
        if instance.is_spell and not spell:
            raise LeaseholdError(
                "is_a_spell", "cannot remove a spell as a service", kind=Kind.CONFLICT
            )
        if spell and not instance.is_spell:
            raise LeaseholdError("not_a_spell", "the service isn't a spell", kind=Kind.CONFLICT)
        if who != instance.owner and not self.may_administer(who, instance.scope):
            raise _forbidden(f"{who or 'nobody'} may not remove {instance.name}", who)


def _forbidden(message: str, who: str) -> LeaseholdError:
    return LeaseholdError("not_allowed", message, kind=Kind.FORBIDDEN, got=who)
