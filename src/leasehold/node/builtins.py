"""What a script can call besides services: ``spell``, ``worker``, ``node``, ``log``.

Names resolve in this order: the names above, instance ids, aliases of the caller's scope, aliases
of the root scope. Replies have the shape of a service's: ``success``, ``error``, and the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from leasehold.core import ids
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.model.events.node import SpellPublished
from leasehold.node import blueprint, rpc
from leasehold.node.distro import SpellDistro
from leasehold.node.instances import WORKER_SPELL
from leasehold.node.journal import ROOT_SCOPE, Drop, Instance, Put, PutAlias, Scope
from leasehold.node.spells import trigger as triggers
from leasehold.node.spells.engine import Identity
from leasehold.node.spells.store import Role

if TYPE_CHECKING:
    from leasehold.node.service import Node

MAX_PUBLISHED = 64 << 10
"""Bytes of one published finding."""

MAX_WORKERS = 10_000


class Builtins:
    """The host of spell runs; see :class:`leasehold.node.spells.engine.Host`."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def identity(self, spell: str) -> Identity | None:
        instance = self.node.journal.instances.get(spell)
        if instance is None or instance.state != "live":
            return None
        scope = self.node.journal.scopes.get(instance.scope)
        if scope is not None and not scope.active:
            return None
        author = self.node.instances.author(instance)
        host = self.node.principals.host
        return Identity(spell, instance.name, instance.scope, author, host)

    async def call(
        self, who: Identity, run: str, service: str, function: str, args: list[Any]
    ) -> Any:
        """Call ``service.function`` as ``who``."""
        builtin = getattr(self, f"{service}_{function}", None)
        if service in ("spell", "worker", "node", "log"):
            if builtin is None:
                raise not_found("function", f"{service}.{function}")
            value = await builtin(who, run, *args)
            return {"success": True, "error": "", **(value or {})}
        target = self.node.instances.get(service, who.scope)
        if target.is_spell:
            return await self.node.spells.function(
                target.id, self.role(who, target), function, args, sender=who.author
            )
        context = rpc.Context(who.author, target.owner, who.host, run)
        return await self.node.services.call(target, function, args, context)

    def role(self, who: Identity, target: Instance) -> Role:
        """What ``who`` is to the spell ``target``: itself, the host, its worker, or anyone."""
        if who.id == target.id:
            return "spell"
        if who.author == self.node.principals.host:
            return "host"
        return "worker" if who.author == target.scope else "other"

    # -- spell ---------------------------------------------------------------------------------

    async def spell_install(self, who: Identity, run: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Install a spell: ``{"script", "kv", "trigger", "alias", "scope"}``; returns its id."""
        known = {"script", "kv", "trigger", "alias", "scope"}
        if unknown := set(spec) - known:
            raise LeaseholdError(
                "unknown_field",
                f"spell.install takes no {sorted(unknown)}",
                expected=", ".join(sorted(known)),
            )
        scope, alias = str(spec.get("scope", who.scope)), str(spec.get("alias", ""))
        distro = SpellDistro(
            name=alias or "spell",
            script=str(spec.get("script", "")),
            kv=dict(spec.get("kv") or {}),
            trigger=triggers.parse(spec.get("trigger") or {}),
        )
        id = await self.node.install_spell(who.author, scope, alias, distro)
        return {"spell_id": id}

    async def spell_update(
        self, who: Identity, run: str, name: str, spec: dict[str, Any]
    ) -> dict[str, Any]:
        """Update a spell in place: script, configuration and trigger; its state stays."""
        scope = str(spec.get("scope", who.scope))
        instance = self._administered(who, name, scope)
        distro = SpellDistro(
            name=instance.name,
            script=str(spec.get("script", "")),
            kv=dict(spec.get("kv") or {}),
            trigger=triggers.parse(spec.get("trigger") or {}),
        )
        changed = await self.node.spells.update(instance.id, distro)
        code = blueprint.spell_code(distro)
        if instance.code != code:
            row = msgspec.structs.replace(instance, code=code, blueprint=code)
            await self.node.journal.commit(Put(row))
        return {"changed": changed}

    async def spell_remove(
        self, who: Identity, run: str, name: str, scope: str = ""
    ) -> dict[str, Any]:
        instance = self.node.instances.get(name, scope or who.scope, what="spell")
        await self.node.remove_instance(who.author, instance, spell=True)
        return {}

    async def spell_list(self, who: Identity, run: str, scope: str = "") -> dict[str, Any]:
        wanted = scope or who.scope
        return {
            "spells": [
                {"id": i.id, "alias": i.name, "code": i.code}
                for i in self.node.journal.instances.values()
                if i.is_spell and i.scope == wanted and i.state == "live"
            ]
        }

    async def spell_update_trigger_config(
        self, who: Identity, run: str, name: str, trigger: dict[str, Any], scope: str = ""
    ) -> dict[str, Any]:
        instance = self._administered(who, name, scope or who.scope)
        await self.node.spells.set_trigger(instance.id, triggers.parse(trigger))
        return {}

    def _administered(self, who: Identity, name: str, scope: str) -> Instance:
        instance = self.node.instances.get(name, scope, what="spell")
        if not instance.is_spell:
            raise LeaseholdError("not_a_spell", "the service isn't a spell", kind=Kind.CONFLICT)
        if who.id != instance.id and not self.node.instances.may_administer(
            who.author, instance.scope
        ):
            raise LeaseholdError(
                "not_allowed", f"{who.alias} may not change {name}", kind=Kind.FORBIDDEN
            )
        return instance

    # -- worker --------------------------------------------------------------------------------

    async def worker_create(self, who: Identity, run: str, lease: str) -> dict[str, Any]:
        """The scope of ``lease``, made when there is none yet."""
        self._host_only(who)
        scope = f"worker:{lease}"
        if scope not in self.node.journal.scopes:
            if len(self.node.journal.scopes) >= MAX_WORKERS:
                raise LeaseholdError("too_many_workers", f"{MAX_WORKERS} workers at most")
            row = Scope(scope, lease, who.author, created_at=self.node.clock.now())
            await self.node.journal.commit(Put(row))
        return {"worker": scope}

    async def worker_list(self, who: Identity, run: str) -> dict[str, Any]:
        return {
            "workers": [
                {"worker": row.id, "lease": row.lease, "active": row.active}
                for row in self.node.journal.scopes.values()
            ]
        }

    async def worker_remove(self, who: Identity, run: str, scope: str) -> dict[str, Any]:
        """Remove a worker with its spells and services. One that is not there is fine."""
        self._host_only(who)
        for instance in list(self.node.journal.instances.values()):
            if instance.scope == scope and scope != ROOT_SCOPE:
                await self.node.deployer.remove(instance)
        if scope in self.node.journal.scopes:
            await self.node.journal.commit(Drop("scope", scope))
        return {}

    async def worker_activate(self, who: Identity, run: str, scope: str) -> dict[str, Any]:
        """Let the spells of a worker fire again, from where they stopped."""
        return await self._set_active(who, scope, active=True)

    async def worker_deactivate(self, who: Identity, run: str, scope: str) -> dict[str, Any]:
        """Silence the spells of a worker; what they keep stays."""
        return await self._set_active(who, scope, active=False)

    async def _set_active(self, who: Identity, scope: str, *, active: bool) -> dict[str, Any]:
        self._host_only(who)
        row = self.node.journal.scopes.get(scope)
        if row is None:
            raise not_found("worker", scope)
        if row.active != active:
            await self.node.journal.commit(Put(msgspec.structs.replace(row, active=active)))
            for instance in list(self.node.journal.instances.values()):
                if instance.scope != scope or not instance.is_spell:
                    continue
                if active:
                    await self.node.spells.subscribe(instance.id)
                else:
                    self.node.spells.unsubscribe(instance.id)
        return {"active": active}

    def _host_only(self, who: Identity) -> None:
        if not self.node.principals.is_management(who.author):
            raise LeaseholdError(
                "not_allowed", "only the host manages workers", kind=Kind.FORBIDDEN
            )

    # -- node and log --------------------------------------------------------------------------

    async def node_info(self, who: Identity, run: str) -> dict[str, Any]:
        return {
            "peer_id": self.node.principals.host,
            "time": self.node.clock.now(),
            "packages": sorted(self.node.journal.packages),
        }

    async def node_peers(self, who: Identity, run: str) -> dict[str, Any]:
        """Other nodes to exchange records with; empty where there are none."""
        if self.node.neighbours is None:
            return {"peers": []}
        return {"peers": await self.node.neighbours.peers()}

    async def node_call_peer(
        self, who: Identity, run: str, peer: str, service: str, function: str, args: list[Any]
    ) -> dict[str, Any]:
        """Call a service of another node; only for spells of the host."""
        self._host_only(who)
        if self.node.neighbours is None:
            raise LeaseholdError(
                "no_neighbours", "this node has no neighbours", kind=Kind.UNAVAILABLE
            )
        return {"reply": await self.node.neighbours.call(peer, service, function, args)}

    async def log_publish(
        self, who: Identity, run: str, topic: str, data: dict[str, Any]
    ) -> dict[str, Any]:
        """Append a finding to the log, once a run and topic."""
        if len(msgspec.json.encode(data)) > MAX_PUBLISHED:
            raise LeaseholdError("finding_too_large", f"at most {MAX_PUBLISHED} bytes")
        await self.node.publish(
            "spell",
            f"{who.scope}/{who.alias}",
            SpellPublished(spell=who.alias, run=run, topic=str(topic), data=data),
            key=f"{run}/{topic}",
        )
        return {}


async def install_spell(node: Node, who: str, scope: str, alias: str, distro: SpellDistro) -> str:
    """Install a spell that belongs to no package; removed again when its alias is refused."""
    if scope != ROOT_SCOPE and scope not in node.journal.scopes:
        raise not_found("worker", scope)
    if not node.instances.may_administer(who, scope):
        raise LeaseholdError(
            "not_allowed", f"{who} may not install spells in {scope}", kind=Kind.FORBIDDEN
        )
    now = node.clock.now()
    code = blueprint.spell_code(distro)
    owner = node.principals.host if scope == ROOT_SCOPE else scope
    row = Instance(
        ids.new(now).lower(), "spell", alias or "spell", "", "", code, code, owner, scope,
        created_at=now,
    )  # fmt: skip
    # Refused before anything exists: a bad alias or trigger leaves nothing behind.
    if wrong := triggers.validate(distro.trigger, now):
        raise LeaseholdError.of(wrong)
    if alias:
        if alias == WORKER_SPELL and not node.principals.is_management(who):
            raise LeaseholdError(
                "not_allowed", "only the host sets a worker's spell", kind=Kind.FORBIDDEN
            )
        from leasehold.node.distro import NAME, RESERVED

        if alias in RESERVED or not NAME.match(alias) or alias in node.journal.instances:
            raise LeaseholdError("bad_alias", f"{alias!r} cannot be an alias", got=alias)
    await node.journal.commit(Put(row))
    await node.spells.install(row.id, distro)
    changes: list[Put | PutAlias] = [Put(msgspec.structs.replace(row, state="live"))]
    if alias:
        changes.append(PutAlias(scope, alias, row.id))
    await node.journal.commit(*changes)
    scope_row = node.journal.scopes.get(scope)
    if scope_row is None or scope_row.active:
        await node.spells.subscribe(row.id)
    return row.id
