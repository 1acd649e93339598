"""What a service is given: CPU, memory, storage, GPU and endpoints, and the group that asks for it.

The JSON form is part of the version hash, so every struct says exactly which keys are always
written and which are left out when empty. A key that is always written has a *factory* as its
default (msgspec then never treats the value as a default); one that may be left out has a plain
default, and ``__post_init__`` turns an empty list into it.

Amounts are decimal strings (``val``): CPU in thousandths of a core, memory and storage in bytes,
GPU in whole units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr

from leasehold.core.errors import Violation

U32_MAX = 2**32 - 1
U32 = Annotated[int, Meta(ge=0, le=U32_MAX)]
Amount = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,19})\Z", max_length=20)]
"""A decimal string without sign, leading zeros or exponent."""

HTTP, PORT, LEASED_IP = 0, 1, 2
"""Endpoint kinds: shared HTTP ingress, a port of the host's choosing, an address of its own."""

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

UNIT_LIMITS = {
    "cpu": (10, 384_000),
    "gpu": (0, 24),
    "memory": (1 * MiB, 2 * TiB),
    "storage": (5 * MiB, 32 * TiB),
}
"""Least and most of each resource in one unit. Source: the market's deployment rules."""

MAX_PRICE = 10_000_000
"""Most base units of the denomination one resource unit may cost a block."""

GROUP_FACTOR = 50
"""A group may hold this many times the maximum of a unit, over all units and replicas."""

ATTRIBUTE_KEY = re.compile(r"^[a-zA-Z][\w/.\-]{1,126}[\w*]?\Z", re.ASCII)


class Val(Struct, frozen=True):
    """An amount as the chain writes it: ``{"val": "1000"}``."""

    val: Amount

    def __int__(self) -> int:
        return int(self.val)

    @classmethod
    def of(cls, value: int) -> Val:
        return cls(str(value))


class Attribute(Struct, frozen=True, order=True):
    key: str = field(default_factory=str)
    value: str = field(default_factory=str)


class _Attributed(Struct, frozen=True, omit_defaults=True):
    """A resource with attributes, left out of the JSON when there are none."""

    def __post_init__(self) -> None:
        if getattr(self, "attributes", None) == []:
            force_setattr(self, "attributes", None)

    def attribute(self, key: str) -> str | None:
        """The value of the attribute ``key``, None when it is not there."""
        for attribute in getattr(self, "attributes", None) or ():
            if attribute.key == key:
                return str(attribute.value)
        return None


class CPU(_Attributed, frozen=True, omit_defaults=True):
    units: Val
    attributes: list[Attribute] | None = None


class Memory(_Attributed, frozen=True, omit_defaults=True):
    size: Val
    attributes: list[Attribute] | None = None


class Storage(_Attributed, frozen=True, omit_defaults=True):
    """A volume. Attributes ``persistent`` ("true") and ``class`` (default, beta1..3, ram)."""

    size: Val
    name: str = field(default_factory=str)
    attributes: list[Attribute] | None = None

    @property
    def persistent(self) -> bool:
        return self.attribute("persistent") == "true"

    @property
    def storage_class(self) -> str:
        """``default`` when none is given."""
        return self.attribute("class") or "default"


class GPU(_Attributed, frozen=True, omit_defaults=True):
    units: Val
    attributes: list[Attribute] | None = None


class Endpoint(Struct, frozen=True, omit_defaults=True):
    """How something is reached from outside: ``kind`` HTTP, PORT or LEASED_IP."""

    kind: Annotated[int, Meta(ge=0, le=2)] = 0
    sequence_number: U32 = field(default_factory=int)


