"""The emitter's life, and its misuse: before start, after close, other loops, threads and processes."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest

from rokt_events_async import (
    Credentials,
    DrainReport,
    Emitter,
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidSettingError,
    Receipt,
    WrongContextError,
)
from rokt_events_async._pipeline import context as context_module
from rokt_events_async._pipeline import transport as transport_module
from rokt_events_async._pipeline.transport import HttpTransport
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, event, missing


def emitter_for(sandbox: Sandbox, **settings: Any) -> Emitter:
    return Emitter(sandbox.credentials, endpoint=sandbox.url, **settings)


def run_script(
    script: str, *, stop: Callable[[subprocess.Popen[str]], None] | None = None
) -> tuple[int, str, str]:
    """Runs a program of its own, with warnings shown. Returns its status and what it printed."""
    with subprocess.Popen(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if stop is not None:
                stop(process)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # Which does nothing to one that has ended.
    return process.returncode, out, err


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


async def test_close_turns_away_who_waits_for_room() -> None:
    """They get an error rather than a wait without end."""
    async with Sandbox(latency=1.0) as slow:
        async with emitter_for(slow, max_pending=1, flush_interval=0) as emitter:
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
        connector: Any = emitter._transport

    assert asyncio.all_tasks() == before
    assert connector._session.closed
    ours = [timer for timer in loop._scheduled if not timer.cancelled() and "rokt" in repr(timer._callback)]
    assert ours == []


async def test_an_emitter_at_rest_wakes_for_nothing(sandbox: Sandbox) -> None:
    """No task and no timer, though it is open."""
    loop: Any = asyncio.get_running_loop()
    async with emitter_for(sandbox, max_concurrency=1) as emitter:
        await asyncio.gather(*(emitter.deliver(event(f"session-{index}")) for index in range(5)))
        await asyncio.sleep(0.01)

        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("rokt")]
        assert not [
            timer for timer in loop._scheduled if not timer.cancelled() and "rokt" in repr(timer._callback)
        ]


@pytest.mark.every_loop
async def test_two_that_are_due_at_once() -> None:
    """uvloop's handle for what is due within half a millisecond cannot tell when it is due."""
    async with Sandbox() as sandbox, emitter_for(sandbox) as emitter:
        pool, now = emitter._pool, asyncio.get_running_loop().time()
        assert pool is not None
        pool._wake_at(now)
        pool._wake_at(now)
        pool._wake_at(now - 1)

        assert pool._wake_timer is not None
        await emitter.deliver(event())


async def test_starting_again_does_nothing(sandbox: Sandbox) -> None:
    """In the same context; elsewhere it is an error."""
    async with emitter_for(sandbox) as emitter:
        await emitter.start()
        with pytest.raises(WrongContextError):
            await asyncio.to_thread(asyncio.run, emitter.start())


# Other contexts.


async def test_use_from_another_thread(sandbox: Sandbox) -> None:
    """With or without a loop of its own: a clear error, and nothing is accepted."""
    async with emitter_for(sandbox) as emitter:
        with pytest.raises(WrongContextError, match=r"from here use emitter\.track_threadsafe"):
            await asyncio.to_thread(emitter.track_nowait, event())
        for call in (emitter.track(event()), emitter.flush(), emitter.aclose()):
            with pytest.raises(WrongContextError):
                await asyncio.to_thread(asyncio.run, call)

        assert emitter.stats.accepted == 0


def test_a_loop_that_goes_on_in_another_thread() -> None:
    """It is the same loop, and so the emitter works there, and nowhere else."""
    loop = asyncio.new_event_loop()

    async def use(emitter: Emitter) -> Receipt:
        return await emitter.deliver(event())

    async def close(emitter: Emitter, sandbox: Sandbox) -> None:
        await emitter.aclose()
        await sandbox.aclose()

    sandbox = Sandbox()
    loop.run_until_complete(sandbox.start())
    emitter = emitter_for(sandbox)
    loop.run_until_complete(emitter.start())
    with pytest.raises(WrongContextError):
        emitter.track_nowait(event())
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(loop.run_until_complete, use(emitter)).result(30), Receipt)
        pool.submit(loop.run_until_complete, close(emitter, sandbox)).result(30)
    loop.close()


