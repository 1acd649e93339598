"""Where packages come from: a directory of TOML files, or OCI artifacts.

A package file::

    name = "hello"
    version = "1.2.0"
    after = ["registry"]

    [config]                       # what an operator may set, with defaults
    greeting = "hello"

    [[service]]
    name = "hello"
    run = ["{python}", "{app}/hello.py"]
    files = ["hello.py"]

    [[spell]]
    name = "hello-spell"
    script = "hello.star"
    kv = { settings = { greeting = "{config.greeting}" } }
    trigger = { clock = { start_sec = 1, period_sec = 60 } }

    [[init]]
    call = "hello.set_greeting"
    args = ["{config.greeting}"]

``{config.KEY}`` as a whole string becomes the typed value, inside a longer string its text. Files
are named relative to the package file and may not lead out of its directory.

One package that cannot be read is reported and leaves the others alone.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from leasehold.core.errors import LeaseholdError, Violation
from leasehold.node.distro import (
    MAX_ARTIFACT_BYTES,
    InitCall,
    Limits,
    PackageDistro,
    Restart,
    ServiceDistro,
    SpellDistro,
)
from leasehold.node.ports import PackageImages
from leasehold.node.spells import trigger as triggers
from leasehold.node.tree import Folder, Layers, Tree

PLACEHOLDER = re.compile(r"\{config\.([a-zA-Z0-9_]+)\}")

HOLDER = "node packages"
"""Who uses the images that packages came from."""

Table = dict[str, Any]


class ServiceFile(msgspec.Struct, forbid_unknown_fields=True):
    """`[[service]]` of a package file."""

    name: str
    run: list[str] = []
    image: str = ""
    files: list[str] = []
    env: dict[str, str] = {}
    limits: Limits = Limits()
    restart: Restart = Restart()
    ready: Literal["rpc", "started"] = "rpc"


class SpellFile(msgspec.Struct, forbid_unknown_fields=True):
    """`[[spell]]` of a package file."""

    name: str
    script: str
    kv: Table = {}
    trigger: Table = {}
    schema: int = 1
    migration: str = ""


class PackageFile(msgspec.Struct, forbid_unknown_fields=True):
    """A package file."""

    name: str
    version: str
    config: Table = {}
    service: list[ServiceFile] = []
    spell: list[SpellFile] = []
    init: list[InitCall] = []
    after: list[str] = []
    on_config_change: Literal["reinit", "reinstall", "ignore"] = "reinit"
    on_failure: Literal["fail", "degrade", "ignore"] = "degrade"
    on_disable: Literal["remove", "stop", "keep"] = "remove"


class Found(msgspec.Struct):
    """Packages by name, and what is wrong with those that could not be read.

    ``unread`` says of which sources nothing is known; what was installed from them stays.
    """

    packages: dict[str, PackageDistro] = {}
    broken: dict[str, str] = {}
    unread: list[str] = []

    def merge(self, other: Found) -> None:
        """``other`` overrides packages of the same name."""
        self.packages.update(other.packages)
        for name, reason in other.broken.items():
            self.broken[name] = reason
            self.packages.pop(name, None)
        self.unread += other.unread

    def keep(self, installed: Mapping[str, str]) -> None:
        """Count what is ``installed`` (name to source) from an unread source as broken."""
        for name, source in installed.items():
            origin = source.partition("@")[0]
            unread = any(origin == u or origin.startswith(f"{u}/") for u in self.unread)
            if source and unread and name not in self.packages and name not in self.broken:
                self.broken[name] = f"{source} could not be read"

    def check_configs(self, configs: Iterable[str]) -> None:
        """Report configuration of packages that are not there."""
        for name in set(configs) - set(self.packages) - set(self.broken):
            near = difflib.get_close_matches(name, self.packages, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.broken[name] = f"node.packages.{name} configures a package that is not there{hint}"


def directory(folder: Path, configs: Mapping[str, Table] | None = None) -> Found:
    """Every ``*.toml`` of ``folder``, configured by ``configs`` (package name to keys)."""
    found = Found()
    if not folder.is_dir():
        found.broken["node.packages_dir"] = f"there is no directory {folder}"
        found.unread.append(str(folder))
        return found
    for file in sorted(folder.glob("*.toml")):
        name = file.stem
        try:
            package = read(file, configs)
            name = package.name
            if name in found.packages:
                raise LeaseholdError("duplicate_package", f"{file}: {name} is there already")
            found.packages[name] = package
        except LeaseholdError as error:
            found.broken[name] = error.message
            found.unread.append(str(file))
    return found


def read(file: Path, configs: Mapping[str, Table] | None = None) -> PackageDistro:
    """One package file. LeaseholdError names the file and the key."""
    return parse(Folder(file.parent), file.name, configs, source=str(file))


def parse(
    tree: Tree, name: str, configs: Mapping[str, Table] | None = None, *, source: str
) -> PackageDistro:
    """The package file ``name`` of ``tree``, which was found at ``source``."""
    try:
        raw = tomllib.loads(_text(tree, name))
        parsed = msgspec.convert(raw, PackageFile)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LeaseholdError("package_unreadable", f"{source}: {error}", path=source) from None
    except msgspec.ValidationError as error:
        raise LeaseholdError("bad_package", f"{source}: {error}", path=source) from None
    config = configure(parsed, dict(configs or {}).get(parsed.name, {}))
    return PackageDistro(
        name=parsed.name,
        version=parsed.version,
        config=config,
        services=tuple(
            ServiceDistro(
                name=s.name,
                run=tuple(fill(s.run, config, f"{parsed.name}.{s.name}.run")),
                image=s.image,
                artifacts=_files(tree, s.files),
                env=fill(s.env, config, f"{parsed.name}.{s.name}.env", text=True),
                limits=s.limits,
                restart=s.restart,
                ready=s.ready,
            )
            for s in parsed.service
        ),
        spells=tuple(
            SpellDistro(
                name=s.name,
                script=_text(tree, s.script),
                kv=fill(s.kv, config, f"{parsed.name}.{s.name}.kv"),
                trigger=triggers.parse(
                    fill(s.trigger, config, f"{parsed.name}.{s.name}.trigger"),
                    path=f"{parsed.name}.{s.name}.trigger",
                ),
                schema=s.schema,
                migration=_text(tree, s.migration) if s.migration else "",
            )
            for s in parsed.spell
        ),
        init=tuple(
            InitCall(c.call, tuple(fill(list(c.args), config, f"{parsed.name}.init")))
            for c in parsed.init
        )
        or None,
        on_config_change=parsed.on_config_change,
        on_failure=parsed.on_failure,
        on_disable=parsed.on_disable,
        after=tuple(parsed.after),
        source=source,
    )


def configure(package: PackageFile, given: Mapping[str, Any]) -> Table:
    """The defaults of ``package`` overridden by ``given``; unknown keys and other types refused."""
    wrong = []
    for key, value in given.items():
        path = f"node.packages.{package.name}.{key}"
        if key not in package.config:
            near = difflib.get_close_matches(key, package.config, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            wrong.append(
                Violation(
                    "unknown_package_key",
                    f"package {package.name} has no setting {key!r}{hint}",
                    path=path,
                    expected=", ".join(sorted(package.config)) or None,
                    got=key,
                )
            )
        elif not _same_type(package.config[key], value):
            wrong.append(
                Violation(
                    "bad_package_value",
                    f"{path} has the wrong type",
                    path=path,
                    expected=type(package.config[key]).__name__,
                    got=repr(value),
                )
            )
    if wrong:
        raise LeaseholdError.of(wrong)
    return {**package.config, **given}


def fill(value: Any, config: Mapping[str, Any], path: str, *, text: bool = False) -> Any:
    """``value`` with every ``{config.KEY}`` replaced; ``text`` makes all of them strings."""
    if isinstance(value, str):
        whole = PLACEHOLDER.fullmatch(value)
        if whole and not text:
            return _lookup(config, whole[1], path)
        return PLACEHOLDER.sub(lambda m: str(_lookup(config, m[1], path)), value)
    if isinstance(value, dict):
        return {key: fill(v, config, f"{path}.{key}", text=text) for key, v in value.items()}
    if isinstance(value, list):
        return [fill(v, config, path, text=text) for v in value]
    return value


def signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever a file below ``folder`` does: names, sizes and times of change."""
    rows = []
    for path in sorted(folder.rglob("*")):
        try:
            info = path.stat()
        except OSError:
            continue
        if path.is_file():
            rows.append((str(path), info.st_size, info.st_mtime_ns))
    return tuple(rows)


