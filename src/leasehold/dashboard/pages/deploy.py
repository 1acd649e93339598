"""Deploy: an SDL becomes an order, a bid, a lease and a workload, each step shown as it is done."""

from __future__ import annotations

from typing import Any

from leasehold.app.tenant import Deployed, Stage, Tenant
from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page
from leasehold.dashboard.pages.leases import place
from leasehold.dashboard.tree import Node, h
from leasehold.model import sdl

STEPS = 9
"""Of a deployment: order to healthy."""

LARGEST = 256 * 1024
"""Characters of an SDL file."""


class Deploy(Page):
    title = "Deploy"
    tenant_only = True

    def prepare(self) -> None:
        self.stages: list[Stage] = []
        self.results: list[Deployed] = []
        self.began = 0.0
        self.working = False

    async def deploy(self, fields: dict[str, Any]) -> None:
        given = str(fields.get("sdl", ""))[:LARGEST]
        loaded = sdl.load(given)
        key = self.api.key
        assert key is not None
        self.stages, self.results, self.working = [], [], True
        self.began = self.visit.clock.now()
        self.visit.refresh()
        try:
            async with Tenant(key, self.api.ledger_url, clock=self.visit.clock) as tenant:
                self.results = await tenant.deploy(loaded, on_stage=self._stage)
        finally:
            self.working = False

    def _stage(self, stage: Stage) -> None:
        self.stages.append(stage)
        self.visit.refresh()

    def view(self) -> list[Node | None]:
        if self.api.key is None:
            return [
                parts.empty(
                    "Deploying is signed with the account's key, which this session does not have.",
                    parts.command("leasehold deploy FILE"),
                )
            ]
        return [
            h(
                "form",
                parts.field("SDL file", name="sdl", kind="textarea", rows="16", required=True,
                            spellcheck="false", autocomplete="off",
                            hint="The text of a deploy.yaml. It is checked before anything is "
                            "ordered."),
                h("button", "Deploy", type="submit", class_="button main",
                  disabled=self.working),
                on={"submit": self.deploy},
            ),
            self._progress(),
        ]  # fmt: skip

    def _progress(self) -> Node | None:
        if not self.stages and not self.working:
            return None
        newest = self.stages[-1].name if self.stages else "ordering"
        return parts.panel(
            "Progress",
            parts.progress("Steps", len(self.stages), STEPS, newest) if self.working else None,
            h("ol", [
                h("li", h("span", s.name, class_="step-name"),
                  h("span", text.duration((s.at - self.began) * 1000), class_="step-at"),
                  h("span", s.detail, class_="soft wrap"), class_="step-line", key=f"{i}")
                for i, s in enumerate(self.stages)
            ], class_="timeline"),
            [
                h("p", parts.state(r.state), " ",
                  parts.link("Open the lease", place(r.lease)),
                  [[" ", parts.link(uri, uri)] for uri in r.uris],
                  f" {r.unmet}" if r.unmet else None, key=r.lease)
                for r in self.results
            ],
        )  # fmt: skip
