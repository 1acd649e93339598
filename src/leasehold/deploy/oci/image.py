"""What an image's configuration says about running it, joined with what the manifest asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leasehold.core.errors import LeaseholdError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PASSWD_LIMIT = 1 << 20
"""Bytes of an image's passwd or group file that are looked at."""


@dataclass(frozen=True, slots=True)
class User:
    """Ids inside the container."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Docker's HEALTHCHECK; seconds."""

    command: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    retries: int = 3


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``config`` object of an image configuration, empty when it has none."""
    return config.get("config") or {}


def command(
    config: Mapping[str, Any], *, entrypoint: Sequence[str] | None, args: Sequence[str] | None
) -> list[str]:
    """Kubernetes' rule: ``command`` replaces the entrypoint and drops the image's arguments;
    ``args`` alone replaces only the arguments."""
    image = settings_of(config)
    if entrypoint:
        words = [*entrypoint, *(args or ())]
    else:
        words = [*(image.get("Entrypoint") or ()), *(args or image.get("Cmd") or ())]
    if not words:
        raise LeaseholdError(
            "no_command",
            "the image says no command to run; give the service a command in the SDL",
            path="command",
        )
    return [str(word) for word in words]


def environment(
    config: Mapping[str, Any], own: Sequence[str], defaults: Mapping[str, str]
) -> list[str]:
    """Image, then ``defaults`` unless set, then the manifest's; later ones win."""
    found: dict[str, str] = {"PATH": DEFAULT_PATH}
    given = dict(_pair(entry) for entry in own)
    found.update(_pair(entry) for entry in settings_of(config).get("Env") or ())
    found.update({key: value for key, value in defaults.items() if key not in given})
    found.update(given)
    return [f"{key}={value}" for key, value in found.items()]


def _pair(entry: str) -> tuple[str, str]:
    key, _, value = str(entry).partition("=")
    return key, value


def health_check(config: Mapping[str, Any]) -> HealthCheck | None:
    """The image's HEALTHCHECK, None when it has none or ``NONE``."""
    check = settings_of(config).get("Healthcheck") or {}
    test = [str(word) for word in check.get("Test") or ()]
    if not test or test[0] == "NONE":
        return None
    words = ("/bin/sh", "-c", test[1]) if test[0] == "CMD-SHELL" else tuple(test[1:])
    if not words:
        return None

    def seconds(key: str, default: float) -> float:
        return (check.get(key) or 0) / 1e9 or default

    return HealthCheck(
        words,
        seconds("Interval", 30.0),
        seconds("Timeout", 30.0),
        seconds("StartPeriod", 0.0),
        int(check.get("Retries") or 3),
    )


def resolve_user(name: str, layers: Sequence[Path]) -> User:
    """``user[:group]`` by number or by name from the image's own passwd and group files."""
    if not name:
        return _from_passwd("0", layers) or User()
    wanted, _, group = name.partition(":")
    user = _from_passwd(wanted, layers)
    if user is None:
        if not wanted.isdigit():
            raise LeaseholdError(
                "no_such_user",
                f"the image wants to run as {wanted!r}, which its /etc/passwd does not name",
                path="image",
                got=wanted,
            )
        user = User(int(wanted), 0)
    if group:
        gid = int(group) if group.isdigit() else _group_id(group, layers)
        return User(user.uid, gid, (), user.home)
    return user


def _from_passwd(wanted: str, layers: Sequence[Path]) -> User | None:
    for fields in _lines("etc/passwd", layers):
        if len(fields) >= 6 and wanted in (fields[0], fields[2]):
            try:
                uid, gid = int(fields[2]), int(fields[3])
            except ValueError:
                continue
            return User(uid, gid, _memberships(fields[0], layers), fields[5] or "/")
    return None


def _memberships(name: str, layers: Sequence[Path]) -> tuple[int, ...]:
    return tuple(
        int(fields[2])
        for fields in _lines("etc/group", layers)
        if len(fields) >= 4 and fields[2].isdigit() and name in fields[3].split(",")
    )


def _group_id(name: str, layers: Sequence[Path]) -> int:
    for fields in _lines("etc/group", layers):
        if len(fields) >= 3 and fields[0] == name and fields[2].isdigit():
            return int(fields[2])
    raise LeaseholdError(
        "no_such_group",
        f"the image wants the group {name!r}, which its /etc/group does not name",
        path="image",
        got=name,
    )


def _lines(relative: str, layers: Sequence[Path]) -> list[list[str]]:
    """The fields of the topmost layer's file; never through a symlink, which could lead out."""
    for layer in reversed(layers):
        folder, name = relative.split("/")
        try:
            directory = os.open(layer / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except OSError:
            continue
        finally:
            os.close(directory)
        with os.fdopen(fd, "rb") as file:
            text = file.read(PASSWD_LIMIT).decode(errors="replace")
        return [line.split(":") for line in text.splitlines()]
    return []
