"""What a package is made of.

A *service distro* is everything needed to run a service: its files, how to start it, its
environment and limits. A *spell distro* is a script, its configuration and its trigger. A *package
distro* bundles both with a version, an optional initialisation and the package's policies.

Names are aliases: the identity by which the deployer finds what it installed before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import msgspec

from leasehold.core.errors import LeaseholdError, Violation
from leasehold.node.spells.trigger import TriggerConfig, validate

NAME = re.compile(r"^[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?$")
RESERVED = frozenset({"spell", "self", "node", "worker", "log"})
"""Names a run resolves itself; no alias may be one of them."""

MAX_ARTIFACT_BYTES = 64 << 20
"""Files of one service together; larger ones belong into an image."""

MAX_SCRIPT_BYTES = 1 << 20


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of a service. 0 means none."""

    memory_mb: Annotated[int, msgspec.Meta(ge=0)] = 256
    cpu: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    pids: Annotated[int, msgspec.Meta(ge=0)] = 64
    files: Annotated[int, msgspec.Meta(ge=16)] = 256


class Restart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a process that ended is started again.

    The wait doubles from ``first_sec`` to ``cap_sec``; after ``attempts`` ends within
    ``window_sec`` the service counts as crash-looping and is left alone until somebody restarts it.
    """

    policy: Literal["always", "on-failure", "never"] = "always"
    first_sec: Annotated[float, msgspec.Meta(gt=0)] = 0.2
    cap_sec: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 5
    window_sec: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class ServiceDistro(msgspec.Struct, frozen=True, kw_only=True):
    """One service. Exactly one of ``run`` (a host process), ``image`` (a container) and
    ``builtin`` (answered by the node itself) says what it is.

    ``run`` may name ``{python}`` and ``{app}``, the directory holding ``artifacts``. ``ready``:
    ``rpc`` waits until the service answers ``system.ready``, ``started`` only until it runs.
    """

    name: str
    run: tuple[str, ...] = ()
    image: str = ""
    builtin: str = ""
    artifacts: Mapping[str, bytes] = {}
    env: Mapping[str, str] = {}
    limits: Limits = Limits()
    restart: Restart = Restart()
    ready: Literal["rpc", "started"] = "rpc"

    @property
    def kind(self) -> str:
        return "builtin" if self.builtin else "container" if self.image else "process"


class SpellDistro(msgspec.Struct, frozen=True, kw_only=True):
    """One spell. ``kv`` is its configuration: JSON values, re-applied at every boot.

    ``schema`` is the version of the *state* the script keeps. When it grows, ``migration`` (a
    script too, with ``from_schema`` and ``to_schema``) is run on a copy first; without one the old
    state is set aside in a backup and the spell starts empty.
    """

    name: str
    script: str
    kv: Mapping[str, Any] = {}
    trigger: TriggerConfig = TriggerConfig()
    schema: int = 1
    migration: str = ""


class InitCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Call ``service.function`` with ``args`` after the services of the package are ready."""

    call: str
    args: tuple[Any, ...] = ()

    @property
    def target(self) -> tuple[str, str]:
        service, _, function = self.call.partition(".")
        return service, function


class Created(msgspec.Struct, frozen=True, tag="created"):
    """Installed now, under a new id."""

    id: str


class Existing(msgspec.Struct, frozen=True, tag="existing"):
    """Was there before and was kept."""

    id: str


Report = dict[str, Created | Existing]
"""Service or spell name to what happened to it, given to the initialisation."""


class Caller(Protocol):
    """Calls a function of a service under deployment and checks the reply contract."""

    async def call(self, service: str, function: str, *args: Any) -> dict[str, Any]:
        """The reply object; LeaseholdError when it is no object, lacks a boolean ``success``,
        or says ``success: false`` with an ``error``."""
        ...


class Init(Protocol):
    """Initialisation in Python. Run once a report, so it must be safe to run again."""

    @property
    def key(self) -> Any:
        """What it depends on, as JSON: when this changes it is run again."""
        ...

    async def __call__(self, caller: Caller, report: Report) -> list[str]:
        """Do it; the returned warnings show at the package and degrade it without failing it."""
        ...


class PackageDistro(msgspec.Struct, frozen=True, kw_only=True):
    """A package and its policies.

    ``on_config_change``: what a change of ``config`` alone does: ``reinit`` runs the
    initialisation again, ``reinstall`` replaces the services, ``ignore`` does nothing.
    ``on_failure``: ``fail`` the node, ``degrade`` it, or ``ignore``. ``on_disable``: what happens
    to an installed package that is no longer wanted. ``after``: packages that must be in place
    before this one, where they are installed at all.
    """

    name: str
    version: str = "0.0.0"
    services: tuple[ServiceDistro, ...] = ()
    spells: tuple[SpellDistro, ...] = ()
    init: tuple[InitCall, ...] | Init | None = None
    config: Mapping[str, Any] = {}
    on_config_change: Literal["reinit", "reinstall", "ignore"] = "reinit"
    on_failure: Literal["fail", "degrade", "ignore"] = "degrade"
    on_disable: Literal["remove", "stop", "keep"] = "remove"
    after: tuple[str, ...] = ()
    source: str = "bundled"

    @property
    def names(self) -> list[str]:
        """The aliases of the package: services first, then spells."""
        return [s.name for s in self.services] + [s.name for s in self.spells]


