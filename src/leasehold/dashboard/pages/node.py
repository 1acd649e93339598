"""The node's packages, services and spells, with runs and errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h


class NodePage(Page):
    title = "Node"
    operator_only = True

    def prepare(self) -> None:
        self.status: dict[str, Any] = {}
        self.services: list[dict[str, Any]] = []
        self.spells: list[dict[str, Any]] = []
        self.chosen = ""
        self.is_spell = False
        self.detail: dict[str, Any] = {}

    def sources(self) -> Mapping[str, Source]:
        return {"node": lambda: self.every("node", self._load)}

    async def _load(self) -> None:
        self.status = await self.api.get("/v1/node/status")
        self.services = await self.api.get("/v1/node/services")
        self.spells = await self.api.get("/v1/node/spells")
        if self.chosen:
            await self._detail()

    async def _detail(self) -> None:
        if not self.is_spell:
            logs = await self.api.get(f"/v1/node/services/{self.chosen}/logs", lines=50)
            self.detail = {"logs": logs["lines"]}
            return
        detail = await self.api.get(f"/v1/node/spells/{self.chosen}")
        for what in ("errors", "logs"):
            detail[what] = await self.api.get(f"/v1/node/spells/{self.chosen}/{what}")
        self.detail = detail

    async def choose(self, id: str, is_spell: bool) -> None:
        self.chosen, self.is_spell, self.detail = ("" if self.chosen == id else id), is_spell, {}
        if self.chosen:
            await self._detail()

    async def restart(self, id: str) -> None:
        done = await self.api.post(f"/v1/node/services/{id}/restart")
        await self._load()
        self.visit.say(f"{done['name']} was started again.")

    async def run(self, id: str) -> None:
        done = await self.api.post(f"/v1/node/spells/{id}/run")
        await self._load()
        error = done.get("error")
        self.visit.say(f"The spell ran: {error or 'no error'}.", parts.BAD if error else parts.GOOD)

    def view(self) -> list[Node | None]:
        if not self.has("node"):
            return [self.waiting("node")]
        packages = self.status["packages"]
        return [
            parts.facts(
                ("Ready", parts.state("ready" if self.status["ready"] else "starting")),
                ("Packages in place after", text.duration(self.status["boot_ms"] or 0)),
                ("Peer", h("code", self.status["peer_id"], class_="wrap")),
            ),
            parts.panel("Services", parts.table(
                "Services", ("Service", "State", "Kind", "Package", "Restarts", ""),
                [(s["id"], [h("div", h("strong", s["name"]),
                                  h("div", ", ".join(s["aliases"]), class_="soft wrap")),
                            parts.state(s["state"]), s["kind"],
                            f"{s['package']} {s['version']}".strip() or "–",
                            text.plain(s["restarts"]),
                            h("div", parts.button("Output", partial(self.choose, s["id"], False),
                                                  aria_label=f"Output of {s['name']}"),
                              parts.button("Restart", partial(self.restart, s["id"]),
                                           aria_label=f"Restart {s['name']}")
                              if s["kind"] != "builtin" else None, class_="row")])
                 for s in self.services],
                none=parts.empty("No service runs.", "Packages bring them: ",
                                 parts.command("leasehold node packages")), numbers=(4,))),
            self._output() if self.chosen and not self.is_spell else None,
            parts.panel("Spells", parts.table(
                "Spells", ("Spell", "State", "Package", "Scope", ""),
                [(s["id"], [h("strong", s["name"]), parts.state(s["state"], parts.GOOD
                            if s["state"] == "armed" else ""),
                            f"{s['package']} {s['version']}".strip() or "–",
                            h("span", s["scope"][:48], title=s["scope"], class_="wrap"),
                            h("div", parts.button("Runs", partial(self.choose, s["id"], True),
                                                  aria_label=f"Runs of {s['name']}"),
                              parts.button("Run now", partial(self.run, s["id"]),
                                           aria_label=f"Run now: {s['name']}"), class_="row")])
                 for s in self.spells],
                none=parts.empty("No spell is installed."))),
            self._spell() if self.chosen and self.is_spell and self.detail else None,
            parts.panel("Packages", parts.table(
                "Packages", ("Package", "Status", "Installed", "Shipped", "Deployed (UTC)", "Says"),
                [(p["name"], [p["name"], parts.state(p["status"]), p["installed"] or "–",
                              p["bundled"] or "–", parts.moment(p["deployed_at"]),
                              p["message"] or ", ".join(p["warnings"]) or "–"])
                 for p in packages], none=parts.empty("No package is deployed."))),
        ]  # fmt: skip

    def _output(self) -> Node:
        lines = self.detail.get("logs", [])
        return parts.panel(
            "Output",
            h("pre", "\n".join(lines) or "Nothing was written.", class_="code", tabindex="0",
              aria_label="Output"),
        )  # fmt: skip

    def _spell(self) -> Node:
        runs = self.detail.get("runs", [])
        rows = [(str(at), [_cell(run.get(name)) for name in _columns(runs)])
                for at, run in enumerate(runs[:30])]  # fmt: skip
        return parts.panel(
            f"Spell {self.detail.get('name', '')}",
            h("h3", "Runs"),
            parts.table("Runs", _columns(runs), rows,
                        none=h("p", "It has not run yet.", class_="soft")),
            h("h3", "Errors"),
            h("div", parts.json_lines(self.detail.get("errors", [])[:20]), class_="json")
            if self.detail.get("errors") else h("p", "None.", class_="soft"),
            parts.details("Trigger",
                          h("div", parts.json_lines(self.detail.get("trigger")), class_="json")),
            parts.details("Script", h("pre", str(self.detail.get("script", "")), class_="code",
                                      tabindex="0", aria_label="Script")),
        )  # fmt: skip


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(rows[0])[:7] if rows else ["Run"]


def _cell(value: Any) -> Any:
    if isinstance(value, float) and value > 1e9:
        return parts.moment(value)
    if isinstance(value, dict | list):
        return str(value)[:120] if value else "–"
    return text.plain(value)
