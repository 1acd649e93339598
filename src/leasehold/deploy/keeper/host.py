"""What the keeper arranges on the host for itself, all of it before it serves anybody."""

from __future__ import annotations

import hashlib
import os
import socket

from leasehold.deploy.keeper import linux

UNIFIED = "/sys/fs/cgroup/unified"


def bind_short(listener: socket.socket, folder: str) -> None:
    """Bind below ``folder`` although a socket's path may have 107 bytes only."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(folder)
        listener.bind("keeper.sock")
    finally:
        os.fchdir(here)
        os.close(here)


def make_roots(folder: str) -> str:
    """Where roots are assembled: a place that every user may pass through.

    Root inside a container is nobody outside and could not even look up its own root below a
    folder that is private to root, as a home directory is.
    """
    name = hashlib.sha256(folder.encode()).hexdigest()[:12]
    for base in ("/run/leasehold", "/tmp/leasehold"):
        try:
            os.makedirs(f"{base}/{name}", mode=0o711, exist_ok=True)
            os.chmod(base, 0o711)
            os.chmod(f"{base}/{name}", 0o711)
            return f"{base}/{name}"
        except OSError:
            continue
    raise OSError("neither /run nor /tmp can be written to")


def arrange_cgroups() -> str:
    """Make the cgroup hierarchy one that crun accepts, in our mount namespace only.

    crun 1.8 refuses a v1 hierarchy with v2 mounted beside it ("hybrid"), although the v1
    controllers are all there; without the v2 mount it works.
    """
    if linux.is_cgroup2("/sys/fs/cgroup"):
        return "v2"
    if linux.is_cgroup2(UNIFIED):
        linux.umount(UNIFIED)
        return "v1, hybrid mount hidden"
    return "v1"
