"""Services as containers with runc or crun, supervised by the keeper like any other process.

The keeper runs the runtime in the foreground, so restart policy, log, stop and adoption are those
of host processes; only the command differs. The control group of what is inside is the keeper's
too, which ends it even when the runtime was killed and could not. Layers are overlaid at every
start, in a mount namespace of the container's own process, so that nothing stays mounted when it
ends. The container has no network, no capabilities and no new privileges; it sees its socket
directory at ``/run/leasehold`` and its data at ``/data``.

An implementation of the ``Containers`` port for nodes that have a runtime and an image store and
nothing else. A deployment system may offer its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.node.cgroups import box_of
from leasehold.node.ports import ContainerSpec, PackageImages
from leasehold.node.supervisor import Supervisor

RUNTIMES = ("runc", "crun")
DELETE_TIMEOUT = 10.0
"""Seconds the runtime may take to delete a container whose own runtime was killed."""

START = """
set -e
{runtime} --root {root} delete -f {id} >/dev/null 2>&1 || true
mount -t overlay overlay -o lowerdir={lower},upperdir={bundle}/upper,workdir={bundle}/work \
{bundle}/rootfs
cd {bundle}
exec {runtime} --root {root} run --bundle {bundle} {id}
"""


class OciContainers:
    """Give a node ``lambda supervisor: OciContainers(supervisor, root, images)``."""

    def __init__(
        self, supervisor: Supervisor, root: Path, images: PackageImages, *, runtime: str = ""
    ) -> None:
        self.root = root
        self.images = images
        self.supervisor = supervisor
        found = runtime or next((r for r in RUNTIMES if shutil.which(r)), "")
        self.runtime = shutil.which(found) if found else None
        self._ours: set[str] = set()

    async def start(self, spec: ContainerSpec) -> None:
        """Run it unless it runs already."""
        self._ours.add(spec.id)
        if spec.id in self.supervisor.states:
            return
        if self.runtime is None or os.geteuid() != 0:
            raise LeaseholdError(
                "no_container_runtime",
                "containers need root and runc or crun; install one of them",
                kind=Kind.UNSUPPORTED,
            )
        image = await self.images.ensure(spec.image, holder=_holder(spec.id))
        bundle = self.root / spec.id
        for name in ("rootfs", "upper", "work"):
            (bundle / name).mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(self._config(spec, image)))
        script = START.format(
            runtime=self.runtime,
            root=self.root / "state",
            id=spec.id,
            lower=":".join(str(layer) for layer in reversed(list(image.layers))),
            bundle=bundle,
        )
        await self.supervisor.launch(
            spec.id,
            {
                "argv": ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
                "env": {"PATH": os.environ.get("PATH", os.defpath)},
                "cwd": str(bundle),
                "dir": str(spec.log_path.parent),
                "socket": "",
                "limits": {"files": 4096},
                "restart": {},
                "log_bytes": 1 << 20,
            },
        )

    def _config(self, spec: ContainerSpec, image: Any) -> dict[str, Any]:
        defaults = (getattr(image, "config", None) or {}).get("config", {})
        args = list(spec.args) or [
            *(defaults.get("Entrypoint") or []),
            *(defaults.get("Cmd") or []),
        ]
        env = [*(defaults.get("Env") or []), *(f"{k}={v}" for k, v in spec.env.items())]
        limits: dict[str, Any] = {}
        if spec.memory_mb:
            limits["memory"] = {"limit": spec.memory_mb << 20}
        if spec.cpu:
            limits["cpu"] = {"quota": int(spec.cpu * 100_000), "period": 100_000}
        if spec.pids:
            limits["pids"] = {"limit": spec.pids}

        def bind(source: Path, at: str) -> dict[str, Any]:
            return {
                "destination": at,
                "type": "bind",
                "source": str(source),
                "options": ["bind", "nosuid", "nodev"],
            }

        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": env or ["PATH=/usr/bin:/bin"],
                "cwd": defaults.get("WorkingDir") or "/",
                "noNewPrivileges": True,
                "capabilities": {},
            },
            "root": {"path": "rootfs"},
            "hostname": spec.id[:12],
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "mode=755", "size=65536k"],
                },
                bind(spec.socket_dir, "/run/leasehold"),
                bind(spec.data_dir, "/data"),
            ],
            "linux": {
                "cgroupsPath": box_of(str(self.supervisor.root), spec.id),
                "resources": limits,
                "namespaces": [
                    {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")
                ],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/sysrq-trigger"],
                "readonlyPaths": ["/proc/sys"],
            },
        }

    async def stop(self, id: str, *, grace: float = 5.0) -> None:
        """End and remove it; unknown ids are fine."""
        await self.supervisor.halt(id, grace=grace)
        self._ours.discard(id)
        if self.runtime is not None and (self.root / "state" / id).exists():
            # Its runtime was killed before it could tidy up.
            await self._delete(id)
        shutil.rmtree(self.root / id, ignore_errors=True)
        await self.images.release(_holder(id))

    async def _delete(self, id: str) -> None:
        process = await asyncio.create_subprocess_exec(
            str(self.runtime),
            "--root",
            str(self.root / "state"),
            "delete",
            "-f",
            id,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(DELETE_TIMEOUT):
            if await process.wait() and (self.root / "state" / id).exists():
                raise LeaseholdError(
                    "container_not_deleted",
                    f"{self.runtime} could not delete container {id}",
                    kind=Kind.UNAVAILABLE,
                    got=id,
                )

    async def restart(self, id: str) -> None:
        await self.supervisor.restart(id)

    async def running(self) -> dict[str, str]:
        """Id to state, of containers known to this process or with a bundle on disk."""
        states = await self.supervisor.refresh()
        known = set(self._ours)
        if self.root.is_dir():
            known |= {path.name for path in self.root.iterdir()} - {"state"}
        return {id: states[id].state for id in known if id in states}


def _holder(id: str) -> str:
    """Who uses the image of a container: its layers are the container's files."""
    return f"node service {id}"
