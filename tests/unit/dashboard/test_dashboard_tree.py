"""Drawing differences: whatever was shown before, what is shown now is the newest tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nicegui import Client, ui
from nicegui.element import Element
from nicegui.page import page

from leasehold.dashboard.tree import Drawing, Node, h


@pytest.fixture(scope="module")
def root() -> Iterator[Element]:
    client = Client(page("/nowhere"))
    with client:
        yield Element("div")


def shown(element: Element) -> Any:
    return (
        element.tag,
        element._text or "",
        dict(element._props),
        [shown(child) for child in element.default_slot.children],
    )


def wanted(node: Node) -> Any:
    return (node.tag, node.text, node.props, [wanted(child) for child in node.children])


texts = st.sampled_from(["", "one", "<b>two</b>", "javascript:alert(1)"])
leaves = st.builds(
    lambda tag, text, key, title: h(tag, text or None, key=key, title=title),
    st.sampled_from(["p", "span", "button"]),
    texts,
    st.sampled_from([None, None, "a", "b", "c"]),
    st.sampled_from([None, "x", "y"]),
)
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda tag, children, key: h(tag, children, key=key),
        st.sampled_from(["div", "p"]),
        st.lists(inner, max_size=5),
        st.sampled_from([None, "a", "b"]),
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(views=st.lists(st.lists(trees, max_size=4), min_size=1, max_size=5))
def test_the_newest_tree_is_shown(root: Element, views: list[list[Node]]) -> None:
    drawing = Drawing(root, lambda handler, value: None)
    for view in views:
        drawing.show(*view)
        got = [shown(child) for child in root.default_slot.children]
        assert got == [wanted(node) for node in view]
    drawing.show()
    assert root.default_slot.children == []


def test_what_stays_keeps_its_element(root: Element) -> None:
    """A row that moves or changes is the same element: focus and selection stay with it."""
    drawing = Drawing(root, lambda handler, value: None)
    drawing.show(h("p", "first", key="a"), h("p", "second", key="b"))
    a, b = root.default_slot.children
    drawing.show(
        h("p", "new", key="n"), h("p", "second, changed", key="b"), h("p", "first", key="a")
    )
    assert root.default_slot.children[1:] == [b, a]
    assert b._text == "second, changed"
    drawing.show()


def test_nothing_is_sent_for_what_did_not_change(root: Element) -> None:
    """A hundred rows drawn again cost the browser nothing."""
    drawing = Drawing(root, lambda handler, value: None)

    def view() -> list[Node]:
        return [h("p", f"row {at}", key=str(at)) for at in range(100)]

    drawing.show(*view())
    updates = root.client.outbox.updates
    updates.clear()
    drawing.show(*view())
    assert not updates
    drawing.show(*view()[:-1])
    assert len([update for update in updates.values() if isinstance(update, Element)]) == 1
    drawing.show()


def test_the_newest_handler_is_called(root: Element) -> None:
    called: list[str] = []
    drawing = Drawing(root, lambda handler, value: handler(value))
    for name in ("old", "new"):
        drawing.show(h("button", "do", on={"click": lambda _, name=name: called.append(name)}))
    (button,) = root.default_slot.children
    (listener,) = button._event_listeners.values()

    class Arguments:
        args = None

    listener.handler(Arguments())
    assert called == ["new"]
    drawing.show()
    assert ui is not None
