"""Compute and placement profiles of an SDL: how much, where, and for how much."""

from __future__ import annotations

import re

from leasehold.model.resources import ATTRIBUTE_KEY, U32_MAX, Attribute, Storage, Val
from leasehold.model.sdl import units
from leasehold.model.sdl.nodes import At
from leasehold.model.sdl.spec import Compute, Placement

STORAGE_CLASSES = ("default", "beta1", "beta2", "beta3", "ram")
GPU_INTERFACES = ("pcie", "sxm")
_IN_RESOURCES = dict.fromkeys(("cpu", "memory", "storage", "gpu"), "it belongs under resources")
_IN_ATTRIBUTES = dict.fromkeys(("class", "persistent"), "it belongs under attributes")
ELSEWHERE = {
    **_IN_ATTRIBUTES,
    "mount": "it belongs under the service: params.storage.NAME.mount",
    "type": "write attributes.class",
}
"""What people write under a volume that belongs elsewhere."""

PLACEMENT = ("attributes", "signedBy", "pricing")
DENOM = re.compile(r"^[a-zA-Z][a-zA-Z0-9/:._-]{2,127}\Z")


def read_compute(at: At) -> Compute:
    compute = Compute(at, 0, None, 0, None, [], {}, 0, None)
    outer = at.members(("resources",), _IN_RESOURCES)
    if "resources" not in outer:
        if at.is_null or not at.node.value:
            at.fail("missing", "'resources' is missing", "resources", "nothing")
        return compute
    inner = outer["resources"]
    got = inner.members(("cpu", "memory", "storage", "gpu"))
    for part in ("cpu", "memory", "storage"):
        if part not in got:
            inner.fail("missing", f"{part!r} is missing", part, "nothing")
    compute.parts = got
    if "cpu" in got:
        compute.cpu, compute.cpu_attributes = _read_cpu(got["cpu"])
    if "memory" in got:
        compute.memory, compute.memory_attributes = _read_memory(got["memory"])
    if "storage" in got:
        _read_volumes(got["storage"], compute)
    if "gpu" in got and not got["gpu"].is_null:
        compute.gpu, compute.gpu_attributes = _read_gpu(got["gpu"])
    return compute


def _read_cpu(at: At) -> tuple[int, list[Attribute] | None]:
    got = at.members(("units", "attributes"), hint="write units: 0.5")
    milli = 0
    if "units" not in got:
        at.fail("missing", "'units' is missing", units.CPU_FORM, "nothing")
    else:
        text = got["units"].text() or ""
        value = units.cpu(text)
        if not value:
            got["units"].fail("cpu", f"{text!r} is no amount of CPU", units.CPU_FORM, text)
        milli = value or 0
    return milli, _read_attributes(got.get("attributes"))


def _read_memory(at: At) -> tuple[int, list[Attribute] | None]:
    got = at.members(("size", "attributes"), hint="write size: 1Gi")
    return _read_size(at, got), _read_attributes(got.get("attributes"))


def _read_size(at: At, got: dict[str, At]) -> int:
    if "size" not in got:
        at.fail("missing", "'size' is missing", units.SIZE_FORM, "nothing")
        return 0
    text = got["size"].text() or ""
    value = units.size(text)
    if not value:
        got["size"].fail("size", _no_size(text), units.SIZE_FORM, text)
    return value or 0


def _no_size(text: str) -> str:
    near = units.nearest_size(text)
    return f"{text!r} is no size" + (f"; did you mean {near}?" if near else "")


def _read_attributes(at: At | None) -> list[Attribute] | None:
    if at is None:
        return None
    found = [Attribute(key, place.text() or "") for key, place in at.members().items()]
    return sorted(found) or None


def _read_volumes(at: At, compute: Compute) -> None:
    for item in at.items() if at.is_sequence else [at]:
        got = item.members(("name", "size", "attributes"), ELSEWHERE, "write size: 1Gi")
        name = ((got["name"].text() or "") if "name" in got else "") or "default"
        if name in compute.volume_at:
            item.fail("storage_duplicate", f"two volumes are called {name!r}", "unique names", name)
            continue
        compute.volume_at[name] = item
        size = _read_size(item, got)
        attributes = _read_volume_attributes(got.get("attributes"))
        compute.volumes.append(Storage(Val.of(size), name, attributes))
    if not compute.volumes and not at.said:
        at.fail("missing", "there is no volume", "at least one volume", "none")
    compute.volumes = sort_volumes(compute.volumes)


def _read_volume_attributes(at: At | None) -> list[Attribute] | None:
    if at is None:
        return None
    got = at.members(("persistent", "class"))
    found: dict[str, str] = {}
    persistent = False
    if "persistent" in got:
        persistent = got["persistent"].boolean()
        found["persistent"] = "true" if persistent else "false"
    if "class" in got:
        found["class"] = storage_class = got["class"].text() or ""
        if storage_class not in STORAGE_CLASSES:
            got["class"].fail(
                "storage_class",
                f"unknown storage class {storage_class!r}",
                " | ".join(STORAGE_CLASSES),
                storage_class,
            )
        elif storage_class == "ram" and persistent:
            at.fail("storage_ram", "memory cannot be persistent", "persistent: false", "true")
        elif storage_class != "ram" and not persistent:
            at.fail(
                "storage_persistent",
                f"class {storage_class!r} is persistent storage; say so",
                "persistent: true",
                "false",
            )
    elif persistent:
        found["class"] = "default"
    return [Attribute(key, value) for key, value in sorted(found.items())] or None


