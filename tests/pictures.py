"""Pictures of the live page in its states, for the README: `python -m tests.pictures DIRECTORY`."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import click
from playwright.async_api import Browser, async_playwright

from rokt_events_async import Emitter
from rokt_events_async.cli import demo
from rokt_events_async.sandbox import Sandbox

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
SESSIONS = 90


async def traffic(sandbox: Sandbox, luck: random.Random) -> None:
    """A shop's sessions, over some seconds."""
    tally = demo._Tally()

    async def play(emitter: Emitter, number: int) -> None:
        plan = list(demo._session(luck, is_bad=number % 15 == 0))
        delays = [luck.uniform(0, 8), *(luck.uniform(0.01, 0.4) for _ in plan[1:])]
        await demo._play(emitter, plan, delays, tally)

    async with Emitter(sandbox.credentials, endpoint=sandbox.url, flush_interval=0.5) as emitter:
        await asyncio.gather(*(play(emitter, number) for number in range(SESSIONS)))


async def take(browser: Browser, into: Path) -> None:
    """Takes all of them."""
    faults = {503: 0.06, "reset-after": 0.03, "slow": 0.02}
    async with Sandbox(page=True, faults=faults, latency=(0.01, 0.08), seed=3) as sandbox:
        context = await browser.new_context(viewport=WIDE, color_scheme="light")  # type: ignore[arg-type]
        page = await context.new_page()
        await page.goto(sandbox.page_url)
        await page.get_by_label("Environment lines").wait_for()
        await page.screenshot(path=into / "empty.png")
        await traffic(sandbox, random.Random(5))
        sandbox.fail_next(503, 503, "cut")
        await page.wait_for_timeout(1200)
        await page.screenshot(path=into / "busy.png")
        await page.locator(".row.part").first.click()
        await page.wait_for_timeout(300)
        await page.screenshot(path=into / "request.png")
        await page.keyboard.press("2")
        await page.wait_for_timeout(1200)
        await page.screenshot(path=into / "session.png")
        await page.emulate_media(color_scheme="dark")
        await page.screenshot(path=into / "session-dark.png")
        await page.keyboard.press("1")
        await page.keyboard.press("f")
        await page.screenshot(path=into / "faults-dark.png")
        await page.keyboard.press("Escape")
        phone = await browser.new_context(viewport=PHONE)  # type: ignore[arg-type]
        small = await phone.new_page()
        await small.goto(sandbox.page_url)
        await small.locator(".row").first.wait_for()
        await small.wait_for_timeout(600)
        await small.screenshot(path=into / "phone.png")
        await small.locator(".row.part").first.click()
        await small.screenshot(path=into / "phone-request.png")
    await page.emulate_media(color_scheme="light")
    await page.locator("#banner").wait_for()
    await page.screenshot(path=into / "disconnected.png")


async def run(into: Path) -> None:
    async with async_playwright() as playwright:
        path = shutil.which("chromium")
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        await take(browser, into)
        await browser.close()


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def main(directory: Path) -> None:
    """Takes pictures of the live page."""
    directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(directory))


if __name__ == "__main__":
    main()
