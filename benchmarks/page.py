"""The sandbox's live page: the longest task in the browser, and the sandbox's requests/s with a page open.

Chromium's own observer tells of tasks of 50 ms and more. Chromium is taken from the PATH.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
import click
from playwright.async_api import Page, async_playwright, expect

from benchmarks.load import make
from benchmarks.measure import Spread, save, terminal
from rokt_events_async.sandbox import Sandbox

EVENTS = 25
WORKERS = 8
MARK = "session-of-the-request"

OBSERVER = """() => {
    window.longest = 0;
    window.tasks = 0;
    new PerformanceObserver((list) => {
        for (const task of list.getEntries()) {
            window.tasks++;
            window.longest = Math.max(window.longest, task.duration);
        }
    }).observe({ type: 'longtask' });
}"""


@asynccontextmanager
async def browser_page() -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield await browser.new_page(viewport={"width": 1280, "height": 800})
        await browser.close()


class Load:
    """Full requests, each of a session of its own, over one client."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        credentials = sandbox.credentials
        now = datetime.now(UTC)
        events = [make(0, number).stamped(now).to_dict() for number in range(EVENTS)]
        self._template = json.dumps({"events": [{**event, "sessionId": MARK} for event in events]}).encode()
        self._url, self._session = sandbox.url, session
        self._headers = {
            "rokt-pub-id": credentials.pub_id,
            "rokt-secret": credentials.secret,
            "rokt-tag-id": credentials.tag_id,
            "Content-Type": "application/json",
        }
        self.sent = 0

    async def post(self) -> None:
        self.sent += 1
        body = self._template.replace(MARK.encode(), f"session-{self.sent:08}".encode())
        async with self._session.post(self._url, data=body, headers=self._headers) as answer:
            await answer.read()

    async def many(self, count: int) -> None:
        for _ in range(0, count, WORKERS):
            await asyncio.gather(*(self.post() for _ in range(WORKERS)))

    async def rate(self, seconds: float) -> float:
        """Posts as fast as it is answered; returns requests per second."""
        started = time.perf_counter()
        before = self.sent

        async def work() -> None:
            while time.perf_counter() < started + seconds:
                await self.post()

        await asyncio.gather(*(work() for _ in range(WORKERS)))
        return (self.sent - before) / (time.perf_counter() - started)

    async def steadily(self, per_second: int, seconds: float) -> None:
        started = time.perf_counter()
        posts = set()
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, started + number / per_second - time.perf_counter()))
            posts.add(asyncio.create_task(self.post()))
        await asyncio.wait(posts)


async def longest_task(rows: int, per_second: int, seconds: float) -> float:
    """Returns the longest task of a page that has `rows` requests, in milliseconds; 0 if none was long."""
    with Sandbox(page=True, history=1) as sandbox:
        async with aiohttp.ClientSession() as session, browser_page() as page:
            load = Load(sandbox, session)
            await load.many(rows)
            await page.goto(sandbox.page_url)
            await expect(page.locator("#foot-count")).to_contain_text(
                f"{rows:,} requests kept", timeout=60_000
            )
            await page.evaluate(OBSERVER)
            await load.steadily(per_second, seconds)
            longest: float = await page.evaluate("window.longest")
            return longest


async def rate(rows: int, seconds: float, *, page: bool) -> float:
    """Returns the requests/s of a sandbox, without the page, or with it open in a browser."""
    with Sandbox(page=page, history=1) as sandbox:
        async with aiohttp.ClientSession() as session:
            load = Load(sandbox, session)
            await load.many(rows)  # As it is after a while: as many are forgotten as come.
            if not page:
                return await load.rate(seconds)
            async with browser_page() as open_page:
                await open_page.goto(sandbox.page_url)
                await asyncio.sleep(2)
                return await load.rate(seconds)


@click.command()
@click.option("--runs", default=5, show_default=True)
@click.option("--rows", default=10_000, show_default=True, help="Requests that the page has at the start.")
@click.option("--per-second", default=200, show_default=True, help="Requests that arrive meanwhile.")
@click.option("--seconds", default=8.0, show_default=True, help="Of each run.")
def main(runs: int, rows: int, per_second: int, seconds: float) -> None:
    """Measures the page."""
    console = terminal()
    longest = [asyncio.run(longest_task(rows, per_second, seconds)) for _ in range(runs)]
    shown = ", ".join(f"{one:.0f}" if one else "none" for one in longest)
    console.print(
        f"longest task in ms, {rows:,} requests and {per_second}/s: {shown} (none: none of 50 or more)"
    )
    pairs = []
    for number in range(runs + 1):
        pair = [asyncio.run(rate(rows, seconds, page=page)) for page in (False, True)]
        if number:  # The first warms up.
            pairs.append(pair)
    ratio = Spread.of([with_page / without for without, with_page in pairs])
    without = Spread.of([pair[0] for pair in pairs])
    console.print(f"requests/s without the page {without}; with it open, of that: {ratio}")
    save("page", {"longest_task_ms": longest, "of_the_sandbox_without": ratio, "without": without})


if __name__ == "__main__":
    main()
