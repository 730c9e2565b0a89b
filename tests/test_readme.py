"""The README's Python blocks run, one after the other, and its applications answer."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rokt_events_async import Emitter, RetryPolicy
from rokt_events_async import _retry as retry_module

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[tuple[int, str]]:
    """The Python blocks, with the line at which each begins."""
    text = README.read_text()
    return [
        (text[: match.start()].count("\n") + 1, match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """What all blocks, run in order, have defined; the waits between requests are cut short."""
    defined: dict[str, Any] = {"__name__": "readme"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry_module, "next_wait", lambda *args, **kwargs: 0.01)
        for line, source in blocks():
            exec(compile("\n" * line + source, str(README), "exec"), defined)
    return defined


def test_the_blocks_run(namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, without credentials."""
    assert len(blocks()) >= 7
    assert callable(namespace["report"])


def test_the_fastapi_application_answers(namespace: dict[str, Any]) -> None:
    """A handler tracks, and the sandbox receives what it tracked."""
    from fastapi.testclient import TestClient

    with TestClient(namespace["app"]) as client:
        answer = client.post("/checkout/s-9/viewed/c-9")
        assert answer.json() == {"tracked": "c-9"}

    assert [event["sessionId"] for event in namespace["sandbox"].events] == ["s-9"]


async def test_the_aiohttp_application_answers(namespace: dict[str, Any]) -> None:
    """Started and stopped as aiohttp does it."""
    from aiohttp.test_utils import TestClient, TestServer

    async with TestClient(TestServer(namespace["aiohttp_app"])) as client:
        answer = await client.post("/checkout/s-9/viewed")
        assert await answer.json() == {"tracked": True}
        emitter: Emitter = namespace["aiohttp_app"][namespace["EMITTER"]]

    assert emitter.stats.delivered == 1


def test_the_settings_are_the_constructors() -> None:
    """Every argument of `Emitter` stands in the table, and the policy's defaults are its own."""
    text = README.read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    import inspect

    public = {name for name in inspect.signature(Emitter).parameters if not name.startswith("_")}

    assert documented == public - {"credentials"}
    policy = RetryPolicy()
    assert (
        f"RetryPolicy(deadline={policy.deadline}, max_attempts={policy.max_attempts}, "
        f"wait={policy.wait}, retry_unconfirmed={policy.retry_unconfirmed})"
    ) in text


def test_no_thread_is_left_behind() -> None:
    """Neither by the library nor by its examples."""
    for _ in range(100):
        if threading.active_count() == 1:
            break
        time.sleep(0.01)
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if "rokt" in name] == []
