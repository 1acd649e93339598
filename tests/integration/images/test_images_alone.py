"""``leasehold node --only images`` as a user runs it: processes, settings files, a mirror each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from leasehold.images import build
from leasehold.p2p.keys import KeyPair


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One node: its settings, its ports, its process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder / name, name
        self.mirror, self.transfer, self.p2p, self.ops = (free_port() for _ in range(4))
        keys = KeyPair.load_or_create(self.folder / "images/identity")
        peer = str(keys.peer_id)
        self.member = {
            "node": name,
            "peer_id": peer,
            "addresses": [f"/ip4/127.0.0.1/tcp/{self.p2p}/p2p/{peer}"],
            "transfer": f"127.0.0.1:{self.transfer}",
        }

    def configure(self, registry: str, members: Path) -> None:
        (self.folder / "leasehold.toml").write_text(
            f"""
[images]
node_name = "{self.name}"
members_file = "{members}"
mirror_port = {self.mirror}
transfer_host = "127.0.0.1"
transfer_port = {self.transfer}
registries = [{{name = "{registry}"}}]
[p2p]
listen = ["/ip4/127.0.0.1/tcp/{self.p2p}"]
[ops]
port = {self.ops}
"""
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold", "node", "--only", "images",
            "--state", str(self.folder), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        log = bytearray()

        async def follow(stream: asyncio.StreamReader) -> None:
            while piece := await stream.read(65536):
                log.extend(piece)

        following = asyncio.create_task(follow(process.stderr))
        try:
            yield self
            assert process.returncode is None, log.decode()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            await following

    async def images(self, *command: str) -> Any:
        """``leasehold images`` beside the running node."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold", "images", *command, "--json",
            "--state", str(self.folder),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, (out, err)
        return json.loads(out)

    async def ready(self, client: httpx.AsyncClient) -> None:
        """Polled, as an orchestrator does. Alone it never is: the members file names two."""
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get(f"http://127.0.0.1:{self.ops}/readyz")
                    if answer.status_code == 200:
                        return
                await asyncio.sleep(0.1)


async def test_two_nodes_share_one_pull(registry: Any, tmp_path: Path) -> None:
    built = build.busybox({"data": os.urandom(6_000_000)})
    await build.push(built, registry.host, "alone/app", "1")
    nodes = [Process(tmp_path, name) for name in ("left", "right")]
    members = tmp_path / "members.json"
    members.write_text(json.dumps([n.member for n in nodes]))
    for node in nodes:
        node.configure(registry.host, members)
    blob = built.layers[1]
    path = f"/v2/alone/app/blobs/{blob.digest}"
    async with nodes[0].running() as left, nodes[1].running() as right:
        async with httpx.AsyncClient(timeout=60) as client:
            await asyncio.gather(left.ready(client), right.ready(client))
            answers = await asyncio.gather(
                *(client.get(f"http://127.0.0.1:{n.mirror}{path}") for n in (left, right))
            )
            assert [a.status_code for a in answers] == [200, 200], [a.text[:300] for a in answers]
            assert all(a.content == blob.blob for a in answers)
            metrics = (await client.get(f"http://127.0.0.1:{left.ops}/metrics")).text
            assert "p2p_origin_pull_total" in metrics
        pulled = await left.images("pull", f"{registry.host}/alone/app:1")
        assert pulled["bytes"]["cache"] >= len(blob.blob), "the mirror's bytes are here"
        listed = await left.images("ls")
        assert [row["reference"] for row in listed] == [f"{registry.host}/alone/app:1"]
        assert (left.folder / "images.sock").stat().st_mode & 0o777 == 0o600
    gets = registry.logs.read_text().count(f'"GET {path} ')
    assert gets == 1, "each digest leaves the registry once"
