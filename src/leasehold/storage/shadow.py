"""The shadow: a bare Git repository that records what a volume's files were.

A snapshot is a commit. Each directory of the volume is a Git tree with one blob, ``.records``
(see ``tree``), and its sub-directories below ``d/<name>``; contents themselves are in the content
store. A directory in which nothing changed is the same Git object again, so a snapshot costs what
changed. What ``stat`` said last time is cached beside, to hash only files that may have changed.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import pygit2

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.storage.content import Changed, ContentStore, sync_filesystem
from leasehold.storage.tree import Record, Seen, decode, encode, record_of

BRANCH = "refs/heads/main"
RECORDS = ".records"
CHILDREN = "d"
INDEX = "leasehold-seen"
RACY_NS = 50_000_000
"""Nanoseconds: a file changed this shortly before the last scan is read again, since a second
change in the same tick of the file system's clock would not show."""

UNSTEADY_TRIES = 5
"""Times a file that changes while it is read is tried before it is taken as it is."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SWAPPED = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}


class Author(NamedTuple):
    name: str
    email: str = "volumes@leasehold.invalid"


class Snapshot(NamedTuple):
    """A commit of the shadow. ``stored`` counts the bytes that were new to the content store."""

    commit: str
    at: float
    author: str
    message: str
    files: int
    bytes: int
    stored: int = 0


class Change(NamedTuple):
    """How ``path`` differs: added, removed, or modified in content or attributes."""

    how: str
    path: str
    old: Record | None
    new: Record | None


@dataclass(slots=True)
class _Scan:
    started: int
    files: int = 0
    bytes: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)


class Shadow:
    """The shadow of one volume. Blocking: call it from a thread, one call at a time."""

    def __init__(self, path: Path, content: ContentStore) -> None:
        self.path = path
        self.content = content
        self._repo: pygit2.Repository | None = None

    def create(self) -> None:
        """Make it; again is harmless, also after a crash half-way."""
        pygit2.init_repository(str(self.path), bare=True, initial_head="main")
        sync_filesystem(self.path)

    @property
    def repo(self) -> pygit2.Repository:
        if self._repo is None:
            try:
                self._repo = pygit2.Repository(str(self.path))
            except (pygit2.GitError, KeyError) as error:
                raise LeaseholdError(
                    "shadow_unusable",
                    f"the history of this volume at {self.path} is missing or damaged: {error}",
                    kind=Kind.INTERNAL,
                    got=str(self.path),
                ) from None
        return self._repo

    # -- taking a snapshot ---------------------------------------------------------------------

    def snapshot(
        self, files: Path, author: Author, message: str, at: float | None = None
    ) -> Snapshot:
        """Record ``files`` as they are; when nothing changed the newest commit is the answer."""
        scan = _Scan(time.time_ns())
        old, last = self._load_seen()
        before = self.content.added_bytes
        top = os.open(files, _DIRECTORY)
        tree = self._write_tree(top, "", scan, old, last)
        stored = self.content.added_bytes - before
        head = self._head()
        if head is not None and head.tree_id == tree:
            self._save_seen(scan)
            return self._describe(head)
        self.content.settle()
        when = int(time.time() if at is None else at)
        who = pygit2.Signature(author.name, author.email, when, 0)
        message = " ".join(message.split()) or "snapshot"
        text = f"{message}\n\nfiles: {scan.files}\nbytes: {scan.bytes}\nstored: {stored}\n"
        parents = [] if head is None else [head.id]
        # Written and made durable before the branch names it.
        commit = self.repo.create_commit(None, who, who, text, tree, parents)
        sync_filesystem(self.path)
        self.repo.references.create(BRANCH, commit, force=True)
        sync_filesystem(self.path)
        self._save_seen(scan)
        return Snapshot(str(commit), when, author.name, message, scan.files, scan.bytes, stored)

    def _write_tree(
        self, folder: int, relative: str, scan: _Scan, old: dict[str, Seen], last: int
    ) -> pygit2.Oid:
        """Record an open directory (closes it).

        Everything is opened relative to its directory and without following links: whoever writes
        to the volume may swap a directory for a link while we look.
        """
        records: list[Record] = []
        children = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    key = relative + entry.name
                    try:
                        found = entry.stat(follow_symlinks=False)
                        content = ""
                        if stat.S_ISREG(found.st_mode):
                            content, found = self._content(
                                folder, entry.name, key, found, scan, old, last
                            )
                        elif stat.S_ISLNK(found.st_mode):
                            content = os.readlink(entry.name, dir_fd=folder)
                        elif stat.S_ISDIR(found.st_mode):
                            child = os.open(entry.name, _DIRECTORY, dir_fd=folder)
                            found = os.fstat(child)
                            tree = self._write_tree(child, f"{key}/", scan, old, last)
                            children.append((entry.name, tree))
                    except OSError as error:
                        if error.errno in _SWAPPED:
                            continue  # removed or replaced while we looked
                        raise
                    record = record_of(entry.name, found, content)
                    if record is not None:
                        records.append(record)
                        if record.type == "f":
                            scan.files += 1
                            scan.bytes += record.size
        finally:
            os.close(folder)
        builder = self.repo.TreeBuilder()
        builder.insert(RECORDS, self.repo.create_blob(encode(records)), pygit2.enums.FileMode.BLOB)
        if children:
            below = self.repo.TreeBuilder()
            for name, child in children:
                below.insert(_git_name(name), child, pygit2.enums.FileMode.TREE)
            builder.insert(CHILDREN, below.write(), pygit2.enums.FileMode.TREE)
        return builder.write()

    def _content(
        self,
        folder: int,
        name: str,
        key: str,
        found: os.stat_result,
        scan: _Scan,
        old: dict[str, Seen],
        last: int,
    ) -> tuple[str, os.stat_result]:
        known = old.get(key)
        if (
            known is not None
            and known.size == found.st_size
            and known.mtime == found.st_mtime_ns
            and known.ctime == found.st_ctime_ns
            and known.inode == found.st_ino
            and found.st_ctime_ns < last - RACY_NS
        ):
            scan.seen[key] = known
            return known.content, found
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
        try:
            for attempt in range(UNSTEADY_TRIES):
                found = os.fstat(fd)
                try:
                    digest = self.content.put(fd, found.st_size)
                except Changed:
                    continue
                after = os.fstat(fd)
                steady = (after.st_size, after.st_mtime_ns) == (found.st_size, found.st_mtime_ns)
                if steady or attempt == UNSTEADY_TRIES - 1:
                    break
            else:
                raise LeaseholdError(
                    "file_unsteady",
                    f"{key} changes faster than it can be read; stop the writer or try again",
                    kind=Kind.CONFLICT,
                    path=key,
                )
        finally:
            os.close(fd)
        scan.seen[key] = Seen(
            found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, digest
        )
        return digest, found

    def _load_seen(self) -> tuple[dict[str, Seen], int]:
        try:
            raw = (self.path / INDEX).read_bytes()
            last, names = msgspec.msgpack.decode(raw, type=tuple[int, dict[bytes, Seen]])
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}, 0  # a cache: without it everything is hashed again
        return {os.fsdecode(name): seen for name, seen in names.items()}, last

    def _save_seen(self, scan: _Scan) -> None:
        names = {os.fsencode(name): seen for name, seen in scan.seen.items()}
        temporary = self.path / f"{INDEX}.new"
        temporary.write_bytes(msgspec.msgpack.encode((scan.started, names)))
        os.replace(temporary, self.path / INDEX)

    # -- looking back --------------------------------------------------------------------------

    def _head(self) -> pygit2.Commit | None:
        try:
            return self.repo.references[BRANCH].peel(pygit2.Commit)
        except KeyError:
            return None
        except (pygit2.GitError, ValueError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> LeaseholdError:
        return LeaseholdError(
            "shadow_unusable",
            f"the history of this volume at {self.path} is damaged: {error}",
            kind=Kind.INTERNAL,
            got=str(self.path),
        )

    def history(self, limit: int = 1000) -> list[Snapshot]:
        """Snapshots, newest first."""
        out: list[Snapshot] = []
        commit = self._head()
        while commit is not None and len(out) < limit:
            out.append(self._describe(commit))
            commit = commit.parents[0] if commit.parents else None
        return out

    def _describe(self, commit: pygit2.Commit) -> Snapshot:
        message, _, tail = commit.message.partition("\n\n")
        numbers = dict(line.split(": ") for line in tail.splitlines() if ": " in line)
        return Snapshot(
            str(commit.id),
            float(commit.commit_time),
            commit.author.name,
            message,
            int(numbers.get("files", 0)),
            int(numbers.get("bytes", 0)),
            int(numbers.get("stored", 0)),
        )

    def resolve(self, at: str | float | None) -> str:
        """The commit named by a (shortened) id, or the newest at a time (seconds UTC)."""
        if at is None or isinstance(at, float | int):
            for snapshot in self.history():
                if at is None or snapshot.at <= at:
                    return snapshot.commit
            raise _no_snapshot(str(at))
        try:
            found = self.repo.revparse_single(at)
            return str(found.peel(pygit2.Commit).id)
        except (KeyError, ValueError, pygit2.GitError):
            raise _no_snapshot(at) from None

    def records(self, commit: str) -> Iterator[tuple[str, Record]]:
        """Everything in a snapshot, parents before children: ``(path, record)``."""
        try:
            tree = self.repo[commit].peel(pygit2.Commit).tree
        except (KeyError, ValueError, pygit2.GitError) as error:
            raise self._damaged(error) from None
        yield from self._walk(tree, "")

    def _walk(self, tree: pygit2.Tree, relative: str) -> Iterator[tuple[str, Record]]:
        try:
            block = self.repo[tree[RECORDS].id]
            below = tree[CHILDREN] if CHILDREN in tree else None  # noqa: SIM401 (no .get)
        except (KeyError, pygit2.GitError) as error:
            raise self._damaged(error) from None
        assert isinstance(block, pygit2.Blob)
        for record in decode(block.data):
            path = relative + record.name
            yield path, record
            if record.type == "d":
                assert isinstance(below, pygit2.Tree)
                child = below[_git_name(record.name)]
                assert isinstance(child, pygit2.Tree)
                yield from self._walk(child, f"{path}/")

    def diff(self, old: str, new: str) -> list[Change]:
        """What changed from one snapshot to another; modification times alone do not count."""
        before, after = dict(self.records(old)), dict(self.records(new))
        changes = [Change("removed", p, r, None) for p, r in before.items() if p not in after]
        for path, record in after.items():
            was = before.get(path)
            if was is None:
                changes.append(Change("added", path, None, record))
            elif was._replace(mtime=0) != record._replace(mtime=0):
                changes.append(Change("modified", path, was, record))
        return sorted(changes, key=lambda change: change.path)


def _git_name(name: str) -> str:
    """Git refuses some names (``.git``), and not all are UTF-8: hex is always right."""
    return "x" + os.fsencode(name).hex()


def _no_snapshot(what: str) -> LeaseholdError:
    return LeaseholdError(
        "snapshot_not_found",
        f"this volume has no snapshot {what!r}; see its history",
        kind=Kind.NOT_FOUND,
        got=what,
    )
