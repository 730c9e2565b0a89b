"""The README's Python blocks run, one after the other, and its applications answer."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rokt_events_async import Emitter, RetryPolicy
from rokt_events_async._pipeline import retry as retry_module

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[tuple[int, str]]:
    """The Python blocks, with the line at which each begins."""
    text = README.read_text()
    return [
        (text[: match.start()].count("\n") + 1, match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def block_with(text: str) -> str:
    """The only block that contains this."""
    (found,) = (source for _, source in blocks() if text in source)
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


def test_the_blocks_run(namespace: dict[str, Any]) -> None:
    """All of them, without credentials."""
    assert len(blocks()) >= 11
    assert callable(namespace["report"])


def test_the_handler_of_failures_keeps_them(namespace: dict[str, Any]) -> None:
    """What failed was written to a file, read again, and sent."""
    assert namespace["kept"].name == "undelivered.jsonl"
    assert not namespace["kept"].exists()


def test_the_test_of_the_fastapi_application_passes(pytester: pytest.Pytester) -> None:
    """As a user would have it: `shop.py` and a test beside it, in under 15 lines."""
    test = block_with("from shop import app")
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
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
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
