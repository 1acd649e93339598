"""The dashboard in a real browser, before a real provider with a real workload."""

from __future__ import annotations

import os
import signal
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect
from tests.integration.dashboard.live import Live, Tab, axe

from leasehold.dashboard.pages import PAGES

OPERATOR_PAGES = [path for path, name, page in PAGES if name and not page.tenant_only]


def shell(page: Page, line: str, shows: str) -> None:
    """Type a line into the terminal and wait for what it shows."""
    page.locator(".xterm-helper-textarea").focus()
    page.keyboard.type(line + "\n")
    expect(page.locator(".xterm-accessibility")).to_contain_text(shows, timeout=15_000)


def test_signing_in_with_the_operators_token(live: Live, tab: Tab) -> None:
    page = tab.page
    page.goto(live.url + "/ui/leases")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("Token or account key").fill("not the token")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("refuses")
    page.get_by_label("Token or account key").fill(live.token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Leases")).to_be_visible()
    expect(page.get_by_role("link", name="/1").first).to_be_visible()
    assert tab.context.cookies() == []
    page.reload()
    expect(page.get_by_role("heading", name="Leases")).to_be_visible()
    other = tab.context.new_page()
    other.goto(live.url)
    expect(other.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    for each in (page, other):
        expect(each.get_by_role("heading", name="Sign in")).to_be_visible()


def test_every_page_shows_without_complaint_and_asks_nobody_else(live: Live, tab: Tab) -> None:
    page = tab.enter(live.as_operator())
    expect(page.get_by_text("Nothing needs you.")).to_be_visible()
    tab.shot("overview")
    for path in OPERATOR_PAGES:
        page.goto(live.url + path)
        expect(page.get_by_role("main")).not_to_contain_text("Loading …")
        expect(page.locator("main main .bad")).to_have_count(0)
    for name in ("Services", "Logs", "Shell", "Manifest", "Close"):
        page.goto(live.url + live.lease_page)
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel")).not_to_contain_text("Loading …")
    host = urlsplit(live.url).netloc
    strangers = {
        u for u in tab.requests if urlsplit(u).netloc != host and not u.startswith("data:")
    }
    assert strangers == set()
    assert tab.complaints == []


def test_a_lease_from_the_page_to_its_end(live: Live, tab: Tab) -> None:
    """Deploy, watch the timeline, read and search the output, use the shell, roll back, close."""
    page = tab.enter(live.as_tenant(), "/ui/deploy")
    page.get_by_label("SDL file").fill(live.sdl(host="second.localhost", greeting="first version"))
    page.get_by_role("button", name="Deploy").click()
    page.get_by_role("link", name="Open the lease").click(timeout=60_000)
    expect(page.locator(".lease-head .state")).to_contain_text("healthy")
    expect(page.locator(".step-name", has_text="image pulled")).to_be_visible()
    tab.shot("lease")

    page.get_by_role("tab", name="Shell").click()
    page.get_by_role("button", name="Open").click()
    shell(page, "echo answer $((6*7))", "answer 42")
    tab.shot("shell")
    page.keyboard.press("F6")
    expect(page.get_by_role("button", name="End the session")).to_be_focused()
    shell(page, "echo a needle in the log > /proc/1/fd/1; echo done", "done")
    page.get_by_role("button", name="End the session").click()

    page.get_by_role("tab", name="Logs").click()
    expect(page.get_by_role("log")).to_contain_text("a needle in the log")
    page.get_by_label("Search all lines").fill("NEEDLE")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("1 lines contain")).to_be_visible()

    dseq = int(page.url.split("/")[-3])
    live.update(dseq, live.sdl(host="second.localhost", greeting="second version"))
    page.get_by_role("tab", name="Manifest").click()
    expect(page.locator(".diff .added")).to_contain_text("GREETING=second version")
    expect(page.locator(".diff .removed")).to_contain_text("GREETING=first version")
    tab.shot("manifest")
    page.get_by_role("button", name="Roll back … to").click()
    page.get_by_role("button", name="Roll back", exact=True).click()
    expect(page.locator(".said")).to_contain_text("Went back to", timeout=30_000)
    expect(page.locator("tbody tr").first).to_contain_text("current")

    page.get_by_role("tab", name="Close").click()
    expect(page.get_by_role("tabpanel")).to_contain_text("What happens to its volumes")
    page.get_by_role("button", name="Close this lease").click()
    page.get_by_role("button", name="Close it now").click()
    expect(page.locator(".lease-head .state")).to_contain_text("closed", timeout=30_000)

    page.get_by_role("link", name="Volumes").click()
    row = page.locator("tbody tr", has_text=f"/{dseq}/web")
    expect(row).to_contain_text("frozen", timeout=30_000)
    operator = tab.context.browser.new_page()
    operator.goto(f"{live.url}/ui/volumes#session={live.as_operator()}")
    theirs = operator.locator("tbody tr", has_text=f"/{dseq}/web")
    for what, then in (("Unfreeze", "online"), ("Freeze", "frozen")):
        theirs.get_by_role("button", name=f"{what} …").click()
        operator.get_by_role("button", name=what, exact=True).click()
        expect(theirs).to_contain_text(then, timeout=30_000)
    operator.close()
    expect(row).to_contain_text("frozen")
    row.get_by_role("button", name="Delete …").click()
    expect(page.get_by_role("button", name="Delete for good")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_contain_text("deleted")
    expect(row).to_have_count(0)
    assert tab.complaints == []


def test_a_volume_is_recorded_compared_and_restored(live: Live, tab: Tab) -> None:
    page = tab.enter(live.as_operator(), live.lease_page + "?tab=shell")
    page.get_by_role("button", name="Open").click()
    shell(page, "echo precious > /data/kept; echo writ''ten", "written")
    page.goto(live.url + "/ui/volumes")
    row = page.locator("tbody tr", has_text="/1/web")
    row.get_by_role("button", name="History of data").click()
    page.get_by_role("button", name="Record it now").click()
    expect(page.locator(".said")).to_contain_text("recorded")
    history = page.get_by_role("region", name="Snapshots, newest first").locator("tbody tr")
    with_it = history.first.locator("code").inner_text()

    page.goto(live.url + live.lease_page + "?tab=shell")
    page.get_by_role("button", name="Open").click()
    shell(page, "echo spoilt > /data/kept; echo writ''ten", "written")
    page.goto(live.url + "/ui/volumes")
    page.locator("tbody tr", has_text="/1/web").get_by_role(
        "button", name="History of data"
    ).click()
    page.get_by_role("button", name="Record it now").click()
    expect(page.locator(".said")).to_contain_text("recorded")
    page.get_by_role("button", name=f"Changes since {with_it}").click()
    expect(page.get_by_role("region", name="Changes")).to_contain_text("kept")
    page.get_by_role("button", name=f"Restore … {with_it}").click()
    page.get_by_role("button", name="Restore", exact=True).click()
    expect(page.locator(".said")).to_contain_text("as it was", timeout=30_000)

    page.goto(live.url + live.lease_page + "?tab=shell")
    page.get_by_role("button", name="Open").click()
    shell(page, "cat /data/kept", "precious")


def test_pages_fit_a_phone(live: Live, phone: Tab) -> None:
    page = phone.enter(live.as_operator())
    expect(page.get_by_text("Nothing needs you.")).to_be_visible()
    phone.shot("phone")
    for path in (*OPERATOR_PAGES, f"{live.lease_page}?tab=manifest", f"{live.lease_page}?tab=logs"):
        page.goto(live.url + path)
        expect(page.get_by_role("main")).not_to_contain_text("Loading …")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_axe_finds_nothing_in_the_way(live: Live, tab: Tab) -> None:
    """Names, labels, landmarks: no violation of WCAG 2 A and AA, in light and in the dark."""
    source, found = axe(), []
    page = tab.page
    page.goto(live.url + "/ui/sign-in")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    found += violations(page, source, "sign-in")
    tab.enter(live.as_tenant(), "/ui/deploy")
    found += violations(page, source, "deploy")
    tab.enter(live.as_operator())
    parts = ("timeline", "services", "logs", "shell", "manifest", "close")
    for path in (*OPERATOR_PAGES, *(f"{live.lease_page}?tab={part}" for part in parts)):
        page.goto(live.url + path)
        expect(page.get_by_role("main")).not_to_contain_text("Loading …")
        found += violations(page, source, path)
        if path in ("/", "/ui/images", f"{live.lease_page}?tab=manifest"):
            page.emulate_media(color_scheme="dark")
            found += violations(page, source, f"{path} in the dark")
            page.emulate_media(color_scheme="light")
    assert found == [], "\n".join(found)


def violations(page: Page, source: str, where: str) -> list[str]:
    page.evaluate(source)
    tags = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']"
    result = page.evaluate(f"axe.run(document, {{runOnly: {tags}, resultTypes: ['violations']}})")
    return [
        f"{where}: {v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}"
        for v in result["violations"]
    ]


def test_the_keyboard_reaches_everything(live: Live, tab: Tab) -> None:
    """The first stop leads past the menu; every control is reached, in the order it is seen."""
    page = tab.enter(live.as_operator(), "/ui/volumes")
    expect(page.get_by_role("button", name="/1/web").first).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.reload()
    expect(page.get_by_role("button", name="/1/web").first).to_be_visible()
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            "(e => e === document.body ? '' : (e.getAttribute('aria-label') || e.textContent))"
            "(document.activeElement)"
        )
        if not stop:
            break
        stops.append(stop)
    assert stops[0] == "Skip to content"
    wanted = ["Leasehold, overview", "Overview", "Volumes", "Event log"]
    assert [stop for stop in stops if stop in wanted][: len(wanted)] == wanted
    assert any(stop.startswith("History of data") for stop in stops[len(wanted) :])
    page.get_by_role("button", name="/1/web").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Record it now")).to_be_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "History of data"
    )


def test_a_page_outlives_its_provider(live: Live, tab: Tab) -> None:
    """Killed and started again, the provider finds the page waiting and the visitor signed in."""
    page = tab.enter(live.as_operator(), live.lease_page)
    expect(page.locator(".lease-head .state")).to_contain_text("healthy")
    page.evaluate("window.before = true")
    live.kill()
    expect(page.locator("#popup")).to_be_visible(timeout=15_000)
    live.start()
    page.wait_for_function("window.before === undefined", timeout=60_000)
    expect(page.locator(".lease-head .state")).to_contain_text("healthy", timeout=30_000)


def test_a_dead_dashboard_costs_the_provider_nothing(live: Live, tab: Tab) -> None:
    """Its process is killed: the API goes on, and the next look starts it again."""
    page = tab.enter(live.as_operator())
    (pid,) = live.pages()
    page.evaluate("window.before = true")
    os.kill(pid, signal.SIGKILL)
    assert live.operator("/v1/leases")
    page.wait_for_function("window.before === undefined", timeout=40_000)  # it came back by itself
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    assert live.pages() != [pid]
