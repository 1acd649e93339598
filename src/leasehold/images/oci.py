"""Manifests, indexes and configs of OCI and Docker: parsed, bounded, resolved to one platform.

Everything here comes from strangers. Sizes and counts are checked before use, unknown fields are
ignored, and what cannot be run (a foreign layer, no linux/amd64) is refused in plain words.
"""

from __future__ import annotations

import platform as _platform
from typing import Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.images.ports import ContentKind
from leasehold.model.digest import Digest, is_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
ACCEPT = ", ".join(MANIFEST_TYPES)
OCTETS = "application/octet-stream"

MAX_INDEX_ENTRIES = 1024
"""Manifests an index may name; the largest public ones have a few dozen."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A pointer to content."""

    media_type: str
    digest: str
    size: int
    urls: tuple[str, ...] = ()
    platform: dict[str, Any] | None = None
    annotations: dict[str, str] | None = None


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    media_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None


class Manifest(msgspec.Struct, frozen=True):
    """One image for one platform: a config and its layers, bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes of the config and the layers."""
        return self.config.size + sum(layer.size for layer in self.layers)


class Index(msgspec.Struct, frozen=True):
    """One name for the same image on several platforms."""

    manifests: tuple[Descriptor, ...]


def parse_manifest(content: bytes, *, max_layers: int = 127) -> Manifest | Index:
    """A manifest or index; ``manifest_invalid`` when it is neither."""
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _invalid(str(error)) from None
    if document.schema_version != 2:
        raise _invalid(
            f"schema version {document.schema_version} is not supported; push the image again"
            " with a current tool"
        )
    if document.manifests is not None and document.layers is None:
        if len(document.manifests) > MAX_INDEX_ENTRIES:
            raise _invalid(f"{len(document.manifests)} manifests, at most {MAX_INDEX_ENTRIES}")
        return Index(tuple(_checked(d) for d in document.manifests))
    if document.config is None or document.layers is None:
        raise _invalid("it has neither config and layers nor manifests")
    if len(document.layers) > max_layers:
        raise _invalid(f"{len(document.layers)} layers, at most {max_layers}")
    return Manifest(_checked(document.config), tuple(_checked(d) for d in document.layers))


def media_type_of(content: bytes) -> str:
    """The type a manifest declares, or what its shape says; octets when it is no manifest.

    containerd may fetch a manifest through ``/blobs/`` and refuses one without a type.
    """
    head = content[:512]
    if not head.lstrip().startswith(b"{") or b'"schemaVersion"' not in content[:4096]:
        return OCTETS
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return OCTETS
    if document.media_type in MANIFEST_TYPES:
        return document.media_type
    return OCI_INDEX if document.manifests is not None else OCI_MANIFEST


def host_platform() -> tuple[str, str]:
    """(os, architecture) of this machine in OCI's words."""
    machine = _platform.machine()
    return "linux", _ARCHITECTURES.get(machine, machine)


def choose(index: Index, wanted: tuple[str, str] | None = None) -> Descriptor:
    """The manifest of ``index`` for a platform (this machine's by default)."""
    os, architecture = wanted or host_platform()
    matches = []
    for entry in index.manifests:
        found = entry.platform or {}
        if found.get("os", os) == os and found.get("architecture", architecture) == architecture:
            matches.append(entry)
    # An attestation manifest says unknown/unknown; one without a platform is a last resort.
    matches.sort(key=lambda d: (d.platform is None, bool((d.platform or {}).get("variant"))))
    if not matches:
        offered = sorted(
            {
                f"{(d.platform or {}).get('os')}/{(d.platform or {}).get('architecture')}"
                for d in index.manifests
            }
        )
        raise LeaseholdError(
            "platform_missing",
            f"the image is not built for {os}/{architecture}; it offers {', '.join(offered[:10])}",
            expected=f"{os}/{architecture}",
            got=", ".join(offered[:10]),
        )
    return matches[0]


def children(manifest: Manifest) -> list[tuple[Digest, ContentKind, int]]:
    """What a manifest needs next, config first; layers that live elsewhere are left out."""
    found = [(Digest.parse(manifest.config.digest), ContentKind.CONFIG, manifest.config.size)]
    found += [
        (Digest.parse(layer.digest), ContentKind.BLOB, layer.size)
        for layer in manifest.layers
        if not layer.urls
    ]
    return list({item[0]: item for item in found}.values())


def parse_config(content: bytes) -> dict[str, Any]:
    """The image config (``config``, ``rootfs`` with as many diff ids as it says)."""
    try:
        config = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _invalid(f"its config is no JSON: {error}") from None
    rootfs = config.get("rootfs") if isinstance(config, dict) else None
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(
        isinstance(d, str) and is_digest(d) for d in diff_ids
    ):
        raise _invalid("its config lists no sha256 diff ids")
    inner = config.get("config")
    if inner is not None and not isinstance(inner, dict):
        raise _invalid("its config.config is no object")
    return config  # type: ignore[no-any-return]


def _checked(descriptor: Descriptor) -> Descriptor:
    Digest.parse(descriptor.digest)
    if descriptor.size < 0:
        raise _invalid(f"{descriptor.digest} has size {descriptor.size}")
    return descriptor


def _invalid(why: str) -> LeaseholdError:
    return LeaseholdError(
        "manifest_invalid", f"the image manifest is not valid: {why}", kind=Kind.INVALID
    )
