"""A node as people and their tools see it: versions, packages, services and spells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import leasehold
from leasehold.node import bundled
from leasehold.node.journal import Instance

if TYPE_CHECKING:
    from leasehold.node.service import Node


def versions(node: Node) -> dict[str, str]:
    """Versions of the node, the spell engine, and every package: installed, else shipped."""
    out = {"node": leasehold.__version__, "spell": bundled.SPELL_ENGINE_VERSION}
    for name, package in bundled.all_packages(node.system_services).items():
        out[name.replace("-", "_")] = package.version
    if hasattr(node, "journal"):
        for name, row in node.journal.packages.items():
            out[name.replace("-", "_")] = row.version
    return out


def packages(node: Node) -> list[dict[str, Any]]:
    """Every package that is installed or was tried, with its last result."""
    shipped = bundled.all_packages(node.system_services)
    names = {*node.journal.packages, *node.deployer.results}
    out = []
    for name in sorted(names):
        row, result = node.journal.packages.get(name), node.deployer.results.get(name)
        out.append(
            {
                "name": name,
                "installed": row.version if row else None,
                "bundled": shipped[name].version if name in shipped else None,
                "status": (result.status if result else None) or (row and row.status),
                "message": (result.message if result else "") or (row.message if row else ""),
                "warnings": list(row.warnings) if row else [],
                "source": row.source if row else "",
                "deployed_at": row.at if row else None,
            }
        )
    return out


def show(node: Node, instance: Instance) -> dict[str, Any]:
    """One instance with its state."""
    out: dict[str, Any] = {
        "id": instance.id,
        "name": instance.name,
        "aliases": [f"{s}/{a}" for s, a in node.journal.aliases_of(instance.id)],
        "package": instance.package,
        "version": instance.version,
        "blueprint": instance.blueprint,
        "owner": instance.owner,
        "scope": instance.scope,
        "created_at": instance.created_at,
    }
    if instance.is_spell:
        config = node.spells.bus.subscribed(instance.id)
        out["state"] = instance.state if instance.state != "live" else (
            "armed" if config is not None else "idle"
        )  # fmt: skip
    else:
        process = node.supervisor.states.get(instance.id)
        out["kind"] = instance.kind
        out["state"] = node.services.state_of(instance)
        out["pid"] = process.pid if process else None
        out["restarts"] = process.restarts if process else None
    return out
