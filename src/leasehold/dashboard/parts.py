"""What pages are made of.

Every state is said in words and has a shape of its own: colour is a help, never the message. Tables
become cards on a phone, by the labels on their cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from leasehold.dashboard import text
from leasehold.dashboard.tree import Handler, Node, h

GOOD, BUSY, WARN, BAD, OFF = "good", "busy", "warn", "bad", "off"

SHAPES = {GOOD: "●", BUSY: "◐", WARN: "▲", BAD: "✕", OFF: "○"}

TONES = {
    "healthy": GOOD, "running": GOOD, "online": GOOD, "active": GOOD, "open": GOOD, "ready": GOOD,
    "deployed": GOOD, "enabled": GOOD, "up": GOOD, "done": GOOD, "ok": GOOD, "success": GOOD,
    "armed": GOOD, "current": GOOD,
    "waiting": BUSY, "starting": BUSY, "queued": BUSY, "moving": BUSY, "reclaiming": BUSY,
    "working": BUSY, "retrying": WARN, "settling": BUSY, "reacting": BUSY, "loading": BUSY,
    "unhealthy": WARN, "paused": WARN, "frozen": WARN, "weak": WARN, "parked": WARN,
    "unknown": WARN, "archived": OFF, "failed": BAD, "error": BAD, "crashed": BAD, "broken": BAD,
    "closed": OFF, "stopped": OFF, "disabled": OFF, "exited": OFF, "asleep": OFF, "offline": BAD,
    "lost": BAD, "sleeping": OFF, "finished": OFF,
}  # fmt: skip


def state(word: str, tone: str = "") -> Node:
    """A state: a shape, a colour and the word."""
    tone = tone or TONES.get(word.lower(), BUSY)
    # One element; the shape is drawn by the theme, for eyes only.
    return h("span", word, class_=f"state {tone}")


def link(label: Any, href: str, **props: Any) -> Node:
    """A link within the dashboard, or to an http(s) address, which opens a tab of its own."""
    if href.startswith("/"):
        return h("a", label, href=href, **props)
    if href.startswith(("http://", "https://")):
        return h("a", label, href=href, target="_blank", rel="noopener noreferrer", **props)
    return h("span", label)


def button(label: str, act: Callable[[], Any], *, kind: str = "", **props: Any) -> Node:
    """``kind`` is empty, ``main`` or ``danger``."""
    return h("button", label, on={"click": lambda _: act()}, type="button",
             class_=f"button {kind}".strip(), **props)  # fmt: skip


def panel(title: str, *parts: Any, key: str | None = None, aside: Any = None) -> Node:
    """A section with a heading."""
    slug = "".join(c if c.isalnum() else "-" for c in title.lower())
    head = h("div", h("h2", title, id=f"h-{slug}"), aside, class_="panel-head")
    return h("section", head, *parts, class_="panel", key=key or title, aria_labelledby=f"h-{slug}")


def empty(what: str, *then: Any) -> Node:
    """Nothing is here, and what to do about it."""
    return h("div", h("p", what, class_="empty-what"), h("p", *then) if then else None,
             class_="empty")  # fmt: skip


def command(line: str) -> Node:
    """A command to type."""
    return h("code", line, class_="command")


def notice(message: Any, tone: str = WARN, **props: Any) -> Node:
    return h(
        "div", h("span", SHAPES[tone], class_="shape", aria_hidden="true"), h("div", message),
        class_=f"notice {tone}", **props,
    )  # fmt: skip


def facts(*pairs: tuple[str, Any] | None) -> Node:
    """Names and values."""
    return h(
        "dl",
        [h("div", h("dt", pair[0]), h("dd", pair[1]), key=pair[0]) for pair in pairs if pair],
        class_="facts",
    )


def tiles(*shown: tuple[str, Any, str]) -> Node:
    """Large numbers: name, value, what it means."""
    return h(
        "dl",
        [
            h("div", h("dt", name), h("dd", value), h("dd", note, class_="note") if note else None,
              class_="tile", key=name)
            for name, value, note in shown
        ],
        class_="tiles",
    )  # fmt: skip


def table(
    name: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[Any]]],
    *,
    none: Node | None = None,
    numbers: Sequence[int] = (),
) -> Node:
    """``rows`` are (key, cells); ``numbers`` are the columns to align right."""
    found = list(rows)
    if not found and none is not None:
        return none
    head = h("tr", [
        h("th", column or h("span", "Actions", class_="hidden"), scope="col",
          class_="number" if at in numbers else None)
        for at, column in enumerate(columns)
    ])  # fmt: skip
    body = [
        h("tr", [
            h("td", cell, data_label=columns[at], class_="number" if at in numbers else None)
            for at, cell in enumerate(cells)
        ], key=key)
        for key, cells in found
    ]  # fmt: skip
    return h(
        "div",
        h("table", h("caption", name, class_="hidden"), h("thead", head), h("tbody", body)),
        class_="scroll", tabindex="0", role="region", aria_label=name,
    )  # fmt: skip


def meter(
    name: str,
    parts: Sequence[tuple[str, float, str]],
    whole: float,
    unit: Callable[[float], str],
    *,
    rest: str = "",
) -> Node:
    """A bar of named parts (name, amount, tone) of a whole, said in words above it.

    ``rest`` is what the remaining part is called, where it means something.
    """
    x, bars = 0.0, []
    for label, amount, tone in parts:
        width = 0.0 if whole <= 0 else max(0.0, min(100.0 - x, 100.0 * amount / whole))
        bars.append(h("rect", key=label, x=f"{x:.2f}", y="0", width=f"{width:.2f}", height="10",
                      class_=f"fill-{tone}"))  # fmt: skip
        x += width
    words = ", ".join(f"{unit(amount)} {label}" for label, amount, _ in parts)
    if rest:
        free = max(0.0, whole - sum(amount for _, amount, _ in parts))
        words = f"{words}, {unit(free)} {rest} of {unit(whole)}"
    return h(
        "div",
        h("div", h("span", name, class_="meter-name"),
          h("span", words, class_="soft"),
          class_="meter-head"),
        h("svg", bars, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true",
          class_="meter"),
        key=name, class_="meter-box",
    )  # fmt: skip


def chart(name: str, values: Sequence[float], show: Callable[[float], str], top: float = 0) -> Node:
    """A line over the last samples; the newest value and the peak are said in words."""
    newest = values[-1] if values else None
    peak = max(values, default=0.0)
    high = max(top, peak, 1e-9)
    points = [
        f"{200.0 * at / max(1, len(values) - 1):.1f},{48 - 44 * value / high:.1f}"
        for at, value in enumerate(values)
    ]
    line = " ".join(points)
    said = f"now {show(newest)}, peak {show(peak)}" if newest is not None else "not measured yet"
    return h(
        "figure",
        h("figcaption", h("span", name, class_="chart-name"), h("span", said, class_="soft"),),
        h(
            "svg",
            h("polygon", points=f"0,50 {line} 200,50" if len(points) > 1 else "", class_="area"),
            h("polyline", points=line if len(points) > 1 else "", class_="line"),
            viewBox="0 0 200 50", preserveAspectRatio="none", role="img",
            aria_label=f"{name}: {said}", class_="chart",
        ),
        class_="chart-box", key=name,
    )  # fmt: skip


def progress(name: str, done: float, total: float | None, said: str) -> Node:
    """A bar that says how far something is; without a total it only says that it goes on."""
    return h(
        "div",
        h("label", name, h("span", said, class_="soft")),
        h("progress", aria_label=name, max=str(total) if total else None,
          value=str(done) if total else None),
        class_="progress", key=name,
    )  # fmt: skip


def field(label: str, *, name: str, kind: str = "text", on: Mapping[str, Handler] | None = None,
          hint: str = "", **props: Any) -> Node:  # fmt: skip
    """A labelled input; ``kind`` may be ``textarea``."""
    id = f"f-{name}"
    described = f"{id}-hint" if hint else None
    tag = "textarea" if kind == "textarea" else "input"
    given = None if kind == "textarea" else kind
    control = h(tag, on=on, id=id, name=name, type=given, aria_describedby=described, **props)
    return h("div", h("label", label, for_=id), control,
             h("p", hint, id=described, class_="hint") if hint else None, class_="field", key=name,
             )  # fmt: skip


def choice(label: str, name: str, options: Sequence[tuple[str, str]], chosen: str,
           pick: Callable[[str], Any]) -> Node:  # fmt: skip
    """A select with (value, label) options."""
    id = f"f-{name}"
    return h(
        "div",
        h("label", label, for_=id),
        h("select", [
            h("option", shown, value=value, selected=value == chosen, key=value)
            for value, shown in options
        ], id=id, name=name, on={"change": pick}),
        class_="field", key=name,
    )  # fmt: skip


def moment(at: float | None) -> Node | str:
    """A time, with the whole date as its title."""
    if not at:
        return "–"
    return h("time", text.time(at), datetime=text.full(at), title=text.full(at))


def details(summary: str, *parts: Any, key: str | None = None, open: bool = False) -> Node:
    return h("details", h("summary", summary), h("div", *parts), key=key or summary, open=open)


def json_lines(value: Any, depth: int = 0) -> list[Node]:
    """Structured data as a list of names and values, nested at most four deep."""
    if isinstance(value, dict) and depth < 4:
        return [
            h("div", h("span", str(name), class_="json-name"), *(
                [h("div", json_lines(inner, depth + 1), class_="json-in")]
                if isinstance(inner, dict | list) and inner
                else [h("span", text.plain(inner) if not isinstance(inner, dict | list) else "none",
                        class_="json-value")]
            ), class_="json-row", key=str(name))
            for name, inner in value.items()
        ]  # fmt: skip
    if isinstance(value, list) and depth < 4:
        return json_lines({str(at): inner for at, inner in enumerate(value[:100])}, depth)
    return [h("span", text.plain(value)[:2000], class_="json-value")]
