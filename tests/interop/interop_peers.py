"""Drives a foreign libp2p peer (js-libp2p or py-libp2p) as a child process, by JSON lines.

``scripts/interop-setup`` installs the peers into a cache outside the repository; asking for one
here runs it, so that a missing peer is a failing test and not a skipped one.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SETUP = HERE.parent.parent / "scripts" / "interop-setup"


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("LEASEHOLD_INTEROP_CACHE") or f"{base}/leasehold/interop")


def install(kind: str) -> Path:
    """The folder of the installed peer; installs it when it is not there yet."""
    files = (
        [HERE / "js/package.json", HERE / "js/package-lock.json"]
        if kind == "js"
        else [HERE / "py/requirements.txt"]
    )
    key = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]
    target = cache() / f"{kind}-{key}"
    if not (target / ".done").exists():
        subprocess.run([str(SETUP), kind], check=True, timeout=600)
    return target


class Peer:
    """A running foreign peer. ``await peer.call("dial", address=...)`` returns its answer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.id = ""
        self.kind = ""
        self.addresses: list[str] = []

    async def call(self, op: str, timeout: float = 30.0, **args: Any) -> Any:
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        assert self._process.stdin is not None
        line = json.dumps({"id": number, "op": op, **args}) + "\n"
        self._process.stdin.write(line.encode())
        async with asyncio.timeout(timeout):
            return await answer

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not line.startswith(b"{"):
                continue
            message = json.loads(line)
            if "ready" in message:
                self.id, self.addresses = message["ready"]["peer"], message["ready"]["addresses"]
                self._waiting[0].set_result(None)
                continue
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None and not waiting.done():
                if "error" in message:
                    waiting.set_exception(RuntimeError(message["error"]))
                else:
                    waiting.set_result(message["result"])
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(RuntimeError("the peer's process ended"))


@asynccontextmanager
async def running_peer(kind: str) -> AsyncIterator[Peer]:
    """A js or py peer, listening on loopback, stopped on the way out."""
    folder = await asyncio.to_thread(install, kind)
    if kind == "js":
        for name in ("peer.mjs", "polyfill.mjs"):
            # Node looks for modules beside the script, so the script goes where they are.
            shutil.copy(HERE / "js" / name, folder / f"{os.getpid()}-{name}")
        prefix = folder / f"{os.getpid()}-"
        command = ["node", "--import", f"{prefix}polyfill.mjs", f"{prefix}peer.mjs"]
    else:
        command = [str(folder / "bin/python"), str(HERE / "py/peer.py")]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("INTEROP_DEBUG") else subprocess.DEVNULL,
        limit=8 << 20,
    )
    peer = Peer(process)
    peer.kind = kind
    peer._waiting[0] = asyncio.get_running_loop().create_future()
    reader = asyncio.create_task(peer._read())
    try:
        async with asyncio.timeout(60):
            await peer._waiting[0]
        peer._waiting.pop(0, None)
        yield peer
    finally:
        reader.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()
        if kind == "js":
            for name in ("peer.mjs", "polyfill.mjs"):
                (folder / f"{os.getpid()}-{name}").unlink(missing_ok=True)
