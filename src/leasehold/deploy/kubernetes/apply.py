"""Making a lease's objects be as its manifest says, and nothing more.

Objects are applied by the server, which merges: what others own stays, what is ours and was changed
is taken back. What the server made of an object's spec is remembered as a fingerprint, for
controllers on the object itself, so that a change by somebody else shows, also after a restart of
the provider; a provider that starts again therefore applies nothing. (An object's generation would
not do: a Deployment's also counts notes that others leave on it.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.deploy.kubernetes.api import Api, Object
from leasehold.deploy.kubernetes.cache import Cluster, labels, notes
from leasehold.deploy.kubernetes.render import PREFIX, key

LAG = 0.1
"""Seconds between looks at what the server does in its own time."""

ORPHAN_SECONDS = 60.0

CONTROLLERS = ("Deployment", "StatefulSet")

PRUNED = ("Ingress", "Service", "Deployment", "StatefulSet", "NetworkPolicy")
"""Kinds looked through for what no version asks for any more, ways in first."""

NOTES = "leasehold-notes"
"""Field manager of what is only noted: applying an object leaves it alone."""

FINGERPRINT = f"{PREFIX}applied"
"""Label, so that noting it is no change the controllers have to look at."""

FINGERPRINT_CHARS = 16

MANIFEST = f"{PREFIX}manifest"

log = get_logger(__name__)


Fingerprints = dict[tuple[str, str, str], str]
"""By namespace, kind and name."""


def fingerprint(item: Object) -> str:
    """Of an object's spec as the server has it."""
    text = msgspec.json.encode(item.get("spec"), order="sorted")
    return hashlib.sha256(text).hexdigest()[:FINGERPRINT_CHARS]


async def apply(
    api: Api, objects: Iterable[Object], fingerprints: Fingerprints, *, repair: bool = False
) -> dict[tuple[str, str], Object]:
    """Apply them in order, and note their fingerprints; what the server made of each.

    ``repair``: they were accepted before, so a service that is refused is so for what others added
    to it (lists are merged), and is made anew.
    """
    made = {}
    for found in objects:
        try:
            item = made[key(found)] = await api.apply(found)
        except LeaseholdError as error:
            if error.kind is not Kind.INVALID:
                raise _of(error, found) from error
            if found["kind"] == "StatefulSet":
                # Claims cannot be changed: a new set takes over the pods and claims.
                await _orphan(api, found)
            elif found["kind"] == "Service" and repair:
                await api.delete("Service", *key(found)[1:], found["metadata"]["namespace"])
            else:
                raise _of(error, found) from error
            item = made[key(found)] = await api.apply(found)
        if item["kind"] in CONTROLLERS:
            await _note(api, item)
        fingerprints[_where(item)] = fingerprint(item)
    return made


async def _orphan(api: Api, found: Object) -> None:
    """Remove a set and leave its pods; the server lets go of them one by one."""
    name, place = found["metadata"]["name"], found["metadata"]["namespace"]
    log.info("statefulset.remade", namespace=place, name=name)
    await api.delete("StatefulSet", name, place, orphan=True)
    for _ in range(int(ORPHAN_SECONDS / LAG)):
        if await api.get("StatefulSet", name, place) is None:
            return
        await api.clock.sleep(LAG)
    raise unavailable("statefulset_lingers", f"StatefulSet {name} is still being removed")


def _where(item: Object) -> tuple[str, str, str]:
    return item["metadata"].get("namespace", ""), item["kind"], item["metadata"]["name"]


async def _note(api: Api, item: Object) -> None:
    found = fingerprint(item)
    if labels(item).get(FINGERPRINT) == found:
        return
    meta = item["metadata"]
    note: Object = {
        "apiVersion": item["apiVersion"],
        "kind": item["kind"],
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": {FINGERPRINT: found},
        },
    }
    await api.apply(note, manager=NOTES)


def drifted(cluster: Cluster, objects: Iterable[Object], fingerprints: Fingerprints) -> str:
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
        if kind == "Namespace":
            continue
        now = fingerprint(item)
        # Of what was applied before this provider started, only controllers say what it was.
        known = labels(item).get(FINGERPRINT) or fingerprints.setdefault((place, kind, name), now)
        if now != known:
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
    if "because it is being terminated" in error.message:
        return unavailable("namespace_lingers", error.message)
    kind, name = key(found)
    return LeaseholdError(
        error.code,
        f"the cluster refuses {kind} {name}: {error.message}",
        kind=error.kind,
        path=error.path or f"services.{name}",
    )
