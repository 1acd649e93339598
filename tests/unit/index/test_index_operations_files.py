"""The compose file of the indexer names what exists."""

from __future__ import annotations

from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"


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
