"""What the keeper started and how it ended: one JSON line each, on disk before it is answered.

A keeper that starts again reads it to know which processes were its own: ``{op, id, pid, start,
...}`` with the start time, because pids are reused. A line cut short by a crash was never answered
and is ignored. On opening, the journal is rewritten to what still counts.
"""

from __future__ import annotations

import json
import os
from typing import Any


class Journal:
    """``entries`` maps the id to its last known record; forgetting an id removes it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self._replay()
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        for record in self.entries.values():
            os.write(fd, _line(record))
        os.fdatasync(fd)
        os.rename(path + ".new", path)
        self._fd = fd

    def _replay(self) -> None:
        try:
            with open(self.path, "rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    record = json.loads(line)
                    if record.get("gone"):
                        self.entries.pop(record["id"], None)
                    else:
                        self.entries[record["id"]] = record
        except (FileNotFoundError, json.JSONDecodeError):
            pass

    def record(self, id: str, record: dict[str, Any]) -> None:
        """Make ``record`` what is known of ``id``."""
        record = {"id": id, **record}
        self.entries[id] = record
        os.write(self._fd, _line(record))
        os.fdatasync(self._fd)

    def forget(self, id: str) -> None:
        if self.entries.pop(id, None) is not None:
            os.write(self._fd, _line({"id": id, "gone": True}))
            os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
