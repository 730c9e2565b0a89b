"""From other threads: `track_threadsafe`, and what everything else says there."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar
from unittest import mock

import pytest

from rokt_events_async import (
    Delivery,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    EmitterClosedError,
    EmitterNotStartedError,
    InvalidEventError,
    Observer,
    PartnerEvent,
    QueueFullError,
    Receipt,
    WrongContextError,
)
from rokt_events_async._tracking import context as context_module
from rokt_events_async._tracking import threadsafe as threads_module
from rokt_events_async.sandbox import Sandbox
from tests.programs import run_script
from tests.samples import CREDENTIALS, NOW, Clock, event

T = TypeVar("T")
pytestmark = pytest.mark.every_loop


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as made:
        yield made


async def there(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    """Calls it in another thread, and waits for it here."""
    return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, call), 20)


def emitter_for(sandbox: Sandbox, **settings: Any) -> Emitter:
    return Emitter(sandbox.credentials, endpoint=sandbox.url, flush_interval=0, **settings)


async def test_receipts_come_to_the_thread(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """Many threads at once, each with its own events."""

    def track(number: int) -> list[Receipt]:
        futures = [emitter.track_threadsafe(event(f"s{number}")) for _ in range(20)]
        return [future.result(20) for future in futures]

    async with emitter_for(sandbox) as emitter:
        loop = asyncio.get_running_loop()
        receipts = await asyncio.gather(*(loop.run_in_executor(pool, track, number) for number in range(20)))

        assert [len(each) for each in receipts] == [20] * 20
        assert {receipt.event.session_id for receipt in receipts[7]} == {"s7"}
        assert emitter.stats.delivered == 400


async def test_an_error_comes_to_the_thread(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """What became of the event is the future's; it was accepted."""
    sandbox.fail_next(404)
    async with emitter_for(sandbox) as emitter:
        with pytest.raises(DeliveryFailedError, match="HTTP 404"):
            await there(pool, lambda: emitter.track_threadsafe(event()).result(20))

        assert emitter.stats.failed == 1


