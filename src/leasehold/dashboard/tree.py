"""Pages as values, and drawing the difference between two of them.

A view makes a tree of :class:`Node`; :class:`Drawing` keeps the elements that show it and changes
only what differs from the last one. What stays keeps its element, and with it the visitor's focus,
selection and scroll position. Text is only ever text: nothing a workload or a tenant wrote is read
as HTML or as a script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nicegui.element import Element

Handler = Callable[[Any], Any]
"""What happens on an event; gets the value of an input, the fields of a form, else None."""

EVENTS = {
    "click": "(e) => { e.preventDefault(); emit(); }",
    "input": "(e) => emit(e.target.value)",
    "change": '(e) => emit(e.target.type === "checkbox" ? e.target.checked : e.target.value)',
    "submit": "(e) => { e.preventDefault(); emit(Object.fromEntries(new FormData(e.target))); }",
    "toggle": "(e) => emit(e.target.open)",
}
"""What the browser sends for each event."""

THROTTLE = {"input": 0.15}
"""Seconds between two messages of one element."""


class Node:
    """An element to be: made by :func:`h`."""

    __slots__ = ("children", "key", "make", "on", "props", "tag", "text")

    def __init__(
        self,
        tag: str,
        props: dict[str, str],
        text: str,
        children: tuple[Node, ...],
        key: str | None,
        on: Mapping[str, Handler],
        make: Callable[[], Element] | None = None,
    ) -> None:
        self.tag = tag
        self.props = props
        self.text = text
        self.children = children
        self.key = key
        self.on = on
        self.make = make

    def find(self, text: str) -> bool:
        """Whether ``text`` is shown anywhere below."""
        return text in self.text or any(child.find(text) for child in self.children)


def h(
    tag: str,
    *parts: Any,
    key: str | None = None,
    on: Mapping[str, Handler] | None = None,
    **props: Any,
) -> Node:
    """An element. ``class_`` is ``class``, underscores are dashes, True is an empty value, None and
    False are no attribute. Parts are elements, texts, None, or lists of them."""
    children: list[Node] = []
    text = ""
    for part in _flat(parts):
        if isinstance(part, str):
            if not children and not text:
                text = part
            else:
                children.append(Node("span", {}, part, (), None, {}))
        else:
            children.append(part)
    shown = {
        name.rstrip("_").replace("_", "-"): "" if value is True else str(value)
        for name, value in props.items()
        if value is not None and value is not False
    }
    return Node(tag, shown, text, tuple(children), key, on or {})


def foreign(key: str, make: Callable[[], Element]) -> Node:
    """A NiceGUI element made once by ``make`` and then left alone."""
    return Node("", {}, "", (), key, {}, make)


def _flat(parts: Iterable[Any]) -> Iterable[Node | str]:
    for part in parts:
        if part is None or part is False:
            continue
        if isinstance(part, Node | str):
            yield part
        elif isinstance(part, Iterable):
            yield from _flat(part)
        else:
            yield str(part)


class _Shown:
    """A node that is drawn."""

    __slots__ = ("children", "element", "handlers", "node")

    def __init__(self, node: Node, element: Element) -> None:
        self.node = node
        self.element = element
        self.children: list[_Shown] = []
        self.handlers: dict[str, Handler] = {}


class Drawing:
    """What is drawn below ``root``. ``act(handler, value)`` runs an event's handler."""

    def __init__(self, root: Element, act: Callable[[Handler, Any], Any]) -> None:
        self.act = act
        self._root = _Shown(Node("div", {}, "", (), None, {}), root)

    def show(self, *nodes: Node) -> None:
        """Make it look like ``nodes``."""
        self._below(self._root, nodes)

    def _below(self, shown: _Shown, nodes: Sequence[Node]) -> None:
        keys = _keys([child.node for child in shown.children])
        old: dict[str, _Shown] = dict(zip(keys, shown.children, strict=True))
        new: list[_Shown] = []
        for key, node in zip(_keys(nodes), nodes, strict=True):
            child: _Shown | None = old.pop(key, None)
            if child is not None and child.node.tag == node.tag:
                self._change(child, node)
            else:
                if child is not None:
                    child.element.delete()
                child = self._make(shown.element, node)
            new.append(child)
        for child in old.values():
            child.element.delete()
        slot = shown.element.default_slot
        wanted = [child.element for child in new]
        if slot.children != wanted:
            slot.children[:] = wanted
            shown.element.update()
        shown.children = new

    def _make(self, parent: Element, node: Node) -> _Shown:
        with parent:
            element = node.make() if node.make is not None else Element(node.tag)
        shown = _Shown(node, element)
        if node.make is not None:
            return shown
        element._text = node.text
        element._props.update(node.props)
        for event in node.on:
            self._listen(shown, event)
        shown.handlers.update(node.on)
        self._below(shown, node.children)
        return shown

    def _listen(self, shown: _Shown, event: str) -> None:
        def fired(arguments: Any) -> Any:
            handler = shown.handlers.get(event)
            return None if handler is None else self.act(handler, arguments.args)

        shown.element.on(event, fired, js_handler=EVENTS[event], throttle=THROTTLE.get(event, 0.0))

    def _change(self, shown: _Shown, node: Node) -> None:
        was, shown.node = shown.node, node
        if node.make is not None:
            return
        shown.handlers.update(node.on)
        if was.text != node.text or was.props != node.props:
            shown.element._text = node.text
            if was.props != node.props:
                for name in was.props.keys() - node.props.keys():
                    shown.element._props.pop(name, None)
                shown.element._props.update(node.props)
            shown.element.update()
        self._below(shown, node.children)


def _keys(nodes: Sequence[Node]) -> list[str]:
    """A name for each that it keeps while its sisters come and go."""
    counted: dict[str, int] = {}
    keys = []
    for node in nodes:
        base = f"={node.key}" if node.key is not None else f"<{node.tag}"
        count = counted[base] = counted.get(base, 0) + 1
        keys.append(base if count == 1 else f"{base}#{count}")
    return keys
