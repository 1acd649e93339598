"""The alert rules name metrics that exist, and Prometheus understands them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml

import leasehold.images.node  # noqa: F401  (registers the metrics)
from leasehold.core.metrics import REGISTRY

RULES = Path(__file__).resolve().parents[3] / "deploy/prometheus/images-alerts.yml"


def test_alerts() -> None:
    known = {
        name
        for family in REGISTRY.collect()
        for name in (family.name, f"{family.name}_total", f"{family.name}_bucket")
    }
    for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]:
        used = set(re.findall(r"\b(?:p2p|leasehold)_[a-z0-9_]+", rule["expr"]))
        assert used
        assert used <= known, rule["alert"]
        assert rule["annotations"]["action"]
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool comes with the package prometheus"
    subprocess.run([promtool, "check", "rules", str(RULES)], check=True, capture_output=True)
