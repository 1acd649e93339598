"""The live system of the browser tests, and a browser tab that remembers what it complained of."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page

from leasehold.app.tenant import Tenant
from leasehold.dashboard.sessions import Credential, Sessions
from leasehold.market.accounts import Key
from leasehold.model import sdl
from leasehold.model.market import LeaseId

UP_WAIT = 90.0
DOWN_WAIT = 120.0

HELLO = Path(__file__).resolve().parents[3] / "examples" / "hello" / "deploy.yaml"


class Live:
    """The running system, and how tests reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "provider"
        self.sessions = Sessions(self.state / "sessions")
        self.key = Key.load(folder / "home" / "accounts" / "demo.json")

    @property
    def running(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "run.json").read_text())
        return found

    @property
    def url(self) -> str:
        return str(self.running["gateway"])

    @property
    def token(self) -> str:
        return (self.state / "operator.token").read_text().strip()

    @property
    def image(self) -> str:
        """Where the demo's image is."""
        images = self.operator("/v1/images")
        return str(images[0]["reference"])

    @property
    def lease_page(self) -> str:
        return f"/ui/leases/{self.key.address}/1/1/1"

    def operator(self, path: str) -> Any:
        answer = httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        answer.raise_for_status()
        return answer.json()

    def session(self, credential: Credential) -> str:
        """The key of a session, as ``leasehold dashboard`` makes it."""
        return self.sessions.open(credential, time.time())

    def as_operator(self) -> str:
        return self.session(Credential("operator", self.token))

    def as_tenant(self, key: Key | None = None) -> str:
        key = key or self.key
        return self.session(
            Credential("account", key.secret.hex(), key.address, "demo", key.algorithm)
        )

    def sdl(self, *, host: str, greeting: str) -> str:
        """The demo's SDL for another host name."""
        text = HELLO.read_text().replace("localhost:29555/leasehold/hello:1", self.image)
        return text.replace("hello.localhost", host).replace("hello from your lease", greeting)

    def update(self, dseq: int, text: str) -> None:
        """Send another manifest for a deployment and wait until it is healthy."""

        async def go() -> None:
            loaded = sdl.load(text)
            async with Tenant(self.key, self.running["ledger"]) as tenant:
                await tenant.ledger.update_deployment(dseq, loaded.hash)
                (item,) = [
                    x async for x in tenant.ledger.list("leases", owner=self.key.address, dseq=dseq)
                ]
                await tenant.send_manifest(self.url, LeaseId.parse(item["id"]), loaded.manifest())

        self.run(go())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine; in a thread of its own, because Playwright's loop occupies this one."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, work).result()

    def pages(self) -> list[int]:
        """The processes that serve this system's pages."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_text().split("\0")
                if "leasehold.dashboard" in words and str(self.state / "sessions") in words:
                    found.append(int(process.name))
        return found

    def kill(self) -> None:
        """Kill the provider as a power cut would."""
        os.kill(int(self.running["pid"]), signal.SIGKILL)

    def start(self) -> None:
        """Start it again, at the same address."""
        port = self.url.rpartition(":")[2]
        before = int(self.running["pid"])
        settings = self.state / "leasehold.toml"
        settings.write_text(
            settings.read_text().replace("[gateway]\nport = 0", f"[gateway]\nport = {port}")
        )
        with (self.folder / "provider.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "leasehold", "up", "--state", str(self.state)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + UP_WAIT
        while self.running["pid"] == before:
            assert time.monotonic() < deadline, (self.folder / "provider.log").read_text()[-3000:]
            time.sleep(0.05)


class Tab:
    """A page that remembers what it complained of and what it asked for."""

    def __init__(self, browser: Browser, live: Live, **options: Any) -> None:
        self.live = live
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def shot(self, name: str) -> None:
        """Keep a picture for the docs, when ``LEASEHOLD_SCREENSHOTS`` says where to."""
        folder = os.environ.get("LEASEHOLD_SCREENSHOTS")
        if folder:
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=Path(folder) / f"dashboard-{name}.png")

    def enter(self, session: str, path: str = "/") -> Page:
        """Open a page as whom the session stands for."""
        self.page.goto(f"{self.live.url}{path}#session={session}")
        self.page.wait_for_selector("main h1")
        return self.page


def axe() -> str:
    """The source of axe-core, which finds what keeps people from using a page."""
    root = Path(__file__).resolve().parents[3]
    files = [root / "tests/interop/axe" / name for name in ("package.json", "package-lock.json")]
    key = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(os.environ.get("LEASEHOLD_INTEROP_CACHE") or f"{base}/leasehold/interop")
    if not (cache / f"axe-{key}" / ".done").exists():
        subprocess.run([str(root / "scripts/interop-setup"), "axe"], check=True, timeout=300)
    return (cache / f"axe-{key}" / "node_modules/axe-core/axe.min.js").read_text()
