"""The end of an emitter: planned, at its deadline, cancelled, or by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from typing import Any

import pytest

from rokt_events_async import (
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    EmitterClosedError,
    InvalidSettingError,
    Receipt,
)
from rokt_events_async.sandbox import Fault, Sandbox
from tests.programs import run_script
from tests.samples import OpenEmitter, emitter_for, event


async def test_close_turns_away_who_waits_for_room() -> None:
    """They get an error rather than a wait without end."""
    async with Sandbox(latency=1.0) as slow:
        async with emitter_for(slow, max_pending=1, max_wait=None, flush_interval=0) as emitter:
            await emitter.track(event())
            waiting = asyncio.create_task(emitter.track(event()))
            await asyncio.sleep(0.1)
        with pytest.raises(EmitterClosedError):
            await waiting

    assert emitter.stats.accepted == 1


async def test_a_time_out_out_of_bounds(sandbox: Sandbox) -> None:
    """Refused, and the emitter stays open."""
    async with emitter_for(sandbox) as emitter:
        with pytest.raises(InvalidSettingError, match="timeout must be a finite number >= 0, got -1"):
            await emitter.aclose(timeout=-1)

        assert isinstance(await emitter.deliver(event()), Receipt)


async def test_nothing_is_left_after_close(sandbox: Sandbox) -> None:
    """No task, no timer, no connection."""
    before = asyncio.all_tasks()
    loop: Any = asyncio.get_running_loop()
    async with emitter_for(sandbox) as emitter:
        await asyncio.gather(*(emitter.deliver(event(f"session-{index}")) for index in range(40)))
        assert emitter._engine is not None
        connector: Any = emitter._engine.transport

    assert asyncio.all_tasks() == before
    assert connector._session.closed
    ours = [timer for timer in loop._scheduled if not timer.cancelled() and "rokt" in repr(timer._callback)]
    assert ours == []


def test_a_loop_closed_without_close() -> None:
    """A ResourceWarning with an honest account, and no event pretends to have an outcome it has not."""
    status, out, err = run_script(
        """
        import asyncio, gc
        from rokt_events_async import Credentials, Emitter, PartnerEvent

        async def main():
            credentials = Credentials("rpub", "rsec-hidden", "1")
            emitter = Emitter(credentials, endpoint="http://127.0.0.1:9/", flush_interval=60)
            await emitter.start()
            await emitter.track(PartnerEvent.viewed(session_id="s", parent_guid="p", client_unique_id="c"))
            return emitter

        emitter = asyncio.run(main())
        print(emitter)
        del emitter
        gc.collect()
        """
    )

    assert status == 0
    assert "1 accepted, 1 pending" in out
    assert "ResourceWarning: unclosed <Emitter open" in err
    assert "never retrieved" not in err
    assert "was destroyed" not in err
    assert "rsec" not in out + err


def test_asyncio_run_ends_while_workers_are_busy() -> None:
    """They are cancelled from outside, settle what they carry, and leave quietly."""
    status, out, err = run_script(
        """
        import asyncio
        from rokt_events_async import Emitter, PartnerEvent
        from rokt_events_async.sandbox import Sandbox

        async def main():
            sandbox = Sandbox(faults={"silence": 1.0})
            await sandbox.start()
            emitter = Emitter(sandbox.credentials, endpoint=sandbox.url, flush_interval=0)
            await emitter.start()
            event = PartnerEvent.viewed(session_id="s", parent_guid="p", client_unique_id="c")
            delivery = await emitter.track(event)
            while not sandbox.requests:
                await asyncio.sleep(0.01)
            return emitter, delivery

        emitter, delivery = asyncio.run(main())
        print(emitter.stats.unconfirmed, emitter.stats.pending, repr(delivery.exception()))
        """
    )

    assert status == 0
    assert out.startswith("1 0 DeliveryUnconfirmedError(")
    assert "was destroyed" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_ctrl_c(signals: list[signal.Signals]) -> None:
    """Once: `async with` drains. Twice: the program ends, as it was told to."""

    def stop(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # Not two at once: a Ctrl-C in the middle of the loop's own work can lose a wake-up.
        for place, number in enumerate(signals, 1):
            process.send_signal(number)
            if place < len(signals):
                assert process.stdout.readline() == "closing\n"

    status, out, err = run_script(
        """
        import asyncio
        from rokt_events_async import Emitter, PartnerEvent
        from rokt_events_async.sandbox import Sandbox

        async def main():
            async with Sandbox(latency=0.5) as sandbox:
                emitter = Emitter(sandbox.credentials, endpoint=sandbox.url)
                try:
                    async with emitter:
                        event = PartnerEvent.viewed(session_id="s", parent_guid="p", client_unique_id="c")
                        await emitter.track(event)
                        asyncio.get_running_loop().call_later(0, lambda: print("ready", flush=True))
                        try:
                            await asyncio.sleep(60)
                        finally:
                            print("closing", flush=True)
                finally:
                    print(emitter.stats.delivered, emitter.stats.pending, flush=True)

        asyncio.run(main())
        """,
        stop=stop,
    )

    assert status != 0
    assert "KeyboardInterrupt" in err.splitlines()
    if len(signals) == 1:
        assert err.splitlines()[-1] == "KeyboardInterrupt"  # Nothing warns after it: all is closed.
        assert out.splitlines()[-1] == "1 0"


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm(times: int) -> None:
    """As a platform stops a service, and insists: drained once, and then given up, honestly."""

    def stop(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in ["ready\n", "closing\n"][:times]:
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGTERM)

    status, out, err = run_script(
        """
        import asyncio, signal, sys
        from rokt_events_async import Emitter, PartnerEvent
        from rokt_events_async.sandbox import Sandbox

        async def tell(sandbox):
            while sandbox.count < 2:  # Both requests have gone out: now they may be interrupted.
                await asyncio.sleep(0.01)
            print("closing", flush=True)

        async def main():
            service = asyncio.current_task()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.cancel)
            times = int(sys.argv[1])
            faults, timeout = (["silence", 503], 1.0) if times == 1 else (["silence", "silence"], 60.0)
            async with Sandbox(script=faults) as sandbox:
                emitter = Emitter(sandbox.credentials, endpoint=sandbox.url, request_timeout=timeout)
                try:
                    async with emitter:
                        await emitter.track(
                            PartnerEvent.viewed(session_id="s", parent_guid="p", client_unique_id="c")
                        )
                        await emitter.track(
                            PartnerEvent.viewed(session_id="t", parent_guid="p", client_unique_id="c")
                        )
                        print("ready", flush=True)
                        try:
                            await asyncio.sleep(60)
                        finally:
                            telling = asyncio.create_task(tell(sandbox))
                finally:
                    stats = emitter.stats
                    print(stats.delivered, stats.accepted - stats.pending, flush=True)

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        """,
        str(times),
        stop=stop,
    )

    assert status == 0
    assert out.splitlines()[-1] == ("2 2" if times == 1 else "0 2")
    lost = "closed with events undelivered: 2 unconfirmed"
    assert (lost in err) == (times == 2)
    assert err.count("event unconfirmed: the emitter was closed") == (2 if times == 2 else 0)
    assert err.count("\n") == (3 if times == 2 else 0)


def adds_up(emitter: Emitter) -> bool:
    stats = emitter.stats
    settled = stats.delivered + stats.rejected + stats.expired + stats.failed + stats.unconfirmed
    return stats.accepted == settled + stats.pending


async def test_close_interrupts_a_back_off_at_its_deadline(open_emitter: OpenEmitter) -> None:
    """It does not wait out a back-off; what was clearly refused has failed."""
    loop = asyncio.get_running_loop()
    async with Sandbox(script=[Fault.answer(503, retry_after="60")]) as down:
        emitter = await open_emitter(down, flush_interval=0)
        delivery = await emitter.track(event())
        await asyncio.sleep(0.5)
        started = loop.time()
        report = await emitter.aclose(timeout=2.0)

        assert loop.time() - started == pytest.approx(2.0, abs=0.1)
    with pytest.raises(DeliveryFailedError, match="the emitter was closed, after HTTP 503") as caught:
        await delivery
    assert (caught.value.attempts, caught.value.status) == (1, 503)
    assert (report.failed, report.undelivered) == (1, (caught.value,))


async def test_close_interrupts_a_request_at_its_deadline(open_emitter: OpenEmitter) -> None:
    """What had gone out may have been accepted: unconfirmed."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={"silence-processed": 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0)
        delivery = await emitter.track(event())
        await asyncio.sleep(0.1)
        started = loop.time()
        report = await emitter.aclose(timeout=1.0)

        assert loop.time() - started == pytest.approx(1.0, abs=0.1)
    with pytest.raises(DeliveryUnconfirmedError):
        await delivery
    assert report.unconfirmed == 1


