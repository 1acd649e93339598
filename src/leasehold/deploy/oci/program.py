"""The program that runs bundles: crun, runc or runsc (gVisor), and what each needs to be told."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.programs import find_program

FIRST_SYSTRAP = 20230601
"""The gVisor release from which on its systrap platform is there."""


@dataclass(frozen=True, slots=True)
class Program:
    """``user_namespace``: whether bundles are to have one."""

    name: str
    path: str
    user_namespace: bool
    platform: str = ""

    @classmethod
    def find(cls, wanted: str, *, user_namespace: bool) -> Program:
        """``wanted`` is a name, or ``auto``: crun, else runc, and nothing else."""
        name, path = choose(wanted)
        if name != "runsc":
            return cls(name, path, user_namespace)
        # gVisor has ids of its own inside its sandbox, and takes no user namespace as well.
        return cls(name, path, False, gvisor_platform(path))

    @property
    def can_exec(self) -> bool:
        """runc 1.1 cannot enter a user namespace together with a network it does not own."""
        return self.name != "runc" or not self.user_namespace

    def command(self, state: Path, log: Path, *arguments: str) -> list[str]:
        """A command line; ``state`` is where it keeps what it runs, ``log`` where it complains."""
        common = ["--root", str(state), "--log", str(log)]
        if self.name == "crun":
            common += ["--cgroup-manager=cgroupfs"]
        elif self.name == "runsc":
            # "host" is the network namespace it is started in, which is the replica's own: our
            # rules hold, and the kernel's stack knows our routes.
            common += [f"--platform={self.platform}", "--network=host"]
        return [self.path, *common, "--log-format=json", *arguments]


def choose(wanted: str) -> tuple[str, str]:
    """``(name, path)`` of the runtime to use; ``auto`` takes crun, else runc, and nothing else."""
    names = ("crun", "runc") if wanted == "auto" else (wanted,)
    for name in names:
        program = find_program(name)
        if program is not None:
            return name, program
    raise LeaseholdError(
        "no_runtime",
        f"no container runtime found ({' or '.join(names)}); install one "
        '(Debian: apt-get install crun). Without containers, runtime = "process" runs workloads '
        "with no isolation whatever, for development only",
        kind=Kind.UNSUPPORTED,
        path="deploy.runtime",
        expected=" or ".join(names),
    )


def gvisor_platform(program: str) -> str:
    """How gVisor catches system calls: by systrap, or by ptrace in releases before 2023-06."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    dated = re.search(r"\b(20\d{6})\.", said.stdout)
    return "ptrace" if dated and int(dated[1]) < FIRST_SYSTRAP else "systrap"
