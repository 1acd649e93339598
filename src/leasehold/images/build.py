"""Small OCI images made in memory, and pushed to a registry.

For demos and tests that must not reach the internet: files become layers, layers an image, and the
push side of the distribution API puts it where containerd, podman or Leasehold can pull it. Not a
builder for people; they have better ones.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import zstandard

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.images import oci
from leasehold.images.ports import Credentials
from leasehold.model.digest import Digest

LAYER_TYPES = {
    "": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
APPLETS = ("sh", "ls", "cat", "echo", "sleep", "httpd", "wget", "nc", "id", "ps", "mkdir", "true")
"""Links to busybox in :func:`busybox`; the others are there as ``busybox <name>``."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A compressed tar and the digest of what is inside."""

    blob: bytes
    digest: Digest
    diff_id: Digest
    media_type: str


@dataclass(frozen=True, slots=True)
class Built:
    """An image: everything a registry needs to serve it."""

    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]
    digest: Digest = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", Digest.of(self.manifest))

    @property
    def size(self) -> int:
        """Bytes of the config and the compressed layers."""
        return len(self.config) + sum(len(layer.blob) for layer in self.layers)


def layer_of(tar: bytes, compression: str = "gzip") -> Layer:
    """A layer from an uncompressed tar."""
    if compression == "gzip":
        blob = gzip.compress(tar, 6, mtime=0)
    elif compression == "zstd":
        blob = zstandard.compress(tar, 3)
    else:
        blob = tar
    return Layer(blob, Digest.of(blob), Digest.of(tar), LAYER_TYPES[compression])


def layer(
    files: Mapping[str, bytes | str | tuple[bytes, int] | None], compression: str = "gzip"
) -> Layer:
    """A layer from ``{path: content}``.

    Content is bytes, (bytes, mode), a ``str`` for a symbolic link's target or None for a directory.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            data = b""
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content, 0o777
            else:
                data, info.mode = content if isinstance(content, tuple) else (content, 0o644)
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return layer_of(out.getvalue(), compression)


def image(layers: Sequence[Layer], config: Mapping[str, Any] | None = None) -> Built:
    """An image for this machine; ``config`` is the inner one (``Cmd``, ``Env``, ...)."""
    os, architecture = oci.host_platform()
    document = {
        "os": os,
        "architecture": architecture,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [str(item.diff_id) for item in layers]},
    }
    inner = msgspec.json.encode(document)
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "config": _descriptor(CONFIG_TYPE, inner),
        "layers": [_descriptor(item.media_type, item.blob) for item in layers],
    }
    return Built(msgspec.json.encode(manifest), inner, tuple(layers))


def busybox(
    files: Mapping[str, bytes | str | tuple[bytes, int] | None] | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    compression: str = "gzip",
) -> Built:
    """A bootable image: the system's static busybox in one layer, ``files`` in a second."""
    program = Path(shutil.which("busybox") or "/bin/busybox")
    try:
        content = program.read_bytes()
    except OSError:
        raise LeaseholdError(
            "busybox_missing",
            "busybox is not installed; install the package busybox-static",
            kind=Kind.UNAVAILABLE,
        ) from None
    base: dict[str, bytes | str | tuple[bytes, int] | None] = {
        "bin/": None,
        "bin/busybox": (content, 0o755),
        **{f"bin/{name}": "busybox" for name in APPLETS},
        "etc/": None,
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
        "etc/group": b"root:x:0:\n",
        "tmp/": None,
        "var/": None,
    }
    layers = [layer(base, compression)]
    if files:
        layers.append(layer(files, compression))
    settings = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], **(config or {})}
    return image(layers, settings)


async def push(
    built: Built,
    registry: str,
    repository: str,
    tag: str = "latest",
    *,
    scheme: str = "http",
    credentials: Credentials | None = None,
) -> str:
    """Push to ``registry`` (host:port); the reference to pull it by."""
    base = f"{scheme}://{registry}/v2/{repository}"
    auth = httpx.BasicAuth(credentials.username, credentials.password) if credentials else None
    async with httpx.AsyncClient(trust_env=False, timeout=60, auth=auth) as client:
        for blob in (built.config, *(item.blob for item in built.layers)):
            digest = Digest.of(blob)
            if (await client.head(f"{base}/blobs/{digest}")).status_code == 200:
                continue
            started = await client.post(f"{base}/blobs/uploads/")
            _expect(started, 202)
            target = httpx.URL(base).join(started.headers["location"])
            done = await client.put(
                target.copy_merge_params({"digest": str(digest)}),
                content=blob,
                headers={"Content-Type": "application/octet-stream"},
            )
            _expect(done, 201)
        _expect(
            await client.put(
                f"{base}/manifests/{tag}",
                content=built.manifest,
                headers={"Content-Type": oci.OCI_MANIFEST},
            ),
            201,
        )
    return f"{registry}/{repository}:{tag}"


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


def _expect(response: httpx.Response, status: int) -> None:
    if response.status_code != status:
        raise LeaseholdError(
            "push_failed",
            f"{response.request.url} answered {response.status_code}: {response.text[:200]}",
            kind=Kind.UNAVAILABLE,
            expected=status,
            got=response.status_code,
        )