def test_use_after_its_loop_has_ended() -> None:
    """The error does not send anybody to a loop that is gone; a closed emitter keeps its report."""
    left_open, closed = (Emitter(CREDENTIALS, endpoint="http://127.0.0.1:9/") for _ in range(2))

    async def start() -> None:
        await left_open.start()
        await closed.start()
        await closed.aclose()
        assert left_open._transport is not None
        await left_open._transport.aclose()

    asyncio.run(start())
    with pytest.raises(WrongContextError, match="in which the emitter was started is closed"):
        asyncio.run(left_open.aclose())
    assert asyncio.run(closed.aclose()) == DrainReport()
    left_open._state = "closed"  # There is no loop left to close it in.


async def test_a_session_of_another_loop_is_refused(sandbox: Sandbox) -> None:
    """It would fail in stranger ways later."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    session = await asyncio.to_thread(asyncio.run, make())
    with pytest.raises(WrongContextError, match="belongs to another event loop"):
        await emitter_for(sandbox, session=session).start()
    session._connector = None  # Its loop is gone, and with it all that could be closed.


def test_after_a_fork() -> None:
    """Started before, it refuses to work in the child, unnoticed by the parent; started after, it works."""
    status, out, err = run_script(
        """
        import asyncio, os
        from rokt_events_async import Emitter, PartnerEvent, WrongContextError
        from rokt_events_async.sandbox import Sandbox

        def event(name):
            return PartnerEvent.viewed(session_id=name, parent_guid="p", client_unique_id="c")

        async def child(started, fresh):
            try:
                await started.track(event("child"))
            except WrongContextError as error:
                assert f"this is process {os.getpid()}" in str(error)
            else:
                raise AssertionError("accepted in a child")
            async with fresh:
                await fresh.deliver(event("fresh"))

        async def main():
            async with Sandbox() as sandbox:
                settings = {"credentials": sandbox.credentials, "endpoint": sandbox.url}
                fresh = Emitter(**settings)
                async with Emitter(**settings) as started:
                    delivery = await started.track(event("parent"))
                    pid = os.fork()
                    if pid == 0:
                        try:
                            asyncio.set_event_loop(None)
                            asyncio._set_running_loop(None)
                            asyncio.run(child(started, fresh))
                        except BaseException as error:
                            print("child:", repr(error), flush=True)
                            os._exit(1)
                        os._exit(0)
                    await delivery
                    while os.waitpid(pid, os.WNOHANG) == (0, 0):
                        await asyncio.sleep(0.01)
                print(sorted(event["sessionId"] for event in sandbox.events))
        asyncio.run(main())
        """
    )

    assert out == "['fresh', 'parent']\n", err
    assert status == 0


@pytest.mark.parametrize("run", ["asyncio.run", "uvloop.run"])
def test_a_child_that_drops_what_it_inherited(run: str) -> None:
    """Whatever becomes of it there, the parent goes on over its connection, and nothing is sent twice."""
    if run == "uvloop.run" and importlib.util.find_spec("uvloop") is None:
        missing("uvloop is not installed")
    with Sandbox() as sandbox:
        status, out, err = run_script(
            f"""
            import asyncio, gc, os, warnings
            from rokt_events_async import Credentials, Emitter, PartnerEvent

            warnings.simplefilter("ignore", DeprecationWarning)  # Of forking where there are threads.

            def event(name):
                return PartnerEvent.viewed(session_id=name, parent_guid="p", client_unique_id="c")

            async def main():
                global emitter
                emitter = Emitter(Credentials("rpub-sandbox", "rsec-sandbox", "1234567890"),
                                  endpoint="{sandbox.url}", request_timeout=3.0)
                await emitter.start()
                await emitter.deliver(event("before"))
                pid = os.fork()
                if pid == 0:
                    del emitter
                    gc.collect()
                    os._exit(0)
                os.waitpid(pid, 0)
                print((await emitter.deliver(event("after"))).attempts)
                await emitter.aclose()

            {"import uvloop" if "uvloop" in run else ""}
            {run}(main())
            """
        )

    assert (status, out) == (0, "1\n"), err
    assert err == ""
    assert [one["sessionId"] for one in sandbox.events] == ["before", "after"]


async def test_what_was_inherited_is_left_alone(sandbox: Sandbox) -> None:
    """What a fork's child does with a session of the emitter's own; one passed in is its owner's."""
    async with aiohttp.ClientSession() as session, emitter_for(sandbox) as own:
        async with emitter_for(sandbox, session=session) as lent:
            await asyncio.gather(own.deliver(event()), lent.deliver(event()))
            assert isinstance(own._transport, HttpTransport)
            connector = own._transport._session.connector
            assert connector is not None

            transport_module._after_fork()
            connector.__del__()

            assert own._transport._session.closed
            assert not connector.closed
            await connector.close()
            assert (await lent.deliver(event())).attempts == 1


