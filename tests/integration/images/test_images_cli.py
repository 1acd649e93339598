"""The commands, on a folder of their own (no provider running)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.integration.terminal import Terminal

from leasehold.images import build


async def leasehold(*args: str, expect: int = 0) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "leasehold",
        "images",
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == expect, (out, err)
    return json.loads(out) if "--json" in args else out.decode() + err.decode()


async def test_pull_explain_verify_and_collect(registry: Any, tmp_path: Path) -> None:
    built = build.busybox({"x": b"1" * 100_000})
    name = await build.push(built, registry.host, "cli/bb", "1")
    state = ("--state", str(tmp_path))
    assert await leasehold("ls", *state, "--json") == []
    pulled = await leasehold("pull", name, *state, "--json")
    whole = built.size + len(built.manifest)
    assert pulled["bytes"] == {"origin": whole, "peers": 0, "cache": 0}
    again = await leasehold("pull", name, *state, "--json")
    assert again["bytes"]["origin"] == 0 and again["bytes"]["cache"] > 0
    explained = await leasehold("explain", name, *state, "--json")
    assert [p["kind"] for p in explained["parts"]].count("layer") == 2
    assert explained["bytes"]["origin"] == whole, "the story of how it came here stays"
    assert "from" not in await leasehold("explain", built.digest[7:19], *state)
    held = await leasehold("holders", name, *state, "--json")
    assert [(p["here"], p["others"]) for p in held] == [(True, [])] * len(explained["parts"])
    assert "shares images with nobody" in await leasehold("fleet", *state)
    assert await leasehold("inflight", *state, "--json") == []
    shown = await leasehold("inspect", name, *state)
    assert json.loads(shown)["config"]["config"]["Cmd"] == ["/bin/sh"]
    assert (await leasehold("verify", *state, "--json"))["good"] == 4
    blob = tmp_path / "images/store/blobs/sha256"
    bad = blob / built.layers[1].digest.hex[:2] / built.layers[1].digest.hex
    bad.chmod(0o644)
    bad.write_bytes(b"rotten")
    result = await leasehold("verify", *state, "--json", expect=1)
    assert result["bad"] == [built.layers[1].digest]
    await leasehold("pin", name, *state)
    kept = await leasehold("gc", "--keep", "0", *state, "--json")
    assert kept["images"] == [] and kept["layers"] == 0
    await leasehold("pin", "--off", name, *state)
    gone = await leasehold("gc", "--keep", "0", *state, "--json")
    assert gone["images"] == [name] and gone["layers"] == 2
    missing = await leasehold("explain", "nothing", *state, expect=4)
    assert "image_not_found" in missing


async def test_a_pull_shows_its_bytes_on_a_terminal(registry: Any, tmp_path: Path) -> None:
    """Without anything running: the command fetches itself. The registry stops half way."""
    built = build.busybox({"x": os.urandom(4_000_000)})
    name = await build.push(built, registry.host, "cli/big", "1")
    enough, go_on = 2_000_000, asyncio.Event()

    async def carry(a: asyncio.StreamReader, b: asyncio.StreamWriter, held: bool) -> None:
        nonlocal enough
        with contextlib.suppress(OSError):
            while data := await a.read(65536):
                enough -= len(data) if held else 0
                if enough < 0:
                    await go_on.wait()
                b.write(data)
                await b.drain()
        b.close()

    async def connected(a: asyncio.StreamReader, b: asyncio.StreamWriter) -> None:
        host, _, port = registry.host.partition(":")
        c, d = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(a, d, False), carry(c, b, True))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    terminal = Terminal()
    reference = name.replace(registry.host, f"127.0.0.1:{port}")
    pulling = await terminal.run("images", "pull", reference, "--state", str(tmp_path))
    await terminal.until("8 MiB in ")  # of one layer or of both
    go_on.set()
    assert await pulling.wait() == 0, terminal.drawn
    await terminal.until("from its registry")
    proxy.close()


async def test_an_identity_is_shown_and_stays(tmp_path: Path) -> None:
    first = await leasehold("identity", "--state", str(tmp_path), "--json")
    assert first["peer_id"].startswith("12D3KooW")
    assert await leasehold("identity", "--state", str(tmp_path), "--json") == first
