"""Words the rules share: close reasons, ids and attributes as events write them, refusals."""

from __future__ import annotations

from typing import Any

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import is_address
from leasehold.market.ledger import money
from leasehold.model.resources import Attribute, GroupSpec

OWNER, UNSTABLE, DECOMMISSION, UNSPECIFIED, MANIFEST_TIMEOUT = 1, 10000, 10001, 10002, 10003
INSUFFICIENT_FUNDS = 20000
PROVIDER_REASONS = (UNSTABLE, DECOMMISSION, UNSPECIFIED, MANIFEST_TIMEOUT)


def max_price(spec: GroupSpec, path: str) -> tuple[str, int]:
    """``(denom, smallest units)`` a group pays at most a charged block: all replicas together."""
    total = 0
    for at, unit in enumerate(spec.resources):
        where = f"{path}.resources[{at}].price.amount"
        total += unit.count * money.parse(unit.price.amount, where)
    denom = spec.resources[0].price.denom
    return money.check_denom(denom, f"{path}.resources[0].price.denom"), total


def wire(id: str) -> dict[str, Any]:
    """A text id as the originals' typed events write it: big numbers as text."""
    parts = id.split("/")
    wire: dict[str, Any] = {"owner": parts[0], "dseq": parts[1]}
    for name, part in zip(("gseq", "oseq"), parts[2:4], strict=False):
        wire[name] = int(part)
    if len(parts) == 5:
        wire["provider"] = parts[4]
    return wire


def ordered(attributes: list[Attribute]) -> list[Attribute]:
    keys = [a.key for a in attributes]
    twice = sorted({k for k in keys if keys.count(k) > 1})
    if twice or not all(keys):
        raise LeaseholdError(
            "bad_attributes",
            "attribute keys are unique and not empty",
            path="attributes",
            got=", ".join(twice) or "''",
        )
    return sorted(attributes)


def listed(pairs: set[tuple[str, str]]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(pairs)) or "none"


def check_address(text: str, path: str) -> None:
    if not is_address(text):
        raise LeaseholdError(
            "bad_address", f"{text[:90]!r} is no account address", path=path, got=text[:90]
        )


def missing(what: str, id: str) -> LeaseholdError:
    return LeaseholdError(f"{what}_not_found", f"no {what} {id}", kind=Kind.NOT_FOUND, got=id)


def conflict(code: str, message: str, got: object) -> LeaseholdError:
    return LeaseholdError(code, message, kind=Kind.CONFLICT, got=got)


def too_little(path: str, least: int, got: int) -> LeaseholdError:
    return LeaseholdError(
        "deposit_too_small",
        "the deposit is too small",
        path=path,
        expected=f"≥ {money.text(least)}",
        got=money.text(got),
    )
