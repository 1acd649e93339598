"""The mirror on content it holds: a large blob and small manifests, against nginx and a registry.

Servers run on the first core, wrk with 16 connections on the second; ours, nginx (sendfile,
tcp_nopush, sendfile_max_chunk 0) and docker-registry take turns on the same content.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench import harness
from leasehold.images import build, oci
from leasehold.model.digest import Digest

CONNECTIONS = 16
MANIFEST_BYTES = 8 * 1024
MIB = 1024 * 1024

NGINX = """
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err; daemon off;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 0; keepalive_requests 100000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/files; }} }}
"""


def run(quick: bool) -> dict[str, Any]:
    return asyncio.run(measure(quick))


async def measure(quick: bool) -> dict[str, Any]:
    blob = secrets.token_bytes((64 if quick else 256) * MIB)
    seconds = 2 if quick else 4
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        registry = stack.enter_context(docker_registry(folder))
        layer = build.Layer(blob, Digest.of(blob), Digest.of(blob), build.LAYER_TYPES[""])
        image = padded(build.image([layer]))
        await build.push(image, registry, "bench", "1")
        node, node_pid = stack.enter_context(mirror(folder / "node", registry))
        nginx = stack.enter_context(web_server(folder, {"blob": blob, "manifest": image.manifest}))
        paths = {"blob": f"/v2/bench/blobs/{layer.digest}",
                 "manifest": f"/v2/bench/manifests/{image.digest}"}  # fmt: skip
        targets = {
            "ours": {key: node + path for key, path in paths.items()},
            "nginx": {"blob": f"{nginx}/blob", "manifest": f"{nginx}/manifest"},
            "registry": {key: f"http://{registry}{path}" for key, path in paths.items()},
        }
        for urls in targets.values():  # warm: the mirror fetches, the page cache fills
            for url in urls.values():
                await asyncio.to_thread(fetch, url)
        found: dict[tuple[str, str], float] = {}
        for what in ("blob", "manifest"):
            runs = await harness.interleaved(
                3 if quick else 5,
                *(load(urls[what], seconds, what == "blob") for urls in targets.values()),
            )
            for who, values in zip(targets, runs, strict=True):
                found[who, what] = harness.median(values)
        crowd = await hundred(targets["ours"]["blob"], node_pid, seconds)
        for (who, what), value in found.items():
            unit = "MiB/s" if what == "blob" else "requests/s"
            print(f"  {who:9} {what:9} {value:10.0f} {unit}", file=sys.stderr)
        return harness.result(
            "mirror",
            found["ours", "blob"],
            "MiB/s of one blob over 16 connections",
            peer="nginx 1.22 (sendfile, tcp_nopush, sendfile_max_chunk 0)",
            peer_value=found["nginx", "blob"],
            higher_is_better=True,
            aim="ratio >= 1.0 of nginx on the blob, >= 1.0 of docker-registry on both",
            registry_blob=round(found["registry", "blob"], 1),
            registry_blob_ratio=round(found["ours", "blob"] / found["registry", "blob"], 3),
            manifests_per_s=round(found["ours", "manifest"]),
            registry_manifests_per_s=round(found["registry", "manifest"]),
            registry_manifest_ratio=round(
                found["ours", "manifest"] / found["registry", "manifest"], 3
            ),
            nginx_manifests_per_s=round(found["nginx", "manifest"]),
            blob_mib=len(blob) // MIB,
            hundred_readers=crowd,
        )


def fetch(url: str) -> None:
    """Read it once; docker-registry hides OCI manifests from those who do not ask for them."""
    request = urllib.request.Request(url, headers={"Accept": oci.ACCEPT})
    with urllib.request.urlopen(request) as response:
        while response.read(MIB):
            pass


async def hundred(url: str, pid: int, seconds: int) -> dict[str, float]:
    """What a hundred readers of the blob at a time cost the node."""

    def cpu() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = cpu(), time.monotonic()
    rate = await load(url, seconds, True, connections=100)()
    used = (cpu() - before) / (time.monotonic() - began)
    status = Path(f"/proc/{pid}/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    return {"mib_s": round(rate), "peak_rss_mib": round(peak / 1024), "cpu_cores": round(used, 2)}


def load(url: str, seconds: int, bulk: bool, connections: int = CONNECTIONS) -> Any:
    """A measurement: MiB/s of bodies, or requests/s, as wrk saw them."""

    async def one() -> float:
        wrk = shutil.which("wrk")
        if wrk is None:
            raise RuntimeError("wrk is not installed")
        process = await asyncio.create_subprocess_exec(
            "taskset", "-c", "1", wrk, "-t1", f"-c{connections}", f"-d{seconds}s",
            "--timeout", "60s", "-H", f"Accept: {oci.ACCEPT}", url, stdout=subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        text = out.decode()
        if "Non-2xx" in text:
            raise RuntimeError(text)
        if not bulk:
            return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
        match = re.search(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", text)
        assert match is not None, text
        return float(match[1]) * {"": 1 / MIB, "K": 1 / 1024, "M": 1, "G": 1024}[match[2]]

    return one


def padded(image: build.Built) -> build.Built:
    """The image with a manifest of 8 KiB."""
    document = msgspec.json.decode(image.manifest)
    document["annotations"] = {"pad": "x" * (MANIFEST_BYTES - len(image.manifest) - 30)}
    return build.Built(msgspec.json.encode(document), image.config, image.layers)


@contextlib.contextmanager
def child(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["taskset", "-c", "0", *command], text=True, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def docker_registry(folder: Path, *, extra: str = "") -> Iterator[str]:
    """Debian's docker-registry; its host:port."""
    host = f"127.0.0.1:{free_port()}"
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
        f"http: {{addr: '{host}', secret: only-for-benches}}\n{extra}"
    )
    with child("docker-registry", "serve", str(config), stderr=subprocess.DEVNULL):
        wait_for(f"http://{host}/v2/")
        yield host


@contextlib.contextmanager
def mirror(folder: Path, registry: str) -> Iterator[tuple[str, int]]:
    command = (sys.executable, "-m", "bench._mirror_node", str(folder), registry)
    with child(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid


@contextlib.contextmanager
def web_server(folder: Path, files: dict[str, bytes]) -> Iterator[str]:
    port = free_port()
    (folder / "files").mkdir()
    for name, content in files.items():
        (folder / "files" / name).write_bytes(content)
    os.chmod(folder, 0o755)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port))
    with child(shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(config)):
        wait_for(f"http://127.0.0.1:{port}/manifest")
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