async def artifacts(
    references: Iterable[str], images: PackageImages, configs: Mapping[str, Table] | None = None
) -> Found:
    """Packages out of OCI artifacts: ``package.toml`` and its files, in the layers.

    They are held, so that a start needs no registry; those not asked for any more are released.
    """
    found = Found()
    keep = []
    for reference in references:
        name = reference.partition("@")[0].rpartition("/")[2]
        try:
            if "@sha256:" not in reference:
                raise LeaseholdError(
                    "image_without_digest",
                    f"a package is named by digest, so that it cannot change: {reference}",
                    path="node.images",
                    expected="REGISTRY/NAME@sha256:…",
                    got=reference,
                )
            image = await images.ensure(reference, holder=HOLDER)
            keep.append(str(image.digest))
            tree = await asyncio.to_thread(Layers, image.layers)
            package = parse(tree, "package.toml", configs, source=reference)
            found.packages[package.name] = package
        except (LeaseholdError, OSError) as error:
            message = error.message if isinstance(error, LeaseholdError) else str(error)
            found.broken[name] = message
            found.unread.append(reference.partition("@")[0])
    if not found.broken:
        await images.release(HOLDER, keep=keep)
    return found


def _text(tree: Tree, name: str) -> str:
    """The one file ``name``."""
    found = tree.find(name)
    if len(found) != 1:
        raise LeaseholdError("bad_file", f"{name} is a directory", got=name)
    (path,) = found.values()
    return path.read_text()


def _files(tree: Tree, names: Iterable[str]) -> dict[str, bytes]:
    """The named files; a directory stands for everything in it."""
    out: dict[str, bytes] = {}
    total = 0
    for name in names:
        for key, file in tree.find(name).items():
            total += file.stat().st_size
            if total > MAX_ARTIFACT_BYTES:
                raise LeaseholdError(
                    "artifacts_too_large",
                    f"files of a service are limited to {MAX_ARTIFACT_BYTES >> 20} MiB",
                    got=name,
                )
            out[key] = file.read_bytes()
    return out


def _lookup(config: Mapping[str, Any], key: str, path: str) -> Any:
    if key not in config:
        raise LeaseholdError(
            "unknown_package_key",
            f"{path} uses config.{key}, which [config] does not declare",
            path=path,
            expected=", ".join(sorted(config)) or None,
            got=key,
        )
    return config[key]


def _same_type(default: object, value: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))
