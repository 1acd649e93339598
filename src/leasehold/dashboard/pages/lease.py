"""One lease, from the order to now: its timeline, services, output, shell, manifest and end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.pages.images import in_flight
from leasehold.dashboard.pages.lease_manifest import Manifests
from leasehold.dashboard.pages.lease_output import Output
from leasehold.dashboard.pages.lease_shell import Shell
from leasehold.dashboard.tree import Node, h
from leasehold.model.market import LeaseId

LOOK = 0.5
"""Seconds between two looks at what is in flight."""

SAMPLES = 120
"""Of usage: four minutes."""

TABS = ("timeline", "services", "logs", "shell", "manifest", "close")


class Lease(Page):
    title = "Lease"

    def prepare(self) -> None:
        place = self.place
        self.story: dict[str, Any] = {"steps": [], "state": "waiting", "unmet": "", "uris": []}
        self.status: dict[str, Any] = {}
        self.usage: dict[str, dict[str, deque[float]]] = {}
        self._before: dict[str, tuple[float, float]] = {}
        self.volumes: list[dict[str, Any]] = []
        self.escrow: dict[str, Any] = {}
        self.flights: list[dict[str, Any]] = []
        self.bad_place = ""
        self.ending = False
        try:
            numbers = [int(place[name]) for name in ("dseq", "gseq", "oseq")]
        except ValueError:
            numbers, self.bad_place = [0, 0, 0], "This is no lease."
        owner = place["owner"]
        if not self.api.is_operator and owner != self.api.owner:
            owner, self.bad_place = self.api.owner, "There is no such lease of yours."
        # The provider's own address is not in the path: there is but one behind a gateway.
        dseq, gseq, oseq = numbers
        self.lease = LeaseId(owner, dseq, gseq, oseq, "")
        self.tab = self.query.get("tab", "timeline")
        self.output = Output(self)
        self.shell = Shell(self)
        self.manifests = Manifests(self)

    def heading(self) -> str:
        return f"Lease {text.address(self.lease.owner)}/{self.lease.dseq}"

    def sources(self) -> Mapping[str, Source]:
        if self.bad_place:
            return {}
        found: dict[str, Source] = {
            "timeline": self._timeline,
            "services": lambda: self.every("services", self._status),
            "output": self.output.follow,
            "manifest": lambda: self.on_news("manifest", ("lease",), self.manifests.load),
            "market": lambda: self.on_news("market", ("lease", "deployment"), self._market),
        }
        if self.api.is_operator:
            found["pulls"] = lambda: self.every("pulls", self._pulls, LOOK)
        return found

    async def _pulls(self) -> None:
        """What is being fetched while the lease is on its way; its image is among it."""
        waits = self.story["state"] in ("waiting", "running")
        self.flights = await self.api.get("/v1/images/inflight") if waits else []

    async def _timeline(self) -> None:
        """The story now, and again whenever the lease has a new event."""
        id = self.lease
        within = f"{id.dseq}/{id.gseq}/{id.oseq}/"
        if self.api.is_operator:
            news = self.api.lines("/v1/leases/tail", prefix=f"{id.owner}/{within}")
        else:
            news = self.api.lines("/leases/tail", within=within)
        async for _ in news:
            self.story = await self.api.get(self.api.lease_path(id, "timeline"))
            self.got("timeline")

    async def _status(self) -> None:
        try:
            self.status = await self.api.get(self.api.lease_path(self.lease, "status"))
        except LeaseholdError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            self.status = {}
            return
        now = self.visit.clock.monotonic()
        for service in self.status.get("services", {}).values():
            for replica in _replicas(service):
                key = f"{service['name']}-{replica['number']}"
                kept = self.usage.setdefault(
                    key, {"cpu": deque(maxlen=SAMPLES), "memory": deque(maxlen=SAMPLES)}
                )
                before = self._before.get(replica["key"])
                if before is not None and now > before[0]:
                    spent = max(0.0, replica["cpu_seconds"] - before[1])
                    kept["cpu"].append(1000 * spent / (now - before[0]))
                self._before[replica["key"]] = (now, replica["cpu_seconds"])
                kept["memory"].append(replica["memory_bytes"])

    async def _market(self) -> None:
        id = f"{self.lease.owner}/{self.lease.dseq}"
        try:
            self.escrow = await self.api.ledger.escrow(id)
        except LeaseholdError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        prefix = f"leases/{self.lease.owner}/{self.lease.dseq}/"
        if self.api.is_operator:
            self.volumes = await self.api.get("/v1/volumes", prefix=prefix.rstrip("/"))
        else:
            every = await self.api.get("/volumes")
            self.volumes = [v for v in every if v["path"].startswith(prefix)]

    # -- view -------------------------------------------------------------------------------------

    def view(self) -> list[Node | None]:
        if self.bad_place:
            return [parts.empty(self.bad_place, parts.link("All leases", "/ui/leases"))]
        if not self.has("timeline"):
            return [self.waiting("timeline")]
        views = {
            "timeline": self._timeline_view,
            "services": self._services_view,
            "logs": self.output.view,
            "shell": self.shell.view,
            "manifest": self.manifests.view,
            "close": self._close_view,
        }
        shown = views.get(self.tab, self._timeline_view)()
        return [
            h(
                "div",
                parts.state(self.story["state"]),
                [parts.link(uri, uri) for uri in self.story["uris"]],
                h("span", str(self.lease.owner), class_="soft mono owner"),
                class_="lease-head",
            ),
            self._unmet(),
            *(in_flight(flight) for flight in self.flights),
            h(
                "div",
                [
                    h("button", name.capitalize(), type="button", role="tab", id=f"tab-{name}",
                      aria_selected="true" if name == self.tab else "false",
                      aria_controls="tab-panel", key=name,
                      on={"click": partial(self._picked, name)})
                    for name in TABS
                ],
                role="tablist", aria_label="Parts of the lease", class_="tabs",
            ),
            h("div", shown, role="tabpanel", id="tab-panel", aria_labelledby=f"tab-{self.tab}",
              key=f"panel-{self.tab}"),
        ]  # fmt: skip

    def _picked(self, name: str, _: Any) -> None:
        self.pick(name)

    def pick(self, name: str) -> None:
        self.tab = name
        self.visit.script(f"history.replaceState(null, '', location.pathname + '?tab={name}')")

    def _unmet(self) -> Node | None:
        state, unmet = self.story["state"], self.story["unmet"]
        if not unmet:
            return None
        tone = {"failed": parts.BAD, "unhealthy": parts.WARN}.get(state, parts.BUSY)
        lead = "What went wrong: " if state in ("failed", "unhealthy") else "What it waits for: "
        return parts.notice([h("strong", lead), unmet], tone, key="unmet", role="status")

    def _timeline_view(self) -> list[Node | None]:
        steps = self.story["steps"]
        start = next((i for i, s in enumerate(steps) if s["type"] == "order.created"), 0)
        first = next((s for s in steps if s["type"] == "deploy.healthy"), None)
        whole = max((first or steps[-1])["ms"] - steps[start]["ms"], 1.0)
        answered = f"{first['ms'] - steps[start]['ms']:,.0f} ms" if first else "not yet"
        items, before = [], steps[0]["ms"]
        for at, step in enumerate(steps):
            took, before = step["ms"] - before, step["ms"]
            left = 100 * min(1.0, max(0.0, (step["ms"] - took - steps[start]["ms"]) / whole))
            width = min(100 - left, 100 * took / whole)
            items.append(
                h(
                    "li",
                    h("div",
                      h("span", step["name"], class_="step-name"),
                      h("span", f"+{text.duration(took)}" if at else "0 ms", class_="step-took"),
                      h("span", text.duration(step["ms"]), class_="step-at"),
                      h("time", text.precise(step["at"]), datetime=text.full(step["at"]),
                        class_="soft step-time"),
                      class_="step-line"),
                    h("svg", h("rect", x=f"{left:.2f}", y="0", width=f"{max(0.4, width):.2f}",
                               height="4", class_=f"fill-{_tone(step['type'])}"),
                      viewBox="0 0 100 4", preserveAspectRatio="none", aria_hidden="true",
                      class_="gantt"),
                    h("p", _said(step["detail"]), class_="soft step-detail")
                    if step["detail"] else None,
                    key=f"{at}-{step['type']}", class_="step",
                )
            )  # fmt: skip
        return [
            parts.tiles(
                ("Order to first answer", answered, "until it was healthy"),
                ("Events", len(steps), f"since {text.full(steps[0]['at'])}"),
                *self._funds(),
            ),
            parts.panel("Timeline", h("ol", items, class_="timeline")),
        ]

    def _funds(self) -> list[tuple[str, Any, str]]:
        if not self.escrow:
            return []
        funds = f"{text.number(float(self.escrow['funds']))} {self.escrow['denom']}"
        left = text.duration(1000 * self.escrow["ticks_left"] * self.escrow["period_s"])
        spent = f"last {left}" if self.escrow["state"] == "open" else self.escrow["state"]
        return [("Funds", funds, spent)]

    def _services_view(self) -> list[Node | None]:
        if not self.has("services"):
            return [self.waiting("services")]
        services = self.status.get("services", {})
        if not services:
            return [parts.empty("Nothing runs for this lease.",
                                "Services appear once its manifest was accepted.")]  # fmt: skip
        return [self._service(name, service) for name, service in services.items()]

    def _service(self, name: str, service: dict[str, Any]) -> Node:
        wanted, up = service["total"], service["available"]
        word = "unknown" if up is None else "healthy" if up == wanted else "starting"
        if self.status.get("healthy") is False:
            word = "unhealthy"
        charts = []
        for replica in _replicas(service):
            kept = self.usage.get(f"{name}-{replica['number']}", {})
            charts.append(
                h(
                    "div",
                    h("h3", f"{name}-{replica['number']}", parts.state(replica["state"])),
                    parts.facts(
                        ("Started (UTC)", parts.moment(replica["started_at"])),
                        ("Processes", str(replica["pids"])),
                        ("Out-of-memory kills", str(replica["oom_kills"])),
                        ("Ended", replica["ended"]) if replica["ended"] else None,
                    ),
                    h("div",
                      parts.chart("CPU", tuple(kept.get("cpu", ())), text.cores, 10),
                      parts.chart("Memory", tuple(kept.get("memory", ())), text.size, 1 << 20),
                      class_="charts"),
                    key=replica["key"], class_="replica",
                )
            )  # fmt: skip
        return parts.panel(
            name,
            h("p", service.get("image", ""), class_="mono soft wrap"),
            h("p", self.status["reason"], class_="soft") if self.status.get("reason") else None,
            charts or parts.empty("No replica runs now."),
            aside=h("span", parts.state(word), f" {'?' if up is None else up} of {wanted} up"),
        )

    # -- the end ----------------------------------------------------------------------------------

    def _close_view(self) -> list[Node | None]:
        if self.story["state"] == "closed":
            return [parts.panel("Closed", h("p", "This lease is closed."), self._volumes(True))]
        may = self.api.is_operator or self.api.key is not None
        if not may:
            how: Any = parts.empty(
                "Closing is signed with the account's key, which this session does not have.",
                parts.command(f"leasehold deployment close {self.lease.dseq}"),
            )
        elif not self.ending:
            how = parts.button("Close this lease …", self._ask, kind="danger")
        else:
            how = h(
                "div",
                h("p", "The workload ends at once. This cannot be undone.", id="close-why"),
                parts.button("Close it now", self._close, kind="danger"),
                parts.button("Keep it", self._keep),
                role="alertdialog", aria_label="Close the lease?", aria_describedby="close-why",
                class_="confirm",
            )  # fmt: skip
        who = (
            "The provider gives the lease up: its bid is closed, as decommissioned."
            if self.api.is_operator
            else "The deployment is closed on the market; what is left of its funds comes back."
        )
        return [parts.panel("Close", h("p", who), self._volumes(False), how)]

    def _volumes(self, closed: bool) -> Node:
        if not self.volumes:
            return h("p", "It has no volumes; nothing is kept of it.", class_="soft")
        lead = "Its volumes" if closed else "What happens to its volumes"
        rows = [
            (
                volume["id"],
                [
                    volume["path"].rpartition("/")[2],
                    parts.state(volume["tier"]),
                    text.size(volume["used_bytes"]),
                    f"kept until {text.full(volume['keep_until'])}"
                    if volume["keep_until"]
                    else "frozen, and kept for the provider's retention time",
                ],
            )
            for volume in self.volumes
        ]
        shown = parts.table(lead, ("Volume", "Now", "Used", "Then"), rows, numbers=(2,))
        return h("div", h("h3", lead), shown)

    def _ask(self) -> None:
        self.ending = True

    def _keep(self) -> None:
        self.ending = False

    async def _close(self) -> None:
        if self.api.is_operator:
            await self.api.post(self.api.lease_path(self.lease, "close"))
        else:
            await self.api.ledger.close_deployment(self.lease.dseq)
        self.ending = False
        self.visit.say("The lease is being closed.")


def _replicas(service: dict[str, Any]) -> list[dict[str, Any]]:
    found = service.get("running", service.get("replicas"))
    return found if isinstance(found, list) else []


def _tone(type: str) -> str:
    if type in ("deploy.failed", "manifest.bid_closed", "manifest.overdue"):
        return "bad"
    if type in ("deploy.unhealthy", "deploy.exited", "lease.closed", "lease.reclaiming"):
        return "warn"
    return "good" if type == "deploy.healthy" else "busy"


def _said(detail: dict[str, Any]) -> str:
    shown = []
    for name, value in detail.items():
        if name == "seconds":
            shown.append(f"took {text.duration(value * 1000)}")
        elif name == "bytes":
            shown.append(text.size(value))
        elif name in ("hash", "digest"):
            shown.append(f"{name} {text.digest(str(value))}")
        else:
            shown.append(f"{name} {text.plain(value)}")
    return ", ".join(shown)
