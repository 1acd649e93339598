"""What is known about each image that was made ready: where its parts came from, who uses it.

One JSON file an image under ``<root>/images``, named by the manifest's digest, replaced as a whole.
``explain``, ``ls`` and ``gc`` read them; nothing needs them to run an image.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from leasehold.core.logs import get_logger

log = get_logger(__name__)


class Part(msgspec.Struct):
    """One digest of an image: bytes by source, seconds on the way."""

    digest: str
    kind: str
    size: int
    sources: dict[str, int] = {}
    seconds: float = 0.0
    unpack_seconds: float = 0.0


class Record(msgspec.Struct):
    """One image. ``at`` is its last use (UTC seconds); ``layers`` are directory names."""

    reference: str
    digest: str
    index: str
    size: int
    at: float
    seconds: float
    config: str
    layers: list[str] = []
    parts: list[Part] = []
    references: list[str] = []
    holds: list[str] = []
    pinned: bool = False


class Records:
    """All records of a node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records: dict[str, Record] = {}

    def load(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for path in self.root.glob("*.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, msgspec.DecodeError) as error:
                log.warning("images.record.unreadable", path=str(path), error=str(error))
                continue
            self._records[record.digest] = record

    def put(self, record: Record) -> None:
        """Remember an image; a warm use keeps the story of how it came here."""
        known = self._records.get(record.digest)
        if known is not None:
            record.holds = list(dict.fromkeys([*known.holds, *record.holds]))
            record.pinned = known.pinned
            record.references = known.references
            if all(set(part.sources) <= {"cache"} for part in record.parts):
                record.parts, record.seconds = known.parts, known.seconds
        if record.reference not in record.references:
            record.references = [*record.references[-9:], record.reference]
        self._records[record.digest] = record
        self.save(record)

    def save(self, record: Record) -> None:
        path = self._path(record.digest)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(record))
        os.replace(temporary, path)

    def all(self) -> list[Record]:
        """Oldest use first."""
        return sorted(self._records.values(), key=lambda r: r.at)

    def find(self, name: str) -> Record | None:
        """The image with this reference, digest or short digest; the latest when several match."""
        for record in reversed(self.all()):
            if name in record.references or name in (record.digest, record.index):
                return record
            if len(name) >= 6 and record.digest.removeprefix("sha256:").startswith(name):
                return record
        return None

    def drop(self, record: Record) -> None:
        self._records.pop(record.digest, None)
        with contextlib.suppress(FileNotFoundError):
            self._path(record.digest).unlink()

    def _path(self, digest: str) -> Path:
        return self.root / (digest.removeprefix("sha256:") + ".json")
