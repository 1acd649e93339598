"""Routes anybody may ask: version, address and status of the provider."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Response, get
from litestar.handlers import BaseRouteHandler

from leasehold import __version__
from leasehold.core.errors import LeaseholdError

Part = Callable[[], Awaitable[Any]]
"""What a part of the provider says of itself for ``/status``."""


def routes(address: str, parts: Mapping[str, Part]) -> Sequence[BaseRouteHandler]:
    """``parts`` are the members of ``/status`` beside ``address``."""

    @get("/version", tags=["provider"], operation_id="version", summary="Versions")
    async def version() -> dict[str, Any]:
        """The version of Leasehold and of what it runs on."""
        return {
            "leasehold": {"version": __version__, "python": platform.python_version()},
            "platform": platform.platform(),
        }

    @get("/address", tags=["provider"], operation_id="address", summary="The provider's account")
    async def provider() -> dict[str, str]:
        """The address of the provider's account."""
        return {"address": address}

    @get("/status", tags=["provider"], operation_id="status", summary="What the provider is doing")
    async def status() -> Response[Any]:
        """Counts of leases, orders and deployments. A part that is not up says why."""
        out: dict[str, Any] = {}
        for name, part in parts.items():
            try:
                out[name] = await part()
            except LeaseholdError as error:
                out[name] = {"error": error.to_dict()}
        return Response(
            msgspec.json.encode({**out, "address": address}), media_type="application/json"
        )

    return [version, provider, status]
