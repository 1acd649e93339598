"""Logs of replicas that are gone: a cluster forgets them with the pod, we do not.

The last lines are written where and as the keeper of a machine writes them, so they are read, and
expire, the same way (:mod:`leasehold.deploy.logs`). Lines that are there already are not written
again: they are told apart by their time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from leasehold.deploy.settings import DeploySettings

LINES = 10_000
"""Lines kept of one replica at a time."""


def keep(
    folder: Path, number: int, lines: Iterable[tuple[str, str]], settings: DeploySettings
) -> None:
    """Append ``(time, text)`` lines to the log of replica ``number``, rotating it as set."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.log"
    newest = _last_time(path)
    fresh = [f"{at} stdout F {text}\n" for at, text in lines if at > newest]
    if not fresh:
        return
    with path.open("a") as file:
        file.writelines(fresh)
    if path.stat().st_size > settings.log_bytes:
        _rotate(path, settings.log_files)


def _last_time(path: Path) -> str:
    """Of the last line; empty when there is none."""
    for file in (path, path.with_name(f"{path.name}.1")):
        with contextlib.suppress(FileNotFoundError, IndexError), file.open("rb") as lines:
            lines.seek(-min(64 * 1024, os.fstat(lines.fileno()).st_size), os.SEEK_END)
            return lines.read().splitlines()[-1].split(b" ", 1)[0].decode(errors="replace")
    return ""


def _rotate(path: Path, files: int) -> None:
    for number in range(files - 1, 0, -1):
        older = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        with contextlib.suppress(FileNotFoundError):
            older.rename(path.with_name(f"{path.name}.{number}"))
    path.unlink(missing_ok=True)