class Resources(Struct, frozen=True, omit_defaults=True):
    """One resource unit. A missing part is None; the shape rules refuse that in a manifest."""

    id: U32 = field(default_factory=int)
    cpu: CPU | None = None
    memory: Memory | None = None
    storage: list[Storage] | None = None
    gpu: GPU | None = None
    endpoints: list[Endpoint] | None = field(default_factory=lambda: None)

    def __post_init__(self) -> None:
        if self.storage == []:
            force_setattr(self, "storage", None)

    @property
    def cpu_milli(self) -> int:
        """Thousandths of a core."""
        return int(self.cpu.units) if self.cpu else 0

    @property
    def memory_bytes(self) -> int:
        return int(self.memory.size) if self.memory else 0

    @property
    def gpu_units(self) -> int:
        return int(self.gpu.units) if self.gpu else 0

    @property
    def volumes(self) -> list[Storage]:
        return self.storage or []

    @property
    def storage_bytes(self) -> int:
        """All volumes together."""
        return sum(int(volume.size) for volume in self.volumes)


class Price(Struct, frozen=True):
    """Base units of ``denom`` a block for one replica; ``amount`` has 18 decimals."""

    denom: str
    amount: str

    @property
    def value(self) -> Decimal:
        return Decimal(self.amount)


class ResourceUnit(Struct, frozen=True):
    """``count`` replicas of a resource, and the most the tenant pays for each."""

    resource: Resources
    count: U32
    price: Price


class SignedBy(Struct, frozen=True):
    all_of: list[str] | None = field(default_factory=lambda: None)
    any_of: list[str] | None = field(default_factory=lambda: None)


class Requirements(Struct, frozen=True):
    """Attributes a provider must have, and auditors who must have signed them."""

    signed_by: SignedBy = field(default_factory=SignedBy)
    attributes: list[Attribute] | None = field(default_factory=lambda: None)


class GroupSpec(Struct, frozen=True):
    """A group as it is on the market: what is asked for, without what will run in it."""

    name: str
    requirements: Requirements = field(default_factory=Requirements)
    resources: list[ResourceUnit] = field(default_factory=list)

    def total(self) -> dict[str, int]:
        """Milli-CPU, bytes of memory and storage, and GPUs over all replicas."""
        sums = dict.fromkeys(UNIT_LIMITS, 0)
        for unit in self.resources:
            given = unit.resource
            sums["cpu"] += given.cpu_milli * unit.count
            sums["gpu"] += given.gpu_units * unit.count
            sums["memory"] += given.memory_bytes * unit.count
            sums["storage"] += given.storage_bytes * unit.count
        return sums


def check_groups(groups: list[GroupSpec]) -> list[Violation]:
    """Everything the market's limits find wrong with the groups of one deployment."""
    return list(_check_groups(groups))


def _check_groups(groups: list[GroupSpec]) -> Iterator[Violation]:
    if not groups:
        yield Violation("no_groups", "a deployment needs at least one group")
    names: set[str] = set()
    denoms: set[str] = set()
    for at, group in enumerate(groups):
        path = f"groups[{at}]"
        if not group.name:
            yield Violation("group_name_missing", "a group needs a name", f"{path}.name")
        if group.name in names:
            yield Violation(
                "group_name_duplicate",
                f"two groups are called {group.name!r}",
                f"{path}.name",
                got=group.name,
            )
        names.add(group.name)
        yield from _check_attributes(
            group.requirements.attributes, f"{path}.requirements.attributes"
        )
        if not group.resources:
            yield Violation(
                "group_empty", f"group {group.name!r} asks for nothing", f"{path}.resources"
            )
        ids: set[int] = set()
        for position, unit in enumerate(group.resources):
            where = f"{path}.resources[{position}]"
            denoms.add(unit.price.denom)
            if unit.resource.id < 1 or unit.resource.id in ids:
                yield Violation(
                    "resource_id",
                    "resource ids start at 1 and are unique in a group",
                    f"{where}.resource.id",
                    got=str(unit.resource.id),
                )
            ids.add(unit.resource.id)
            yield from _check_unit(unit, where)
        yield from _check_total(group, path)
    if len(denoms) > 1:
        yield Violation(
            "mixed_denoms",
            "all prices of a deployment use one denomination",
            "groups",
            expected="one denom",
            got=", ".join(sorted(denoms)),
        )


