"""Read-only without touching modes: the immutable flag of Linux's file systems.

Set on every file and directory of a frozen volume, so that not even root changes it by mistake,
and unfreezing gives back exactly the modes there were. A file system or kernel without the flag
is no error: a frozen volume is not mounted in any case.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IMMUTABLE_FL = 0x10

_UNSUPPORTED = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.ENOSYS}


def set_tree(root: str | os.PathLike[str], immutable: bool) -> bool:
    """Set or clear the flag on everything below and on ``root``; False where it is not possible.

    Set bottom up and cleared top down, so that a crash half-way leaves a tree that the same call
    completes.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _tree(fd, immutable)
    finally:
        os.close(fd)


def _tree(folder: int, immutable: bool) -> bool:
    if not immutable and not _set(folder, False):
        return False
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                continue
            child = os.open(entry.name, flags, dir_fd=folder)
            try:
                done = _tree(child, immutable) if stat.S_ISDIR(mode) else _set(child, immutable)
            finally:
                os.close(child)
            if not done:
                return False
    return _set(folder, True) if immutable else True


def _set(fd: int, immutable: bool) -> bool:
    flags = array.array("l", [0])
    try:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
        wanted = flags[0] | FS_IMMUTABLE_FL if immutable else flags[0] & ~FS_IMMUTABLE_FL
        if wanted != flags[0]:
            flags[0] = wanted
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True
