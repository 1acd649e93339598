"""The command line. Every command lives in a module of its own, imported only when it runs.

``COMMANDS`` is the whole table: name, module that exposes ``app``, and the line ``--help`` shows.
Errors are printed in plain words (as JSON with ``--json``); the exit code is that of their kind.
"""

from __future__ import annotations

import sys

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("leasehold.cli.up", "run every role on this machine"),
    "demo": ("leasehold.cli.demo", "see a deployment go from order to first answer"),
    "deploy": ("leasehold.cli.deploy", "deploy an SDL file and wait until it answers"),
    "status": ("leasehold.cli.status", "one screen: what runs here and how it is"),
    "dashboard": ("leasehold.cli.dashboard", "a link to the dashboard that signs you in"),
    "lease": ("leasehold.cli.lease", "list, explain, follow and close leases"),
    "manifest": ("leasehold.cli.manifest", "accepted manifests: list, try another, go back"),
    "account": ("leasehold.cli.account", "make and show accounts"),
    "deployment": ("leasehold.cli.deployment", "deployments, their groups and funds"),
    "order": ("leasehold.cli.order", "what can be bid on"),
    "bid": ("leasehold.cli.bid", "who offers to serve an order; accept one"),
    "provider": ("leasehold.cli.provider", "providers and what auditors say of them"),
    "cert": ("leasehold.cli.cert", "client certificates for mTLS"),
    "ledger": ("leasehold.cli.ledger", "the embedded market: status, export, import, replay"),
    "node": ("leasehold.cli.node", "packages, services and spells of this node"),
    "images": ("leasehold.cli.images", "images of this node: pull, explain, verify, collect"),
    "index": ("leasehold.cli.index", "blocks and transactions of chains: fetch, sync, search"),
    "schedule": ("leasehold.cli.schedule", "periodic tasks: list, add, enable, disable, results"),
    "manager": ("leasehold.cli.manager", "run a manager of index workers"),
    "worker": ("leasehold.cli.worker", "run an index worker"),
    "scheduler": ("leasehold.cli.scheduler", "run a scheduler"),
    "volume": ("leasehold.cli.volume", "volumes: history, snapshots, freeze, move, archive"),
    "events": ("leasehold.cli.events", "read the event log"),
    "observe": ("leasehold.cli.observe", "activities: list, inspect, kick, pause, clear"),
    "db": ("leasehold.cli.db", "the schema of the event log: status, migrate"),
    "sdl": ("leasehold.cli.sdl", "convert and validate SDL files"),
    "config": ("leasehold.cli.config", "show settings and where they come from"),
    "doctor": ("leasehold.cli.doctor", "say at once what this machine lacks"),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``leasehold`` command; exits with the code of the outcome."""
    from leasehold.cli.frame import run

    sys.exit(run(sys.argv[1:] if argv is None else argv))