def _check_unit(unit: ResourceUnit, path: str) -> Iterator[Violation]:
    given = unit.resource
    if unit.count < 1:
        yield Violation(
            "count", "a resource unit needs at least one replica", f"{path}.count", "≥ 1", "0"
        )
    yield from _within("cpu", given.cpu_milli, f"{path}.resource.cpu.units")
    yield from _within("memory", given.memory_bytes, f"{path}.resource.memory.size")
    yield from _within("gpu", given.gpu_units, f"{path}.resource.gpu.units")
    if not given.volumes:
        yield Violation(
            "storage_missing", "a unit needs at least one volume", f"{path}.resource.storage"
        )
    for at, volume in enumerate(given.volumes):
        yield from _within("storage", int(volume.size), f"{path}.resource.storage[{at}].size")
        yield from _check_attributes(volume.attributes, f"{path}.resource.storage[{at}].attributes")
    if given.gpu and not given.gpu_units and given.gpu.attributes:
        yield Violation(
            "gpu_attributes",
            "no GPU is asked for, so it has no attributes",
            f"{path}.resource.gpu.attributes",
        )
    for part, held in (("cpu", given.cpu), ("memory", given.memory), ("gpu", given.gpu)):
        if held is not None:
            yield from _check_attributes(held.attributes, f"{path}.resource.{part}.attributes")
    if not 0 < unit.price.value <= MAX_PRICE:
        yield Violation(
            "price",
            f"the price of a unit is more than 0 and at most {MAX_PRICE}",
            f"{path}.price.amount",
            f"0 < amount ≤ {MAX_PRICE}",
            unit.price.amount,
        )


def _within(name: str, value: int, path: str) -> Iterator[Violation]:
    least, most = UNIT_LIMITS[name]
    if not least <= value <= most:
        yield Violation(
            f"{name}_out_of_range",
            f"{name} of a unit is between {_shown(name, least)} and {_shown(name, most)}",
            path,
            f"{_shown(name, least)}..{_shown(name, most)}",
            _shown(name, value),
        )


def _shown(name: str, value: int) -> str:
    """As it is written in an SDL: ``100m``, ``512Mi``."""
    if name == "cpu":
        return f"{value}m" if value % 1000 else str(value // 1000)
    if name != "gpu":
        for suffix, size in (("Ti", TiB), ("Gi", GiB), ("Mi", MiB), ("Ki", KiB)):
            if value and not value % size:
                return f"{value // size}{suffix}"
    return str(value)


def _check_attributes(attributes: list[Attribute] | None, path: str) -> Iterator[Violation]:
    seen: set[str] = set()
    for at, attribute in enumerate(attributes or ()):
        if not ATTRIBUTE_KEY.match(attribute.key):
            yield Violation(
                "attribute_key",
                f"{attribute.key[:130]!r} is no attribute key: 2 to 128 letters, digits, _ / . -, "
                "the first a letter",
                f"{path}[{at}].key",
                got=attribute.key,
            )
        if attribute.key in seen:
            yield Violation(
                "attribute_duplicate",
                f"attribute {attribute.key!r} is given twice",
                f"{path}[{at}].key",
                got=attribute.key,
            )
        seen.add(attribute.key)


def _check_total(group: GroupSpec, path: str) -> Iterator[Violation]:
    for name, value in group.total().items():
        most = UNIT_LIMITS[name][1] * GROUP_FACTOR
        if value > most:
            yield Violation(
                f"{name}_total_out_of_range",
                f"{name} of group {group.name!r} adds up to more than the market allows",
                path,
                f"≤ {_shown(name, most)}",
                _shown(name, value),
            )


groups_decoder = msgspec.json.Decoder(list[GroupSpec])
