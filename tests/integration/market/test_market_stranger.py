"""A stranger's CometBFT client (cosmjs on Node) reads the ledger and sends a transaction."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from leasehold.market.accounts import Key
from leasehold.market.ledger import messages as m
from leasehold.market.ledger.money import Coin
from leasehold.market.testing import DirectClient, market

REPOSITORY = Path(__file__).parents[3]
HERE = REPOSITORY / "tests" / "interop" / "comet"


def installed() -> Path:
    """Where ``scripts/interop-setup comet`` puts the client; runs it unless it was run before."""
    files = [HERE / "package.json", HERE / "package-lock.json"]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cache = Path(os.environ.get("LEASEHOLD_INTEROP_CACHE", home / "leasehold" / "interop"))
    folder = cache / f"comet-{key}"
    if not (folder / ".done").exists():
        subprocess.run([REPOSITORY / "scripts" / "interop-setup", "comet"], check=True, timeout=180)
    return folder


async def test_cosmjs_reads_what_we_say(tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node is not None, "the client needs Node (scripts/setup --dev)"
    folder = await asyncio.to_thread(installed)
    shutil.copy(HERE / "client.mjs", tmp_path / "client.mjs")
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    key, other = Key.generate(), Key.generate("ed25519")
    async with market(key, other, serve=True) as ledger:
        client = DirectClient(ledger, other)
        await client.transfer(key.address, 1)
        raw = m.sign(key, "leasehold-1", 0, [m.Send(to=other.address, amount=Coin("uakt", "3"))])
        process = await asyncio.create_subprocess_exec(
            node,
            "client.mjs",
            ledger.url,
            "1",
            base64.b64encode(raw).decode(),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        said = json.loads(out)
        last = ledger.chain.last
        assert said["network"] == said["chainId"] == "leasehold-1"
        assert said["height"] == said["foundHeight"] == said["infoHeight"] == 2
        assert said["pushed"] == [2]
        assert said["hash"] == said["againHash"] == hashlib.sha256(raw).hexdigest()
        assert said["pushedTxs"] == [said["hash"]]
        assert said["code"] == said["againCode"] == 0
        assert said["blockHash"] == last.hash.hex()
        assert said["lastBlock"] == (await ledger.history.block(1)).sealed.hash.hex()
        assert said["resultEvents"] == ["message", "transfer"]
        assert said["headers"] == 2
        assert said["searched"] == 2
        assert said["commitHeight"] == 2
        assert said["commitSigned"] == said["validators"] == said["proofTotal"] == 1
        assert said["counts"] == 2