async def test_close_gives_what_is_queued_its_outcome(open_emitter: OpenEmitter) -> None:
    """More than one slice of it, and none of it sent."""
    async with Sandbox(faults={"silence": 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0, max_concurrency=2)
        for index in range(1300):
            await emitter.track(event(f"session-{index}"))
        await asyncio.sleep(0.1)
        report = await emitter.aclose(timeout=0)

        assert len(down.requests) == 2
    assert (report.failed, report.unconfirmed) == (1298, 2)
    assert len(report.undelivered) == 1300
    assert emitter.stats.pending == 0
    assert emitter.stats.sessions == 0
    assert adds_up(emitter)


async def test_close_drains_and_reports(open_emitter: OpenEmitter, sandbox: Sandbox) -> None:
    """What can be delivered is, without waiting out the interval."""
    loop = asyncio.get_running_loop()
    emitter = await open_emitter(sandbox, flush_interval=100.0)
    await emitter.track(event())
    started = loop.time()
    report = await emitter.aclose()

    assert loop.time() - started < 5
    assert (report.delivered, report.undelivered) == (1, ())


async def test_close_gives_a_backlog_of_one_session_its_outcome(open_emitter: OpenEmitter) -> None:
    """Many batches of the same session, at the deadline."""
    async with Sandbox(faults={"silence": 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0)
        deliveries = [await emitter.track(event("one")) for _ in range(1300)]
        await asyncio.sleep(0.1)
        report = await emitter.aclose(timeout=0.1)

    assert (report.unconfirmed, report.failed) == (25, 1275)
    assert all(delivery.done() for delivery in deliveries)
    assert (emitter.stats.pending, emitter.stats.sessions) == (0, 0)


async def test_a_flush_during_the_close_starts_nothing(
    open_emitter: OpenEmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the close gives up is not sent behind its back."""
    async with Sandbox(faults={"silence": 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0, max_concurrency=2)
        for index in range(3000):
            await emitter.track(event(f"session-{index}"))
        await asyncio.sleep(0.1)
        assert emitter._engine is not None
        give_up, flushes = emitter._engine.pool._give_up_some, []

        def flush_meanwhile() -> bool:
            flushes.append(asyncio.create_task(emitter.flush()))
            return give_up()

        monkeypatch.setattr(emitter._engine.pool, "_give_up_some", flush_meanwhile)
        report = await emitter.aclose(timeout=0.1)
        assert emitter.stats.pending == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "rokt-events-flush"]
        await asyncio.gather(*flushes)

    assert report.failed + report.unconfirmed == 3000
    assert len(flushes) > 3
    assert len(down.requests) == 2


@pytest.mark.parametrize("times", [1, 2])
async def test_a_drain_cancelled_before_it_ran(open_emitter: OpenEmitter, times: int) -> None:
    """All tasks are cancelled in the moment in which the close begins: everything is settled all the same."""
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0)
        deliveries = [await emitter.track(event(f"session-{index}")) for index in range(5)]
        await asyncio.sleep(0.1)

        async def cancel_drain() -> None:
            for task in asyncio.all_tasks():
                if task.get_name() == "rokt-events-drain":
                    task.cancel()

        async def close() -> Any:
            canceller = asyncio.create_task(cancel_drain())
            try:
                return await emitter.aclose(timeout=60)
            finally:
                await canceller

        closes = [asyncio.create_task(close()) for _ in range(times)]
        reports = await asyncio.gather(*closes)

    assert all(report.failed == 5 for report in reports)
    assert all(delivery.done() for delivery in deliveries)


async def test_a_close_cancelled_together_with_its_drain(open_emitter: OpenEmitter) -> None:
    """As a loop's end does it."""
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0)
        await emitter.track(event())
        await asyncio.sleep(0.1)
        close = asyncio.create_task(emitter.aclose(timeout=60))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task is close or (task.get_name() or "").startswith("rokt-events"):
                task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
            close.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await close

    assert close.cancelled()
    assert emitter.stats.pending == 0
    assert "closed" in repr(emitter)


@pytest.mark.parametrize("error", [OSError("a planted fault"), asyncio.CancelledError()])
async def test_connections_that_cannot_be_closed(
    open_emitter: OpenEmitter, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are settled; nothing about them depends on it."""

    async def fail() -> None:
        raise error

    async with Sandbox() as sandbox:
        emitter = await open_emitter(sandbox)
        assert emitter._engine is not None
        close = emitter._engine.transport.aclose
        emitter._engine.transport.aclose = fail  # type: ignore[method-assign]
        await emitter.track(event())

        assert (await emitter.aclose()).delivered == 1
        assert "closed" in repr(emitter)
        await close()
    assert ("could not be closed: OSError" in caplog.text) is isinstance(error, OSError)


async def test_a_second_close_gets_the_same_report(open_emitter: OpenEmitter) -> None:
    """During the first one, and after it."""
    async with Sandbox(latency=1.0) as slow:
        emitter = await open_emitter(slow)
        await emitter.track(event())
        one, other = await asyncio.gather(emitter.aclose(), emitter.aclose(timeout=0))

        assert one is other
        assert one.delivered == 1
        assert await emitter.aclose() is one


async def test_a_cancelled_close_settles_everything_first(open_emitter: OpenEmitter) -> None:
    """When the last waiting caller is cancelled, the deadline is now."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0)
        delivery = await emitter.track(event())
        await asyncio.sleep(0.1)
        one, other = (asyncio.create_task(emitter.aclose(timeout=60)) for _ in range(2))
        await asyncio.sleep(0.1)
        started = loop.time()
        one.cancel()
        await asyncio.sleep(0.5)
        assert one.cancelled()
        assert not delivery.done(), "the other caller still waits"

        other.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await other
        assert loop.time() - started < 1
        assert delivery.done()
        assert emitter.stats.pending == 0
        assert (await emitter.aclose()).failed == 1


async def test_a_drain_cancelled_from_outside_settles_everything(open_emitter: OpenEmitter) -> None:
    """A test runner that cancels all tasks, or the loop's end."""
    async with Sandbox(faults={503: 1.0}) as down:
        emitter = await open_emitter(down, flush_interval=0)
        deliveries = [await emitter.track(event(f"session-{index}")) for index in range(1200)]
        await asyncio.sleep(0.1)
        close = asyncio.create_task(emitter.aclose(timeout=60))
        await asyncio.sleep(0.1)
        ours = [task for task in asyncio.all_tasks() if (task.get_name() or "").startswith("rokt-events")]
        assert len(ours) > 1
        for task in ours:
            task.cancel()
        await asyncio.sleep(0)
        for task in ours:
            task.cancel()
        report = await close

    assert report.failed == 1200
    assert all(delivery.done() for delivery in deliveries)
