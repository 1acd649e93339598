"""What commands and routes say about images: one shape, whoever asks."""

from __future__ import annotations

from typing import Any

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.images import oci
from leasehold.images.download import read_all
from leasehold.images.fleet import Cooling, Holds, Known, Neighbour
from leasehold.images.ports import ContentKind, Credentials
from leasehold.images.records import Part, Record
from leasehold.images.service import Image, Images
from leasehold.images.traffic import Minute
from leasehold.model.digest import Digest

PARTS = 256
"""Most parts of an image whose holders are looked up at once."""


class Came(msgspec.Struct):
    """Bytes by where they came from."""

    origin: int = 0
    peers: int = 0
    cache: int = 0

    @classmethod
    def of(cls, sources: dict[str, int]) -> Came:
        peers = sum(n for source, n in sources.items() if source.startswith("peer:"))
        return cls(sources.get("origin", 0), peers, sources.get("cache", 0))


class Pulled(msgspec.Struct):
    """The result of ``leasehold images pull``. ``seconds`` from the reference to ready layers."""

    reference: str
    digest: str
    size: int
    layers: int
    seconds: float
    bytes: Came
    sources: dict[str, int]


class Listed(msgspec.Struct):
    """A line of ``leasehold images ls``. ``used`` is the last use, UTC seconds."""

    reference: str
    digest: str
    size: int
    used: float
    pinned: bool
    holds: list[str]


class Flight(msgspec.Struct):
    """A transfer under way: bytes received of ``size`` (None while nobody knows it)."""

    digest: str
    kind: str
    registry: str
    repository: str
    received: int
    size: int | None
    sources: dict[str, int]


class Fleet(msgspec.Struct):
    """What is known of other nodes. Without any, ``node`` is empty and ``health`` None; ``traffic``
    is the last hour by minute."""

    node: str
    health: float | None
    members: list[Neighbour]
    cooling: list[Cooling]
    traffic: list[Minute]


class Held(msgspec.Struct):
    """Who holds a part. ``others`` are nodes; None when nobody could be asked: ``why``."""

    kind: str
    digest: str
    here: bool
    others: list[str] | None
    why: str = ""


class Explained(msgspec.Struct):
    """Where each part of an image came from, and how long it took."""

    reference: str
    digest: str
    size: int
    seconds: float
    at: float
    bytes: Came
    parts: list[Part]
    layers: list[str]


def listed(record: Record) -> Listed:
    return Listed(
        record.reference, record.digest, record.size, record.at, record.pinned, record.holds
    )


def flights(images: Images) -> list[Flight]:
    """What is being fetched just now."""
    return [
        Flight(
            str(d.digest),
            d.kind.name.lower(),
            d.registry,
            d.repository,
            d.received,
            d.size,
            dict(d.sources),
        )
        for d in images.downloads.under_way()
    ]


def fleet(images: Images) -> Fleet:
    """Other nodes, what cools down here, and what came from where in the last hour."""
    known = images.fleet.known() if images.fleet is not None else Known()
    return Fleet(known.node, known.health, known.members, known.cooling,
                 images.downloads.traffic.series())  # fmt: skip


async def holders(images: Images, name: str) -> list[Held]:
    """Which nodes hold each part of an image, or one digest; a part of no known image is a blob."""
    try:
        record = images.keeping.find(name)
    except LeaseholdError:
        if not name.startswith("sha256:"):
            raise
        parts = [("blob", Digest.parse(name))]
    else:
        parts = [(part.kind, Digest.parse(part.digest)) for part in record.parts]
    digests = [digest for _, digest in parts[:PARTS]]
    if images.fleet is not None:
        found = await images.fleet.holders(digests, images.store)
    else:
        found = [Holds(str(digest), await images.store.has(digest), []) for digest in digests]
    return [
        Held(kind, held.digest, held.here, held.others, held.why)
        for (kind, _), held in zip(parts, found, strict=False)
    ]


def explained(record: Record) -> Explained:
    sources: dict[str, int] = {}
    for part in record.parts:
        for source, count in part.sources.items():
            sources[source] = sources.get(source, 0) + count
    return Explained(
        record.reference,
        record.digest,
        record.size,
        record.seconds,
        record.at,
        Came.of(sources),
        record.parts,
        record.layers,
    )


def pulled(image: Image) -> Pulled:
    return Pulled(
        image.reference,
        str(image.digest),
        image.bytes,
        len(image.layers),
        image.seconds,
        Came.of(image.sources),
        image.sources,
    )


async def pull(images: Images, reference: str, username: str = "", password: str = "") -> Pulled:
    """Make an image ready and say what that took."""
    credentials = Credentials(username, password) if username else None
    return pulled(await images.ensure(reference, credentials=credentials))


async def inspect(images: Images, name: str) -> dict[str, Any]:
    """The manifest and config of an image that is here."""
    record = images.keeping.find(name)
    out: dict[str, Any] = {"reference": record.reference, "digest": record.digest}
    for key, digest, kind in (
        ("manifest", record.digest, ContentKind.MANIFEST),
        ("config", record.config, ContentKind.CONFIG),
    ):
        reader = await images.store.open(Digest.parse(digest))
        if reader is None:
            out[key] = None  # evicted; the unpacked layers do not need it
            continue
        try:
            content = await read_all(reader, images.settings.manifest_bytes)
        finally:
            await reader.close()
        checked = oci.parse_config if kind is ContentKind.CONFIG else msgspec.json.decode
        out[key] = checked(content or b"{}")
    return out
