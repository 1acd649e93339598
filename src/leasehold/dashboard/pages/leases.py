"""Leases: a list that keeps itself current. Thousands are filtered here, only some are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h
from leasehold.model.market import LeaseId

DRAWN = 50
"""Leases drawn before one asks for more."""

STATES = ("waiting", "running", "healthy", "unhealthy", "failed", "closed")


def place(lease: str) -> str:
    """The page of a lease."""
    id = LeaseId.parse(lease)
    return f"/ui/leases/{id.owner}/{id.dseq}/{id.gseq}/{id.oseq}"


def rows(leases: list[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Of a table of leases."""
    return [
        (
            item["lease"],
            [
                parts.link(text.lease(item["lease"]), place(item["lease"]), title=item["lease"]),
                parts.state(item["state"]),
                item["unmet"] or ", ".join(item.get("services", ())) or "–",
                [parts.link(uri.removeprefix("http://"), uri) for uri in item["uris"][:2]] or "–",
                parts.moment(item["at"]),
            ],
        )
        for item in leases
    ]


COLUMNS = ("Lease", "State", "Waits for, or runs", "Answers at", "Last event (UTC)")


class LeaseList(Page):
    """A page that knows every lease the visitor may see, in ``self.leases`` by id."""

    def prepare(self) -> None:
        self.leases: dict[str, dict[str, Any]] = {}

    def sources(self) -> Mapping[str, Source]:
        return {"leases": self.follow}

    async def follow(self) -> None:
        """Every lease, then each again when it changed."""
        path = "/v1/leases/tail" if self.api.is_operator else "/leases/tail"
        known: dict[str, dict[str, Any]] = {}
        async for line in self.api.lines(path):
            if line:
                known[line["lease"]] = line
            if not line or self.leases is known:
                self.leases = known
                self.got("leases")

    def newest(self) -> list[dict[str, Any]]:
        return sorted(self.leases.values(), key=lambda item: -item["at"])

    def counts(self) -> dict[str, int]:
        counted = dict.fromkeys(STATES, 0)
        for item in self.leases.values():
            counted[item["state"]] = counted.get(item["state"], 0) + 1
        return counted


class Leases(LeaseList):
    title = "Leases"

    def prepare(self) -> None:
        super().prepare()
        self.search = self.query.get("search", "")
        self.only = self.query.get("state", "live")
        self.drawn = DRAWN

    def look_for(self, text: str) -> None:
        self.search, self.drawn = text, DRAWN

    def show_only(self, state: str) -> None:
        self.only, self.drawn = state, DRAWN

    def more(self) -> None:
        self.drawn += 200

    def view(self) -> list[Node | None]:
        if not self.has("leases"):
            return [self.waiting("leases")]
        counted = self.counts()
        found = [item for item in self.newest() if self._wanted(item)]
        options = [("live", "not closed"), ("all", "all")]
        options += [(state, f"{state} ({counted[state]})") for state in STATES]
        return [
            h(
                "div",
                parts.field("Search", name="search", kind="search", on={"input": self.look_for},
                            placeholder="tenant, number, service, host name",
                            value=self.query.get("search")),
                parts.choice("State", "state", options, self.only, self.show_only),
                class_="filters",
            ),
            h("p", f"{text.number(len(found))} of {text.number(len(self.leases))} leases",
              class_="soft", aria_live="polite"),
            parts.table("Leases", COLUMNS, rows(found[: self.drawn]), none=nothing(self)),
            parts.button("Show more", self.more) if len(found) > self.drawn else None,
        ]  # fmt: skip

    def _wanted(self, item: dict[str, Any]) -> bool:
        if self.only == "live" and item["state"] == "closed":
            return False
        if self.only not in ("live", "all") and item["state"] != self.only:
            return False
        if not self.search:
            return True
        needle = self.search.lower()
        within = (item["lease"], item["unmet"], *item["uris"], *item.get("services", ()))
        return any(needle in one.lower() for one in within)


def nothing(page: LeaseList) -> Node:
    """In the place of leases: why there are none, and what makes one."""
    if page.leases:
        return parts.empty("No lease matches.", "Look for less, or show all states.")
    if page.api.key is not None:
        return parts.empty("No lease yet.", parts.link("Deploy something", "/ui/deploy"))
    return parts.empty("No lease yet.", "A tenant makes one with ",
                       parts.command("leasehold deploy examples/hello/deploy.yaml"))  # fmt: skip
