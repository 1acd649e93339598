"""Is a manifest exactly what was leased?

The groups on the market say how many replicas of which resources and how many endpoints were paid
for. The manifest must use all of them and nothing else: same groups, and per service the same
unit, sizes, attributes and volumes; each replica and each endpoint is counted down, and nothing
may be left or go below zero. Image, command, environment, hosts and HTTP options are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from leasehold.core.errors import Violation
from leasehold.model.manifest import Manifest, ManifestGroup, ManifestService
from leasehold.model.resources import HTTP, LEASED_IP, PORT, GroupSpec, Resources

ENDPOINTS = {HTTP: "HTTP endpoints", PORT: "ports", LEASED_IP: "leased addresses"}


@dataclass(slots=True)
class _Unit:
    """What is left of a leased resource unit."""

    given: Resources
    replicas: int
    endpoints: dict[int, int]


def violations(manifest: Manifest, leased: Sequence[GroupSpec]) -> list[Violation]:
    """Every difference between ``manifest`` and the groups of the whole deployment."""
    return list(_check(manifest, leased))


def _check(manifest: Manifest, leased: Sequence[GroupSpec]) -> Iterator[Violation]:
    by_name = {group.name: group for group in leased}
    names = [group.name for group in manifest]
    for at, group in enumerate(manifest):
        spec = by_name.get(group.name)
        if spec is None:
            yield Violation(
                "group_unknown",
                f"group {group.name!r} is not part of the deployment",
                f"[{at}].name",
                ", ".join(sorted(by_name)),
                group.name,
            )
        elif group.name not in names[:at]:
            yield from _check_group(group, spec, f"[{at}]")
    for name in by_name:
        if name not in names:
            yield Violation(
                "group_missing",
                f"group {name!r} of the deployment is not in the manifest",
                "",
                name,
                ", ".join(names),
            )


def _check_group(group: ManifestGroup, spec: GroupSpec, path: str) -> Iterator[Violation]:
    units: dict[int, _Unit] = {}
    for leased in spec.resources:
        counts = dict.fromkeys(ENDPOINTS, 0)
        for endpoint in leased.resource.endpoints or ():
            counts[endpoint.kind] += 1
        units[leased.resource.id] = _Unit(leased.resource, leased.count, counts)
    for at, service in enumerate(group.all_services):
        where = f"{path}.services[{at}]"
        unit = units.get(service.resources.id)
        if unit is None:
            yield Violation(
                "resource_unknown",
                f"service {service.name!r} uses a resource unit that was not leased",
                f"{where}.resources.id",
                ", ".join(str(id) for id in sorted(units)),
                str(service.resources.id),
            )
            continue
        yield from _check_service(service, unit, where)
    yield from _check_left(units, group, path)


def _check_service(service: ManifestService, unit: _Unit, path: str) -> Iterator[Violation]:
    if service.count > unit.replicas:
        yield Violation(
            "count",
            f"service {service.name!r} has more replicas than were leased",
            f"{path}.count",
            f"≤ {unit.replicas}",
            str(service.count),
        )
    unit.replicas = max(0, unit.replicas - service.count)
    for part in ("cpu", "gpu", "memory", "storage"):
        wanted, given = getattr(unit.given, part), getattr(service.resources, part)
        # None and an empty list are one and the same amount: nothing.
        if (wanted or None) != (given or None):
            yield Violation(
                f"{part}_differs",
                f"{part} of service {service.name!r} is not what was leased",
                f"{path}.resources.{part}",
                _text(wanted),
                _text(given),
            )
    for at, expose in enumerate(service.exposes):
        if not expose.global_:
            continue
        used = [HTTP if expose.ingress else PORT]
        if expose.ip:
            used.append(LEASED_IP)
        for kind in used:
            if unit.endpoints[kind] == 0:
                yield Violation(
                    "endpoint_over_utilized",
                    f"service {service.name!r} uses more {ENDPOINTS[kind]} than were leased",
                    f"{path}.expose[{at}]",
                    f"no more {ENDPOINTS[kind]} of unit {service.resources.id}",
                    f"port {expose.port}/{expose.proto}",
                )
            else:
                unit.endpoints[kind] -= 1


def _check_left(units: dict[int, _Unit], group: ManifestGroup, path: str) -> Iterator[Violation]:
    for id, unit in units.items():
        for kind, left in unit.endpoints.items():
            if left:
                yield Violation(
                    "endpoint_under_utilized",
                    f"group {group.name!r} leaves {left} leased {ENDPOINTS[kind]} unused",
                    f"{path}.services",
                    f"all {ENDPOINTS[kind]} of unit {id}",
                    f"{left} left",
                )
        if unit.replicas:
            yield Violation(
                "count_under_utilized",
                f"group {group.name!r} leaves {unit.replicas} leased replicas unused",
                f"{path}.services",
                f"all replicas of unit {id}",
                f"{unit.replicas} left",
            )


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()[:200]
