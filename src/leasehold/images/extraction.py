"""One layer on its way from a compressed blob to a directory.

read → sha256 → isal or zstd → sha256 → :mod:`tarstream` → ``bsdtar --chroot``, in two threads that
take turns (hashing and inflating release the GIL), so both digests are checked again at no extra
time. Measured on 96 MB of gzip, 12,600 files: 1.3 s, where ``tarfile`` needs 4.2 s and cannot be
made safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import queue
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import zstandard
from isal import igzip

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter, histogram
from leasehold.images.lower import LowerLayers, Parts
from leasehold.images.ports import DigestMismatch
from leasehold.images.staging import BLOCK, disk_errors, disk_full
from leasehold.images.tarheader import LayerRefused
from leasehold.images.tarstream import LayerFilter
from leasehold.model.digest import Digest

if TYPE_CHECKING:
    from leasehold.images.unpack import Layers

AHEAD = 4
"""Blocks (1 MiB) inflated ahead of the extractor."""

ZSTD_WINDOW = 128 * 1024 * 1024
"""Largest zstd window, what ``zstd --long=27`` makes; bounds the memory of one unpacking."""

STDERR_BYTES = 4096
F_SETPIPE_SZ = 1031

UNPACKED = counter("leasehold_images_unpacked_bytes_total", "Bytes of layers unpacked")
SECONDS = histogram("leasehold_images_unpack_seconds", "Unpacking one layer")

log = get_logger(__name__)


class _Cancelled(Exception):
    pass


class Pipeline:
    """One layer on its way through the two threads and the extractor."""

    def __init__(
        self,
        layers: Layers,
        blob: Path | int,
        digest: Digest,
        diff_id: Digest,
        below: Sequence[Path],
    ) -> None:
        self.layers = layers
        self.blob = blob
        self.digest = digest
        self.diff_id = diff_id
        self.below = below
        self._blocks: queue.Queue[bytes | Exception | None] = queue.Queue(AHEAD)
        self._ended = threading.Event()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._ended.set()

    def run(self) -> Path:
        tree = self.layers.root / f"{secrets.token_hex(8)}.tmp"
        with SECONDS.time(), disk_errors():
            tree.mkdir(mode=0o755)
            try:
                return self._run(tree)
            except BaseException:
                shutil.rmtree(tree, ignore_errors=True)
                raise

    def _run(self, tree: Path) -> Path:
        inflater = threading.Thread(target=self._inflate, name="unpack", daemon=True)
        inflater.start()
        settings = self.layers.settings
        blocks = _Blocks(self._next_block)
        try:
            with _extractor(tree) as out:
                layer = LayerFilter(
                    blocks,
                    out.write,
                    LowerLayers(self.below),
                    max_bytes=settings.unpacked_bytes,
                    max_entries=settings.unpacked_entries,
                )
                layer.run()
            # What follows the archive's end still counts for its digest, within the same bound.
            rest = settings.unpacked_bytes - layer.bytes
            if blocks.drain(rest):
                raise LayerRefused("it goes on after its end", code="layer_too_large")
        finally:
            self._ended.set()
            inflater.join()
        got = "sha256:" + blocks.hash.hexdigest()
        if got != self.diff_id:
            raise DigestMismatch(self.diff_id, got, "the unpacked layer")
        _finish(tree, layer)
        UNPACKED.inc(layer.bytes)
        return self.layers.keep(tree, self.diff_id, layer)

    def _next_block(self) -> bytes | None:
        if self._cancelled:
            raise _Cancelled
        block = self._blocks.get()
        if isinstance(block, Exception):
            raise block
        return block

    def _inflate(self) -> None:
        """Thread one: read, hash, inflate."""
        try:
            fd = (
                os.open(self.blob, os.O_RDONLY | os.O_CLOEXEC)
                if isinstance(self.blob, Path)
                else os.dup(self.blob)
            )
            try:
                source = _Hashed(fd)
                with _inflated(source) as tar:
                    while block := tar.read(BLOCK):
                        self._put(block)
                while source.read(BLOCK):
                    pass
            finally:
                os.close(fd)
            got = "sha256:" + source.hash.hexdigest()
            if got != self.digest:
                raise DigestMismatch(self.digest, got, "the image store")
            self._put(None)
        except _Cancelled:
            with contextlib.suppress(queue.Full):
                self._blocks.put_nowait(_Cancelled())
        except (zstandard.ZstdError, EOFError, igzip.BadGzipFile, igzip.isal_zlib.error) as error:
            self._put_last(LayerRefused(f"it does not decompress: {error}"))
        except Exception as error:
            self._put_last(error)

    def _put_last(self, item: Exception) -> None:
        with contextlib.suppress(_Cancelled):
            self._put(item)

    def _put(self, item: bytes | Exception | None) -> None:
        while not self._ended.is_set():
            try:
                return self._blocks.put(item, timeout=0.2)
            except queue.Full:
                continue
        raise _Cancelled


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0
        self.hash = hashlib.sha256()
        self.head = os.pread(fd, 4, 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # preadv: a descriptor shared with other readers keeps its position.
        got = os.preadv(self._fd, [buffer], self._offset)
        self.hash.update(memoryview(buffer)[:got])
        self._offset += got
        return got


@contextlib.contextmanager
def _inflated(source: _Hashed) -> Any:
    """``source`` uncompressed, whatever its media type claims: the first bytes decide."""
    head = source.head
    if head.startswith(b"\x1f\x8b"):
        with igzip.IGzipFile(fileobj=source, mode="rb") as tar:
            yield tar
    elif head == b"\x28\xb5\x2f\xfd" or head[1:] == b"\x2a\x4d\x18":
        reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
        stream = cast(IO[bytes], source)
        with reader.stream_reader(stream, read_across_frames=True, closefd=False) as tar:
            yield tar
    else:
        yield source


class _Blocks:
    """The ``Source`` of the filter: blocks from the other thread, hashed for the diff id."""

    def __init__(self, next_block: Callable[[], bytes | None]) -> None:
        self._next = next_block
        self._block = memoryview(b"")
        self._end = False
        self.hash = hashlib.sha256()

    def _more(self) -> bool:
        if self._end:
            return False
        block = self._next()
        if block is None:
            self._end = True
            return False
        self.hash.update(block)
        self._block = memoryview(block)
        return True

    def read(self, size: int) -> bytes:
        if len(self._block) >= size:
            piece, self._block = self._block[:size], self._block[size:]
            return bytes(piece)
        out = bytearray()
        self.copy(size, out.extend)
        return bytes(out)

    def copy(self, size: int, write: Callable[[memoryview], object]) -> bool:
        while size:
            if not self._block and not self._more():
                return False
            piece = self._block[:size]
            write(piece)
            size -= len(piece)
            self._block = self._block[len(piece) :]
        return True

    def drain(self, limit: int) -> bool:
        """Read to the end; True when ``limit`` bytes were not enough."""
        while self._block or self._more():
            limit -= len(self._block)
            if limit < 0:
                return True
            self._block = memoryview(b"")
        return False


@contextlib.contextmanager
def _extractor(tree: Path) -> Any:
    """bsdtar's standard input; its failure is raised on the way out, before ours."""
    program = shutil.which("bsdtar")
    if program is None:
        raise LeaseholdError(
            "bsdtar_missing",
            "bsdtar is not installed; install the package libarchive-tools",
            kind=Kind.UNAVAILABLE,
        )
    # Without root there is no chroot, and no isolation of what the image will run either.
    confined = "--chroot" if os.geteuid() == 0 else "--no-same-owner"
    with open(os.open(tree, os.O_TMPFILE | os.O_RDWR, 0o600), "w+b") as errors:
        process = subprocess.Popen(
            [program, confined, "-x", "-p", "-U", "--numeric-owner", "-f", "-", "-C", str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            bufsize=BLOCK,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdin, F_SETPIPE_SZ, BLOCK)
        broken = False
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError:
            broken = True
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        if process.returncode or broken:
            errors.seek(0)
            said = errors.read(STDERR_BYTES).decode(errors="replace").strip()
            if "No space left" in said or "Disk quota" in said:
                raise disk_full("unpacking a layer filled the disk")
            raise LayerRefused(f"bsdtar: {said.splitlines()[0] if said else 'failed'}")


def _finish(tree: Path, layer: LayerFilter) -> None:
    """Opaque marks and extended attributes, never through a link."""
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for parts in layer.opaque:
            with _inside(root, parts, directory=True) as fd:
                try:
                    os.setxattr(fd, "trusted.overlay.opaque", b"y")
                except PermissionError:
                    os.setxattr(fd, "user.overlay.opaque", b"y")
        for parts, attributes in layer.xattrs.items():
            if layer.entries.get(parts) not in (b"0", b"5"):
                continue
            with _inside(root, parts, directory=False) as fd:
                for name, value in attributes.items():
                    with contextlib.suppress(PermissionError):
                        os.setxattr(fd, name, value)
    finally:
        os.close(root)


@contextlib.contextmanager
def _inside(root: int, parts: Parts, *, directory: bool) -> Any:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.dup(root)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            extra = os.O_DIRECTORY if directory or not last else 0
            inner = os.open(part, flags | extra, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)