def check(packages: Mapping[str, PackageDistro], now: float) -> dict[str, list[Violation]]:
    """Everything wrong with each package, before anything is touched. Empty when all is well.

    Two packages with the same alias, and dependency cycles, count against each of them.
    """
    wrong: dict[str, list[Violation]] = {name: _check_one(p, now) for name, p in packages.items()}
    holders: dict[str, list[str]] = {}
    for name, package in packages.items():
        for alias in package.names:
            holders.setdefault(alias, []).append(name)
    for alias, names in holders.items():
        if len(names) > 1:
            for name in set(names):
                wrong[name].append(
                    Violation(
                        "alias_clash",
                        f"alias {alias!r} is used by {' and '.join(sorted(names))}",
                        path=f"{name}.{alias}",
                    )
                )
    for cycle in cycles(packages):
        for name in set(cycle):
            wrong[name].append(
                Violation(
                    "dependency_cycle",
                    f"packages wait for each other: {' after '.join(cycle)}",
                    path=f"{name}.after",
                )
            )
    return {name: violations for name, violations in wrong.items() if violations}


def cycles(packages: Mapping[str, PackageDistro]) -> list[list[str]]:
    """Each dependency cycle once, as a path that ends where it began."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done or name not in packages:
            return
        for other in packages[name].after:
            walk(other, [*path, name])
        done.add(name)

    for name in packages:
        walk(name, [])
    return found


def _check_one(package: PackageDistro, now: float) -> list[Violation]:
    wrong = [_name(package.name, package.name)] if not NAME.match(package.name) else []
    for service in package.services:
        wrong += _check_service(package.name, service)
    for spell in package.spells:
        path = f"{package.name}.{spell.name}"
        if not NAME.match(spell.name) or spell.name in RESERVED:
            wrong.append(_name(spell.name, path))
        if len(spell.script.encode()) > MAX_SCRIPT_BYTES:
            wrong.append(
                Violation("script_too_large", f"more than {MAX_SCRIPT_BYTES} bytes", path=path)
            )
        if spell.schema < 1:
            wrong.append(Violation("bad_schema", "schema versions start at 1", path=path))
        wrong += validate(spell.trigger, now, path=f"{path}.trigger")
    own = {service.name for service in package.services}
    if isinstance(package.init, tuple):
        for index, call in enumerate(package.init):
            service_name, function = call.target
            if not function or service_name not in own:
                wrong.append(
                    Violation(
                        "bad_init",
                        "an initialisation calls a function of a service of its own package",
                        path=f"{package.name}.init[{index}].call",
                        expected=" or ".join(f"{name}.FUNCTION" for name in sorted(own)) or None,
                        got=call.call,
                    )
                )
    return wrong


def _check_service(package: str, service: ServiceDistro) -> list[Violation]:
    path, wrong = f"{package}.{service.name}", []
    if not NAME.match(service.name) or service.name in RESERVED:
        wrong.append(_name(service.name, path))
    if sum(map(bool, (service.run, service.image, service.builtin))) != 1 and not (
        service.image and service.run
    ):
        wrong.append(
            Violation(
                "bad_service",
                "say what the service is: `run` (a command), `image`, or both (a command in it)",
                path=path,
            )
        )
    if service.image and "@sha256:" not in service.image:
        wrong.append(
            Violation(
                "image_without_digest",
                "an image is named by digest, so that the node knows when it changed",
                path=f"{path}.image",
                expected="NAME@sha256:…",
                got=service.image,
            )
        )
    if sum(map(len, service.artifacts.values())) > MAX_ARTIFACT_BYTES:
        wrong.append(
            Violation(
                "artifacts_too_large",
                f"files of a service are limited to {MAX_ARTIFACT_BYTES >> 20} MiB; use an image",
                path=f"{path}.artifacts",
            )
        )
    wrong += [
        Violation("bad_artifact", f"file name {name!r}", path=f"{path}.artifacts")
        for name in service.artifacts
        if not name or name.startswith("/") or ".." in name.split("/")
    ]
    wrong += [
        Violation(
            "artifact_missing",
            f"the command names {word[6:]!r}, which is not among the files",
            path=f"{path}.run",
            expected=", ".join(sorted(service.artifacts)) or None,
            got=word,
        )
        for word in service.run
        if word.startswith("{app}/") and word[6:] not in service.artifacts
    ]
    return wrong


def _name(name: str, path: str) -> Violation:
    return Violation(
        "bad_name",
        f"{name!r} is not a usable name",
        path=path,
        expected="1-64 of a-z 0-9 . _ -, not spell, self, node, worker or log",
        got=name,
    )


def version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Orders versions: numbers by value, words after them by text, a pre-release before."""
    release, _, pre = version.partition("-")
    key: list[tuple[int, int | str]] = [
        (1, int(part)) if part.isdigit() else (0, part) for part in release.split(".")
    ]
    while key and key[-1] == (1, 0):
        key.pop()
    return (*key, (0, pre) if pre else (1, -1))


def older(version: str, than: str) -> bool:
    """Whether ``version`` comes before ``than``."""
    return version_key(version) < version_key(than)


def require(packages: Mapping[str, PackageDistro], now: float) -> None:
    """Raise every violation of ``packages`` at once."""
    wrong = [v for violations in check(packages, now).values() for v in violations]
    if wrong:
        raise LeaseholdError.of(wrong)
