"""Time-outs of exchanges while a callback of the application holds the loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rokt_events_async._pipeline.timeouts import Timeouts


async def exchange(timeouts: Timeouts) -> bool:
    """Waits until it is interrupted. Returns True if that was its time-out."""
    one = timeouts.begin()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return one.has_timed_out()
    finally:
        timeouts.end(one)
    return False


async def test_time_in_which_the_loop_did_not_run_does_not_count() -> None:
    """The exchange gets its time again, once."""
    loop: Any = asyncio.get_running_loop()
    began = loop.time()
    waiting = asyncio.create_task(exchange(Timeouts(10)))
    await asyncio.sleep(1)
    loop._jumping.now += 30  # A handler that blocks.
    await asyncio.sleep(9)
    assert not waiting.done()
    loop._jumping.now += 30

    assert await waiting
    assert loop.time() - began == pytest.approx(70, abs=0.1)


async def test_a_loop_that_runs() -> None:
    """The time-out comes when it is due."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    assert await exchange(Timeouts(10))
    assert loop.time() - began == pytest.approx(10, abs=0.1)
