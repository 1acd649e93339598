"""Alerts and dashboards of a provider, in a real Prometheus that scrapes a running one."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.core.web import bind

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "deploy" / "prometheus").glob("*-alerts.yml"))
BOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))

FILLED = {
    "Leases by state",
    "Capacity promised, of what is offered",
    "Manifest received to healthy, 99%",
    "Commit of an event, 99%",
    "Image store",
    "Behind the market",
    "Packages by status",
    "Activities known",
    "Volumes by tier",
    "Space for volumes",
    "Requests of the gateway",
}
"""Panels that must show something after one lease; others need traffic or failures."""


@pytest.fixture(scope="module")
def prometheus(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("prometheus")
    with bind("127.0.0.1", 0, what="prometheus") as sock:
        port = sock.getsockname()[1]
    target = live.running()["ops"].removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(file) for file in RULES],
        "scrape_configs": [{"job_name": "leasehold", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client:
        until(lambda: asked(client, "count_over_time(up[1m])") >= 5)
        yield client
    process.terminate()
    process.wait(timeout=30)


def asked(client: httpx.Client, expression: str) -> float:
    """The first value of an instant query; 0 while there is none."""
    try:
        answer = client.get("/query", params={"query": expression}).json()
    except httpx.TransportError:
        return 0.0
    assert answer["status"] == "success", (expression, answer)
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def until(true: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_healthy_provider_raises_no_alert(prometheus: httpx.Client):
    assert asked(prometheus, 'up{job="leasehold"}') == 1.0
    groups = prometheus.get("/rules").json()["data"]["groups"]
    assert {Path(group["file"]) for group in groups} == set(RULES)
    rules = [rule for group in groups for rule in group["rules"]]
    until(lambda: all(rule["health"] != "unknown" for rule in _rules(prometheus)))
    assert [rule["lastError"] for rule in _rules(prometheus) if rule.get("lastError")] == []
    assert all(rule["annotations"].get("action") for rule in rules)
    ours = [rule for rule in _rules(prometheus) if rule["name"] != "NoWorkerOnline"]
    assert [rule["name"] for rule in ours if rule["state"] == "firing"] == []


def _rules(prometheus: httpx.Client) -> list[dict[str, Any]]:
    groups = prometheus.get("/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_panel_asks_for_something_that_is_there(prometheus: httpx.Client):
    known = set(prometheus.get("/label/__name__/values").json()["data"])
    empty = set()
    for board in BOARDS:
        for panel in json.loads(board.read_text())["panels"]:
            for target in panel.get("targets", ()):
                answer = prometheus.get("/query", params={"query": target["expr"]}).json()
                assert answer["status"] == "success", (board.name, panel["title"], answer)
                if not answer["data"]["result"]:
                    empty.add(panel["title"])
    assert "leasehold_deployments" in known
    assert empty & FILLED == set()
