"""The event log: what is committed as it is committed, or the whole history of one entity."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h

HELD = 100
"""Events held and drawn."""

KINDS = ("", "lease", "order", "deployment", "ledger", "repo", "registry", "workflow", "node",
         "hostnames")  # fmt: skip


class Events(Page):
    title = "Event log"
    operator_only = True

    def prepare(self) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=HELD)
        self.entity = self.query.get("entity", "")
        self.kind = self.query.get("kind", "")
        self.sought = ""
        self.last = 0
        self.open: set[str] = set()

    def sources(self) -> Mapping[str, Source]:
        return {"events": self._entity if self.entity else self._follow}

    async def _entity(self) -> None:
        async def load() -> None:
            found = await self.api.get("/v1/events/entity", entity=self.entity)
            self.events = deque(found[-HELD:], maxlen=HELD)

        await self.on_news("events", (self.entity.partition(":")[0],), load)

    async def _follow(self) -> None:
        self.events.clear()
        self.last = (await self.api.get("/v1/events/last"))["seq"]
        start = max(0, self.last - HELD)
        self.got("events")
        async for event in self.api.lines("/v1/events/tail", after=start, kind=self.kind):
            self.events.append(event)
            self.last = max(self.last, event["seq"])
            self.got("events")

    def pick(self, kind: str) -> None:
        self.visit.go(f"/ui/events?kind={kind}")

    def look(self, fields: dict[str, Any]) -> None:
        entity = str(fields.get("entity", "")).strip()
        self.visit.go(f"/ui/events?entity={entity}" if entity else "/ui/events")

    def seek(self, text: str) -> None:
        self.sought = text.lower()

    def view(self) -> list[Node | None]:
        if not self.has("events"):
            return [self.waiting("events")]
        found = [e for e in reversed(self.events) if self._wanted(e)]
        return [
            h(
                "form",
                parts.field("History of one entity", name="entity", value=self.entity,
                            placeholder="kind:id, as in lease:akash1…", autocomplete="off"),
                h("button", "Show", type="submit", class_="button"),
                parts.choice("Kind", "kind", [(k, k or "all kinds") for k in KINDS], self.kind,
                             self.pick) if not self.entity else parts.link("All entities",
                                                                           "/ui/events"),
                parts.field("Filter", name="filter", kind="search", on={"input": self.seek},
                            placeholder="type, entity or data"),
                on={"submit": self.look}, class_="filters",
            ),
            h("p", f"{len(found)} of the newest {len(self.events)} events"
              + ("" if self.entity else f", live; the log has {text.number(self.last)}"),
              class_="soft", aria_live="polite"),
            h("div", [self._event(e) for e in found], class_="events")
            if found else parts.empty("No event matches."),
        ]  # fmt: skip

    def _wanted(self, event: dict[str, Any]) -> bool:
        said = f"{event['type']} {event['entity']} {event['data']}"
        return self.sought in said.lower()

    def _event(self, event: dict[str, Any]) -> Node:
        id, opened = event["id"], event["id"] in self.open

        def toggle(open: Any) -> None:
            (self.open.add if open else self.open.discard)(id)

        return h(
            "details",
            h("summary", h("span", text.number(event["seq"]), class_="number seq"),
              h("span", text.precise(event["at"]), class_="soft"),
              h("span", event["type"], class_="event-type"),
              h("span", event["entity"][:80], class_="soft wrap")),
            h("div",
              parts.facts(("At", text.full(event["at"])), ("Id", h("code", id)),
                          ("Entity", parts.link(event["entity"],
                                                f"/ui/events?entity={event['entity']}"))),
              h("div", parts.json_lines(event["data"]), class_="json")) if opened else None,
            key=id, on={"toggle": toggle},
        )  # fmt: skip
