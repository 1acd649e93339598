"""Images: what is here, where its bytes came from, and how that went over time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h

LOOK = 0.5
"""Seconds between two looks at what is in flight."""

EXPLAINED = 40
"""Newest images whose origins are added up."""

SOURCES = (("origin", "from the origin", "warn"), ("peers", "from peers", "good"),
           ("cache", "already here", "off"))  # fmt: skip


class Images(Page):
    title = "Images"
    operator_only = True

    def prepare(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.came: dict[str, dict[str, Any]] = {}
        self.chosen = ""
        self.pulling = ""
        self.flights: list[dict[str, Any]] = []
        self.fleet: dict[str, Any] = {}
        self.holders: dict[str, dict[str, Any]] = {}

    def sources(self) -> Mapping[str, Source]:
        return {
            "images": lambda: self.on_news("images", ("lease",), self._load),
            "in flight": lambda: self.every("in flight", self._look_up, LOOK),
            "fleet": lambda: self.every("fleet", self._look_around),
        }

    async def _look_up(self) -> None:
        self.flights = await self.api.get("/v1/images/inflight")

    async def _look_around(self) -> None:
        self.fleet = await self.api.get("/v1/images/fleet")

    async def _load(self) -> None:
        found = await self.api.get("/v1/images")
        self.images = list(reversed(found))
        for image in self.images[:EXPLAINED]:
            known = self.came.get(image["digest"])
            if known is None or known["at"] < image["used"]:
                name = image["reference"]
                self.came[image["digest"]] = await self.api.get("/v1/images/explain", name=name)

    async def explain(self, digest: str) -> None:
        self.chosen = "" if self.chosen == digest else digest
        self.visit.refresh()
        if self.chosen:
            found = await self.api.get("/v1/images/holders", name=digest)
            self.holders |= {part["digest"]: part for part in found}

    async def pull(self, fields: dict[str, Any]) -> None:
        reference = str(fields.get("reference", "")).strip()
        if not reference:
            return
        self.pulling = reference
        self.visit.refresh()
        try:
            done = await self.api.post("/v1/images/pull", {"reference": reference})
        finally:
            self.pulling = ""
        await self._load()
        self.visit.say(f"{done['layers']} layers, {text.size(done['size'])} in "
                       f"{text.duration(done['seconds'] * 1000)}.")  # fmt: skip

    async def pin(self, name: str, pinned: bool) -> None:
        await self.api.post("/v1/images/pin", {"name": name, "pinned": pinned})
        await self._load()

    async def verify(self) -> None:
        self.visit.say("Every blob is being hashed again.", parts.BUSY)
        done = await self.api.post("/v1/images/verify")
        bad = done.get("bad") or done.get("dropped") or []
        self.visit.say(
            f"Verified; {len(bad) if isinstance(bad, list) else bad} were bad.",
            parts.WARN if bad else parts.GOOD,
        )

    def view(self) -> list[Node | None]:
        if not self.has("images"):
            return [self.waiting("images")]
        totals = {name: sum(c["bytes"][name] for c in self.came.values()) for name, _, _ in SOURCES}
        rows = []
        for image in self.images:
            digest = image["digest"]
            rows.append(
                (
                    digest + image["reference"],
                    [
                        h("span", image["reference"], class_="wrap"),
                        h("code", text.digest(digest), title=digest),
                        text.size(image["size"]),
                        str(len(image["holds"])),
                        parts.moment(image["used"]),
                        h("div",
                          parts.button("Explain", partial(self.explain, digest),
                                       aria_expanded="true" if self.chosen == digest else "false",
                                       aria_label=f"Explain {image['reference']}"),
                          parts.button(
                              "Unpin" if image["pinned"] else "Pin",
                              partial(self.pin, image["reference"], not image["pinned"]),
                              aria_label=f"{'Unpin' if image['pinned'] else 'Pin'} "
                              f"{image['reference']}",
                          ), class_="row"),
                    ],
                )
            )  # fmt: skip
        return [
            parts.panel(
                "Where bytes came from",
                parts.meter("Last use of each image", [(words, totals[n], tone)
                            for n, words, tone in SOURCES], sum(totals.values()), text.size)
                if self.images else h("p", "Nothing was pulled yet.", class_="soft"),
                self._over_time(),
                *traffic_view(self.fleet),
            ),
            h(
                "form",
                parts.field("Pull an image", name="reference", autocomplete="off",
                            placeholder="registry.example/name:tag"),
                h("button", "Pull", type="submit", class_="button main",
                  disabled=bool(self.pulling)),
                parts.button("Verify all", self.verify),
                on={"submit": self.pull}, class_="filters",
            ),
            self._in_flight(),
            *fleet_view(self.fleet),
            parts.panel(
                "Images of this node",
                parts.table("Images", ("Reference", "Digest", "Size", "Leases", "Used (UTC)", ""),
                            rows, none=parts.empty("No image is here yet.",
                            "Leases bring theirs; or pull one above."), numbers=(2, 3)),
                self._explained(),
            ),
        ]  # fmt: skip

    def _in_flight(self) -> Node | None:
        if not self.flights:
            return parts.progress("Pulling", 0, None, self.pulling) if self.pulling else None
        return parts.panel(
            "In flight",
            [in_flight(flight) for flight in self.flights],
        )

    def _over_time(self) -> Node | None:
        pulls = sorted(self.came.values(), key=lambda c: c["at"])[-20:]
        if not pulls:
            return None
        most = max(sum(c["bytes"].values()) for c in pulls) or 1
        return h(
            "ol",
            [
                h("li",
                  parts.meter(f"{text.time(c['at'])}  {c['reference'].rpartition('/')[2]}",
                              [(words, c["bytes"][name], tone) for name, words, tone in SOURCES
                               if c["bytes"][name]] or [("bytes", 0, "off")],
                              max(most, 1), text.size),
                  key=c["digest"])
                for c in pulls
            ],
            class_="plain",
        )  # fmt: skip

    def _explained(self) -> Node | None:
        found = self.came.get(self.chosen)
        if found is None:
            return None
        rows = [
            (
                part["digest"],
                [part["kind"], h("code", text.digest(part["digest"]), title=part["digest"]),
                 text.size(part["size"]),
                 ", ".join(f"{source} {text.size(n)}" for source, n in part["sources"].items()),
                 text.duration(part["seconds"] * 1000),
                 text.duration(part["unpack_seconds"] * 1000),
                 _held(self.holders.get(part["digest"]))],
            )
            for part in found["parts"]
        ]  # fmt: skip
        return h(
            "div",
            h("h3", f"{found['reference']}: ready in {text.duration(found['seconds'] * 1000)}"),
            parts.table("Parts", ("Part", "Digest", "Size", "Came from", "Fetched in",
                                  "Unpacked in", "Held by"), rows, numbers=(2, 4, 5)),
            key="explained",
        )  # fmt: skip


def _held(part: dict[str, Any] | None) -> str:
    """The nodes a part is on."""
    if part is None:
        return "…"
    nodes = ["this node"] * part["here"] + (part["others"] or [])
    said = ", ".join(nodes) or "nobody"
    return said if part["others"] is not None else f"{said}; others unknown: {part['why']}"


def traffic_view(fleet: dict[str, Any]) -> list[Node]:
    """An hour of bytes, by where they came from."""
    minutes = fleet.get("traffic") or []
    if not any(minute["origin"] or minute["peers"] for minute in minutes):
        return []

    def rate(value: float) -> str:
        return f"{text.size(value)} a minute"

    top = max(max(minute["origin"], minute["peers"]) for minute in minutes)
    return [
        h("div", [parts.chart(f"{words.capitalize()}, last hour",
                              [minute[name] for minute in minutes], rate, top)
                  for name, words, _ in SOURCES[:2]], class_="charts", key="traffic"),
    ]  # fmt: skip


def fleet_view(fleet: dict[str, Any]) -> list[Node]:
    """Who else there is, and what is left alone for a while because it failed."""
    if not fleet:
        return []
    if not fleet["node"]:
        return [parts.panel("Fleet", parts.empty(
            "This node shares images with nobody.", "Every digest comes from its registry; ",
            h("code", "images.fleet"), " makes nodes share."))]  # fmt: skip
    members = [
        (m["node"], [m["node"] + (" (this node)" if m["here"] else ""), m["zone"] or "–",
                     h("code", m["transfer"])])
        for m in fleet["members"]
    ]  # fmt: skip
    cooling = [
        (c["digest"], [h("code", text.digest(c["digest"]), title=c["digest"]),
                       c["failure"].replace("_", " "), str(c["failures"]),
                       text.duration(1000 * c["remaining"])])
        for c in fleet["cooling"]
    ]  # fmt: skip
    return [
        parts.panel(
            "Fleet",
            h("p", f"{len(members)} nodes; provider records can be believed to "
                   f"{fleet['health']:.0%}.", class_="soft"),
            parts.table("Nodes", ("Node", "Zone", "Transfer"), members,
                        none=parts.empty("No node is known yet.")),
        ),
        parts.panel(
            "Cooling down",
            parts.table("Digests left alone", ("Digest", "Failure", "In a row", "Tried again in"),
                        cooling, none=h("p", "Nothing failed lately.", class_="soft"),
                        numbers=(2, 3)),
        ),
    ]  # fmt: skip


def in_flight(flight: dict[str, Any]) -> Node:
    """How far a transfer is, in bytes."""
    return parts.progress(
        f"{flight['repository']} {text.digest(flight['digest'])}",
        flight["received"],
        flight["size"],
        f"{text.size(flight['received'])} of {text.size(flight['size'])}",
    )
