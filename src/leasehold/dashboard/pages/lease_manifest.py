"""Accepted manifests of a lease's deployment: what runs, what ran, the difference, the way back.

Going back needs the tenant's signature on the market as well as the provider's acceptance, so it is
offered to a session that has the account's key; others are told the command that does it.
"""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dashboard import parts, text
from leasehold.dashboard.tree import Node, h

if TYPE_CHECKING:
    from leasehold.dashboard.pages.lease import Lease

CONTEXT = 3
"""Lines shown around a change."""


class Manifests:
    """The manifest tab."""

    def __init__(self, page: Lease) -> None:
        self.page = page
        self.versions: list[dict[str, Any]] = []
        self.content: dict[str, str] = {}
        self.old = ""
        self.new = ""
        self.picked = False
        self.back = ""

    async def load(self) -> None:
        lease = self.page.lease
        api = self.page.api
        try:
            path = api.deployment_path(lease.owner, lease.dseq, "manifests")
            self.versions = await api.get(path)
        except LeaseholdError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            self.versions = []
        hashes = [version["hash"] for version in self.versions]
        if not self.picked or self.new not in hashes:
            self.new = hashes[0] if hashes else ""
        if not self.picked or self.old not in hashes:
            self.old = hashes[1] if len(hashes) > 1 else ""
        await self._fetch()

    async def _fetch(self) -> None:
        lease, api = self.page.lease, self.page.api
        for hash in {self.old, self.new} - {""} - self.content.keys():
            path = api.deployment_path(lease.owner, lease.dseq, "manifests/kept")
            groups = await api.get(path, hash=hash)
            self.content[hash] = msgspec.json.format(
                msgspec.json.encode(groups, order="sorted"), indent=2
            ).decode()

    async def pick_old(self, hash: str) -> None:
        self.old, self.picked = hash, True
        await self._fetch()

    async def pick_new(self, hash: str) -> None:
        self.new, self.picked = hash, True
        await self._fetch()

    def ask(self, hash: str) -> None:
        self.back = hash

    async def roll_back(self) -> None:
        lease, api, hash = self.page.lease, self.page.api, self.back
        self.page.visit.say("Going back: the market is told, then the provider.", parts.BUSY)
        await api.ledger.update_deployment(lease.dseq, hash)
        await api.post(f"/deployment/{lease.dseq}/rollback", {"hash": hash})
        self.back = ""
        self.page.visit.say(f"Went back to {hash[:12]}; the timeline shows how it goes.")

    def view(self) -> list[Node | None]:
        if not self.page.has("manifest"):
            return [self.page.waiting("manifest")]
        if not self.versions:
            return [parts.empty("No manifest was accepted yet.", "The tenant sends it with ",
                                parts.command("leasehold deploy"))]  # fmt: skip
        return [
            parts.panel("Versions", self._table(), self._confirm()),
            parts.panel("Difference", *self._difference())
            if len(self.versions) > 1
            else parts.panel(
                "Manifest",
                h("pre", self.content.get(self.new, ""), class_="code", tabindex="0",
                  aria_label="The manifest"),
            ),
        ]  # fmt: skip

    def _table(self) -> Node:
        can = self.page.api.key is not None and self.page.story["state"] != "closed"
        rows = [
            (
                version["hash"],
                [
                    h("code", version["hash"][:12], title=version["hash"]),
                    parts.state("current", parts.GOOD) if version["current"] else "–",
                    parts.moment(version["at"]),
                    ", ".join(f"{name}: {image}" for name, image in version["images"].items()),
                    "–" if version["current"]
                    else parts.button("Roll back …", partial(self.ask, version["hash"]),
                                      aria_label=f"Roll back … to {version['hash'][:12]}")
                    if can
                    else parts.command(f"leasehold manifest rollback {version['hash'][:12]} "
                                       f"{self.page.lease.dseq}"),
                ],
            )
            for version in self.versions
        ]  # fmt: skip
        columns = ("Hash", "State", "Accepted (UTC)", "Images", "Way back")
        return parts.table("Accepted manifests, newest first", columns, rows)

    def _confirm(self) -> Node | None:
        if not self.back:
            return None
        return h(
            "div",
            h("p", f"Run {self.back[:12]} again? What runs now is replaced as its rollout says.",
              id="back-why"),
            parts.button("Roll back", self.roll_back, kind="main"),
            parts.button("Stay", lambda: self.ask("")),
            role="alertdialog", aria_label="Roll back?", aria_describedby="back-why",
            class_="confirm",
        )  # fmt: skip

    def _difference(self) -> list[Node]:
        options = [(v["hash"], f"{v['hash'][:12]}, {text.time(v['at'])}") for v in self.versions]
        return [
            h("div", parts.choice("From", "old", options, self.old, self.pick_old),
              parts.choice("To", "new", options, self.new, self.pick_new), class_="filters"),
            h("pre", difference(self.content.get(self.old, ""), self.content.get(self.new, "")),
              class_="code diff", tabindex="0", aria_label="Difference"),
        ]  # fmt: skip


def difference(old: str, new: str) -> list[Node]:
    """Lines of a unified diff, each said with its sign."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=CONTEXT)
    shown = []
    for at, line in enumerate(lines):
        if line.startswith(("---", "+++")):
            continue
        kind = {"+": "added", "-": "removed", "@": "at"}.get(line[:1], "same")
        shown.append(h("span", line + "\n", class_=kind, key=str(at)))
    return shown or [h("span", "They are the same.\n", class_="same")]
