"""The emitter over a real socket: what is sent, when, and what a caller gets to hear."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import aiohttp
import pytest

from rokt_events_async import (
    Credentials,
    Delivery,
    DeliveryFailedError,
    DrainReport,
    Emitter,
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidSettingError,
    Receipt,
    WrongContextError,
)
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._protocol.replies import Reply
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, emitter_for, event


def sizes(sandbox: Sandbox) -> list[int]:
    return [len(request.events) for request in sandbox.requests]


async def test_an_event_is_delivered(sandbox: Sandbox) -> None:
    """`track` returns at once, and the delivery brings the receipt."""
    async with emitter_for(sandbox) as emitter:
        sent = event()
        delivery = await emitter.track(sent)
        receipt = await delivery

    assert isinstance(delivery, Delivery)
    assert receipt == Receipt(event=delivery.event, attempts=1, maybe_duplicate=False)
    assert sandbox.events == [delivery.event.to_dict()]


async def test_headers_are_the_specifications(sandbox: Sandbox) -> None:
    """Credentials, tag id, content type and accept go along, and no cookie."""
    async with emitter_for(sandbox) as emitter:
        await emitter.deliver(event())

    headers = {name.lower(): value for name, value in sandbox.requests[0].headers.items()}
    assert headers["content-type"] == "application/json"
    assert headers["accept"] == "application/json"
    assert headers["rokt-tag-id"] == sandbox.credentials.tag_id
    assert "cookie" not in headers


async def test_flush_sends_now_and_waits_for_what_was_accepted(sandbox: Sandbox) -> None:
    """It does not wait out the interval, nor for what came after it."""
    async with emitter_for(sandbox, flush_interval=100.0) as emitter:
        deliveries = [await emitter.track(event(f"session-{index}")) for index in range(5)]
        await emitter.flush()

        assert all(delivery.done() for delivery in deliveries)
        assert emitter.stats.pending == 0

        late = await emitter.track(event())
        await emitter.flush()
        assert late.done()
    assert sizes(sandbox) == [1] * 6


async def test_flush_of_nothing_returns(sandbox: Sandbox) -> None:
    """There may be nothing to wait for."""
    async with emitter_for(sandbox) as emitter:
        await emitter.flush()

    assert sandbox.requests == []


async def test_a_second_flush_waits_for_the_same_events(sandbox: Sandbox) -> None:
    """Both return when the events are settled, and cancelling one leaves the other alone."""
    async with Sandbox(latency=5.0) as slow, emitter_for(slow, flush_interval=100.0) as emitter:
        delivery = await emitter.track(event())
        first, second, third = (asyncio.create_task(emitter.flush()) for _ in range(3))
        await asyncio.sleep(0.1)
        third.cancel()
        await asyncio.gather(first, second)

        assert delivery.done()


async def test_stats_add_up(sandbox: Sandbox) -> None:
    """Accepted is the sum of the outcomes and pending, and bytes are those on the wire."""
    async with emitter_for(sandbox) as emitter:
        delivery = await emitter.track(event())
        stats = emitter.stats

        assert (stats.accepted, stats.pending, stats.sessions) == (1, 1, 1)
        assert stats.pending_bytes == len(json.dumps(delivery.event.to_dict(), separators=(",", ":")))
        await delivery
        assert emitter.stats.pending_bytes == 0
        assert emitter.stats.sessions == 0


async def test_the_repr_tells_the_state_at_a_glance(sandbox: Sandbox) -> None:
    """State, endpoint, what is pending, and what became of the rest."""
    emitter = emitter_for(sandbox)
    assert repr(emitter).startswith("<Emitter new, http://127.0.0.1:")

    async with emitter:
        await emitter.deliver(event())
        await emitter.track(event())
        assert "open" in repr(emitter)
        assert "2 accepted, 1 pending" in repr(emitter)
        assert "1 delivered" in repr(emitter)
    assert "<Emitter closed" in repr(emitter)


async def test_a_session_passed_in_is_used_and_left_open(sandbox: Sandbox) -> None:
    """Whatever the session would do by itself is overridden."""

    async def meddle(request: Any, handler: Any) -> Any:
        raise AssertionError("a middleware of the caller's saw the request")

    sandbox.fail_next("redirect", 503, "compressed")
    timeout = aiohttp.ClientTimeout(total=0.001)
    async with aiohttp.ClientSession(raise_for_status=True, middlewares=[meddle], timeout=timeout) as session:
        async with emitter_for(sandbox, session=session) as emitter:
            with pytest.raises(DeliveryFailedError, match="HTTP 307"):
                await emitter.deliver(event())
            with pytest.raises(Exception, match="its answer cannot be read"):
                await emitter.deliver(event())
        assert not session.closed


async def test_a_transport_can_be_handed_in() -> None:
    """As a deterministic world does; nothing else is opened."""

    bodies: list[bytes] = []

    class Recorder:
        async def post(self, request: Request) -> Reply:
            request.went_out = True
            bodies.append(request.body)
            return Reply(200, {}, b'{"processedEventsCount": 1}')

        async def aclose(self) -> None:
            pass

    async with Emitter(CREDENTIALS, _transport=Recorder()) as emitter:
        await emitter.deliver(event())

    assert len(bodies) == 1


async def test_two_emitters_do_not_know_of_each_other(sandbox: Sandbox) -> None:
    """Each has its own account."""
    async with emitter_for(sandbox) as one, emitter_for(sandbox) as other:
        await asyncio.gather(one.deliver(event()), other.deliver(event()), other.deliver(event()))

        assert (one.stats.delivered, other.stats.delivered) == (1, 2)


@pytest.mark.every_loop
async def test_it_runs_on_real_loops(sandbox: Sandbox) -> None:
    """On asyncio's own loop and on uvloop."""
    async with emitter_for(sandbox, flush_interval=0.01) as emitter:
        deliveries = [await emitter.track(event(f"session-{index % 7}")) for index in range(200)]
        receipts = await asyncio.gather(*deliveries)

    assert len(receipts) == len(sandbox.events) == 200


