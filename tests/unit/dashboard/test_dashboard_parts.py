"""Words for people, links that lead nowhere bad, and the difference of two manifests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.dashboard import parts, text
from leasehold.dashboard.pages import find, images, menu
from leasehold.dashboard.pages.lease_manifest import difference
from leasehold.dashboard.pages.volumes import Volumes
from leasehold.dashboard.signin import credential_of
from leasehold.gateway.front import is_page
from leasehold.market.accounts import Key


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0.04, "0.0 ms"), (821.2, "821.2 ms"), (1250, "1.25 s"), (185_000, "3 min 5 s"),
     (7_440_000, "2 h 4 min"), (442_800_000, "5 d 3 h")],
)  # fmt: skip
def test_durations(ms: float, said: str) -> None:
    assert text.duration(ms) == said


def test_sizes_and_numbers() -> None:
    assert text.size(1536) == "1.5 KiB"
    assert text.size(None) == "–"
    assert text.number(1234567) == "1\u202f234\u202f567"


@pytest.mark.parametrize("href", ["javascript:alert(1)", "data:text/html,x", "JAVASCRIPT:x", ""])
def test_only_pages_and_http_are_linked(href: str) -> None:
    assert "href" not in parts.link("a name", href).props


def test_a_fleet_is_shown_with_what_cools_down_in_it() -> None:
    digest = f"sha256:{'ab' * 32}"
    fleet = {
        "node": "a", "health": 0.9, "traffic": [{"at": 0.0, "origin": 2048, "peers": 1024}],
        "members": [{"node": "a", "zone": "", "transfer": "10.0.0.1:29501", "here": True},
                    {"node": "b", "zone": "east", "transfer": "10.0.0.2:29501", "here": False}],
        "cooling": [{"digest": digest, "failure": "rate_limited", "remaining": 29.5,
                     "until": 0.0, "failures": 2}],
    }  # fmt: skip
    shown = [*images.fleet_view(fleet), *images.traffic_view(fleet)]
    for said in ("a (this node)", "east", "90%", "sha256:abababababab", "rate limited", "29.50 s",
                 "now 2.0 KiB a minute"):  # fmt: skip
        assert any(node.find(said) for node in shown), said
    alone = images.fleet_view({"node": "", "health": None, "members": [], "cooling": []})
    assert alone[0].find("This node shares images with nobody.")


def test_a_volume_shows_the_bytes_of_a_change_else_its_steps() -> None:
    visit = SimpleNamespace(api=SimpleNamespace(is_operator=True))
    page = Volumes(visit, {}, {})  # type: ignore[arg-type]
    row = {"id": "r", "busy": "it is being moved to elsewhere"}
    assert page._progress(row) is None
    page.workflows = {"r": ["w", "workflow.move_started", "workflow.app_accepted"]}
    steps = page._progress(row)
    assert steps is not None and steps.find("step 2: app_accepted")
    page.far = {"r": {"what": "copying", "done": 1 << 20, "total": 3 << 20}}
    counted = page._progress(row)
    assert counted is not None and counted.find("1.0 MiB of 3.0 MiB")
    bar = next(node for node in counted.children if node.tag == "progress")
    assert (bar.props["value"], bar.props["max"]) == (str(1 << 20), str(3 << 20))


def test_every_state_has_a_shape_and_a_word() -> None:
    theme = (Path(parts.__file__).parent / "static" / "theme.css").read_text()
    for tone, shape in parts.SHAPES.items():
        assert f'.state.{tone}::before {{ content: "{shape}" / ""; }}' in theme
    for word, tone in parts.TONES.items():
        assert parts.state(word).text == word
        assert parts.state(word).props["class"] == f"state {tone}"


def test_the_difference_says_what_was_added_and_removed() -> None:
    lines = difference('{\n "a": 1,\n "b": 2\n}', '{\n "a": 1,\n "b": 3\n}')
    assert [line.text for line in lines if line.props["class"] == "added"] == ['+ "b": 3\n']
    assert [line.text for line in lines if line.props["class"] == "removed"] == ['- "b": 2\n']
    assert "same" in difference("x", "x")[0].text


def test_tenants_find_no_page_of_the_operator() -> None:
    own = {path for path, _ in menu(operator=False)}
    assert own == {"/", "/ui/leases", "/ui/deploy", "/ui/market", "/ui/volumes"}
    for path, _ in menu(operator=True):
        if path not in own:
            assert find(path, operator=False)[0].title == "Not found"
    assert find("/ui/leases/a/1/1/1/x", operator=True)[0].title == "Not found"


def test_the_front_door_knows_pages_from_the_api() -> None:
    for path in ("/", "/ui/leases", "/_nicegui/3/x.js", "/_nicegui_ws/socket.io/"):
        assert is_page(path)
    for path in ("/v1/leases", "/lease/1/1/1/shell", "/uix", "/status", "/leases", "//", "/UI/"):
        assert not is_page(path)


def test_credentials_are_told_apart() -> None:
    key = Key.generate()
    file = (
        f'{{"name": "acme", "algorithm": "{key.algorithm}", "address": "{key.address}",'
        f' "secret": "{key.secret.hex()}"}}'
    )
    assert credential_of(file).kind == "account"
    assert credential_of(file).owner == key.address
    assert credential_of(" aaa.bbb.ccc\n").kind == "token"
    assert credential_of("hV3w-token").kind == "operator"
    for bad in ("", "{", file.replace(key.address, "akash1other"), "x" * 20_000):
        with pytest.raises(LeaseholdError):
            credential_of(bad)
