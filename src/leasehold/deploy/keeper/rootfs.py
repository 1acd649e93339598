"""Assembling a container's root, in the keeper's own mount namespace.

Image layers (shared, read-only, id-mapped) below, a writable directory of the container above, one
overlay over both; volumes mounted beside it; files such as ``/etc/resolv.conf`` written into it,
and missing mount points made, always resolved *inside* the tree, whatever symlinks an image holds.
The runtime copies the mount namespace when it starts the container, so all of it is unmounted here
again as soon as the container runs: the kernel drops the mounts with the container's last process,
and there is nothing left to clean when the keeper or the provider dies.

With ``disk`` the writable directory is a file system of its own in a sparse file, so a container
that fills its disk fills that and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from typing import Any

from leasehold.deploy.keeper import linux, userns

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_ATTEMPTS = 64
"""Another process may take the free loop device we were shown; then we ask again."""


class Unusable(Exception):
    """The image cannot be run as it is; the message says what is in the way."""


class IdRanges:
    """User namespaces by range, opened once: 2 ms each."""

    def __init__(self) -> None:
        self._fds: dict[tuple[int, int], int] = {}

    def fd(self, base: int, size: int) -> int:
        found = self._fds.get((base, size))
        if found is None:
            found = self._fds[base, size] = userns.open_userns(base, size)
        return found


def assemble(home: str, spec: dict[str, Any], ranges: IdRanges) -> None:
    """Mount everything of ``spec`` below ``home``; on failure nothing stays mounted.

    ``spec``: ``layers`` (paths, bottom first), ``writable`` (directory holding ``upper`` and
    ``work``), ``disk`` (sparse file mounted there first, or None), ``idmap`` ([base, size] or
    None), ``volumes`` ([{source or inside, readonly}] mounted as ``v0``, ``v1``, ...; ``inside``
    names a directory of the container's own disk),
    ``directories`` (mount points inside), ``files`` ([{path, text, mode}]).
    """
    try:
        _assemble(home, spec, ranges)
    except BaseException:
        dismantle(home)
        raise


def _assemble(home: str, spec: dict[str, Any], ranges: IdRanges) -> None:
    idmap = spec.get("idmap")
    base = idmap[0] if idmap else 0
    shift = ranges.fd(*idmap) if idmap else 0
    os.makedirs(home, mode=0o711, exist_ok=True)
    names = []
    for index, layer in enumerate(spec["layers"]):
        target = f"{home}/l{index}"
        os.makedirs(target, exist_ok=True)
        _bind(layer, target, shift if not spec.get("layers_shifted") else 0)
        names.append(f"l{index}")
    writable = f"{home}/w"
    if spec.get("disk"):
        os.makedirs(writable, exist_ok=True)
        _mount_disk(spec["disk"], writable)
    elif not os.path.islink(writable):
        os.symlink(spec["writable"], writable)
    for name, mode in (("upper", 0o755), ("work", 0o700)):
        path = f"{writable}/{name}"
        if not os.path.isdir(path):
            os.mkdir(path)
            os.chmod(path, mode)
            os.chown(path, base, base)
    root = f"{home}/rootfs"
    os.makedirs(root, exist_ok=True)
    # Relative names: the kernel takes one page of options, and images have up to 127 layers.
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(home)
        lower = ":".join(reversed(names))
        linux.mount(
            "overlay",
            "rootfs",
            "overlay",
            0,
            f"lowerdir={lower},upperdir=w/upper,workdir=w/work"
            + (",volatile" if spec.get("volatile") else ""),
        )
    finally:
        os.fchdir(here)
        os.close(here)
    for index, volume in enumerate(spec.get("volumes", ())):
        target = f"{home}/v{index}"
        os.makedirs(target, exist_ok=True)
        attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
        if volume.get("readonly"):
            attributes |= linux.MOUNT_ATTR_RDONLY
        if volume.get("inside"):
            # On the container's own disk, which belongs to its ids already.
            source = f"{writable}/{volume['inside']}"
            if not os.path.isdir(source):
                os.mkdir(source, 0o755)
                os.chown(source, base, base)
            _bind(os.path.realpath(source), target, 0, attributes=attributes)
        else:
            _bind(volume["source"], target, shift, attributes=attributes)
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in spec.get("directories", ()):
            os.close(_directory(root_fd, directory, base))
        for file in spec.get("files", ()):
            _write(root_fd, file["path"], file["text"].encode(), file.get("mode", 0o644), base)
    finally:
        os.close(root_fd)


def dismantle(home: str) -> None:
    """Unmount what :func:`assemble` mounted here; the container keeps its own copies."""
    try:
        entries = sorted(os.listdir(home), reverse=True)
    except FileNotFoundError:
        return
    # The overlay ("rootfs") before what lies under it ("l0", "w").
    for name in sorted(entries, key=lambda n: n != "rootfs"):
        path = f"{home}/{name}"
        if os.path.islink(path) or not os.path.isdir(path):
            continue
        while True:
            try:
                linux.umount(path)
            except OSError:
                break


def remove(home: str) -> None:
    """Unmount and delete the (then empty) directories below ``home``."""
    dismantle(home)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(home):
            path = f"{home}/{name}"
            if os.path.islink(path):
                os.unlink(path)
            elif os.path.isdir(path):
                # Never recursive: if something is still mounted here, its content is not ours.
                os.rmdir(path)
            else:
                os.unlink(path)
        os.rmdir(home)


def _bind(source: str, target: str, shift: int, *, attributes: int = 0) -> None:
    tree = linux.open_tree(source)
    try:
        if shift:
            attributes |= linux.MOUNT_ATTR_IDMAP
        if attributes:
            linux.mount_setattr(tree, set_=attributes, userns_fd=shift)
        linux.move_mount(tree, target)
    finally:
        os.close(tree)


def _mount_disk(file: str, target: str) -> None:
    device, fd = _attach_loop(file)
    try:
        linux.mount(device, target, "ext4", linux.MS_NOSUID | linux.MS_NODEV)
    finally:
        # The mount keeps the device; with its last mount it detaches itself (autoclear).
        os.close(fd)


def _attach_loop(file: str) -> tuple[str, int]:
    with (
        open(file, "r+b", buffering=0) as backing,
        open("/dev/loop-control", "r+b", buffering=0) as control,
    ):
        for _ in range(_LOOP_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = f"/dev/loop{number}"
            if not os.path.exists(device):
                os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(7, number))
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                config = bytearray(304)
                struct.pack_into("II", config, 0, backing.fileno(), 4096)
                # struct loop_info64 starts at 8; lo_flags is its 13th u32, after five u64.
                struct.pack_into("I", config, 8 + 52, _LO_FLAGS_AUTOCLEAR)
                fcntl.ioctl(fd, _LOOP_CONFIGURE, bytes(config))
                return device, fd
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
    raise OSError(errno.EBUSY, "no free loop device")


def _directory(root_fd: int, path: str, owner: int) -> int:
    """Open ``path`` inside the tree, making what is missing; the caller closes the descriptor."""
    current = linux.open_in_root(root_fd, ".", os.O_PATH | os.O_DIRECTORY)
    walked = ""
    for part in (p for p in path.split("/") if p and p != "."):
        walked += "/" + part
        try:
            following = linux.open_in_root(root_fd, walked, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                os.close(current)
                raise Unusable(f"the image has no usable directory at {walked}: {error}") from None

            try:
                os.mkdir(part, 0o755, dir_fd=current)
            except FileExistsError:
                os.close(current)
                raise Unusable(f"the image has a link that leads nowhere at {walked}") from None
            os.chown(part, owner, owner, dir_fd=current, follow_symlinks=False)
            following = linux.open_in_root(root_fd, walked, os.O_PATH | os.O_DIRECTORY)
        os.close(current)
        current = following
    return current


def _write(root_fd: int, path: str, data: bytes, mode: int, owner: int) -> None:
    """Replace the file ``path`` inside the tree; a symlink there is replaced, not followed."""
    folder, _, name = path.rpartition("/")
    parent = _directory(root_fd, folder, owner)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            os.write(fd, data)
            os.fchown(fd, owner, owner)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    finally:
        os.close(parent)
