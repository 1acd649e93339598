"""Pointing container engines at the mirror: containerd, podman and CRI-O.

Each engine has a folder of drop-in files; we write ours there and remove only ours. By default an
engine falls back to the registry when the mirror cannot help (tags always do); ``strict`` takes the
registry away, so that nothing can bypass the mirror. Tags then resolve only where the mirror is
allowed to say what they mean (``mirror_known_tag_seconds``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.model.reference import DEFAULT_REGISTRY, is_host

CONTAINERD_FOLDER = Path("/etc/containerd/certs.d")
PODMAN_FOLDER = Path("/etc/containers/registries.conf.d")
PODMAN_FILE = "050-leasehold-mirror.conf"
MARK = "# Written by `leasehold node setup`; remove it with `leasehold node setup --remove`.\n"


def containerd(
    registries: Sequence[str],
    mirror: str,
    *,
    strict: bool = False,
    folder: Path = CONTAINERD_FOLDER,
) -> list[Path]:
    """``<folder>/<registry>/hosts.toml`` for each registry; the files written.

    containerd must have ``config_path`` set to the folder (1.5 and later).
    """
    written = []
    for registry in _checked(registries):
        server = "registry-1.docker.io" if registry == DEFAULT_REGISTRY else registry
        scheme = "http" if _plain(registry) else "https"
        path = folder / registry / "hosts.toml"
        _write(
            path,
            # Without this line containerd adds the registry itself as the last host.
            f'server = "{mirror.rstrip("/") if strict else f"{scheme}://{server}"}"\n\n'
            + f'[host."{mirror.rstrip("/")}"]\n'
            + '  capabilities = ["pull", "resolve"]\n'
            + "  skip_verify = true\n",
        )
        written.append(path)
    return written


def remove_containerd(*, folder: Path = CONTAINERD_FOLDER) -> list[Path]:
    """Take away every file of ours."""
    removed = [path for path in sorted(folder.glob("*/hosts.toml")) if _ours(path)]
    for path in removed:
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    return removed


def podman(
    registries: Sequence[str],
    mirror: str,
    *,
    tags: bool = False,
    strict: bool = False,
    folder: Path = PODMAN_FOLDER,
) -> list[Path]:
    """A drop-in of registries.conf (podman, buildah, skopeo, CRI-O); the file written.

    These engines take manifest and layers from one and the same place: an image named by a tag
    comes through the mirror only with ``tags``, which needs ``mirror_known_tag_seconds > 0`` there.
    They always fall back to the registry (no ``strict``), and they do not tell the mirror which
    registry they mean, so its name is put in front of the repository; a registry with a port must
    be the mirror's only one.
    """
    if strict:
        raise LeaseholdError(
            "strict_unsupported",
            "podman and CRI-O always fall back to the registry; only containerd can be strict",
            kind=Kind.UNSUPPORTED,
        )
    location = mirror.removeprefix("http://").removeprefix("https://").rstrip("/")
    text = ""
    for registry in _checked(registries):
        insecure = "insecure = true\n" if _plain(registry) else ""
        where = location if ":" in registry else f"{location}/{registry}"
        which = "all" if tags else "digest-only"
        text += (
            f'[[registry]]\nprefix = "{registry}"\nlocation = "{registry}"\n{insecure}\n'
            f'[[registry.mirror]]\nlocation = "{where}"\n'
            f'insecure = true\npull-from-mirror = "{which}"\n\n'
        )
    path = folder / PODMAN_FILE
    _write(path, text)
    return [path]


def remove_podman(*, folder: Path = PODMAN_FOLDER) -> list[Path]:
    path = folder / PODMAN_FILE
    if not path.exists() or not _ours(path):
        return []
    path.unlink()
    return [path]


crio = podman
"""CRI-O reads the same files; reload it (SIGHUP) afterwards."""

remove_crio = remove_podman


def _checked(registries: Sequence[str]) -> Sequence[str]:
    for registry in registries:
        if not is_host(registry):
            raise LeaseholdError(
                "registry_malformed", f"{registry!r} is no registry host", kind=Kind.MALFORMED
            )
    return registries


def _plain(registry: str) -> bool:
    host = registry.rpartition(":")[0] or registry
    return host in ("localhost", "[::1]") or host.startswith("127.")


def _write(path: Path, text: str) -> None:
    if path.exists() and not _ours(path):
        raise LeaseholdError(
            "not_ours",
            f"{path} exists and was not written by us; move it away or edit it by hand",
            kind=Kind.CONFLICT,
            path=str(path),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".leasehold")
    temporary.write_text(MARK + text)
    os.replace(temporary, path)


def _ours(path: Path) -> bool:
    return path.read_text(errors="replace").startswith(MARK)
