"""A real lease against the provider of this machine: does all of it work, end to end?

The self test is a tenant like any other, with an account made for it. It orders a small web server,
takes this provider's own bid, sends the manifest, and asks for the answer through ingress; then it
reads the status, updates the service while asking it all the time, and closes the deployment. The
image is served by the self test itself, so no registry is needed. What is left afterwards is looked
for; it is the same path as a tenant's, so what fails here fails for tenants.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from leasehold.app.demo.image import build
from leasehold.app.running import Running
from leasehold.app.tenant import Tenant, first_answer
from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import running
from leasehold.core.web import HttpServer
from leasehold.market.accounts import Key
from leasehold.model import sdl
from leasehold.model.market import LeaseId

GIFT = "20000000"
"""Base units the self test's account is given: a deposit of 5000000 and room to spare."""

BID_WAIT = 30.0
"""Seconds the provider may take to bid."""

HEALTHY_WAIT = 180.0
"""Seconds a version may take to answer."""

GONE_WAIT = 60.0
"""Seconds until nothing of the closed lease runs."""

ASK_PERIOD = 0.01
"""Seconds between requests while the service is updated."""

NAME = "leasehold/selftest:1"

Operator = Callable[[str, str, Any], Awaitable[Any]]


class Step(msgspec.Struct, frozen=True):
    """One thing that was tried. ``ms`` is how long it took."""

    name: str
    ok: bool
    ms: float
    detail: str = ""


class Report(msgspec.Struct):
    """``ok``: every step was."""

    ok: bool = False
    provider: str = ""
    lease: str = ""
    steps: list[Step] = []
    error: dict[str, Any] | None = None


Tell = Callable[[Step], None]


