"""The scheduler's page in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.async_api import async_playwright, expect

from leasehold.core.service import running
from leasehold.schedule.scheduler import Scheduler
from leasehold.schedule.settings import ScheduleSettings
from leasehold.schedule.store import ScheduleStore


async def test_add_disable_and_a_mistake(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is in scripts/packages.txt"
    settings = ScheduleSettings(port=0, auth_user="me", auth_password="secret")
    async with (
        running(ScheduleStore.at(tmp_path / "s.db")) as store,
        running(Scheduler(store, settings=settings)) as scheduler,
        async_playwright() as playwright,
    ):
        assert scheduler.http is not None
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = await browser.new_context(
            http_credentials={"username": "me", "password": "secret"}
        )
        page = await context.new_page()
        await page.goto(f"{scheduler.http.url}/ui")
        await page.fill("[name=network]", "cosmos")
        await page.fill("[name=chain_id]", "<b>chain</b>")
        await page.select_option("[name=kind]", "syncrange")
        await page.fill("[name=height_from]", "9")
        await page.fill("[name=height_to]", "3")
        await page.click("text=Add")
        await expect(page.locator("#message")).to_contain_text("height_to")
        await page.fill("[name=height_to]", "30")
        await page.click("text=Add")
        row = page.locator("#tasks tr")
        await expect(row).to_contain_text("syncrange 9–30")
        await expect(row).to_contain_text("<b>chain</b>")  # text, not markup
        await row.get_by_text("Enable").click()
        await expect(row.get_by_text("Disable")).to_be_visible()
        await row.get_by_text("Runs").click()
        await expect(page.locator("#runs tr").first).to_contain_text("no target serves")
        await row.get_by_text("Disable").click()
        await expect(row.get_by_text("Enable")).to_be_visible()
        (task,) = await store.all()
        assert (task.enabled, task.chain_id) == (False, "<b>chain</b>")
        await browser.close()
