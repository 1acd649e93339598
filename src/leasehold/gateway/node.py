"""The operator clears the node: every workload, network and proxy of this provider goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from litestar import post
from litestar.handlers import BaseRouteHandler

from leasehold.gateway.auth import operator

Clear = Callable[[], Awaitable[list[str]]]
"""Remove everything; answers what was removed, in plain words."""


def routes(clear: Clear) -> Sequence[BaseRouteHandler]:
    """``clear`` is the deploy system's ``teardown_all``."""

    @post(
        "/v1/node/clear",
        guards=[operator],
        status_code=200,
        tags=["operator"],
        operation_id="clearNode",
        summary="Remove every workload of this provider from the node",
    )
    async def clear_node() -> dict[str, list[str]]:
        """Containers, mounts, networks, rules and control groups. Leases are not closed by it."""
        return {"removed": await clear()}

    return [clear_node]