def sort_volumes(volumes: list[Storage]) -> list[Storage]:
    """By size, as everybody's hash has it.

    The comparison everyone copied says of two equally large volumes that *either* ephemeral one
    comes first, so an insertion sort turns them round. Kept, because the order is hashed.
    """
    out = list(volumes)
    for start in range(1, len(out)):
        at = start
        while at > 0 and _before(out[at], out[at - 1]):
            out[at], out[at - 1] = out[at - 1], out[at]
            at -= 1
    return out


def _before(left: Storage, right: Storage) -> bool:
    if left.size.val != right.size.val:
        return int(left.size) < int(right.size)
    return not left.persistent


def _read_gpu(at: At) -> tuple[int, list[Attribute] | None]:
    got = at.members(("units", "attributes"), hint="write units: 1 and attributes.vendor.nvidia")
    count = got["units"].integer(0, U32_MAX) if "units" in got else 0
    attributes: list[Attribute] = []
    if "attributes" in got:
        vendors = got["attributes"].members(("vendor",)).get("vendor")
        for vendor, place in vendors.members(hint="write nvidia:").items() if vendors else ():
            attributes.extend(_read_vendor(vendor, place))
    if at.said:
        return count, attributes
    if count and not attributes:
        at.fail("gpu_attributes", "say which GPU: attributes.vendor", "attributes.vendor", "none")
    if not count and attributes:
        at.fail("gpu_units", "attributes of a GPU that is not asked for", "units ≥ 1", "0")
    return count, sorted(attributes) or None


_MODEL = "write - model: NAME"


def _read_vendor(vendor: str, at: At) -> list[Attribute]:
    prefix = f"vendor/{vendor}/model"
    if at.is_null:
        return [Attribute(f"{prefix}/*", "true")]
    out = []
    for item in at.items(_MODEL):
        got = item.members(("model", "ram", "interface"), hint=_MODEL)
        key = f"{prefix}/{(got['model'].text() or '*') if 'model' in got else '*'}"
        if "ram" in got:
            text = got["ram"].text() or ""
            value = units.size(text)
            if not value:
                got["ram"].fail("gpu_ram", _no_size(text), units.SIZE_FORM, text)
            key += f"/ram/{text}"
        if "interface" in got:
            text = (got["interface"].text() or "").lower()
            if text not in GPU_INTERFACES:
                got["interface"].fail(
                    "gpu_interface",
                    f"unknown interface {text!r}",
                    " | ".join(GPU_INTERFACES),
                    text,
                )
            key += f"/interface/{text}"
        if not ATTRIBUTE_KEY.match(key):
            item.fail("attribute_key", f"{key!r} cannot be asked for", "a model like rtx4090", key)
        out.append(Attribute(key, "true"))
    return out or [Attribute(f"{prefix}/*", "true")]


def read_placements(at: At) -> dict[str, Placement]:
    found = at.members()
    if "pricing" in found and not any(place.child("pricing") for place in found.values()):
        at.wrong("placements by name", "write profiles.placement.NAME.pricing")
        return {}
    return {name: _read_placement(place) for name, place in found.items()}


def _read_placement(at: At) -> Placement:
    got = at.members(PLACEMENT)
    attributes = (
        {key: place.text() or "" for key, place in got["attributes"].members().items()}
        if "attributes" in got
        else {}
    )
    signed = got["signedBy"].members(("allOf", "anyOf")) if "signedBy" in got else {}
    prices: dict[str, At] = {}
    if "pricing" not in got or got["pricing"].is_null:
        at.fail("pricing_missing", "'pricing' is missing", "a price per compute profile", "nothing")
    else:
        prices = got["pricing"].members()
        if any(key in prices and not prices[key].is_mapping for key in ("denom", "amount")):
            got["pricing"].wrong("a price per compute profile", "write pricing.PROFILE.denom")
            prices = {}
    return Placement(
        at,
        attributes,
        (signed["allOf"].texts() or None) if "allOf" in signed else None,
        (signed["anyOf"].texts() or None) if "anyOf" in signed else None,
        {profile: _read_price(place) for profile, place in prices.items()},
        prices,
    )


def _read_price(at: At) -> tuple[str, str]:
    got = at.members(("denom", "amount"), hint="write denom: uakt and amount: 1000")
    for key, example in (("denom", "uakt, …"), ("amount", "a number > 0")):
        if key not in got:
            at.fail(key, f"{key!r} is missing", example, "nothing")
    denom = (got["denom"].text() or "") if "denom" in got else ""
    if "denom" in got and not DENOM.match(denom):
        got["denom"].fail("denom", f"{denom!r} is no denomination", "uakt, …", denom)
    text = (got["amount"].text() or "") if "amount" in got else "1"
    amount = units.amount(text)
    if amount is None or not amount.strip("0."):
        got["amount"].fail(
            "amount", f"{text!r} is no price: a number above 0, like 1000", "a number > 0", text
        )
        amount = units.amount("1")
    assert amount is not None
    return denom, amount
