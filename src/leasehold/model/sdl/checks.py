"""What one part of an SDL says about another: every name must lead somewhere."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Collection
from dataclasses import replace

from leasehold.model.sdl.nodes import At
from leasehold.model.sdl.spec import Compute, Deployed, ServiceSpec, Spec


def check(spec: Spec) -> None:
    """Note every reference that does not resolve and every rule between parts that is broken."""
    for name, at in spec.deployed_at.items():
        service = spec.services.get(name)
        if service is None:
            _unresolved(at.name, "service", name, spec.services)
        for placement, deployed in spec.deployment.get(name, {}).items():
            _check_deployed(spec, service, placement, deployed)
    _check_exposes(spec)
    _check_hosts(spec)
    _check_tee(spec)


def resolved(spec: Spec) -> Spec:
    """As much of ``spec`` as can be built: without what leads nowhere."""
    deployment = {
        name: {
            placement: deployed
            for placement, deployed in places.items()
            if deployed.profile in spec.computes
            and placement in spec.placements
            and deployed.profile in spec.placements[placement].pricing
        }
        for name, places in spec.deployment.items()
        if name in spec.services
    }
    return replace(spec, deployment=deployment)


def _unresolved(at: At, what: str, name: str, known: Collection[str], hint: str = "") -> None:
    if not known and what != "endpoint" and at.document.violations:
        return  # none could be read
    near = difflib.get_close_matches(name, known, n=1)
    hint = hint or (f"did you mean {near[0]!r}?" if near else "")
    at.fail(
        "unresolved",
        f"there is no {what} {name!r}" + (f"; {hint}" if hint else ""),
        ", ".join(sorted(known)[:20]) or "none is declared",
        name,
    )


def _check_deployed(
    spec: Spec, service: ServiceSpec | None, placement: str, deployed: Deployed
) -> None:
    compute = spec.computes.get(deployed.profile)
    if compute is None and deployed.profile:
        _unresolved(deployed.profile_at, "compute profile", deployed.profile, spec.computes)
    place = spec.placements.get(placement)
    if place is None:
        hint = f"a service of its own stands beside it: deployment.{placement}"
        _unresolved(
            deployed.at.name,
            "placement",
            placement,
            spec.placements,
            hint if placement in spec.services else "",
        )
    elif compute and place.pricing and deployed.profile not in place.pricing:
        place.at.fail(
            "pricing_missing",
            f"placement {placement!r} has no price for profile {deployed.profile!r}",
            f"pricing.{deployed.profile}",
            ", ".join(sorted(place.pricing)),
        )
    if service is not None and compute is not None:
        _check_mounts(spec, service, deployed.profile, compute)


def _check_mounts(spec: Spec, service: ServiceSpec, profile: str, compute: Compute) -> None:
    mounts = service.params.mounts if service.params else []
    places: dict[str, str] = {}
    classes = {volume.name: volume for volume in compute.volumes}
    mounted = {mount.name for mount in mounts}
    for mount in mounts:
        volume = classes.get(mount.name)
        if volume is None:
            _unresolved(mount.at, f"volume of profile {profile!r} called", mount.name, classes)
            continue
        ram = volume.storage_class == "ram"
        if not mount.mount:
            if volume.persistent or ram:
                mount.at.fail("mount", f"volume {mount.name!r} needs a mount", "mount: /path", "")
            continue
        if not posixpath.isabs(mount.mount):
            mount.at.fail("mount", f"{mount.mount!r} is not absolute", "/path", mount.mount)
        clean = posixpath.normpath(mount.mount)
        if clean in places:
            mount.at.fail(
                "mount_duplicate",
                f"volumes {places[clean]!r} and {mount.name!r} are mounted at one place",
                "different mounts",
                mount.mount,
            )
        places[clean] = mount.name
        if ram and mount.read_only and spec.shared_units:
            mount.at.fail("mount_ram", "memory mounted read-only holds nothing", "false", "true")
    for volume in compute.volumes:
        if volume.persistent and volume.name not in mounted:
            service.at.fail(
                "mount_missing",
                f"service {service.name!r} does not mount the persistent volume {volume.name!r}",
                f"params.storage.{volume.name}.mount",
                "nothing",
            )


def _check_exposes(spec: Spec) -> None:
    used: set[str] = set()
    taken: dict[tuple[str, int, str], str] = {}
    for service in spec.services.values():
        for expose in service.exposes:
            for to in expose.to:
                if to.service and to.service not in spec.services:
                    _unresolved(to.at, "service", to.service, spec.services)
                if not to.ip:
                    continue
                if not to.global_:
                    to.at.fail(
                        "ip_not_global",
                        "an address of its own is only for global",
                        "global: true",
                        "",
                    )
                if to.ip not in spec.endpoints:
                    _unresolved(to.at, "endpoint", to.ip, spec.endpoints)
                key = (to.ip, expose.as_ or expose.port, expose.proto)
                if key in taken:
                    to.at.fail(
                        "ip_port_taken",
                        f"port {key[1]}/{key[2]} of endpoint {to.ip!r} is used twice",
                        "another port",
                        f"taken by {taken[key]}",
                    )
                taken[key] = service.name
                used.add(to.ip)
    for name, at in spec.endpoints.items():
        if name not in used:
            at.fail("endpoint_unused", f"endpoint {name!r} is not used by any service", "a use", "")


def _check_hosts(spec: Spec) -> None:
    """A host leads to one place: one target of one service."""
    lines: dict[str, int] = {}
    for name, places in spec.deployment.items():
        for expose in spec.services[name].exposes if name in spec.services else ():
            targets = len(places) * max(len(expose.to), 1)
            for host, at in zip(expose.accept, expose.accept_at, strict=True):
                if host in lines:
                    message = f"{host!r} is asked for twice, first in line {lines[host]}"
                    at.fail("host_duplicate", message, "once", host)
                elif targets > 1:
                    message = f"{host!r} is asked for {targets} times, for each 'to' and placement"
                    at.fail("host_duplicate", message, "an expose with one 'to'", host)
                lines.setdefault(host, at.node.start_mark.line + 1)


def _check_tee(spec: Spec) -> None:
    types: dict[str, str] = {}
    for name, places in spec.deployment.items():
        service = spec.services.get(name)
        tee = service.params.tee if service and service.params else ""
        if not service or not service.params or not tee:
            continue
        for placement, deployed in places.items():
            compute = spec.computes.get(deployed.profile)
            if tee == "cpu-gpu" and compute is not None and not compute.gpu:
                service.params.at.fail("tee_gpu", "tee cpu-gpu needs a GPU", "gpu units ≥ 1", "0")
            if types.setdefault(placement, tee) != tee:
                service.params.at.fail(
                    "tee_mixed",
                    f"placement {placement!r} has services of two tee types",
                    types[placement],
                    tee,
                )
