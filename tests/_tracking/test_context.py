"""Where an emitter lives: other loops, threads and processes are refused; forks harm nothing."""

from __future__ import annotations

import asyncio
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest

from rokt_events_async import (
    DrainReport,
    Emitter,
    Receipt,
    WrongContextError,
)
from rokt_events_async._pipeline import transport as transport_module
from rokt_events_async._pipeline.transport import HttpTransport
from rokt_events_async._tracking import context as context_module
from rokt_events_async.sandbox import Sandbox
from tests.programs import run_script
from tests.samples import CREDENTIALS, emitter_for, event, missing


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
    """The error does not point to a loop that is gone; a closed emitter keeps its report."""
    left_open, closed = (Emitter(CREDENTIALS, endpoint="http://127.0.0.1:9/") for _ in range(2))

    async def start() -> None:
        await left_open.start()
        await closed.start()
        await closed.aclose()
        assert left_open._engine is not None
        await left_open._engine.transport.aclose()

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
            assert own._engine is not None
            assert isinstance(own._engine.transport, HttpTransport)
            connector = own._engine.transport._session.connector
            assert connector is not None

            transport_module._after_fork()
            connector.__del__()

            assert own._engine.transport._session.closed
            assert not connector.closed
            await connector.close()
            assert (await lent.deliver(event())).attempts == 1


async def test_an_emitter_in_a_child_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the parent's to close."""
    async with Emitter(CREDENTIALS) as emitter:
        with monkeypatch.context() as patch:
            patch.setattr(context_module, "_this_process", context_module._this_process)
            context_module._after_fork()
            emitter.__del__()
            with pytest.raises(WrongContextError, match="construct it before a fork, and start it in each"):
                await emitter.track(event())


async def test_workers_do_not_inherit_a_callers_context(sandbox: Sandbox) -> None:
    """What a handler has set for itself is not seen by the requests of others."""
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []
    async with emitter_for(sandbox, flush_interval=0) as emitter:
        assert emitter._engine is not None
        post = emitter._engine.transport.post

        async def spy(request: Any) -> Any:
            seen.append(variable.get())
            return await post(request)

        emitter._engine.transport.post = spy  # type: ignore[method-assign]
        variable.set("the caller's")
        await emitter.deliver(event())

    assert seen == ["none"]
