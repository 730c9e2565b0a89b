"""The README's Python blocks run, one after the other, and its applications answer."""

from __future__ import annotations

import importlib
import pkgutil
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import rokt_events_async as package
from rokt_events_async import Emitter, PartnerEvent, RetryPolicy, cli
from rokt_events_async._pipeline import retry as retry_module
from rokt_events_async.sandbox import Sandbox
from tests.samples import emitter_for, event
from tests.simulation.bugs import BUGS
from tests.simulation.journal_bugs import JOURNAL_BUGS

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[tuple[int, str]]:
    """The Python blocks, with the line at which each begins."""
    text = README.read_text()
    return [
        (text[: match.start()].count("\n") + 1, match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def recipes() -> list[str]:
    """The Python blocks in the docstrings of the modules that have recipes."""
    names = [one.name for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    docs = [importlib.import_module(name).__doc__ or "" for name in names if not name.endswith("__main__")]
    return [source for doc in docs for source in re.findall(r"```python\n(.*?)```", doc, re.DOTALL)]


RECIPES = (
    "from django.core.asgi import",
    "from litestar import Litestar",
    "from quart import Quart",
    "from aiohttp import web",
    "def test_a_view_is_reported(monkeypatch)",
    "from flask import Flask",
    "from celery import Celery",
    "with ThreadedEmitter",
    "async def sell(url: str)",
    'tracker_named("eu")',
)
"""What each of them contains, and no other: other tests run them, under their servers."""


def test_every_recipe_is_run() -> None:
    """By a test that asks for it by its text."""
    assert sorted(block_with(text) for text in RECIPES) == sorted(recipes())
    tests = "".join(path.read_text() for path in (README.parent / "tests").rglob("*.py"))
    assert [text for text in RECIPES if not any(f"({q}{text}{q})" in tests for q in ('"', "'"))] == []


def block_with(text: str) -> str:
    """The only block of the README or of the recipes that contains this."""
    (found,) = (source for source in [*(source for _, source in blocks()), *recipes()] if text in source)
    return found


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all blocks, run in order, have defined; the waits between requests are cut short."""
    defined: dict[str, Any] = {"__name__": "readme"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        patch.setattr(retry_module, "next_wait", lambda *args, **kwargs: 0.01)
        for line, source in blocks():
            if "from shop import" not in source:  # That one belongs beside a file; see below.
                exec(compile("\n" * line + source, str(README), "exec"), defined)
    return defined


def test_the_number_of_planted_bugs() -> None:
    """It grows."""
    assert f"{len(BUGS) + len(JOURNAL_BUGS)} planted bugs" in README.read_text()


def test_the_blocks_run(namespace: dict[str, Any]) -> None:
    """All of them, without credentials."""
    assert len(blocks()) >= 6
    assert callable(namespace["make_emitter"])


async def test_the_report_of_an_outcome(namespace: dict[str, Any], sandbox: Sandbox) -> None:
    """Each outcome has its words."""
    sandbox.fail_next(503, "reset-after", None, 404)
    async with emitter_for(sandbox, retry=RetryPolicy(wait=(0.01, 0.02))) as emitter:
        with pytest.warns(UserWarning, match="'Odd' is none of"):
            odd = PartnerEvent.from_dict(event().to_dict() | {"eventType": "Odd"})
        assert await namespace["report"](emitter, event()) == "perhaps counted twice"
        assert "failed (status) after 1 requests" in await namespace["report"](emitter, event())
        assert await namespace["report"](emitter, event()) == "delivered"
        assert "InvalidEventType: Event type is invalid" in await namespace["report"](emitter, odd)


async def test_what_is_kept_can_be_sent(
    namespace: dict[str, Any], sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is written to a file that `rokt-events send` reads."""
    monkeypatch.chdir(tmp_path)
    sandbox.fail_next(404)
    async with emitter_for(sandbox, on_undelivered=namespace["keep"]) as emitter:
        await emitter.track(event())
    with pytest.raises(SystemExit) as ended:
        cli.main(["send", "--dry-run", "undelivered.jsonl"])
    assert not ended.value.code


def test_it_is_short() -> None:
    """At most 350 lines, and each heading is in the table of contents."""
    lines = README.read_text().splitlines()
    assert len(lines) <= 350
    headings = [line[3:] for line in lines if line.startswith("## ")]
    text = README.read_text()
    for heading in headings:
        assert f"[{heading}](#{heading.lower().replace(' ', '-')})" in text


def test_its_links_lead_somewhere() -> None:
    """Files are there, headings too."""
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link


def test_the_test_of_the_fastapi_application_passes(pytester: pytest.Pytester) -> None:
    """As a user would have it: `shop.py` and a test beside it, in under 15 lines."""
    test = block_with("def test_a_view_is_reported(rokt_sandbox)")
    assert len(test.strip().splitlines()) < 15
    pytester.makepyfile(shop=block_with("from fastapi import FastAPI"), test_shop=test)

    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")

    result = pytester.runpytest_subprocess("-W", "error")

    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("text", ["from fastapi import FastAPI", "from aiohttp import web"])
def test_an_application_is_short(text: str) -> None:
    """Under 30 lines each, and complete."""
    source = block_with(text)
    assert len(source.strip().splitlines()) < 30


def test_the_settings_are_the_constructors() -> None:
    """Every argument of `Emitter` stands in the table, and the policy's defaults are its own."""
    text = README.read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"\w+", row)}
    import inspect

    public = {name for name in inspect.signature(Emitter).parameters if not name.startswith("_")}

    assert documented == public - {"credentials"}
    policy = RetryPolicy()
    assert (
        f"RetryPolicy(deadline={policy.deadline}, max_attempts={policy.max_attempts}, "
        f"wait={policy.wait}, retry_unconfirmed={policy.retry_unconfirmed}, "
        f"max_backoff={policy.max_backoff}, max_unconfirmed_attempts={policy.max_unconfirmed_attempts})"
    ) in " ".join(text.split())


def test_no_thread_is_left_behind() -> None:
    """Neither by the library nor by its examples."""
    for _ in range(100):
        if threading.active_count() == 1:
            break
        time.sleep(0.01)
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if "rokt" in name] == []
