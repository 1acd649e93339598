"""Dashboards and alerts speak of metrics that exist, and the files are well formed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from leasehold.core.metrics import REGISTRY
from leasehold.dispatch import metrics as _dispatch
from leasehold.index import metrics as _index
from leasehold.schedule import scheduler as _schedule

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARDS = ("dispatch", "index")
_ = (_dispatch, _index, _schedule)


def known() -> set[str]:
    names = set()
    for family in REGISTRY.collect():
        suffixes = {
            "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"],
        }.get(family.type, [""])  # fmt: skip
        names |= {family.name + suffix for suffix in suffixes}
    return names


def used(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:leasehold|indexers)_[a-z_]+", expression))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards(name: str) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / f"{name}.json").read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    assert len(expressions) >= 12
    for expression in expressions:
        assert used(expression)
        assert used(expression) <= known(), expression


def test_alerts() -> None:
    file = DEPLOY / "prometheus" / "indexer-alerts.yml"
    rules = yaml.safe_load(file.read_text())["groups"][0]["rules"]
    for rule in rules:
        assert used(rule["expr"]) <= known(), rule["alert"]
        assert rule["annotations"]["action"]
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool comes with the package prometheus"
    subprocess.run([promtool, "check", "rules", str(file)], check=True, capture_output=True)


def test_compose_names_commands_and_settings_that_exist() -> None:
    from leasehold.app.settings import Settings
    from leasehold.cli import COMMANDS
    from leasehold.core.settings import describe

    compose = yaml.safe_load((DEPLOY / "compose" / "indexer" / "compose.yml").read_text())
    variables = {f"LEASEHOLD_{s.path.upper().replace('.', '__')}" for s in describe(Settings)}
    variables.add("LEASEHOLD_STATE")
    for service in compose["services"].values():
        if "leasehold" in service["image"]:
            assert service["command"][0] in COMMANDS
            assert set(service["environment"]) <= variables
    scrape = yaml.safe_load((DEPLOY / "compose" / "indexer" / "prometheus.yml").read_text())
    targets = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    assert {target.partition(":")[0] for target in targets} <= set(compose["services"])
