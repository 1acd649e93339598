"""Volumes: what they hold, their history and what changed in it, freezing, moving, restoring."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from leasehold.dashboard import parts, text
from leasehold.dashboard.page import Page, Source
from leasehold.dashboard.tree import Node, h

LOOK = 0.5
"""Seconds between two looks at how far work on files is."""

STEPS = ("started", "app_accepted", "released", "files_moved", "committed")
"""Of a workflow, in order: what its progress is counted in."""


class Volumes(Page):
    title = "Volumes"

    def prepare(self) -> None:
        self.volumes: list[dict[str, Any]] = []
        self.chosen = self.query.get("volume", "")
        self.history: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] | None = None
        self.compared = ""
        self.asking: tuple[str, str] | None = None
        self.far: dict[str, dict[str, Any]] = {}
        self.workflows: dict[str, list[str]] = {}

    def sources(self) -> Mapping[str, Source]:
        if not self.api.is_operator:
            return {"volumes": self._follow}
        kinds = ("repo", "registry", "workflow", "lease")
        return {
            "volumes": lambda: self.on_news("volumes", kinds, self._load),
            "progress": lambda: self.every("progress", self._look, LOOK),
        }

    async def _look(self) -> None:
        self.far = await self.api.get("/v1/volumes/progress")

    async def _follow(self) -> None:
        async for volumes in self.api.lines("/volumes/tail"):
            self.volumes = volumes
            self.got("volumes")

    async def _load(self) -> None:
        if not self.api.is_operator:
            return  # they come by themselves
        self.volumes = await self.api.get("/v1/volumes")
        for repo, steps in self.workflows.items():
            workflow = steps[0]
            found = await self.api.get("/v1/events/entity", entity=f"workflow:{workflow}")
            self.workflows[repo] = [workflow, *(event["type"] for event in found)]
        if self.chosen:
            await self._read_history()

    async def _read_history(self) -> None:
        self.history = await self._of_chosen("history")

    async def _of_chosen(self, what: str, **query: str) -> Any:
        """``history`` or ``diff`` of the chosen volume, by the route its visitor may use."""
        if self.api.is_operator:
            return await self.api.get(f"/v1/volumes/{what}", volume=self.chosen, **query)
        return await self.api.get(f"/volumes/{self.chosen}/{what}", **query)

    async def choose(self, volume: str) -> None:
        self.chosen = "" if self.chosen == volume else volume
        self.history, self.changes, self.compared = [], None, ""
        if self.chosen:
            await self._read_history()

    async def compare(self, commit: str) -> None:
        """What changed from a snapshot until the newest one."""
        self.compared = commit
        self.changes = await self._of_chosen("diff", old=commit)

    async def snapshot(self) -> None:
        await self.api.post("/v1/volumes/snapshot", {"volume": self.chosen, "reason": "dashboard"})
        await self._load()
        self.visit.say("The volume was recorded as it is now.")

    def ask(self, what: str, volume: str) -> None:
        self.asking = (what, volume)

    def keep(self) -> None:
        self.asking = None

    async def do(self) -> None:
        """What was asked about."""
        assert self.asking is not None
        (what, subject), self.asking = self.asking, None
        if what == "restore":
            await self.api.post("/v1/volumes/restore", {"volume": self.chosen, "at": subject})
            self.visit.say(f"The volume is as it was in {subject[:12]}; "
                           "what it held before was recorded.")  # fmt: skip
        elif what == "purge":
            await self.api.request("DELETE", f"/volumes/{subject}")
            self.visit.say("The volume was deleted.")
        else:
            done = await self.api.post(f"/v1/volumes/change/{what}", {"volume": subject})
            self.workflows[done["volume"]] = [str(done["workflow"])]
            self.visit.say(f"The volume is being changed: {what}.", parts.BUSY)
        await self._load()

    # -- view -------------------------------------------------------------------------------------

    def view(self) -> list[Node | None]:
        if not self.has("volumes"):
            return [self.waiting("volumes")]
        rows = [(v["id"], self._row(v)) for v in self.volumes]
        return [
            parts.tiles(
                ("Volumes", len(self.volumes), "of running and closed leases"),
                ("Used", text.size(sum(v["used_bytes"] or 0 for v in self.volumes)), ""),
                ("Frozen", sum(v["tier"] == "frozen" for v in self.volumes), "kept, not in use"),
            ),
            parts.table("Volumes", ("Volume", "State", "Used", "Files", "Kept until", ""), rows,
                        none=parts.empty("No volume yet.", "A service gets one by a ",
                                         parts.command("persistent: true"), " storage in its SDL."),
                        numbers=(2, 3)),
            self._confirm(),
            self._chosen() if self.chosen else None,
        ]  # fmt: skip

    def _row(self, volume: dict[str, Any]) -> list[Any]:
        name = volume["path"].rpartition("/")[2]
        owner, _, rest = volume["path"].removeprefix("leases/").partition("/")
        place = f"{text.address(owner)}/{rest.rpartition('/')[0]}"
        named = f"{name} of {place}"
        actions = [
            parts.button("History", partial(self.choose, volume["id"]),
                         aria_expanded="true" if self.chosen == volume["id"] else "false",
                         aria_label=f"History of {named}"),
        ]  # fmt: skip
        if self.api.is_operator:
            actions += [
                parts.button(f"{what.capitalize()} …", partial(self.ask, what, volume["id"]),
                             aria_label=f"{what.capitalize()} … {named}")
                for what in _changes(volume)
            ]  # fmt: skip
        elif volume["tier"] == "frozen":
            actions.append(parts.button("Delete …", lambda: self.ask("purge", volume["id"]),
                                        kind="danger", aria_label=f"Delete … {named}"))  # fmt: skip
        word = volume["busy"] or volume["tier"]
        return [
            h("div", h("strong", name),
              h("div", f"{place} on {volume['host']}",
                class_="soft"), title=volume["path"]),
            h("div", parts.state(word, "" if not volume["error"] else parts.BAD),
              self._progress(volume),
              h("div", volume["error"], class_="soft") if volume["error"] else None),
            f"{text.size(volume['used_bytes'])} of {text.size(volume['size_bytes'])}",
            text.number(volume["files"]),
            text.full(volume["keep_until"]) if volume["keep_until"] else "its lease's end",
            h("div", actions, class_="row"),
        ]  # fmt: skip

    def _progress(self, volume: dict[str, Any]) -> Node | None:
        far = self.far.get(volume["id"])
        if far is not None:
            said = f"{text.size(far['done'])} of {text.size(far['total'])}"
            name = far["what"].capitalize()
            return parts.progress(name, far["done"], far["total"] or None, said)
        done = self.workflows.get(volume["id"])
        if not done or not volume["busy"]:
            return None
        steps = [type.partition(".")[2] for type in done[1:]]
        return parts.progress("Progress", len(steps), len(STEPS),
                              f"step {len(steps)}: {steps[-1] if steps else 'asked'}")  # fmt: skip

    def _confirm(self) -> Node | None:
        if self.asking is None:
            return None
        what, subject = self.asking
        says = {
            "freeze": "Freeze it? Whoever uses it lets go of it first; it can be unfrozen.",
            "unfreeze": "Bring it back into use?",
            "archive": "Pack it away? Getting it back takes longer than unfreezing.",
            "unarchive": "Bring it back from the archive?",
            "restore": f"Bring it back to {subject[:12]}? What it holds now is recorded first.",
            "purge": "Delete it for good? There is no way back.",
        }
        label = "Delete for good" if what == "purge" else what.capitalize()
        return h(
            "div",
            h("p", says.get(what, what), id="volume-why"),
            parts.button(label, self.do, kind="danger" if what == "purge" else "main"),
            parts.button("Leave it", self.keep),
            role="alertdialog", aria_label=what, aria_describedby="volume-why", class_="confirm",
            key="confirm",
        )  # fmt: skip

    def _chosen(self) -> Node:
        rows = [
            (
                entry["commit"],
                [h("code", entry["commit"][:12], title=entry["commit"]), parts.moment(entry["at"]),
                 entry["author"], entry["message"], text.number(entry["files"]),
                 text.size(entry["bytes"]),
                 h("div",
                   parts.button("Changes since", partial(self.compare, entry["commit"]),
                                aria_label=f"Changes since {entry['commit'][:12]}"),
                   parts.button("Restore …", partial(self.ask, "restore", entry["commit"]),
                                aria_label=f"Restore … {entry['commit'][:12]}")
                   if self.api.is_operator else None,
                   class_="row")],
            )
            for entry in self.history
        ]  # fmt: skip
        return parts.panel(
            "History",
            parts.table("Snapshots, newest first",
                        ("Snapshot", "At (UTC)", "By", "Why", "Files", "Bytes", ""), rows,
                        none=parts.empty("Nothing was recorded yet."), numbers=(4, 5)),
            self._changes(),
            self._move_form() if self.api.is_operator else None,
            aside=parts.button("Record it now", self.snapshot) if self.api.is_operator else None,
        )  # fmt: skip

    async def move(self, fields: dict[str, Any]) -> None:
        """To another path, or another host where there are several."""
        body = {"volume": self.chosen, "path": str(fields.get("path", "")).strip()}
        body["host"] = str(fields.get("host", "")).strip()
        done = await self.api.post("/v1/volumes/move", body)
        self.workflows[done["volume"]] = [str(done["workflow"])]
        self.visit.say("The volume is being moved.", parts.BUSY)
        await self._load()

    def _move_form(self) -> Node | None:
        volume = next((v for v in self.volumes if v["id"] == self.chosen), None)
        if volume is None or volume["mounted"]:
            return h("p", "It can be moved when no workload uses it.", class_="soft")
        return h(
            "form",
            parts.field("Move to path", name="path", value=volume["path"], autocomplete="off"),
            parts.field("On host", name="host", value=volume["host"], autocomplete="off"),
            h("button", "Move", type="submit", class_="button"),
            on={"submit": self.move}, class_="filters",
        )  # fmt: skip

    def _changes(self) -> Node | None:
        if self.changes is None:
            return None
        rows = [
            (
                change["path"],
                [parts.state(change["how"], parts.BUSY), h("span", change["path"], class_="wrap"),
                 _size_of(change["old"]), _size_of(change["new"])],
            )
            for change in self.changes[:500]
        ]  # fmt: skip
        return h(
            "div",
            h("h3", f"Changes since {self.compared[:12]}"),
            parts.table("Changes", ("How", "Path", "Before", "After"), rows,
                        none=h("p", "Nothing changed since.", class_="soft"), numbers=(2, 3)),
            key="changes",
        )  # fmt: skip


def _size_of(entry: dict[str, Any] | None) -> str:
    if not entry:
        return "–"
    return text.size(entry["size"]) if "size" in entry else "there"


def _changes(volume: dict[str, Any]) -> tuple[str, ...]:
    """What may be done with a volume as it is now."""
    if volume["busy"] or volume["mounted"]:
        return ()
    tier = str(volume["tier"]).split(maxsplit=1)[0]
    by_tier = {"online": ("freeze",), "frozen": ("unfreeze", "archive"), "archived": ("unarchive",)}
    return by_tier.get(tier, ())
