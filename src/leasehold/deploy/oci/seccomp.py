"""The system calls a replica may make: an allow list; everything else answers ENOSYS or EPERM.

Beyond the usual container profile it refuses what a tenant without capabilities has no use for and
kernels have been broken by: new namespaces (also through ``clone``), mounting, keyrings, ptrace,
io_uring, userfaultfd, perf and bpf. ``clone3`` answers ENOSYS, since its flags cannot be inspected;
every libc then uses ``clone``. Only the native architecture is allowed, which also makes the
filter cheap to compile (7 ms less a start than with 32-bit compatibility).
"""

from __future__ import annotations

import errno
import functools
import importlib.resources
import platform
from typing import Any

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET together."""

_REFUSED = (
    "bpf", "io_uring_enter", "io_uring_register", "io_uring_setup", "keyctl", "add_key",
    "request_key", "mount", "move_mount", "open_tree", "mount_setattr", "fsopen", "fsconfig",
    "fsmount", "fspick", "sethostname", "setdomainname", "syslog", "reboot", "swapon", "swapoff",
    "settimeofday", "clock_settime", "init_module", "finit_module", "delete_module", "acct",
    "perf_event_open", "pivot_root", "ptrace", "process_vm_readv", "process_vm_writev",
    "setns", "umount2", "unshare", "userfaultfd",
)  # fmt: skip
"""Refused with EPERM: programs probe for these and expect a permission error."""


@functools.cache
def profile() -> dict[str, Any] | None:
    """The OCI ``linux.seccomp`` object; None on an architecture we have no table for."""
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        return None
    text = importlib.resources.files(__package__).joinpath("syscalls.txt").read_text("ascii")
    allowed = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": [architecture],
        "syscalls": [
            {"names": allowed, "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {
                        "index": 0,
                        "value": _NAMESPACE_FLAGS,
                        "valueTwo": 0,
                        "op": "SCMP_CMP_MASKED_EQ",
                    }
                ],
            },
            {"names": list(_REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
        ],
    }
