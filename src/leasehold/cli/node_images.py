"""``leasehold node --only images`` and ``leasehold node setup``: the image system on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

setup = typer.Typer(
    help="Point a container engine at the image mirror of this node.", no_args_is_help=True
)

REGISTRY = typer.Option(None, "--registry", help="Registry to mirror; may be given several times.")
MIRROR = typer.Option("http://127.0.0.1:29500", "--mirror", help="URL of the mirror.")
REMOVE = typer.Option(False, "--remove", help="Take away what was written.")
FOLDER = typer.Option(None, "--folder", help="The engine's drop-in folder, if not the usual one.")
JSON = typer.Option(False, "--json", help="As JSON.")


def run_only(what: str, state: Path | None, config: Path | None) -> None:
    """Run one system of the node in this process."""
    from leasehold.core.errors import Kind, LeaseholdError

    if what != "images":
        raise LeaseholdError(
            "unknown_system",
            f"there is no system {what!r} that runs alone",
            kind=Kind.MALFORMED,
            expected="images",
            got=what,
        )
    from leasehold.app.image_node import ImagesRole
    from leasehold.app.roles import serve
    from leasehold.app.settings import read
    from leasehold.cli.state import state_folder

    folder = state_folder(state)
    settings = read(folder, file=config).values
    serve(ImagesRole(folder, settings), settings)


@setup.command()
def containerd(
    registry: list[str] = REGISTRY,
    mirror: str = MIRROR,
    strict: bool = typer.Option(False, "--strict", help="Let nothing bypass the mirror."),
    remove: bool = REMOVE,
    folder: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Write hosts.toml of each registry for containerd."""
    from leasehold.images import client_setup

    where = folder or client_setup.CONTAINERD_FOLDER
    if remove:
        _report(client_setup.remove_containerd(folder=where), as_json, removed=True)
        return
    _report(client_setup.containerd(_named(registry), mirror, strict=strict, folder=where), as_json)


@setup.command()
def podman(
    registry: list[str] = REGISTRY,
    mirror: str = MIRROR,
    tags: bool = typer.Option(False, "--tags", help="Ask the mirror for tags, too."),
    remove: bool = REMOVE,
    folder: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Write a drop-in of registries.conf for podman, buildah and skopeo."""
    from leasehold.images import client_setup

    where = folder or client_setup.PODMAN_FOLDER
    if remove:
        _report(client_setup.remove_podman(folder=where), as_json, removed=True)
        return
    _report(client_setup.podman(_named(registry), mirror, tags=tags, folder=where), as_json)


@setup.command()
def crio(
    registry: list[str] = REGISTRY,
    mirror: str = MIRROR,
    tags: bool = typer.Option(False, "--tags", help="Ask the mirror for tags, too."),
    remove: bool = REMOVE,
    folder: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Write the same drop-in for CRI-O; reload it with SIGHUP afterwards."""
    podman(registry, mirror, tags, remove, folder, as_json)


def _named(registries: list[str] | None) -> list[str]:
    from leasehold.core.errors import Kind, LeaseholdError

    if not registries:
        raise LeaseholdError(
            "registry_missing",
            "say which registries: --registry docker.io --registry registry.example.com",
            kind=Kind.MALFORMED,
            path="--registry",
        )
    return registries


def _report(paths: list[Path], as_json: bool, *, removed: bool = False) -> None:
    if as_json:
        from leasehold.cli.state import print_json

        out: dict[str, Any] = {"removed" if removed else "written": [str(p) for p in paths]}
        print_json(out)
        return
    for path in paths:
        print(f"{'removed' if removed else 'wrote'} {path}")
    if not paths:
        print("nothing to do")