def test_construction_needs_no_loop() -> None:
    """An application builds it at import time."""
    emitter = Emitter(CREDENTIALS)

    assert emitter.stats.accepted == 0
    assert "new" in repr(emitter)


async def test_before_start() -> None:
    """Nothing is accepted, and the error says what to do."""
    emitter = Emitter(CREDENTIALS)
    for call in (emitter.track(event()), emitter.deliver(event()), emitter.flush()):
        with pytest.raises(EmitterNotStartedError, match="use `async with emitter`, or `await start\\(\\)`"):
            await call
    with pytest.raises(EmitterNotStartedError):
        emitter.track_nowait(event())

    assert await emitter.aclose() == DrainReport()
    with pytest.raises(EmitterClosedError, match="cannot be started again"):
        await emitter.start()
    with pytest.raises(EmitterClosedError):
        await emitter.track(event())


async def test_after_close(sandbox: Sandbox) -> None:
    """Nothing is accepted any more; flushing and closing again are harmless."""
    async with emitter_for(sandbox) as emitter:
        await emitter.start()
    for call in (emitter.track(event()), emitter.deliver(event())):
        with pytest.raises(EmitterClosedError, match="was not accepted"):
            await call
    with pytest.raises(EmitterClosedError):
        emitter.track_nowait(event())
    await emitter.flush()

    assert isinstance(await emitter.aclose(), DrainReport)
    assert emitter.stats.accepted == 0


async def test_close_before_start_is_final() -> None:
    """And closing it twice is harmless."""
    emitter = Emitter(CREDENTIALS)
    await emitter.aclose()

    assert await emitter.aclose() == DrainReport()


async def test_starting_again_does_nothing(sandbox: Sandbox) -> None:
    """In the same context; elsewhere it is an error."""
    async with emitter_for(sandbox) as emitter:
        await emitter.start()
        with pytest.raises(WrongContextError):
            await asyncio.to_thread(asyncio.run, emitter.start())


# Other contexts.


async def test_an_emitter_left_open_warns() -> None:
    """When it is collected; a new or closed one does not."""
    emitter = Emitter(CREDENTIALS, endpoint="http://127.0.0.1:9/")
    await emitter.start()
    assert emitter._engine is not None
    await emitter._engine.transport.aclose()

    with pytest.warns(ResourceWarning, match="unclosed <Emitter open, http://127.0.0.1:9/: 0 accepted"):
        emitter.__del__()
    await emitter.aclose()
    del emitter
    gc.collect()


async def test_an_emitter_that_was_never_made_can_be_collected() -> None:
    """A constructor that raises leaves nothing to warn of."""
    with pytest.raises(InvalidSettingError):
        Emitter(Credentials("a", "rsec-b", "c"), max_pending=0)
    with pytest.raises(TypeError, match="max_peding"):
        Emitter(CREDENTIALS, max_peding=1)  # type: ignore[call-arg]
    gc.collect()
