"""From a checked SDL to the groups for the market and the manifest for the provider.

Services are taken by name, their placements by name, and each placement is a group. In version
2.0 every service has a resource unit of its own; from 2.1 on the services of one placement that
use the same compute profile share one.
"""

from __future__ import annotations

from collections.abc import Iterator

from leasehold.model import manifest as m
from leasehold.model import resources as r
from leasehold.model.sdl.spec import Compute, Deployed, ExposeSpec, ServiceSpec, Spec, To


def groups(spec: Spec) -> list[r.GroupSpec]:
    """What is put on the market, sorted by placement."""
    return [
        r.GroupSpec(name, _requirements(spec, name), units)
        for name, units in sorted(_units(spec).items())
    ]


def manifest(spec: Spec) -> m.Manifest:
    """What the provider is sent, sorted by placement and service."""
    numbers = endpoint_numbers(spec)
    ids: dict[tuple[str, str], int] = {}
    found: dict[str, list[m.ManifestService]] = {}
    for service, placement, deployed, compute in placed(spec):
        services = found.setdefault(placement, [])
        key = (placement, _unit_key(spec, service, deployed))
        id = ids.setdefault(key, len([k for k in ids if k[0] == placement]) + 1)
        services.append(_service(spec, service, deployed, compute, id, numbers))
    return [m.ManifestGroup(name, services) for name, services in sorted(found.items())]


def placed(spec: Spec) -> Iterator[tuple[ServiceSpec, str, Deployed, Compute]]:
    """Every service on every placement, in the order that numbers the resource units."""
    for name in sorted(spec.deployment):
        for placement in sorted(spec.deployment[name]):
            deployed = spec.deployment[name][placement]
            yield spec.services[name], placement, deployed, spec.computes[deployed.profile]


def endpoint_numbers(spec: Spec) -> dict[str, int]:
    """The number of each leased address.

    Everybody counts the address of every target that is not plainly global, so that a
    service-to-service link adds an empty name, and the last of several equal names wins. Kept,
    because the numbers are hashed.
    """
    names = [
        to.ip
        for name in sorted(spec.deployment)
        for expose in spec.services[name].exposes
        for to in expose.to
        if to.ip or not to.global_
    ]
    return {name: number for number, name in enumerate(sorted(names), 1)}


def _unit_key(spec: Spec, service: ServiceSpec, deployed: Deployed) -> str:
    return deployed.profile if spec.shared_units else f"\0{service.name}"


def _units(spec: Spec) -> dict[str, list[r.ResourceUnit]]:
    numbers = endpoint_numbers(spec)
    found: dict[str, dict[str, r.ResourceUnit]] = {}
    for service, placement, deployed, compute in placed(spec):
        units = found.setdefault(placement, {})
        key = _unit_key(spec, service, deployed)
        own = _endpoints(service, numbers)
        shared = units.get(key)
        if shared is None:
            denom, amount = spec.placements[placement].pricing[deployed.profile]
            units[key] = r.ResourceUnit(
                _resources(compute, len(units) + 1, own), deployed.count, r.Price(denom, amount)
            )
        else:
            given = shared.resource
            units[key] = r.ResourceUnit(
                _resources(compute, given.id, by_number([*(given.endpoints or ()), *own])),
                shared.count + deployed.count,
                shared.price,
            )
    return {placement: list(units.values()) for placement, units in found.items()}


def by_number(endpoints: list[r.Endpoint]) -> list[r.Endpoint]:
    return sorted(endpoints, key=lambda endpoint: endpoint.sequence_number)


def _requirements(spec: Spec, placement: str) -> r.Requirements:
    place = spec.placements[placement]
    attributes = dict(place.attributes)
    for service, where, _, _ in placed(spec):
        if where == placement and service.params and service.params.tee:
            attributes["tee/type"] = service.params.tee
    return r.Requirements(
        r.SignedBy(place.all_of, place.any_of),
        sorted(r.Attribute(key, value) for key, value in attributes.items()) or None,
    )


def _resources(compute: Compute, id: int, endpoints: list[r.Endpoint]) -> r.Resources:
    return r.Resources(
        id,
        r.CPU(r.Val.of(compute.cpu), compute.cpu_attributes),
        r.Memory(r.Val.of(compute.memory), compute.memory_attributes),
        compute.volumes or None,
        r.GPU(r.Val.of(compute.gpu), compute.gpu_attributes),
        endpoints,
    )


def _endpoints(service: ServiceSpec, numbers: dict[str, int]) -> list[r.Endpoint]:
    out = []
    for expose in service.exposes:
        for to in expose.to:
            if not to.global_:
                continue
            out.append(r.Endpoint(r.HTTP if expose.ingress else r.PORT))
            if to.ip:
                out.append(r.Endpoint(r.LEASED_IP, numbers[to.ip]))
    return by_number(out)


def _service(
    spec: Spec,
    service: ServiceSpec,
    deployed: Deployed,
    compute: Compute,
    id: int,
    numbers: dict[str, int],
) -> m.ManifestService:
    exposes = [
        _expose(expose, to, numbers)
        for expose in service.exposes
        for to in (expose.to or [To(expose.at)])
    ]
    exposes.sort(key=lambda e: (e.service, e.port, e.proto, not e.global_))
    return m.ManifestService(
        service.name,
        service.image,
        service.command,
        service.args,
        service.env,
        _resources(compute, id, _endpoints(service, numbers)),
        deployed.count,
        exposes or None,
        _params(service),
        service.credentials,
    )


def _expose(expose: ExposeSpec, to: To, numbers: dict[str, int]) -> m.Expose:
    return m.Expose(
        port=expose.port,
        external_port=expose.as_,
        proto=expose.proto,
        service=to.service,
        global_=to.global_,
        hosts=expose.accept or None,
        http_options=expose.http,
        ip=to.ip,
        endpoint_sequence_number=numbers[to.ip] if to.ip else 0,
    )


def _params(service: ServiceSpec) -> m.ServiceParams | None:
    params = service.params
    if params is None:
        return None
    return m.ServiceParams(
        [m.StorageParams(mount.name, mount.mount, mount.read_only) for mount in params.mounts]
        or None,
        None,
        m.Permissions(params.read) if params.read is not None else None,
        m.Tee(params.tee, True) if params.tee else None,
    )
