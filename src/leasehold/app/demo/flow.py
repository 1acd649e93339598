"""From order to first answer, each step done for real, timed and checked.

The demo is a tenant, an operator and a registry on one machine. The provider is a process of its
own, so that it can be killed while the workload goes on answering. At the end everything is
removed, and what could have been left behind is looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from leasehold.app import debris
from leasehold.app.accounts import Accounts
from leasehold.app.demo.image import build
from leasehold.app.demo.registry import PORT, Registry
from leasehold.app.running import Running
from leasehold.app.tenant import Deployed, Stage, Tenant, first_answer
from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import Service
from leasehold.core.web import bind
from leasehold.deploy.doctor import require
from leasehold.deploy.settings import DeploySettings
from leasehold.market.accounts import Key
from leasehold.model import sdl
from leasehold.model.market import LeaseId
from leasehold.storage.immutable import set_tree

UP_WAIT = 60.0
"""Seconds the provider may take to be ready."""

GONE_WAIT = 30.0
"""Seconds the workload of a closed lease may take to be gone."""

GONE_PROCESSES_WAIT = 5.0
"""Seconds processes that were told to stop may take before they count as left behind."""

HOST = "hello.localhost"
REPOSITORY = "leasehold/hello:1"
ACCOUNT = "demo"
GIFT = "500000000"

SETTINGS = """# A provider beside whatever else runs on this machine: every port is a free one, and
# those that others ask stay the same when it is started again.
[market]
port = {market}
[dispatch]
manager_port = 0
worker_port = 0
[schedule]
port = 0
[gateway]
port = {gateway}
[ops]
port = 0
[deploy]
cgroup_parent = "/{mark}"
ingress_ports = [80, 8081, 0]
"""


class Step(msgspec.Struct, frozen=True):
    """One thing that was done. ``ms`` is how long it took."""

    name: str
    ok: bool
    ms: float
    detail: str = ""


class Result(msgspec.Struct):
    """All of it, for ``--json``."""

    ok: bool = False
    steps: list[Step] = []
    timeline: list[dict[str, Any]] = []
    url: str = ""
    answer: str = ""
    removed: list[str] = []
    left: list[str] = []
    error: dict[str, Any] | None = None


Tell = Callable[[Step], None]


class Demo(Service):
    """Run it as a service; :meth:`play` does the steps, stopping cleans up."""

    stop_deadline = 120.0

    def __init__(
        self,
        example: Path,
        *,
        folder: Path | None = None,
        tell: Tell = lambda step: None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__("demo", clock=clock or SystemClock())
        require(DeploySettings())
        if folder is not None and any(folder.iterdir()):
            # All of it is deleted at the end.
            raise LeaseholdError(
                "folder_not_empty", f"{folder} is not empty; name a new folder", got=folder
            )
        self.example = example
        self.folder = folder or Path(tempfile.mkdtemp(prefix="leasehold-demo-", dir="/var/tmp"))
        self.mark = self.folder.name.replace("_", "-").lower()
        self.result = Result()
        self.tell = tell
        self._lease: LeaseId | None = None
        self._key: Key | None = None

    # -- the way up ----------------------------------------------------------------------------

    async def play(self) -> Result:
        """Do every step; raises the first failure after noting it."""
        await self._step("image built", self._build)
        await self._step("registry started", self._registry)
        await self._step("image pushed", self._push)
        await self._step("provider ready", self._provider)
        await self._step("account funded", self._account)
        deployed = await self._step("deployed", self._deploy)
        await self._step("first answer", lambda: self._ask(deployed))
        self.result.ok = True
        return self.result

    async def _step(self, name: str, action: Callable[[], Any]) -> Any:
        began = self.clock.monotonic()
        try:
            value = await action()
        except BaseException as error:
            self._note(name, began, ok=False, detail=str(error))
            raise
        self._note(name, began, ok=True, detail=value if isinstance(value, str) else "")
        return value

    def _note(self, name: str, began: float, *, ok: bool, detail: str) -> None:
        step = Step(name, ok, round((self.clock.monotonic() - began) * 1000, 1), detail)
        self.result.steps.append(step)
        self.tell(step)

    async def _build(self) -> str:
        return await asyncio.to_thread(build, self.folder / "image")

    async def _registry(self) -> str:
        self.registry = Registry(self.folder / "registry", clock=self.clock)
        self.spawn(self.registry.serve(), name="registry")
        await self.registry._started.wait()
        return self.registry.host

    async def _push(self) -> str:
        return await self.registry.push(self.folder / "image", REPOSITORY)

    async def _provider(self) -> str:
        state = self.folder / "provider"
        state.mkdir(exist_ok=True)
        (state / "leasehold.toml").write_text(
            SETTINGS.format(mark=self.mark, market=_free_port(), gateway=_free_port())
        )
        running = await self.start_provider()
        return f"{running.gateway}, operator {running.provider}"

    async def start_provider(self) -> Running:
        """``leasehold up`` as a process of its own; returns when it is ready."""
        state = self.folder / "provider"
        with (self.folder / "provider.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "leasehold", "up", "--state", str(state),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = self.clock.monotonic() + UP_WAIT
        while self.clock.monotonic() < deadline:
            found = self.running()
            if found is not None and found.pid == process.pid:
                self._process = process
                return found
            if process.returncode is not None:
                break
            await self.clock.sleep(0.02)
        raise LeaseholdError(
            "provider_not_up",
            f"the provider did not come up: {_last_line(self.folder / 'provider.log')}",
            kind=Kind.INTERNAL,
            path=str(self.folder / "provider.log"),
        )

    def running(self) -> Running | None:
        """The provider that runs from the demo's folder, whoever started it."""
        try:
            data = (self.folder / "provider" / "run.json").read_bytes()
            found = msgspec.json.decode(data, type=Running)
            os.kill(found.pid, 0)
        except (OSError, msgspec.MsgspecError):
            return None
        return found

    async def _account(self) -> str:
        accounts = Accounts(self.folder / "home")
        self._key = accounts.new(ACCOUNT)
        await self._operator("POST", "/v1/market/gifts", {"to": self._key.address, "amount": GIFT})
        return f"{ACCOUNT} = {self._key.address}"

    async def _deploy(self) -> Deployed:
        running = self._must_run()
        text = self.example.read_text().replace(f"localhost:{PORT}", self.registry.host)
        assert self._key is not None
        began = self.clock.now()

        def stage(stage: Stage) -> None:
            self.result.timeline.append(
                {"name": stage.name, "ms": round((stage.at - began) * 1000, 1), "at": stage.at}
            )

        async with Tenant(self._key, running.ledger, clock=self.clock) as tenant:
            self._began = began
            (deployed,) = await tenant.deploy(sdl.load(text), on_stage=stage)
        self._lease = LeaseId.parse(deployed.lease)
        if deployed.state != "healthy":
            raise LeaseholdError(
                "demo_not_healthy", f"the lease is {deployed.state}: {deployed.unmet}"
            )
        return deployed

    async def _ask(self, deployed: Deployed) -> str:
        url = self._must_run().ingress
        at, said = await first_answer(url, host=HOST, clock=self.clock)
        self.result.url, self.result.answer = url, said
        self.result.timeline.append(
            {"name": "first answer", "ms": round((at - self._began) * 1000, 1), "at": at}
        )
        return said

    def _must_run(self) -> Running:
        found = self.running()
        if found is None:
            raise LeaseholdError("provider_gone", "the provider is gone", kind=Kind.UNAVAILABLE)
        return found

    async def _operator(self, method: str, path: str, body: Any = None) -> Any:
        token = (self.folder / "provider" / "operator.token").read_text().strip()
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as http:
            response = await http.request(
                method,
                self._must_run().gateway + path,
                json=body,
                headers={"Authorization": f"Bearer {token}"},
            )
        if response.is_error:
            raise LeaseholdError("demo_refused", response.text.strip(), kind=Kind.INTERNAL)
        return response.json()

    # -- the way down --------------------------------------------------------------------------

    async def clean(self) -> Result:
        """Close the lease, clear the node, stop everything and look what is left."""
        if (self.folder / "provider" / "provider.key").exists():
            if self.running() is None:
                # It was killed: only a provider knows what it left, so it comes back to clear up.
                await self.start_provider()
            await self._close_lease()
            self.result.removed += (await self._operator("POST", "/v1/node/clear"))["removed"]
            await self._stop_provider()
            self.result.removed.append("provider")
        if hasattr(self, "registry"):
            await self.registry.shutdown()
            self.result.removed.append("registry")
        self.result.left = await self._left()
        if not self.result.left:
            await asyncio.to_thread(self._remove_folder)
        self.result.ok = self.result.ok and not self.result.left
        return self.result

    async def _left(self) -> list[str]:
        # A provider that was started by hand is not our child: it, and the shell or sudo around it,
        # may take a moment to be gone.
        deadline = self.clock.monotonic() + GONE_PROCESSES_WAIT
        while (left := self._debris()) and self.clock.monotonic() < deadline:
            await self.clock.sleep(0.1)
        return left

    def _debris(self) -> list[str]:
        return debris.find(self.folder, self.folder / "provider", mark=self.mark)

    def _remove_folder(self) -> None:
        # The volume of the closed lease is kept, frozen, until its retention ends; not here.
        set_tree(self.folder, False)
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            self.result.left.append(f"folder {self.folder}: {error}")
        else:
            self.result.removed.append(f"folder {self.folder}")

    async def _close_lease(self) -> None:
        if self._lease is None or self._key is None:
            return
        lease, running = self._lease, self._must_run()
        async with Tenant(self._key, running.ledger, clock=self.clock) as tenant:
            await tenant.ledger.close_deployment(lease.dseq)
            async with self.clock.timeout(GONE_WAIT):
                async for story in tenant.timeline(running.gateway, lease):
                    if any(step["type"] == "deploy.removed" for step in story["steps"]):
                        break
        self.result.removed.append(f"lease {ACCOUNT}/{lease.dseq}")

    async def _stop_provider(self) -> None:
        pid = self._must_run().pid
        os.kill(pid, signal.SIGTERM)
        if self._process.pid == pid:
            await self._process.wait()
            return
        while self.running() is not None:
            await self.clock.sleep(0.05)


def _free_port() -> int:
    """One that outgoing connections do not take meanwhile: those use 32768 and up."""
    while True:
        port = random.randrange(20_000, 29_000)
        with contextlib.suppress(LeaseholdError), bind("127.0.0.1", port, what="demo"):
            return port


def _last_line(file: Path) -> str:
    try:
        lines = file.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it wrote no log"
    for line in reversed(lines):
        if line.startswith("error:"):
            return line.removeprefix("error:").strip()
    if not lines:
        return "it wrote no log"
    try:
        said = json.loads(lines[-1])
        return str(said.get("error") or said.get("event") or said)
    except ValueError:
        return lines[-1]
