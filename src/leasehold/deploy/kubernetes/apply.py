"""Making a lease's objects be as its manifest says, and nothing more.

Objects are applied by the server, which merges: what others own stays, what is ours and was changed
is taken back. How many times a controller's spec has changed (its *generation*) is noted on the
controller itself, so that a change by somebody else shows, also after a restart of the provider;
a provider that starts again therefore applies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.deploy.kubernetes.api import Api, Object
from leasehold.deploy.kubernetes.cache import Cluster, notes
from leasehold.deploy.kubernetes.render import PREFIX, key

CONTROLLERS = ("Deployment", "StatefulSet")

PRUNED = ("Ingress", "Service", "Deployment", "StatefulSet", "NetworkPolicy")
"""Kinds looked through for what no version asks for any more, ways in first."""

NOTES = "leasehold-notes"
"""Field manager of what is only noted: applying an object leaves it alone."""

GENERATION = f"{PREFIX}generation"
MANIFEST = f"{PREFIX}manifest"

log = get_logger(__name__)


async def apply(api: Api, objects: Iterable[Object]) -> dict[tuple[str, str], Object]:
    """Apply them in order; what the server made of each."""
    made = {}
    for found in objects:
        try:
            made[key(found)] = await api.apply(found)
        except LeaseholdError as error:
            if found["kind"] != "StatefulSet" or error.kind is not Kind.INVALID:
                raise _of(error, found) from error
            # Claims cannot be changed: the set is made anew and takes its pods and claims over.
            meta = found["metadata"]
            log.info("statefulset.remade", namespace=meta["namespace"], name=meta["name"])
            await api.delete("StatefulSet", meta["name"], meta["namespace"], orphan=True)
            made[key(found)] = await api.apply(found)
    for item in made.values():
        if item["kind"] in CONTROLLERS:
            await _note(api, item)
    return made


async def _note(api: Api, item: Object) -> None:
    generation = str(item["metadata"]["generation"])
    if notes(item).get(GENERATION) == generation:
        return
    meta = item["metadata"]
    note: dict[str, Any] = {
        "apiVersion": item["apiVersion"],
        "kind": item["kind"],
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "annotations": {GENERATION: generation},
        },
    }
    await api.apply(note, manager=NOTES)


def drifted(cluster: Cluster, objects: Iterable[Object]) -> str:
    """What of ``objects`` is not on the cluster as it was applied; empty when all is."""
    for found in objects:
        kind, name = key(found)
        if kind == "Secret":
            continue  # Not watched: the provider may not read secrets.
        place = found["metadata"].get("namespace", "")
        item = cluster.get(kind, place, name)
        if item is None:
            return f"{kind} {name} is gone"
        if notes(item).get(MANIFEST) != notes(found)[MANIFEST]:
            return f"{kind} {name} is of another manifest"
        if kind in CONTROLLERS and notes(item).get(GENERATION) != str(
            item["metadata"]["generation"]
        ):
            return f"{kind} {name} was changed"
    return ""


def leftovers(cluster: Cluster, namespace: str, wanted: Iterable[Object]) -> list[tuple[str, str]]:
    """What of ours is in the namespace and not wanted any more."""
    keep = {key(found) for found in wanted}
    return [
        (kind, item["metadata"]["name"])
        for kind in PRUNED
        for item in cluster.of(kind, namespace)
        if (kind, item["metadata"]["name"]) not in keep
        and not item["metadata"].get("deletionTimestamp")
    ]


async def prune(api: Api, namespace: str, unwanted: Iterable[tuple[str, str]]) -> None:
    for kind, name in unwanted:
        await api.delete(kind, name, namespace)


def _of(error: LeaseholdError, found: Object) -> LeaseholdError:
    """``error`` with the object it is about."""
    if error.kind is Kind.UNAVAILABLE:
        return error
    kind, name = key(found)
    return LeaseholdError(
        error.code,
        f"the cluster refuses {kind} {name}: {error.message}",
        kind=error.kind,
        path=error.path or f"services.{name}",
    )
