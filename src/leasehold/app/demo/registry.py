"""Debian's docker-registry as a service: real, on loopback, gone when the demo ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import httpx

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import Service
from leasehold.core.web import bind

PORT = 29555
"""Where ``examples/hello`` expects the registry; another free port is taken when it is in use."""


class Registry(Service):
    """Serve ``folder`` on ``port`` (0: any free one), see :attr:`port` and :attr:`host`."""

    def __init__(self, folder: Path, *, port: int = PORT, clock: Clock | None = None) -> None:
        super().__init__("registry", clock=clock)
        self.folder = folder
        self.port = port

    @property
    def host(self) -> str:
        """As it stands in an image reference."""
        return f"localhost:{self.port}"

    async def start(self) -> None:
        program = _program("docker-registry", "docker-registry")
        self.port = _free_port(self.port)
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.yml"
        config.write_text(
            "version: 0.1\n"
            "log: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder}/data}},"
            " delete: {enabled: true}}\n"
            f"http: {{addr: 127.0.0.1:{self.port}}}\n"
        )
        with (self.folder / "registry.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                program, "serve", str(config), stdout=log, stderr=log, start_new_session=True
            )
        self.resources.push_async_callback(_end, process)
        self.spawn(self._watch(process), name="watch")
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{self.port}/v2/")).is_success:
                        return
                except httpx.TransportError:
                    await self.clock.sleep(0.01)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        raise LeaseholdError(
            "registry_ended",
            f"docker-registry ended with {code}; see {self.folder}/registry.log",
            kind=Kind.INTERNAL,
        )

    async def push(self, layout: Path, name: str) -> str:
        """Copy the OCI layout to ``name`` (``repository:tag``); returns the full reference."""
        reference = f"{self.host}/{name}"
        process = await asyncio.create_subprocess_exec(
            _program("skopeo", "skopeo"),
            "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false",
            f"oci:{layout}", f"docker://{reference}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, complaint = await process.communicate()
        if process.returncode:
            raise LeaseholdError(
                "push_failed",
                f"could not push {reference}: {complaint.decode().strip()}",
                kind=Kind.INTERNAL,
            )
        return reference


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        try:
            with bind("127.0.0.1", port, what="registry") as sock:
                return int(sock.getsockname()[1])
        except LeaseholdError as error:
            if error.code != "port_in_use":
                raise
    raise AssertionError("a free port can always be had")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        os.kill(process.pid, signal.SIGTERM)
        await process.wait()


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise LeaseholdError(
            f"{name.replace('-', '_')}_missing",
            f"{name} is not installed: apt-get install {package}",
            kind=Kind.UNAVAILABLE,
        )
    return found
