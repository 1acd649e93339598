"""Requests a second through ingress, beside nginx proxying to the same upstream.

``value``: our proxy with 200 host names in its table, asked for one of them by 32 connections
(wrk). ``peer``: nginx with one server block that proxies to the same upstream with keep-alive.
Extras: milliseconds of a route change under that load, and requests that failed meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import _deploy_node as nodes
from bench.harness import median, result
from leasehold.core import logs
from leasehold.core.service import Group, running
from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.ingress.table import Server
from leasehold.deploy.keeper.client import KeeperClient

UPSTREAM, NGINX = 18080, 18081
HOSTS = 200


def run(quick: bool) -> dict[str, Any]:
    found = nodes.isolated("ingress", quick)
    return result(
        "ingress",
        median(found["ours"]),
        "requests/s",
        peer="nginx proxy_pass",
        peer_value=median(found["nginx"]),
        higher_is_better=True,
        aim=">= nginx",
        runs=len(found["ours"]),
        route_change_ms=round(median(found["changes"]), 3),
        failed_requests=found["failed"],
        hosts=HOSTS,
    )


def measure(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    return asyncio.run(_measure(5, 1 if quick else 4))


def _nginx(folder: Path) -> subprocess.Popen[bytes]:
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; pid {folder}/nginx.pid; error_log stderr crit; worker_processes 1;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 1000000;
  server {{ listen 127.0.0.1:{UPSTREAM}; location / {{ return 200 "hello\\n"; }} }}
  upstream up {{ server 127.0.0.1:{UPSTREAM}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{NGINX}; server_name l7.localhost;
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host;
    }}
  }}
}}
"""
    )
    return subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)])


async def _wrk(port: int, seconds: int) -> tuple[float, int]:
    """``(requests/s, failed)``."""
    process = await asyncio.create_subprocess_exec(
        "wrk", "-t1", "-c32", f"-d{seconds}s", "-H", "Host: l7.localhost",
        f"http://127.0.0.1:{port}/", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output = (await process.communicate())[0].decode()
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", output)
    lost = int(failed[1]) if failed else 0
    lost += sum(map(int, errors.groups())) if errors else 0
    assert rate is not None, output
    return float(rate[1]), lost


async def _measure(runs: int, seconds: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="leasehold-ingress-"))
    upstream = _nginx(folder)
    keeper = KeeperClient(folder / "keeper")
    proxy = Ingress(
        keeper, folder / "ingress", network=None, address="127.0.0.1", ports=(0,), threads=1
    )
    ours: list[float] = []
    nginx: list[float] = []
    changes: list[float] = []
    lost = 0
    try:
        async with running(Group([keeper, proxy])):
            for number in range(HOSTS):
                server = Server("127.0.0.1", UPSTREAM)
                await proxy.point(f"l{number}", hosts=[f"l{number}.localhost"], servers=[server])
            for _ in range(runs):
                for port, values in ((proxy.port, ours), (NGINX, nginx)):
                    rate, failed = await _wrk(port, seconds)
                    values.append(rate)
                    lost += failed if port == proxy.port else 0
            load = asyncio.ensure_future(_wrk(proxy.port, 3))
            for number in range(40):
                await asyncio.sleep(0.05)
                began = time.monotonic()
                host = ["l7.localhost", f"extra{number}.localhost"]
                await proxy.point("l7", hosts=host, servers=[Server("127.0.0.1", UPSTREAM)])
                changes.append((time.monotonic() - began) * 1000)
            lost += (await load)[1]
            await proxy.retire()
            await keeper.retire(force=True)
    finally:
        upstream.terminate()
        upstream.wait()
        shutil.rmtree(folder, ignore_errors=True)
    return {"ours": ours, "nginx": nginx, "changes": changes, "failed": lost}
