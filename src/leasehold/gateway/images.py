"""Routes of the image system, for the operator. Names go in the query: they hold slashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from litestar import get, post
from litestar.handlers import BaseRouteHandler

from leasehold.gateway.auth import operator
from leasehold.images import report
from leasehold.images.housekeeping import Collected, Verified
from leasehold.images.service import Images


class Pull(msgspec.Struct, forbid_unknown_fields=True):
    """What to pull; ``username`` and ``password`` for its registry when it is private."""

    reference: str
    username: str = ""
    password: str = ""


class Collect(msgspec.Struct, forbid_unknown_fields=True):
    """``keep_seconds``: forget images unused for longer (default: the setting)."""

    keep_seconds: float | None = None


class Pin(msgspec.Struct, forbid_unknown_fields=True):
    """Which image to keep, or with ``pinned`` false to let go."""

    name: str
    pinned: bool = True


def routes(images_of: Callable[[], Images]) -> Sequence[BaseRouteHandler]:
    """Every route of this area."""

    @get("/v1/images", guards=[operator], tags=["images"], sync_to_thread=False)
    def images_list() -> list[report.Listed]:
        """Images that were made ready here, latest use last."""
        return [report.listed(record) for record in images_of().keeping.list()]

    @get("/v1/images/inflight", guards=[operator], tags=["images"], sync_to_thread=False)
    def images_inflight() -> list[report.Flight]:
        """What is being fetched just now, with the bytes that are here."""
        return report.flights(images_of())

    @get("/v1/images/fleet", guards=[operator], tags=["images"], sync_to_thread=False)
    def images_fleet() -> report.Fleet:
        """The nodes images are shared with, digests that cool down, an hour of bytes by source."""
        return report.fleet(images_of())

    @get("/v1/images/holders", guards=[operator], tags=["images"])
    async def images_holders(name: str) -> list[report.Held]:
        """Which nodes hold each part of an image, or a digest."""
        return await report.holders(images_of(), name)

    @post("/v1/images/pull", guards=[operator], tags=["images"], status_code=200)
    async def images_pull(data: Pull) -> report.Pulled:
        """Make an image ready; says how many bytes came from where."""
        return await report.pull(images_of(), data.reference, data.username, data.password)

    @get("/v1/images/explain", guards=[operator], tags=["images"], sync_to_thread=False)
    def images_explain(name: str) -> report.Explained:
        """Where each layer of an image came from, bytes and time."""
        return report.explained(images_of().keeping.find(name))

    @get("/v1/images/inspect", guards=[operator], tags=["images"])
    async def images_inspect(name: str) -> dict[str, Any]:
        """Manifest and config of an image."""
        return await report.inspect(images_of(), name)

    @post("/v1/images/gc", guards=[operator], tags=["images"], status_code=200)
    async def images_gc(data: Collect) -> Collected:
        """Forget unused images and drop what they leave."""
        return await images_of().keeping.gc(data.keep_seconds)

    @post("/v1/images/verify", guards=[operator], tags=["images"], status_code=200)
    async def images_verify() -> Verified:
        """Hash every blob again; what is bad is dropped."""
        return await images_of().keeping.verify()

    @post("/v1/images/pin", guards=[operator], tags=["images"], status_code=200)
    async def images_pin(data: Pin) -> report.Listed:
        """Keep an image whatever happens, or let it go."""
        return report.listed(images_of().keeping.pin(data.name, pinned=data.pinned))

    return [
        images_list,
        images_inflight,
        images_fleet,
        images_holders,
        images_pull,
        images_explain,
        images_inspect,
        images_gc,
        images_verify,
        images_pin,
    ]