# Ends that nobody planned.


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
        # Not two at once: a Ctrl-C in the middle of the loop's own work can lose whoever was to be woken.
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
        import asyncio, signal
        from rokt_events_async import Emitter, PartnerEvent
        from rokt_events_async.sandbox import Sandbox

        async def main():
            service = asyncio.current_task()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.cancel)
            async with Sandbox(script=["silence", 503], latency=0.5) as sandbox:
                emitter = Emitter(sandbox.credentials, endpoint=sandbox.url, request_timeout=1.0)
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
                            asyncio.get_running_loop().call_later(0.1, lambda: print("closing", flush=True))
                finally:
                    stats = emitter.stats
                    print(stats.delivered, stats.accepted - stats.pending, flush=True)

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        """,
        stop=stop,
    )

    assert status == 0
    assert out.splitlines()[-1] == ("2 2" if times == 1 else "0 2")
    lost = "closed with events undelivered: 2 unconfirmed"
    assert (lost in err) == (times == 2)
    assert err.count("event unconfirmed: the emitter was closed") == (2 if times == 2 else 0)
    assert err.count("\n") == (3 if times == 2 else 0)


async def test_an_emitter_left_open_warns() -> None:
    """When it is collected; a new or closed one does not."""
    emitter = Emitter(CREDENTIALS, endpoint="http://127.0.0.1:9/")
    await emitter.start()
    assert emitter._transport is not None
    await emitter._transport.aclose()

    with pytest.warns(ResourceWarning, match="unclosed <Emitter open, http://127.0.0.1:9/: 0 accepted"):
        emitter.__del__()
    await emitter.aclose()
    del emitter
    gc.collect()


async def test_an_emitter_in_a_child_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the parent's to close."""
    async with Emitter(CREDENTIALS) as emitter:
        with monkeypatch.context() as patch:
            patch.setattr(context_module, "_this_process", context_module._this_process)
            context_module._after_fork()
            emitter.__del__()
            with pytest.raises(WrongContextError, match="construct it before a fork, and start it in each"):
                await emitter.track(event())


async def test_an_emitter_that_was_never_made_can_be_collected() -> None:
    """A constructor that raises leaves nothing to warn of."""
    with pytest.raises(InvalidSettingError):
        Emitter(Credentials("a", "rsec-b", "c"), max_pending=0)
    with pytest.raises(TypeError, match="max_peding"):
        Emitter(CREDENTIALS, max_peding=1)  # type: ignore[call-arg]
    gc.collect()


if sys.version_info >= (3, 12):  # which brought eager tasks

    async def test_a_task_factory_that_is_eager(sandbox: Sandbox) -> None:
        """A worker never runs inside of `track`."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            async with emitter_for(sandbox, flush_interval=0, max_batch_size=1) as emitter:
                deliveries = [await emitter.track(event(f"session-{index}")) for index in range(100)]
                assert not any(delivery.done() for delivery in deliveries)
                await asyncio.gather(*deliveries)
        finally:
            loop.set_task_factory(None)


async def test_workers_do_not_inherit_a_callers_context(sandbox: Sandbox) -> None:
    """What a handler has set for itself is not seen by the requests of others."""
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    seen: list[str] = []
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        assert emitter._transport is not None
        post = emitter._transport.post

        async def spy(request: Any) -> Any:
            seen.append(variable.get())
            return await post(request)

        emitter._transport.post = spy  # type: ignore[method-assign]
        variable.set("the caller's")
        await emitter.deliver(event())

    assert seen == ["nobody's"]
