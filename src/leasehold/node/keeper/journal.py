"""What runs, in a file: read by the keeper that comes after this one. Standard library only.

One JSON record a line: which boot of the machine, ``start`` with the specification, ``pid``,
``exit``, ``wanted`` and ``gone``. A last line that was not written completely counts as not
written.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

Record = dict[str, Any]


class Journal:
    """The file of one state folder. A keeper reads the old one and then writes a fresh one."""

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, "keeper.journal")
        self.fd = -1

    def read(self) -> tuple[dict[str, Record], bool]:
        """What was known of each service, and whether the machine has been up since."""
        known: dict[str, Record] = {}
        same_boot = False
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if "boot" in record:
                    same_boot = record["boot"] == _boot_id()
                elif record["op"] == "start":
                    known[record["id"]] = record
                elif record["op"] == "gone":
                    known.pop(record["id"], None)
                elif record["id"] in known:
                    known[record["id"]].update(record)
        return known, same_boot

    def renew(self) -> None:
        """Begin a fresh file, which counts from :meth:`use` on."""
        self.fd = os.open(
            self.path + ".new",
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )
        self.write({"boot": _boot_id()})

    def use(self) -> None:
        os.rename(self.path + ".new", self.path)

    def write(self, record: Record) -> None:
        # No fsync: a machine that loses power has lost the processes too (see the boot id).
        os.write(self.fd, json.dumps(record, separators=(",", ":")).encode() + b"\n")


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
