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

    def sources(self) -> Mapping[str, Source]:
        return {
            "images": lambda: self.on_news("images", ("lease",), self._load),
            "in flight": lambda: self.every("in flight", self._look_up, LOOK),
        }

    async def _look_up(self) -> None:
        self.flights = await self.api.get("/v1/images/inflight")

    async def _load(self) -> None:
        found = await self.api.get("/v1/images")
        self.images = list(reversed(found))
        for image in self.images[:EXPLAINED]:
            known = self.came.get(image["digest"])
            if known is None or known["at"] < image["used"]:
                name = image["reference"]
                self.came[image["digest"]] = await self.api.get("/v1/images/explain", name=name)

    def explain(self, digest: str) -> None:
        self.chosen = "" if self.chosen == digest else digest

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
                 text.duration(part["unpack_seconds"] * 1000)],
            )
            for part in found["parts"]
        ]  # fmt: skip
        return h(
            "div",
            h("h3", f"{found['reference']}: ready in {text.duration(found['seconds'] * 1000)}"),
            parts.table("Parts", ("Part", "Digest", "Size", "Came from", "Fetched in",
                                  "Unpacked in"), rows, numbers=(2, 4, 5)),
            key="explained",
        )  # fmt: skip


def in_flight(flight: dict[str, Any]) -> Node:
    """How far a transfer is, in bytes."""
    return parts.progress(
        f"{flight['repository']} {text.digest(flight['digest'])}",
        flight["received"],
        flight["size"],
        f"{text.size(flight['received'])} of {text.size(flight['size'])}",
    )