async def test_what_is_refused_is_raised_at_once(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """As `track` does it: before there is a future."""

    def refuse(what: Any) -> None:
        emitter.track_threadsafe(what)

    async with emitter_for(sandbox, max_pending=1, when_full="raise") as emitter:
        for what in ("no event", event(event_time=NOW - timedelta(days=400))):
            with pytest.raises(InvalidEventError):
                await there(pool, lambda what=what: refuse(what))  # type: ignore[misc]
        sandbox.fail_next("silence")
        await emitter.track(event())
        with pytest.raises(QueueFullError):
            await there(pool, lambda: refuse(event()))
        await emitter.aclose(0)
        with pytest.raises(EmitterClosedError):
            await there(pool, lambda: refuse(event()))

    assert emitter.stats.accepted == 1


async def test_the_moment_is_that_of_the_call(pool: ThreadPoolExecutor) -> None:
    """However long the loop then takes to hear of it."""
    clock = Clock()
    async with Sandbox(clock=clock) as sandbox:
        async with emitter_for(sandbox, _clock=clock) as emitter:
            called = threading.Event()

            def stamped(now: Any) -> Any:
                called.set()
                return PartnerEvent.stamped(first, now)

            first = event()
            second = mock.Mock(spec=first, stamped=stamped)
            calling = asyncio.get_running_loop().run_in_executor(pool, emitter.track_threadsafe, second)
            assert called.wait(20)  # Which holds the loop.
            clock.advance(seconds=30)
            await calling

    assert [one["eventTime"] for one in sandbox.events] == ["2026-05-04T12:00:00.123Z"]


async def test_a_full_queue_holds_the_thread(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """It blocks no other thread, and goes on in its turn."""
    loop = asyncio.get_running_loop()
    async with emitter_for(sandbox, max_pending=1, max_wait=None, when_full="raise") as emitter:
        sandbox.fail_next("slow")
        first = await emitter.track(event("first"))
        waiting = loop.run_in_executor(pool, emitter.track_threadsafe, event("second"))
        await asyncio.sleep(0.05)
        third = asyncio.create_task(emitter.track(event("third")))
        await asyncio.sleep(0)
        assert not waiting.done()
        await first
        future = await asyncio.wait_for(waiting, 20)
        receipt = await asyncio.wrap_future(future)
        assert receipt.event.session_id == "second"
        await (await third)

    assert [one["sessionId"] for one in sandbox.events] == ["first", "second", "third"]


async def test_the_close_turns_away_a_thread_that_waits(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """Its event was not accepted."""
    loop = asyncio.get_running_loop()
    async with emitter_for(sandbox, max_pending=1, max_wait=None, when_full="raise") as emitter:
        sandbox.fail_next("silence")
        await emitter.track(event())
        waiting = loop.run_in_executor(pool, emitter.track_threadsafe, event())
        await asyncio.sleep(0.05)
        await emitter.aclose(0)
        with pytest.raises(EmitterClosedError):
            await waiting

        assert emitter.stats.accepted == 1


async def test_cancelling_detaches(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """The event is still sent, and still counted."""
    sandbox.fail_next("slow")
    async with emitter_for(sandbox) as emitter:
        future = await there(pool, lambda: emitter.track_threadsafe(event()))
        assert future.cancel()
        await emitter.flush()

        assert emitter.stats.delivered == 1
    assert len(sandbox.events) == 1


async def test_a_delivery_that_other_code_cancels(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """An observer has it too; the thread's future is cancelled with it."""

    class Cancels(Observer):
        def on_accepted(self, delivery: Delivery) -> None:
            delivery.cancel()

    async with emitter_for(sandbox, observers=[Cancels()]) as emitter:
        future = await there(pool, lambda: emitter.track_threadsafe(event()))
        await emitter.flush()

        assert future.cancelled()


async def test_a_trace_goes_on_in_the_loop(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """The context of the calling thread is that in which observers hear of the event."""
    variable = contextvars.ContextVar("variable", default="none")
    heard: list[str] = []

    class Hears(Observer):
        def on_accepted(self, delivery: Delivery) -> None:
            heard.append(variable.get())

    def track() -> Future[Receipt]:
        variable.set("the thread's")
        return emitter.track_threadsafe(event())

    async with emitter_for(sandbox, observers=[Hears()]) as emitter:
        await asyncio.wrap_future(await there(pool, track))

    assert heard == ["the thread's"]


# On the loop's own thread, which it must not hold.


async def test_on_the_loops_own_thread(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """It accepts or refuses at once, and another thread may wait for the outcome."""
    async with emitter_for(sandbox, max_pending=2, when_full="raise") as emitter:
        future = emitter.track_threadsafe(event())
        assert emitter.stats.accepted == 1
        assert (await there(pool, lambda: future.result(20))).attempts == 1
        with pytest.raises(InvalidEventError):
            emitter.track_threadsafe("no event")  # type: ignore[arg-type]
        futures = [emitter.track_threadsafe(event()) for _ in range(2)]
        with pytest.raises(QueueFullError):
            emitter.track_threadsafe(event())

    assert [future.result(0).attempts for future in futures] == [1, 1]  # Told when the close has returned.
    assert emitter.stats.accepted == 3


async def test_nothing_of_it_is_left(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """No watch for the end of the loop, once all outcomes are told; and there is one again for the next."""
    async with emitter_for(sandbox) as emitter:
        for _ in range(2):
            futures = [emitter.track_threadsafe(event()) for _ in range(3)]
            assert emitter._listeners._sentinel is not None
            await asyncio.gather(*map(asyncio.wrap_future, futures))
            await asyncio.sleep(0.01)
            assert emitter._listeners._sentinel is None


async def test_one_comes_when_all_others_have_just_been_told(sandbox: Sandbox) -> None:
    """It is not forgotten, nor called lost."""
    async with emitter_for(sandbox) as emitter:
        source: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        first: Future[Any] = emitter._listeners.follow(source)
        source.set_result("first")
        more: list[Future[Any]] = []
        source.add_done_callback(lambda _: more.append(emitter.track_threadsafe(event())))
        await asyncio.sleep(0)
        assert first.result(0) == "first"

        assert (await asyncio.wrap_future(more[0])).attempts == 1


async def test_an_end_that_comes_first() -> None:
    """A last word to all who still wait, but for those who have gone; what comes after it is not told."""
    loop = asyncio.get_running_loop()
    listeners: threads_module.Listeners[str] = threads_module.Listeners(lambda: LookupError("lost"))
    source: asyncio.Future[str] = loop.create_future()
    waits, gone = listeners.follow(source), listeners.follow(source)
    await asyncio.sleep(0)
    gone.cancel()
    await loop.shutdown_asyncgens()  # As `asyncio.run` does at its end.
    source.set_result("too late")
    await asyncio.sleep(0)

    with pytest.raises(LookupError, match="lost"):
        waits.result(0)
    assert gone.cancelled()


async def test_idle_when_all_are_told() -> None:
    """At once if there is none, otherwise with the last one."""
    loop = asyncio.get_running_loop()
    listeners: threads_module.Listeners[str] = threads_module.Listeners(LookupError)
    await listeners.idle()
    source: asyncio.Future[str] = loop.create_future()
    outcome = listeners.follow(source)
    loop.call_soon(source.set_result, "told")
    await listeners.idle()

    assert outcome.result(0) == "told"


# Where there is nothing to hand over to.


async def test_before_the_start_and_after_the_close(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """As `track` says it."""
    emitter = emitter_for(sandbox)
    with pytest.raises(EmitterNotStartedError):
        await there(pool, lambda: emitter.track_threadsafe(event()))
    await emitter.start()
    await emitter.aclose()
    with pytest.raises(EmitterClosedError):
        await there(pool, lambda: emitter.track_threadsafe(event()))


def left_open(started: threading.Event, leave: threading.Event) -> tuple[Emitter, threading.Thread]:
    """An emitter in a loop that another thread runs, and ends without closing the emitter."""
    emitter = Emitter(CREDENTIALS, endpoint="http://127.0.0.1:9/", max_pending=1, max_wait=None, observers=[])

    async def live() -> None:
        await emitter.start()
        started.set()
        while not leave.is_set():
            await asyncio.sleep(0.01)
        assert emitter._engine is not None
        await emitter._engine.transport.aclose()

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    assert started.wait(20)
    return emitter, thread


def test_when_its_loop_has_ended() -> None:
    """A clear error, at once."""
    leave = threading.Event()
    emitter, thread = left_open(threading.Event(), leave)
    leave.set()
    thread.join()

    with pytest.raises(WrongContextError, match="does not run: the event was not accepted"):
        emitter.track_threadsafe(event())
    emitter._state = "closed"


def test_when_its_loop_ends_meanwhile() -> None:
    """A waiting thread is told, whether it waits for room or for an outcome."""
    leave = threading.Event()
    emitter, thread = left_open(threading.Event(), leave)
    first = emitter.track_threadsafe(event())

    def leave_while_the_second_waits() -> None:
        assert emitter._engine is not None
        while not emitter._engine.intake._room._line.waiters:
            time.sleep(0.01)
        leave.set()

    threading.Thread(target=leave_while_the_second_waits).start()

    with pytest.raises(WrongContextError, match="has cancelled this call: the event was not accepted"):
        emitter.track_threadsafe(event())
    with pytest.raises(WrongContextError, match="has ended before the event's outcome was known"):
        first.result(20)
    thread.join()

    assert (emitter.stats.accepted, emitter.stats.pending) == (1, 1)
    emitter._state = "closed"


def test_what_is_settled_as_the_loop_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is cancelled with all others settles what it carries, and that is the outcome."""
    sent = threading.Event()
    tracked: list[Future[Receipt]] = []

    async def live() -> None:
        sandbox = Sandbox(script=["silence"], on_request=lambda _: sent.set())
        await sandbox.start()
        emitter = emitter_for(sandbox)
        await emitter.start()
        tracked.append(await asyncio.to_thread(emitter.track_threadsafe, event()))
        await asyncio.to_thread(sent.wait, 20)
        emitter._state = "closed"
        assert emitter._engine is not None
        # The test leaves the connections open: they are not its point.
        monkeypatch.setattr(emitter._engine.transport, "_is_ours", False)
        kept.append(emitter._engine.transport)

    kept: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(live())
        kept[0]._session.detach()
        kept.clear()
        gc.collect()

    with pytest.raises(DeliveryUnconfirmedError):
        tracked[0].result(0)


async def test_cancelled_by_code_that_cancels_everything(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """A thread that waits for room hears that the event was not accepted; the emitter works on."""
    loop = asyncio.get_running_loop()
    sandbox.fail_next("slow")
    async with emitter_for(sandbox, max_pending=1, max_wait=None, when_full="raise") as emitter:
        await emitter.track(event())
        waiting = loop.run_in_executor(pool, emitter.track_threadsafe, event())
        await asyncio.sleep(0.05)
        (task,) = [
            task
            for task in asyncio.all_tasks()
            if "_run() running" in repr(task) or "coro=<_run()" in repr(task)
        ]
        task.cancel()
        with pytest.raises(WrongContextError, match="has cancelled this call"):
            await waiting
        await emitter.flush()

        assert (await emitter.deliver(event())).attempts == 1
    assert emitter.stats.accepted == 2


def test_a_loop_that_stops_with_the_turn_in_which_it_was_accepted() -> None:
    """Accepted is accepted: no caller is told otherwise and tracks it again."""
    loop = asyncio.new_event_loop()

    async def accept() -> str:
        loop.stop()
        return "accepted"

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert threads_module.run_there(accept(), loop, is_running=loop.is_running) == "accepted"
    thread.join()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_loop_that_never_came_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing complains of a coroutine that was never awaited."""
    monkeypatch.setattr(threads_module, "_LOOK_AGAIN", 0.01)
    loop = asyncio.new_event_loop()

    with pytest.raises(threads_module.LoopGoneError):
        threads_module.run_there(asyncio.sleep(0), loop, is_running=loop.is_running)
    loop.close()


def test_a_loop_that_is_stopped_and_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells; it is looked at now and then."""
    monkeypatch.setattr(threads_module, "_LOOK_AGAIN", 0.05)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    began = threading.Event()

    async def never() -> None:
        began.set()
        await loop.create_future()

    threading.Timer(0.2, lambda: loop.call_soon_threadsafe(loop.stop)).start()
    with pytest.raises(threads_module.LoopGoneError):
        threads_module.run_there(never(), loop, is_running=loop.is_running)
    thread.join()
    loop.run_until_complete(asyncio.sleep(0.01))  # What was handed over has been cancelled.
    assert began.is_set()
    assert asyncio.all_tasks(loop) == set()
    loop.close()

    with pytest.raises(threads_module.LoopGoneError):
        threads_module.run_there(never(), loop, is_running=lambda: True)


async def test_in_a_child_of_a_fork(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    """The loop is the parent's."""
    async with emitter_for(sandbox) as emitter:
        with monkeypatch.context() as patch:
            patch.setattr(context_module, "_this_process", context_module._Process())
            with pytest.raises(WrongContextError, match="was started in process"):
                emitter.track_threadsafe(event())


async def test_what_belongs_to_the_loop_names_the_way(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """Every other method, from another thread with and without a loop of its own."""
    async with emitter_for(sandbox) as emitter:

        def from_another_loop(call: Callable[[], Any]) -> None:
            async def run() -> None:
                await call()

            asyncio.run(run())

        calls: list[Callable[[], Any]] = [
            lambda: emitter.track_nowait(event()),
            lambda: from_another_loop(lambda: emitter.track(event())),
            lambda: from_another_loop(lambda: emitter.deliver(event())),
            lambda: from_another_loop(emitter.flush),
            lambda: from_another_loop(emitter.aclose),
            lambda: from_another_loop(emitter.start),
        ]
        for call in calls:
            with pytest.raises(WrongContextError, match=r"from here use emitter\.track_threadsafe\(event\)"):
                await there(pool, call)

        assert emitter.stats.accepted == 0


async def test_a_thread_is_held_but_a_moment(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """While there is room it waits for one turn of the loop, not for Rokt."""
    sandbox.fail_next("silence")
    async with emitter_for(sandbox, close_timeout=0) as emitter:
        began = time.monotonic()
        future = await there(pool, lambda: emitter.track_threadsafe(event()))

        assert not future.done()
        assert time.monotonic() - began < 10


def test_the_loop_ends_in_the_turn_of_the_acceptance() -> None:
    """Before any task that would watch over it has run: the thread is told all the same."""
    outcomes: list[BaseException | None] = []

    async def main() -> threading.Thread:
        emitter = Emitter(CREDENTIALS, endpoint="http://127.0.0.1:9/e", flush_interval=60, observers=[])
        await emitter.start()
        asked = threading.Event()

        def work() -> None:
            asked.set()
            outcomes.append(emitter.track_threadsafe(event()).exception(30))
            emitter._state = "closed"

        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.to_thread(asked.wait)
        while not emitter.stats.accepted:
            await asyncio.sleep(0)
        assert emitter._engine is not None
        await emitter._engine.transport.aclose()
        return thread

    asyncio.run(main()).join(30)
    assert isinstance(outcomes[0], WrongContextError)
    assert "has ended before the event's outcome was known" in str(outcomes[0])


async def test_a_task_cancelled_before_its_first_step(sandbox: Sandbox, pool: ThreadPoolExecutor) -> None:
    """By a supervisor, on a loop that goes on: the thread is told that its call was cancelled."""
    loop = asyncio.get_running_loop()

    def start_and_cancel(call: Any) -> None:
        original(call)
        call._task.cancel()

    original = threads_module._Call.start
    async with emitter_for(sandbox) as emitter:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads_module._Call, "start", start_and_cancel)
            with pytest.raises(WrongContextError, match="has cancelled this call"):
                await loop.run_in_executor(pool, emitter.track_threadsafe, event())
        assert emitter.stats.accepted == 0


async def test_a_callback_that_raises_anything_keeps_no_close(sandbox: Sandbox) -> None:
    """Not even a `BaseException` of the application's own."""

    class Odd(BaseException):
        """The application's own."""

    def raise_odd(_: Future[Any]) -> None:
        raise Odd

    raised: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: raised.append(context.get("exception")))
    async with emitter_for(sandbox) as emitter:
        emitter.track_threadsafe(event()).add_done_callback(raise_odd)

    assert emitter.stats.delivered == 1
    assert [type(one) for one in raised] == [Odd]


async def test_a_greenlet_of_the_loops_thread_wakes_the_loop(sandbox: Sandbox) -> None:
    """Under gevent it has the loop's native thread, so that the loop seems to run here, and sleeps."""
    loop = asyncio.get_running_loop()
    woken: list[Any] = []
    async with emitter_for(sandbox) as emitter:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", lambda call, *_: woken.append(call))
            emitter.track_threadsafe(event())
            assert not woken, "the loop itself calls"
            patch.setattr(threading, "get_ident", lambda: -1)
            emitter.track_threadsafe(event())
            assert len(woken) == 1
            woken[0]()


def test_forgotten_in_a_daemon_thread() -> None:
    """The program's end says how many events it loses."""
    _, _, err = run_script(
        """
import asyncio, threading
from rokt_events_async import Credentials, Emitter, PartnerEvent

box, ready = {}, threading.Event()


async def serve():
    box["emitter"] = Emitter(Credentials("rpub-x", "rsec-y", "1"), endpoint="http://127.0.0.1:9/e")
    await box["emitter"].start()
    ready.set()
    await asyncio.Event().wait()


threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
ready.wait()
for number in range(3):
    box["emitter"].track_threadsafe(
        PartnerEvent.viewed(session_id=f"s{number}", parent_guid="p", client_unique_id="c")
    )
"""
    )
    assert "is open while the program ends: 3 events will be lost unless it is closed" in err


def test_a_loop_that_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells the threads, and so they look themselves."""
    monkeypatch.setattr(threads_module, "_LOOK_AGAIN", 0.01)
    loop = asyncio.new_event_loop()
    listeners: threads_module.Listeners[str] = threads_module.Listeners(lambda: LookupError("lost"))
    made: list[Future[str]] = []

    async def follow() -> None:
        made.append(listeners.follow(loop.create_future()))

    loop.run_until_complete(follow())
    with pytest.raises(TimeoutError):
        made[0].result(0.05)
    loop.close()
    with pytest.raises(LookupError, match="lost"):
        made[0].result()
    assert isinstance(made[0].exception(1.0), LookupError)


async def test_every_thread_is_told_whatever_a_callback_raises() -> None:
    """At the loop's end too."""

    class Odd(BaseException):
        """The application's own."""

    def raise_odd(_: Future[Any]) -> None:
        raise Odd

    loop = asyncio.get_running_loop()
    listeners: threads_module.Listeners[str] = threads_module.Listeners(lambda: LookupError("lost"))
    futures = [listeners.follow(loop.create_future()) for _ in range(3)]
    futures[0].add_done_callback(raise_odd)
    loop.set_exception_handler(lambda *_: None)
    idle = asyncio.ensure_future(listeners.idle())
    await asyncio.sleep(0)
    await loop.shutdown_asyncgens()
    await idle

    assert [type(future.exception(0)) for future in futures] == [LookupError] * 3
    assert listeners._sentinel is None


async def test_a_call_that_is_given_up_before_it_starts() -> None:
    """Nothing of it runs, and nothing of it warns."""
    ran: list[int] = []

    async def run() -> None:
        ran.append(1)  # pragma: no cover -- it must not

    call = threads_module._Call(run(), asyncio.get_running_loop())
    call.cancel()
    call.start()
    await asyncio.sleep(0)
    assert not ran
