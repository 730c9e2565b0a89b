"""The live page in a real Chromium, as a person uses it: with the mouse, with the keyboard, on a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from rokt_events_async.sandbox import Sandbox
from tests.samples import missing

try:
    from playwright.sync_api import Browser, Dialog, Locator, Page, expect, sync_playwright
except ImportError:
    missing("playwright is not installed")

WIDE: Any = {"width": 1280, "height": 800}
PHONE: Any = {"width": 390, "height": 844}
MIDDLE: Any = {"width": 900, "height": 700}

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(document.domain)</script>',
    "order-\u202egnp.exe",
    "\u001b[31morder\u001b[0m",
    "javascript:alert(1)",
    "{{7*7}}${7*7}",
    "__proto__",
    "constructor",
    "A" * 5000,
    "\ud800",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        missing("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(page=True) as served:
        yield served


Opener = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, sandbox: Sandbox) -> Iterator[Opener]:
    """Opens pages; each must print nothing to its console, and show no dialog."""
    problems: list[str] = []
    contexts = []

    def refuse(dialog: Dialog) -> None:
        problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def watch(page: Page) -> None:
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", refuse)

    def open_one(url: str = "", *, size: Any = None, scheme: Any = "light") -> Page:
        context = browser.new_context(
            viewport=size or WIDE, color_scheme=scheme, permissions=["clipboard-read", "clipboard-write"]
        )
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(url or sandbox.page_url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    # Chromium itself reports a server that was stopped, and a token that is missing.
    loud = [problem for problem in problems if not re.search(r"net::ERR|status of 4(01|22)", problem)]
    assert loud == []


def wire(**changes: Any) -> dict[str, Any]:
    """An event as it is sent."""
    return {
        "eventType": "SignalViewed",
        "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "sessionId": "session-1",
        "parentGuid": "parent-1",
        "clientUniqueId": "order-1",
        **changes,
    }


def post(sandbox: Sandbox, *events: dict[str, Any], body: bytes | None = None, **changes: str) -> int | None:
    """Posts a request as it is, and returns its status."""
    credentials = sandbox.credentials
    headers = {
        "Content-Type": "application/json",
        "rokt-pub-id": credentials.pub_id,
        "rokt-secret": credentials.secret,
        "rokt-tag-id": credentials.tag_id,
        **changes,
    }
    data = json.dumps({"events": events}).encode() if body is None else body
    try:
        with urllib.request.urlopen(urllib.request.Request(sandbox.url, data, headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


def shop(sandbox: Sandbox, session: str = "session-1", label: str = "order-1") -> None:
    """The usual sequence, in three requests."""

    def one(kind: str, parent: str, event_type: str = "SignalImpression") -> dict[str, Any]:
        pairs = [{"name": "AdditionalData", "value": kind}]
        return wire(
            eventType=event_type, sessionId=session, parentGuid=parent, clientUniqueId=label, metadata=pairs
        )

    post(sandbox, one("ImpressionPlacement", "p"), one("ImpressionSlot", "s"))
    post(sandbox, one("ImpressionCreative", "c-1"), one("ImpressionCreative", "c-2"))
    post(sandbox, one("ViewedCreative", "c-1", "SignalViewed"), one("RedButton", "r", "SignalResponse"))


def rows(page: Page) -> Locator:
    """The rows that are in sight, the newest first by place."""
    return page.locator(".row[aria-rowindex]:visible")


def row(page: Page, number: int) -> Locator:
    """The row of a request."""
    return page.locator(f"#row-{number}")


# Watching.


def test_the_empty_page_says_how_to_begin(sandbox: Sandbox, open_page: Opener) -> None:
    """Its lines work as they are, and it gives way to the first request."""
    page = open_page()
    lines = page.get_by_label("Environment lines").inner_text()
    curl = page.get_by_label("curl command").inner_text()
    assert f"export ROKT_SECRET={sandbox.credentials.secret}" in lines
    assert page.title() == "Server Events sandbox"

    done = subprocess.run(
        ["bash", "-c", f"{lines}\n{curl.replace('curl -i', 'curl -si')}"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert " 200 " in done.stdout.splitlines()[0]
    expect(row(page, 1)).to_contain_text("accepted")
    expect(page.locator("#blank")).to_be_hidden()
    page.get_by_role("button", name="Copy the endpoint").click()
    assert page.evaluate("navigator.clipboard.readText()") == sandbox.url


def test_requests_come_as_they_are(sandbox: Sandbox, open_page: Opener) -> None:
    """Rows, counters, verdicts, faults, without a reload."""
    page = open_page()
    post(sandbox, wire(), wire(eventType="Hovered"))
    sandbox.fail_next("reset-after", "504-processed", "503-html")
    same = wire(parentGuid="parent-2")
    for _ in range(3):
        post(sandbox, same)

    expect(row(page, 1)).to_contain_text("207")
    expect(row(page, 1)).to_contain_text("InvalidEventType")
    expect(row(page, 2)).to_contain_text("taken, not told")
    expect(row(page, 2)).to_contain_text("reset-after")
    expect(row(page, 3)).to_contain_text("1 twice")
    expect(row(page, 4)).to_contain_text("not taken")
    expect(row(page, 1)).to_have_attribute(
        "aria-label", re.compile("Request 1, 207, InvalidEventType, 1 of 2")
    )
    for name, value in {
        "requests": "4",
        "accepted": "3",
        "refused": "1",
        "twice": "1",
        "sessions": "1",
    }.items():
        expect(page.locator(f"#s-{name}")).to_have_text(value)
    expect(page.locator("#s-rate")).not_to_have_text("0")


def test_a_request_opened(sandbox: Sandbox, open_page: Opener) -> None:
    """Its events with errors, the body, the answer, the headers without a secret; then what comes next."""
    page = open_page()
    post(
        sandbox,
        wire(metadata=[{"name": "AdditionalData", "value": "ViewedCreative"}]),
        wire(eventType="Hovered"),
    )
    post(sandbox, wire(sessionId="session-2"))
    row(page, 1).click()
    detail = page.locator("#detail")
    expect(detail).to_contain_text("1 event of 2 refused, 1 accepted. Refused events must not be sent again.")
    expect(detail).to_contain_text("answered after")
    expect(detail.locator(".e.bad")).to_contain_text("InvalidEventType Event type is invalid")
    detail.locator(".e").first.click()
    expect(detail.locator(".full")).to_contain_text('"sessionId": "session-1"')
    detail.get_by_role("tab", name="Request").click()
    expect(detail.locator(".json")).to_contain_text('"eventType": "Hovered"')
    detail.get_by_role("tab", name="Answer").click()
    expect(detail.locator(".json")).to_contain_text('"processedEventsCount": 1')
    detail.get_by_role("tab", name="Headers").click()
    expect(detail).to_contain_text("withheld, never recorded")
    expect(detail).not_to_contain_text(sandbox.credentials.secret)
    detail.get_by_role("button", name="Newer (k)").click()
    expect(detail).to_contain_text("No. 2")
    sandbox.clear()
    expect(detail).to_be_hidden()
    expect(page.locator("#toast")).to_contain_text("Record cleared")


@pytest.mark.parametrize("fault", [None, "503", "reset-after", "cut", "207"])
def test_copies_work_as_they_are(
    fault: str | None, sandbox: Sandbox, open_page: Opener, pytester: pytest.Pytester
) -> None:
    """The command sends the same again; the test passes, with the fault armed and the asserts."""
    page = open_page()
    if fault == "207":
        post(
            sandbox, wire(clientUniqueId='it\'s "quoted" $HOME `id` \\ \u00fc \u202e'), wire(eventType="Odd")
        )
    else:
        sandbox.fail_next(fault)
        post(sandbox, wire())
    row(page, 1).click()
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#toast")).to_contain_text("curl command copied")
    command = page.evaluate("navigator.clipboard.readText()")
    credentials = sandbox.credentials
    environment = {
        "PATH": os.environ["PATH"],
        "ROKT_PUB_ID": credentials.pub_id,
        "ROKT_SECRET": credentials.secret,
        "ROKT_TAG_ID": credentials.tag_id,
    }
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, env=environment)
    first, again = sandbox.requests
    assert again.body == first.body
    assert again.status == (207 if fault == "207" else 200)

    page.get_by_role("button", name="Copy as test").click()
    expect(page.locator("#toast")).to_contain_text("Test copied")
    pytester.makepyfile(test_copied=page.evaluate("navigator.clipboard.readText()"))
    result = pytester.runpytest_subprocess("-q", "-p", "no:randomly", "-p", "no:xdist")
    result.assert_outcomes(passed=1)


def test_a_session(sandbox: Sandbox, open_page: Opener) -> None:
    """Its events along the usual sequence: complete, then doubled, then with gaps."""
    page = open_page()
    shop(sandbox)
    expect(row(page, 3)).to_be_visible()
    page.get_by_role("tab", name="Sessions").click()
    detail = page.locator("#detail")
    expect(detail).to_contain_text("Complete: nothing missing, nothing doubled.")
    expect(detail).to_contain_text("1 creative not viewed.")
    assert detail.locator(".evs tbody tr").count() == 6
    assert detail.locator(".evs tbody td:nth-child(3)").all_inner_texts() == [
        "Placement",
        "Slot",
        "Creative",
        "Creative",
        "Viewed",
        "Response",
    ]

    sandbox.fail_next("reset-after")
    twice = wire(sessionId="session-2", parentGuid="c-9")
    post(sandbox, twice)
    post(sandbox, twice)
    page.locator(".row.s", has_text="session-2"[:8]).first.click()
    page.keyboard.press("1")
    row(page, 5).click()
    page.get_by_role("button", name="session-2").click()
    expect(detail).to_contain_text("1 event accepted more than once, in requests 4, 5.")
    expect(detail).to_contain_text("1 creative viewed without an impression: c-9.")
    expect(detail).to_contain_text("No placement impression was accepted.")
    detail.get_by_role("button", name="5", exact=True).click()
    expect(detail).to_contain_text("No. 5")
    page.keyboard.press("2")
    detail.get_by_role("button", name="Its requests").click()
    expect(page.locator("#shown")).to_have_text("2 of 5 requests")


def test_filters_and_search(sandbox: Sandbox, open_page: Opener) -> None:
    """By session, type, status, verdict, and by words, alone and together."""
    page = open_page()
    shop(sandbox, "session-a", "order-77")
    sandbox.fail_next(503, "reset-after")
    post(sandbox, wire(sessionId="session-b", parentGuid="p-1"))
    post(sandbox, wire(sessionId="session-b", parentGuid="p-2"))
    post(
        sandbox,
        wire(sessionId="session-b", parentGuid="p-3"),
        wire(eventType="Hovered", sessionId="session-b"),
    )
    post(sandbox, body=b"{}")
    shown = page.locator("#shown")
    search = page.get_by_role("searchbox")
    for text, count in {
        "order-77": 3,
        "ORDER-77 redbutton": 1,
        "session:session-b": 3,
        "status:503": 1,
        "status:none": 1,
        "code:invalid": 1,
        "fault:reset": 1,
        "type:hovered session:session-b": 1,
        "noeventsprovided": 1,
        "nothing-like-it": 0,
    }.items():
        search.fill(text)
        expect(shown).to_have_text(f"{count} of 7 requests")
    expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
    page.locator("#blank").get_by_role("button", name="Clear filters").click()
    for name, value, count in (
        ("Answer", "fault", 1),
        ("Answer", "none", 1),
        ("Answer", "part", 1),
        ("Answer", "bad", 1),
        ("Answer", "ok", 3),
        ("Verdict", "untold", 1),
        ("Verdict", "twice", 0),
        ("Verdict", "refused", 2),
        ("Verdict", "accepted", 4),
        ("Event type", "SignalResponse", 1),
        ("Event type", "other", 1),
    ):
        page.get_by_role("combobox", name=name).select_option(value)
        expect(shown).to_have_text(f"{count} of 7 requests")
        page.get_by_role("combobox", name=name).select_option("")
    page.get_by_role("button", name="Refused").click()
    expect(shown).to_have_text("2 of 7 requests")
    post(sandbox, wire(eventType="Hovered", sessionId="session-c"))
    expect(shown).to_have_text("3 of 8 requests")
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("#notes")).to_be_hidden()
    row(page, 1).click()
    page.get_by_role("button", name="Only this session").click()
    expect(shown).to_have_text("3 of 8 requests")


def test_hostile_text_is_text(sandbox: Sandbox, open_page: Opener) -> None:
    """In every field of an event, in metadata, in headers, in bodies: nothing is made of it."""
    page = open_page()
    for text in HOSTILE:
        pairs = [{"name": text, "value": text}, {"name": "AdditionalData", "value": text}]
        post(
            sandbox,
            wire(eventType=text, sessionId=text, parentGuid=text, clientUniqueId=text, metadata=pairs),
        )
        post(
            sandbox,
            wire(parentGuid=text),
            body=None,
            **{"X-Mark": text.encode("unicode_escape").decode()[:200]},
        )
    post(
        sandbox,
        body=b'{"events": [{"__proto__": {"a": 1}, "constructor": "x", "eventType": "' + b"<b>" + b'"}]}',
    )
    post(sandbox, body="<script>alert(1)</script>\u202e".encode())
    number = sandbox.count
    expect(row(page, number)).to_be_visible()
    row(page, number).click()
    for _ in range(number):
        for tab in ("Events", "Request", "Answer", "Headers"):
            page.locator("#detail").get_by_role("tab", name=tab).click()
            page.wait_for_timeout(20)
        page.keyboard.press("j")
    page.keyboard.press("2")
    for _ in range(len(HOSTILE)):
        page.locator("#list").focus()
        page.keyboard.press("j")
    assert (
        page.evaluate(
            "document.querySelectorAll('img, script:not([src]), iframe, b:not(.t b, h1 b, .switch b)').length"
        )
        == 0
    )
    assert page.evaluate("({}).a") is None
    body = page.locator("body").inner_text()
    assert "\u202e" not in body
    assert "\u001b" not in body


# Making it misbehave.


def test_arming_faults(sandbox: Sandbox, open_page: Opener) -> None:
    """By keyboard alone: the next request meets it, and what is armed is always in sight."""
    page = open_page()
    other = open_page()
    page.keyboard.press("f")
    page.keyboard.type("then resets")
    expect(page.locator(".opt")).to_have_count(1)
    expect(page.locator(".opt")).to_contain_text("taken")
    page.keyboard.press("Enter")
    expect(page.locator("#fault-says")).to_contain_text("The events are taken.")
    page.get_by_label("More", exact=True).click()
    page.get_by_role("button", name="Fail the next 2 requests").press("Enter")
    for each in (page, other):
        expect(each.locator("#armed-text")).to_have_text("Next 2 requests fail: 2 \u00d7 reset-after")
        expect(each.locator("#queue")).to_contain_text("2 \u00d7 reset-after")
        expect(each.locator("#desk-state")).to_have_text("2 armed")
    assert post(sandbox, wire()) is None
    expect(page.locator("#armed-text")).to_have_text("Next request fails: reset-after")
    page.get_by_role("button", name="Disarm", exact=True).click()
    expect(other.locator("#armed")).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect(other.locator("#armed")).to_be_visible()
    assert post(sandbox, wire()) is None
    assert post(sandbox, wire()) == 200
    expect(page.locator("#desk-state")).to_have_text("Normal")

    page.keyboard.press("f")
    page.keyboard.type("418")
    page.keyboard.press("Enter")
    page.get_by_label("How many requests", exact=True).last.fill("1")
    page.locator("#arm").click()
    expect(other.locator("#armed")).to_contain_text("418")
    assert post(sandbox, wire()) == 418
    page.keyboard.press("f")
    page.keyboard.type("no such fault")
    expect(page.locator("#pop-list")).to_contain_text("No such fault.")
    page.keyboard.press("Escape")
    expect(page.locator("#pop")).to_be_hidden()
    expect(page.locator("#fault-pick")).to_be_focused()


def test_rates_latency_credentials_forms(sandbox: Sandbox, open_page: Opener) -> None:
    """Each control does what it says; all of it can be undone at once, and that too."""
    page = open_page()
    page.get_by_role("button", name="+ Add a fault").click()
    page.locator(".opt", has_text="502").or_(page.locator(".opt", has_text="503-html")).first.click()
    slider = page.get_by_role("slider", name="Rate of 503-html in per cent")
    slider.press("End")
    expect(page.locator("#rate-sum")).to_have_text("100 % in all")
    assert post(sandbox, wire()) == 503
    page.get_by_role("button", name="Remove 503-html").click()
    expect(page.locator("#rates")).to_contain_text("None")
    assert post(sandbox, wire()) == 200

    page.get_by_role("slider", name="from").fill("20")
    expect(page.locator("#lat-out")).to_have_text("240 ms")
    page.get_by_role("slider", name="to").fill("25")
    expect(page.locator("#lat-out")).to_have_text("240 ms to 460 ms")
    plan = sandbox._behaviour.plan
    for _ in range(250):  # The label shows where the slider is; the sandbox hears of it a moment later.
        if plan.latency == (0.24, 0.46):
            break
        page.wait_for_timeout(20)
    assert plan.latency == (0.24, 0.46)
    post(sandbox, wire())
    expect(row(page, 3).locator(".lat")).to_have_text(re.compile(r"[234]\d\d ms"))

    page.get_by_role("switch", name="Accept the credentials").click()
    expect(page.locator("#desk-state")).to_have_text("slow + 1")
    assert post(sandbox, wire()) == 401
    page.get_by_text("Form of the answers").click()
    page.get_by_label("empty-401").check()
    expect(page.locator("#echo-sum")).to_have_text("empty-401")
    page.get_by_role("button", name="Back to normal").click()
    expect(page.locator("#desk-state")).to_have_text("Normal")
    assert post(sandbox, wire()) == 200
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#desk-state")).to_have_text("slow + 2")
    assert post(sandbox, wire()) == 401


def test_clearing_asks_twice(sandbox: Sandbox, open_page: Opener) -> None:
    """A click too many loses nothing."""
    page = open_page()
    post(sandbox, wire())
    expect(row(page, 1)).to_be_visible()
    clear = page.locator("#clear")
    clear.click()
    expect(clear).to_have_text("Sure? Clear")
    assert sandbox.count == 1
    clear.click()
    expect(page.locator("#s-requests")).to_have_text("0")
    expect(page.get_by_label("Environment lines")).to_be_visible()
    assert sandbox.count == 0


# The keyboard, and the reader's place.


def test_the_keyboard_alone(sandbox: Sandbox, open_page: Opener) -> None:
    """Down the list, into a request, and back to where one was; the keys can be switched off."""
    page = open_page()
    for number in range(5):
        post(sandbox, wire(parentGuid=f"parent-{number}"))
    expect(row(page, 5)).to_be_visible()
    page.locator("#list").focus()
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    expect(row(page, 4)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#list")).to_have_attribute("aria-activedescendant", "row-4")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_contain_text("No. 4")
    assert page.evaluate("document.getElementById('detail').contains(document.activeElement)")
    page.keyboard.press("c")
    expect(page.locator("#toast")).to_contain_text("curl command copied")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#list")).to_be_focused()
    page.keyboard.press("End")
    expect(row(page, 1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("parent-3")
    expect(page.locator("#shown")).to_have_text("1 of 5 requests")
    page.keyboard.press("Escape")
    expect(page.locator("#notes")).to_be_hidden()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("switch", name="Single-key shortcuts").uncheck()
    page.keyboard.press("Escape")
    page.locator("#list").focus()
    page.keyboard.press("2")
    expect(page.get_by_role("tab", name="Requests")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Requests").press("ArrowRight")
    expect(page.get_by_role("tab", name="Sessions")).to_be_focused()


def test_a_reader_keeps_the_place(sandbox: Sandbox, open_page: Opener) -> None:
    """Paused, or scrolled away, nothing moves under the pointer; then all of it comes."""
    page = open_page()
    for number in range(60):
        post(sandbox, wire(parentGuid=f"parent-{number}"))
    expect(row(page, 60)).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#conn-text")).to_have_text("Paused")
    post(sandbox, wire(parentGuid="while-paused"))
    expect(page.locator("#fresh")).to_have_text("1 while paused")
    expect(page.locator("#s-requests")).to_have_text("61")
    expect(row(page, 61)).to_have_count(0)
    page.get_by_role("button", name="Resume").click()
    expect(row(page, 61)).to_be_visible()

    page.locator("#list").evaluate("list => list.scrollTo(0, 640)")
    before = row(page, 35).bounding_box()
    post(sandbox, wire(parentGuid="while-away"))
    expect(page.locator("#fresh")).to_have_text("1 new request")
    assert row(page, 35).bounding_box() == before
    page.locator("#fresh").click()
    expect(row(page, 62)).to_be_visible()
    assert page.locator(".row").count() < 60


# Connections.


def cut(sandbox: Sandbox) -> None:
    """Ends all connections of a sandbox that goes on."""
    assert sandbox._runner is not None
    assert sandbox._runner.server is not None
    for connection in list(sandbox._runner.server.connections):
        transport = connection.transport
        if transport is not None:
            connection._loop.call_soon_threadsafe(transport.abort)


def test_reconnecting(sandbox: Sandbox, open_page: Opener) -> None:
    """The page says that it is cut off, tries again, and then has each request once."""
    page = open_page()
    post(sandbox, wire(parentGuid="before"))
    expect(row(page, 1)).to_be_visible()
    cut(sandbox)
    expect(page.locator("#banner")).to_contain_text("No connection to the sandbox since")
    assert page.title().startswith("⚠")
    post(sandbox, wire(parentGuid="meanwhile"))
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#conn-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()
    expect(row(page, 2)).to_be_visible()
    expect(page.locator("#foot-count")).to_have_text("2 requests kept, newest first")
    post(sandbox, wire(parentGuid="after"))
    expect(page.locator("#foot-count")).to_have_text("3 requests kept, newest first")


def test_another_sandbox_at_the_same_place(open_page: Opener) -> None:
    """It was restarted: the page begins again by itself, with what this one has."""
    with Sandbox(page=True) as first:
        page = open_page(first.page_url)
        post(first, wire())
        post(first, wire(sessionId="session-2"))
        expect(page.locator("#s-requests")).to_have_text("2")
        port = first._port
    expect(page.locator("#banner")).to_be_visible()
    expect(row(page, 2)).to_be_visible()
    page.locator("#arm").click()
    expect(page.locator("#toast")).to_have_text("Not connected: nothing was changed")
    with Sandbox(page=True, port=port) as second:
        post(second, wire(sessionId="session-3"))
        expect(page.locator("#foot-count")).to_have_text("1 request kept, newest first", timeout=15_000)
        expect(row(page, 1)).to_contain_text("session-")
        page.goto("about:blank")


def test_an_exposed_sandbox(open_page: Opener) -> None:
    """Without the token there is nothing to see; with it the address does not keep it."""
    with Sandbox(page=True, expose=True) as exposed:
        post(exposed, wire())
        address, _, token = exposed.page_url.partition("#")
        locked = open_page(address)
        expect(locked.get_by_role("heading", name="This sandbox is exposed")).to_be_visible()
        expect(row(locked, 1)).to_have_count(0)
        locked.evaluate("hash => { location.hash = hash; }", token)  # Pasted into the same tab.
        expect(row(locked, 1)).to_be_visible()
        assert token not in locked.url
        locked.goto("about:blank")
        page = open_page(exposed.page_url)
        expect(row(page, 1)).to_be_visible()
        assert token not in page.url
        page.reload()
        expect(row(page, 1)).to_be_visible()
        page.locator("#arm").click()
        expect(page.locator("#armed")).to_be_visible()
        page.goto("about:blank")


# What must not break it.


def test_values_that_are_no_text(sandbox: Sandbox, open_page: Opener) -> None:
    """The sandbox takes the last of a name; the page must, and must not trip over the others."""
    page = open_page()
    one = wire()
    odd = json.dumps(one)[:-1].replace(
        '"eventType"', '"eventType": {"toString": 1, "valueOf": 1}, "EVENTTYPE"'
    )
    assert post(sandbox, body=f'{{"events": [{odd}}}]}}'.encode()) == 200
    post(sandbox, wire(sessionId="session-2"))
    row(page, 1).click()
    expect(page.locator(".e")).to_contain_text("SignalViewed")
    page.keyboard.press("2")
    expect(page.locator(".row.s")).to_have_count(2)
    page.locator(".row.s", has_text="session-").last.click()
    expect(page.locator(".evs tbody tr")).to_have_count(1)


def test_bodies_that_are_deep_or_long(sandbox: Sandbox, open_page: Opener) -> None:
    """They are shown as text, or in part."""
    page = open_page()
    assert post(sandbox, body=b'{"events": [' + b"{}," * 19_999 + b"{}]}") == 422
    post(sandbox, body=b"[" * 4000 + b"]" * 4000)
    post(sandbox, body=json.dumps({"events": [], "x": list(range(9000))}).encode())
    row(page, 1).click()
    expect(page.locator("#d-panel")).to_contain_text("19,900 more events. See Request.")
    assert page.locator(".e").count() == 100
    for number in (2, 3):
        row(page, number).click()
        page.locator("#detail").get_by_role("tab", name="Request").click()
        expect(page.locator("pre.json")).to_be_visible()
        assert page.locator("pre.json *").count() == 0


def test_a_session_with_thousands_of_events(sandbox: Sandbox, open_page: Opener) -> None:
    """The latest are drawn, and it is said that there are more; nothing is called missing."""
    page = open_page()
    for number in range(40):
        post(sandbox, *[wire(parentGuid=f"c-{number}-{one}") for one in range(25)])
    expect(row(page, 40)).to_be_visible()
    page.keyboard.press("2")
    detail = page.locator("#detail")
    expect(detail).to_contain_text("The latest events; it had more")
    expect(detail).not_to_contain_text("without an impression")
    assert detail.locator(".evs tbody tr").count() == 200
    expect(page.locator(".row.s")).to_contain_text("1,000 events in 40 requests")


def test_nothing_is_called_missing_that_was_forgotten(sandbox: Sandbox, open_page: Opener) -> None:
    """A page that is opened late, and a request that is too long to be read here."""
    assert sandbox._live is not None
    shop(sandbox, "session-a")
    sandbox._live._kept = 1
    post(sandbox, wire(sessionId="session-a", parentGuid="c-9"))
    page = open_page()
    expect(row(page, 4)).to_be_visible()
    page.keyboard.press("2")
    detail = page.locator("#detail")
    expect(detail).to_contain_text("what is missing cannot be said")
    expect(detail).not_to_contain_text("No placement impression")


def test_a_command_reads_no_file(sandbox: Sandbox, open_page: Opener) -> None:
    """A hostile body is sent again as it is, whatever it begins with."""
    page = open_page()
    for body in (b"@/etc/hostname", b"a\x03b'c\n"):
        post(sandbox, body=body)
        number = sandbox.requests[-1].number
        row(page, number).click()
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#toast")).to_contain_text("curl command copied")
        page.wait_for_timeout(300)  # The toast of the copy before says the same.
        command = page.evaluate("navigator.clipboard.readText()")
        assert "\x03" not in command
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        assert sandbox.requests[-1].body == body
        page.wait_for_timeout(50)
    post(sandbox, body=b"\xff\xfe")
    row(page, sandbox.requests[-1].number).click()
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#toast")).to_contain_text("not UTF-8")


def test_a_rate_that_is_too_much(open_page: Opener) -> None:
    """The slider goes back to what holds, and a small rate is shown as it is."""
    with Sandbox(page=True, faults={503: 0.2, 500: 0.004}) as served:
        page = open_page(served.page_url)
        expect(page.locator("#rates")).to_contain_text("0.4 %")
        expect(page.locator("#rate-sum")).to_have_text("20.4 % in all")
        page.get_by_role("slider", name="Rate of 503 in per cent").press("End")
        expect(page.locator("#toast")).to_contain_text(
            "must add up to at most 1, got {'503': 1, '500': 0.004}"
        )
        expect(page.locator(".rate-out").first).to_have_text("20 %")
        page.goto("about:blank")


# Its looks.

CONTRAST = """() => {
    const channel = (value) => {
        const part = value / 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    };
    const read = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const behind = (el) => {
        for (let at = el; at; at = at.parentElement) {
            const found = read(getComputedStyle(at).backgroundColor);
            if (found.length === 3 || found[3] === 1) return found;
        }
        return [255, 255, 255];
    };
    const poor = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const el = node.parentElement;
        if (!node.data.trim() || !el.checkVisibility() || el.closest('svg, .sr, .skip, :disabled')) continue;
        const [a, b] = [luminance(read(getComputedStyle(el).color)), luminance(behind(el))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push(`${node.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE, MIDDLE], ids=["wide", "phone", "middle"])
def test_it_can_be_read(sandbox: Sandbox, open_page: Opener, size: Any, scheme: str) -> None:
    """Every state, in both themes, on every width: contrast of 4.5 and more, nothing to scroll sideways."""
    page = open_page(size=size, scheme=scheme)

    def check(state: str) -> None:
        assert page.evaluate(CONTRAST) == [], state
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state

    expect(page.get_by_label("Environment lines")).to_be_visible()
    check("empty")
    shop(sandbox)
    sandbox.fail_next("reset-after", "503", None, "reset-before", 503)
    for _ in range(3):
        post(
            sandbox,
            wire(sessionId="session-2", parentGuid="c-9"),
            wire(sessionId="session-2", eventType="Odd"),
        )
    post(sandbox, body=b"{")
    expect(row(page, 6)).to_be_visible()
    check("busy")
    row(page, 6).click()
    expect(page.locator("#detail")).to_be_visible()
    check("a request")
    page.locator("#detail").get_by_role("tab", name="Answer").click()
    expect(page.locator(".json")).to_be_visible()
    check("an answer")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.locator(".row.s").first.click()
    expect(page.locator(".lanes")).to_be_visible()
    check("a session")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("f")
    expect(page.locator("#pop")).to_be_visible()
    check("faults")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    check("help")
    page.keyboard.press("Escape")
    cut(sandbox)
    expect(page.locator("#banner")).to_be_visible()
    check("cut off")


def test_a_phone(sandbox: Sandbox, open_page: Opener) -> None:
    """Three tabs at the foot; a request fills the screen, and goes back to the list."""
    page = open_page(size=PHONE)
    shop(sandbox)
    row(page, 2).click()
    detail = page.locator("#detail")
    box = detail.bounding_box()
    assert box is not None
    assert (box["width"], box["x"]) == (390, 0)
    page.get_by_role("button", name="Back (Esc)").click()
    expect(detail).to_be_hidden()
    page.locator(".dock").get_by_role("button", name="Controls").click()
    page.locator("#arm").click()
    expect(page.locator("#dock-badge")).to_have_text("1")
    page.locator(".dock").get_by_role("button", name="Sessions").click()
    page.locator(".row.s").first.click()
    expect(page.locator(".lanes")).to_be_visible()
    page.get_by_role("button", name="Back").click()
    post(sandbox, wire(parentGuid="later"))
    page.wait_for_timeout(1500)
    expect(detail).to_be_hidden()
    page.locator(".dock").get_by_role("button", name="Requests").click()
    expect(page.locator("#armed")).to_be_hidden()  # The last request has met it.
    page.get_by_role("button", name="Filters").click()
    page.get_by_role("combobox", name="Answer").select_option("bad")
    expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()


def test_the_theme_is_remembered(open_page: Opener) -> None:
    """As the system, light, dark, and round again."""
    page = open_page(scheme="light")
    dark = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(dark)
    page.keyboard.press("t")
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate(dark) != light
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Theme: dark").click()
    assert page.evaluate(dark) == light


def test_ten_thousand_requests(sandbox: Sandbox, open_page: Opener) -> None:
    """They are few elements, and can be searched. How fast it is, `benchmarks.page` measures."""

    def fill() -> None:
        live = sandbox._live
        assert live is not None
        from tests.sandbox.test_live import recorded

        def named(number: int) -> dict[str, str]:
            at = f"2026-01-02T00:00:00.{number % 1000:03}Z"
            return {"parentGuid": f"parent-{number}", "sessionId": f"s-{number % 500}", "eventTime": at}

        for number in range(1, 10_601):
            live.add(recorded(number, wire(**named(number))), at=1e9)

    page = open_page()
    fill()
    expect(page.locator("#s-requests")).to_have_text("10,600", timeout=30_000)
    page.reload()
    expect(page.locator("#foot-count")).to_contain_text("10,000 requests kept of 10,600", timeout=30_000)
    assert page.locator(".row").count() < 60
    page.get_by_role("searchbox").fill("parent-10599")
    expect(page.locator("#shown")).to_have_text("1 of 10,000 requests")
    page.get_by_role("searchbox").fill("")
    expect(page.locator("#notes")).to_be_hidden()
    page.locator("#list").focus()
    page.keyboard.press("End")
    expect(row(page, 601)).to_be_visible()
    page.keyboard.press("2")
    expect(page.locator(".row.s").first).to_contain_text("requests")
    expect(page.locator("#detail")).to_be_visible()
