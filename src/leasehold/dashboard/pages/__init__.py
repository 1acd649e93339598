"""The pages, and which path shows which.

Tenants have their leases, volumes and the market; the rest is the operator's. A page the visitor
may not see is not found: the gateway would refuse its data anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from leasehold.dashboard.page import Page
from leasehold.dashboard.pages.deploy import Deploy
from leasehold.dashboard.pages.events import Events
from leasehold.dashboard.pages.images import Images
from leasehold.dashboard.pages.lease import Lease
from leasehold.dashboard.pages.leases import Leases
from leasehold.dashboard.pages.market import Market
from leasehold.dashboard.pages.missing import Missing
from leasehold.dashboard.pages.node import NodePage
from leasehold.dashboard.pages.observers import Observers
from leasehold.dashboard.pages.overview import Overview
from leasehold.dashboard.pages.schedule import Schedule
from leasehold.dashboard.pages.volumes import Volumes
from leasehold.dashboard.pages.workers import Workers

PAGES: tuple[tuple[str, str, type[Page]], ...] = (
    ("/", "Overview", Overview),
    ("/ui/leases", "Leases", Leases),
    ("/ui/leases/{owner}/{dseq}/{gseq}/{oseq}", "", Lease),
    ("/ui/deploy", "Deploy", Deploy),
    ("/ui/market", "Market", Market),
    ("/ui/images", "Images", Images),
    ("/ui/volumes", "Volumes", Volumes),
    ("/ui/workers", "Workers", Workers),
    ("/ui/schedule", "Schedule", Schedule),
    ("/ui/node", "Node", NodePage),
    ("/ui/observers", "Observers", Observers),
    ("/ui/events", "Event log", Events),
)
"""Path, name in the menu (empty: not in it), page."""

_MATCH = [
    (re.compile("^" + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path) + "/?$"), kind)
    for path, _, kind in PAGES
]


def menu(*, operator: bool) -> list[tuple[str, str]]:
    """Path and name of the pages a visitor may go to."""
    return [
        (path, name)
        for path, name, kind in PAGES
        if name and (operator or not kind.operator_only) and not (operator and kind.tenant_only)
    ]


def find(path: str, *, operator: bool) -> tuple[type[Page], Mapping[str, str]]:
    """The page at a path, and the named parts of it."""
    for pattern, kind in _MATCH:
        match = pattern.match(path)
        if match and (operator or not kind.operator_only):
            return kind, match.groupdict()
    return Missing, {}