class SelfTest:
    """``operator(method, path, body)`` asks the gateway with the operator's token. ``image``: use
    that one (it must serve HTTP on 8080) instead of the self test's own; ``key``: an account with
    funds, where this provider's operator cannot give any."""

    def __init__(
        self,
        provider: Running,
        operator: Operator,
        *,
        image: str = "",
        key: Key | None = None,
        tell: Tell = lambda step: None,
        clock: Clock | None = None,
    ) -> None:
        self.provider = provider
        self.operator = operator
        self.image = image
        self.key = key
        self.tell = tell
        self.clock: Clock = clock or SystemClock()
        self.host = f"selftest-{secrets.token_hex(4)}.localhost"
        self.report = Report(provider=provider.provider)

    async def run(self) -> Report:
        """Every step; the first that fails ends it, and the lease is closed in any case."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._steps(stack)
            self.report.ok = True
        except (LeaseholdError, TimeoutError, httpx.HTTPError) as error:
            told = error if isinstance(error, LeaseholdError) else _as_error(error)
            self.report.error = told.to_dict()
        return self.report

    async def _steps(self, stack: contextlib.AsyncExitStack) -> None:
        if not self.image:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="selftest-")))
            await self._step("image served", lambda: self._serve(stack, folder))
        await self._step("account funded", self._fund)
        assert self.key is not None
        tenant = await stack.enter_async_context(
            Tenant(self.key, self.provider.ledger, clock=self.clock)
        )
        first, second = (sdl.load(self.sdl_text(text)) for text in ("one", "two"))
        id = await self._step(
            "order taken",
            lambda: tenant.ledger.create_deployment(first.groups(), first.hash, "5000000"),
        )
        stack.push_async_callback(self._close, tenant, id.dseq)
        bid = await self._step("bid made", lambda: self._bid(tenant, id))
        lease = LeaseId.parse(bid["id"])
        self.report.lease = str(lease)
        await self._step("lease made", lambda: tenant.ledger.create_lease(lease))
        url = self.provider.gateway
        await self._step(
            "manifest accepted", lambda: tenant.send_manifest(url, lease, first.manifest())
        )
        await self._step("healthy", lambda: self._healthy(tenant, lease, first.hash.hex()))
        await self._step("answers through ingress", lambda: self._answers("one"))
        await self._step("status shows it", lambda: self._told(tenant, lease))
        await self._step("updated, no request lost", lambda: self._update(tenant, lease, second))

    async def _step(self, name: str, action: Callable[[], Awaitable[Any]]) -> Any:
        began = self.clock.monotonic()
        try:
            value = await action()
        except BaseException as error:
            self._note(name, began, ok=False, detail=str(error) or type(error).__name__)
            raise
        self._note(name, began, ok=True, detail=value if isinstance(value, str) else "")
        return value

    def _note(self, name: str, began: float, *, ok: bool, detail: str) -> None:
        step = Step(name, ok, round((self.clock.monotonic() - began) * 1000, 1), detail)
        self.report.steps.append(step)
        self.tell(step)

    # -- the steps ------------------------------------------------------------------------------

    async def _serve(self, stack: contextlib.AsyncExitStack, folder: Path) -> str:
        digest = await asyncio.to_thread(build, folder)
        server = HttpServer(registry(folder, digest), clock=self.clock, name="selftest image")
        await stack.enter_async_context(running(server))
        self.image = f"localhost:{server.port}/{NAME}"
        return self.image

    async def _fund(self) -> str:
        if self.key is None:
            self.key = Key.generate()
            gift = {"to": self.key.address, "amount": GIFT}
            await self.operator("POST", "/v1/market/gifts", gift)
        return self.key.address

    async def _bid(self, tenant: Tenant, id: Any) -> Any:
        """This provider's own."""
        mine = self.provider.provider
        wait = 0.01
        try:
            async with self.clock.timeout(BID_WAIT):
                while True:
                    async for bid in tenant.ledger.list(
                        "bids", owner=id.owner, dseq=id.dseq, gseq=1, oseq=1
                    ):
                        if bid["state"] == "open" and bid["id"].endswith(f"/{mine}"):
                            return bid
                    await self.clock.sleep(wait)
                    wait = min(0.25, wait * 1.5)
        except TimeoutError:
            offered = await self.operator("GET", "/v1/inventory", None)
            raise LeaseholdError(
                "no_bid",
                f"this provider did not bid within {BID_WAIT:g} s"
                + (f": it is paused ({offered['unavailable']})" if offered["unavailable"] else ""),
                kind=Kind.TIMEOUT,
            ) from None

    async def _healthy(self, tenant: Tenant, lease: LeaseId, hash: str) -> str:
        with contextlib.suppress(TimeoutError):
            async with self.clock.timeout(HEALTHY_WAIT):
                async for story in tenant.timeline(self.provider.gateway, lease):
                    for step in story["steps"]:
                        if step.get("detail", {}).get("hash") != hash:
                            continue
                        if step["type"] == "deploy.healthy":
                            return ", ".join(story["uris"])
                        if step["type"] == "deploy.failed":
                            said = step["detail"]
                            raise LeaseholdError(said["code"], said["message"])
        raise LeaseholdError(
            "not_healthy", f"it did not come up within {HEALTHY_WAIT:g} s", kind=Kind.TIMEOUT
        )

    async def _answers(self, text: str) -> str:
        _, said = await first_answer(self.provider.ingress, host=self.host, clock=self.clock)
        if text not in said:
            raise LeaseholdError("wrong_answer", "another service answers", expected=text, got=said)
        return said

    async def _told(self, tenant: Tenant, lease: LeaseId) -> str:
        """The tenant's status: everything available, and its memory reported."""
        status = await tenant._request(
            "GET", f"{self.provider.gateway}/lease/{lease.dseq}/{lease.gseq}/{lease.oseq}/status"
        )
        service = status["services"]["web"]
        if service["available"] != service["total"]:
            raise LeaseholdError(
                "not_available",
                "the status does not show what runs",
                expected=service["total"],
                got=service["available"],
            )
        used = sum(replica.get("memory_bytes", 0) for replica in service.get("running", ()))
        return f"{used / (1 << 20):.1f} MiB in use"

    async def _update(self, tenant: Tenant, lease: LeaseId, new: sdl.SDL) -> str:
        """Ask all the time while the second version takes the place of the first."""
        lost: list[str] = []
        asked = 0
        done = asyncio.Event()

        async def ask() -> None:
            nonlocal asked
            async with httpx.AsyncClient(timeout=30.0, trust_env=False) as http:
                while not done.is_set():
                    asked += 1
                    try:
                        answer = await http.get(self.provider.ingress, headers={"Host": self.host})
                        if answer.status_code != httpx.codes.OK:
                            lost.append(f"status {answer.status_code}")
                    except httpx.TransportError as error:
                        lost.append(repr(error))
                    await self.clock.sleep(ASK_PERIOD)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask())
            try:
                await tenant.ledger.update_deployment(lease.dseq, new.hash)
                await tenant.send_manifest(self.provider.gateway, lease, new.manifest())
                await self._healthy(tenant, lease, new.hash.hex())
                await self._answers("two")
            finally:
                done.set()
        if lost:
            raise LeaseholdError("requests_lost", f"{len(lost)} of {asked} requests: {lost[0]}")
        return f"{asked} requests"

    async def _close(self, tenant: Tenant, dseq: int) -> None:
        await self._step("closed and removed", lambda: self._gone(tenant, dseq))

    async def _gone(self, tenant: Tenant, dseq: int) -> None:
        await tenant.ledger.close_deployment(dseq)
        if not self.report.lease:
            return
        async with self.clock.timeout(GONE_WAIT):
            async for story in tenant.timeline(
                self.provider.gateway, LeaseId.parse(self.report.lease)
            ):
                if any(step["type"] == "deploy.removed" for step in story["steps"]):
                    return

    def sdl_text(self, text: str) -> str:
        """The deployment as a tenant would write it; ``text`` is what it answers."""
        service = {
            "image": self.image,
            "env": [f"GREETING={text}", "DATA=/tmp"],
            "expose": [{"port": 8080, "as": 80, "accept": [self.host], "to": [{"global": True}]}],
        }
        resources = {"cpu": {"units": 0.1}, "memory": {"size": "64Mi"}, "storage": {"size": "64Mi"}}
        placement = {"pricing": {"web": {"denom": "uakt", "amount": 1000}}}
        return json.dumps(
            {
                "version": "2.0",
                "services": {"web": service},
                "profiles": {
                    "compute": {"web": {"resources": resources}},
                    "placement": {"here": placement},
                },
                "deployment": {"web": {"here": {"profile": "web", "count": 1}}},
            }
        )


def registry(folder: Path, digest: str) -> Any:
    """An ASGI application: the pull side of a registry that holds one image, of ``folder``."""
    digests = re.compile(r"/v2/.+/(?:manifests|blobs)/(sha256:[0-9a-f]{64}|[^/]+)\Z")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status, kind, body = 404, "application/json", b"{}"
        named: list[tuple[bytes, bytes]] = []
        found = digests.match(scope["path"])
        if scope["path"] == "/v2/":
            status = 200
        elif found is not None:
            wanted = found[1] if found[1].startswith("sha256:") else digest
            file = folder / "blobs" / "sha256" / wanted.removeprefix("sha256:")
            if file.is_file():
                status, body = 200, file.read_bytes()
                if "/manifests/" in scope["path"]:
                    kind = "application/vnd.oci.image.manifest.v1+json"
                else:
                    kind = "application/octet-stream"
                named = [(b"docker-content-digest", wanted.encode())]
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            *named,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
        )

    return app


def _as_error(error: Exception) -> LeaseholdError:
    return LeaseholdError("selftest_failed", str(error) or type(error).__name__, kind=Kind.INTERNAL)
