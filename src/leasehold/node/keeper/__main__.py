"""``python -m leasehold.node.keeper ROOT``: go into the background, return when listening."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys

from leasehold.node.keeper.clients import Keeper

MAX_LOG = 1 << 20
"""Bytes of the keeper's own log, which is emptied when it has grown larger."""


def main() -> None:
    root = os.path.abspath(sys.argv[1])
    ready_r, ready_w = os.pipe()
    if os.fork():
        os.close(ready_w)
        sys.exit(0 if os.read(ready_r, 1) == b"1" else 1)
    os.close(ready_r)
    os.setsid()
    lock = os.open(os.path.join(root, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        # Another one serves this folder already; that is all that was wanted.
        os.write(ready_w, b"1")
        sys.exit(0)
    null = os.open("/dev/null", os.O_RDWR)
    errors = os.open(
        os.path.join(root, "keeper.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    info = os.fstat(errors)
    if stat.S_ISREG(info.st_mode) and info.st_size > MAX_LOG:
        os.ftruncate(errors, 0)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    os.chdir("/")
    Keeper(root).run(ready_w)


if __name__ == "__main__":
    main()
