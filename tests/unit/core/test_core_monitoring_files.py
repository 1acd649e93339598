"""Dashboards and alerts ask for metrics, and for labels of them, that the code has."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

import leasehold
from leasehold.core import metrics

DEPLOY = Path(__file__).parents[3] / "deploy"
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
RULES = sorted((DEPLOY / "prometheus").glob("*-alerts.yml"))

METRIC = re.compile(r"\b(?:leasehold|indexers|p2p|provider|health|indexerworker)_[a-z0-9_]+")
LABELS = re.compile(r"\bby \(([^)]*)\)")
MATCHERS = re.compile(r"{([^}]*)}")
OF_PROMETHEUS = {"le", "instance", "job"}


@cache
def labels_of() -> dict[str, set[str]]:
    """Every metric as it is scraped, with its labels."""
    root = Path(leasehold.__file__).parent
    for file in root.rglob("*.py"):
        if re.search(r"\b(?:counter|gauge|histogram)\(\n? *\"", file.read_text()):
            module = file.relative_to(root.parent).with_suffix("")
            importlib.import_module(".".join(module.parts).removesuffix(".__init__"))
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {
        name.removesuffix("_total") + suffix if metric._type == "counter" else name + suffix: set(
            metric._labelnames
        )
        for name, metric in metrics._made.items()
        for suffix in suffixes.get(metric._type, [""])
    }


def check(expression: str) -> None:
    found = METRIC.findall(MATCHERS.sub("", LABELS.sub("", expression)))
    assert found or "up{" in expression, expression
    known = labels_of()
    assert set(found) <= known.keys(), expression
    labels = OF_PROMETHEUS.union(*(known[name] for name in found))
    asked = {label.strip() for group in LABELS.findall(expression) for label in group.split(",")}
    for matcher in MATCHERS.findall(expression):
        asked |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matcher))
    assert asked <= labels, expression


@pytest.mark.parametrize("board", BOARDS, ids=lambda file: file.stem)
def test_a_board_shows_what_there_is(board: Path) -> None:
    panels = json.loads(board.read_text())["panels"]
    assert len(panels) >= 12
    for panel in panels:
        for target in panel["targets"]:
            check(target["expr"])
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert legend <= kept(target["expr"]) | {"instance"}, panel["title"]


def kept(expression: str) -> set[str]:
    """The labels of what an expression comes to."""
    if groups := LABELS.findall(expression):
        return {label.strip() for group in groups for label in group.split(",")}
    return set().union(*(labels_of()[name] for name in METRIC.findall(expression)))


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_an_alert_watches_what_there_is_and_says_what_to_do(file: Path) -> None:
    for group in yaml.safe_load(file.read_text())["groups"]:
        for rule in group["rules"]:
            check(rule["expr"])
            assert rule["annotations"]["action"]
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool comes with the package prometheus"
    subprocess.run([promtool, "check", "rules", str(file)], check=True, capture_output=True)
