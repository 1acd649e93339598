"""System calls that Python 3.11 does not wrap, through ctypes. Standard library only.

Numbers are those of the asm-generic table, the same on x86-64 and arm64 for every call used here
(all newer than both ports, except ``setns``, ``unshare``, ``mount`` and ``prctl``, which libc has).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
MS_PRIVATE, MS_SLAVE = 1 << 18, 1 << 19
MNT_DETACH = 2

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_SYS_OPENAT2, _SYS_PIDFD_GETFD, _SYS_MOUNT_SETATTR = 437, 438, 442
OPEN_TREE_CLONE = 1
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
MOUNT_ATTR_IDMAP = 0x00100000
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10

PR_SET_CHILD_SUBREAPER = 36
PR_SET_PDEATHSIG = 1

CGROUP2_SUPER_MAGIC = 0x63677270

_PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 8


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _path(value: str | Path | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def mount(
    source: str | Path | None,
    target: str | Path,
    kind: str | None,
    flags: int = 0,
    options: str = "",
) -> None:
    """``mount(2)``."""
    result = _libc.mount(
        _path(source),
        _path(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )
    _check(result, f"mount {source} on {target}")


def umount(target: str | Path, flags: int = MNT_DETACH) -> None:
    """``umount2(2)``; lazily unless told otherwise."""
    _check(_libc.umount2(_path(target), flags), f"umount {target}")


def unshare(flags: int) -> None:
    """``unshare(2)``: network and mount namespaces are a property of the calling **thread**."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """``setns(2)`` for the calling thread."""
    _check(_libc.setns(fd, flags), "setns")


def prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def open_tree(path: str | Path, *, recursive: bool = False) -> int:
    """A detached copy of the mount at ``path``, as a descriptor."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _check(
        _libc.syscall(_SYS_OPEN_TREE, -100, _path(path), ctypes.c_uint(flags)), f"open_tree {path}"
    )


def mount_setattr(fd: int, *, set_: int, userns_fd: int = 0) -> None:
    """Set attributes of a detached mount; MOUNT_ATTR_IDMAP shifts ids by ``userns_fd``."""
    attr = struct.pack("QQQQ", set_, 0, 0, userns_fd)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, attr, ctypes.c_size_t(len(attr))
    )
    _check(result, "mount_setattr")


def move_mount(fd: int, target: str | Path) -> None:
    """Attach a detached mount at ``target``."""
    result = _libc.syscall(
        _SYS_MOVE_MOUNT, fd, b"", -100, _path(target), ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH)
    )
    _check(result, f"move_mount to {target}")


def exchange(one: str, other: str) -> None:
    """Swap two files by name in one step (``renameat2`` with RENAME_EXCHANGE)."""
    result = _libc.renameat2(-100, _path(one), -100, _path(other), ctypes.c_uint(2))
    _check(result, f"exchange {one}")


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """``openat2`` with the tree of ``root_fd`` as "/": no symlink leads out of it."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    result = _libc.syscall(_SYS_OPENAT2, root_fd, path.encode(), how, ctypes.c_size_t(len(how)))
    return _check(result, f"open {path}")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of another process's descriptor."""
    return _check(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0), "pidfd_getfd")


def exit_status_of_stranger(pidfd: int) -> int | None:
    """The wait status of a reaped process that is not our child; None where the kernel is too old.

    PIDFD_GET_INFO with PIDFD_INFO_EXIT, kernels of 2025 and later.
    """
    buffer = bytearray(64)
    struct.pack_into("Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    if not struct.unpack_from("Q", buffer)[0] & _PIDFD_INFO_EXIT:
        return None
    return int(struct.unpack_from("i", buffer, 60)[0])


def start_time(pid: int) -> int:
    """Clock ticks after boot at which ``pid`` started: with the pid it names a process for good."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19])


def is_cgroup2(path: str | Path) -> bool:
    """True when ``path`` is the root or a group of a cgroup v2 hierarchy."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                if right.startswith("cgroup2 ") and left.split()[4] == str(path):
                    return True
    except OSError:
        pass
    return False
