"""What ``GET /status`` tells anybody about this provider: counts and totals, no names of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leasehold.gateway.offers import Offers
from leasehold.gateway.status import Part
from leasehold.market.bids import BidActivity
from leasehold.observe.engine import Engine


def parts(deploy: Offers, engine: Engine) -> Mapping[str, Part]:
    """``cluster``: leases and inventory by node; ``bidengine``: orders being worked on."""

    async def cluster() -> dict[str, Any]:
        offered = deploy.offered()
        totals = [row["total"] for row in offered["pending"]]
        pending: dict[str, int] = {}
        for total in totals:
            for resource, amount in total.items():
                pending[resource] = pending.get(resource, 0) + amount
        return {
            "leases": len(offered["leased"]),
            "inventory": {
                "nodes": [
                    {key: node[key] for key in ("offered", "available")}
                    for node in offered["nodes"]
                ],
                "pending": {"orders": len(totals), "resources": pending},
            },
        }

    async def bidengine() -> dict[str, int]:
        row = next(r for r in engine.operators.counts() if r["activity"] == BidActivity.name)
        states = ("activity", "kind", "limit", "finished")
        return {"orders": sum(count for state, count in row.items() if state not in states)}

    return {"cluster": cluster, "bidengine": bidengine}
