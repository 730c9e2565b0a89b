"""A tracker for programs without a loop: its thread, its end, forks, and what it refuses."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rokt_events_async import (
    DrainReport,
    Emitter,
    EmitterClosedError,
    InvalidEventError,
    InvalidSettingError,
    QueueFullError,
    ThreadedEmitter,
    WrongContextError,
)
from rokt_events_async import threaded as module
from rokt_events_async._tracking.threadsafe import Result
from rokt_events_async.relay import Publisher
from rokt_events_async.sandbox import Sandbox
from rokt_events_async.testing import MemoryQueue, RecordingTracker
from tests.programs import run_script
from tests.samples import event


@pytest.fixture
def threaded(rokt_sandbox: Sandbox) -> Iterator[ThreadedEmitter]:
    with ThreadedEmitter(lambda: Emitter(flush_interval=0.01)) as emitter:
        yield emitter


def loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rokt-events-loop"]


def test_outcomes(threaded: ThreadedEmitter, rokt_sandbox: Sandbox) -> None:
    """Each event has a future, which has its receipt or its error."""
    sent = event()
    receipt = threaded.track(sent).result(5)
    assert (receipt.event.parent_guid, receipt.attempts) == (sent.parent_guid, 1)
    rokt_sandbox.fail_next(404)
    error = threaded.track(event()).exception(5)
    assert "404" in str(error)
    assert threaded.flush(5)
    assert threaded.stats.accepted == 2
    assert threaded.health.state in ("ok", "retrying")
    assert "2 accepted" in repr(threaded)


def test_constructing_does_nothing() -> None:
    """No thread, no credentials asked for: a module may have it at its top."""
    threaded = ThreadedEmitter()
    assert loops() == []
    assert threaded.health.state == "new"
    assert threaded.stats.accepted == 0
    assert threaded.flush(0)
    assert repr(threaded) == "<ThreadedEmitter new>"
    assert threaded.close() == DrainReport()
    assert str(threaded.health.state) == "closed"
    assert repr(threaded) == "<ThreadedEmitter closed>"
    with pytest.raises(EmitterClosedError, match="construct another"):
        threaded.track(event())


def test_closing_drains(rokt_sandbox: Sandbox) -> None:
    """What is queued is sent; the thread has gone; a second close says the same."""
    threaded = ThreadedEmitter(lambda: Emitter(flush_interval=60))
    outcome = threaded.track(event())
    report = threaded.close()
    assert report == DrainReport(delivered=1)
    assert threaded.close(3) is report
    assert outcome.result(0).attempts == 1
    assert loops() == []
    with pytest.raises(EmitterClosedError):
        threaded.track(event())


def test_a_close_keeps_its_deadline(rokt_sandbox: Sandbox) -> None:
    """And says what it could not deliver."""
    rokt_sandbox.fail_next("silence")
    threaded = ThreadedEmitter(lambda: Emitter(flush_interval=0))
    threaded.track(event())
    before = time.monotonic()
    report = threaded.close(0.2)
    assert isinstance(report, DrainReport)
    assert report.unconfirmed + report.failed == 1
    assert time.monotonic() - before < 10


def test_many_threads_start_one_loop(rokt_sandbox: Sandbox) -> None:
    """However many begin at once."""
    made: list[Emitter] = []

    def make() -> Emitter:
        made.append(Emitter(flush_interval=0))
        return made[-1]

    with ThreadedEmitter(make) as threaded, concurrent.futures.ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda n: threaded.track(event(f"s-{n}")), range(200)))
        assert threaded.flush(10)
        assert all(outcome.result(0) for outcome in outcomes)
        assert len(loops()) == 1
    assert len(made) == 1


def test_wrong_settings_show_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their own message, and the next call tries again."""
    monkeypatch.delenv("ROKT_PUB_ID", raising=False)
    threaded = ThreadedEmitter()
    for call in (threaded.start, lambda: threaded.track(event()), threaded.__enter__):
        with pytest.raises(InvalidSettingError, match="ROKT_PUB_ID"):
            call()
    assert loops() == []
    with pytest.raises(InvalidSettingError, match="make must be callable"):
        ThreadedEmitter(Emitter.__new__(Emitter))  # type: ignore[arg-type]
    nothing: Any = lambda: None  # noqa: E731
    with pytest.raises(InvalidSettingError, match="make must return a tracker"):
        ThreadedEmitter(nothing).start()


def test_what_is_refused(threaded: ThreadedEmitter) -> None:
    """As an emitter refuses it: no event, a full queue, a bad timeout."""
    with pytest.raises(InvalidEventError, match="must be a PartnerEvent"):
        threaded.track("event")  # type: ignore[arg-type]
    for call in (threaded.flush, threaded.close):
        with pytest.raises(InvalidSettingError, match="timeout"):
            call(-1)
    full = ThreadedEmitter(lambda: Emitter(flush_interval=60, max_pending=1, max_wait=0, when_full="raise"))
    full.track(event())
    with pytest.raises(QueueFullError):
        full.track(event())
    full.close(0)


async def test_not_in_a_running_loop() -> None:
    """It would hold the loop; the message says what to use."""
    threaded = ThreadedEmitter()
    calls: list[Callable[[], Any]] = [
        threaded.start,
        lambda: threaded.track(event()),
        threaded.flush,
        threaded.close,
    ]
    for call in calls:
        with pytest.raises(WrongContextError, match="use an Emitter"):
            call()
    with pytest.raises(TypeError, match="programs without a loop"):
        async with threaded:
            pass
    await asyncio.to_thread(threaded.close)


def test_a_close_keeps_other_threads_waiting_for_nothing(rokt_sandbox: Sandbox) -> None:
    """A call while another thread closes is refused at once."""
    rokt_sandbox.fail_next("silence")
    threaded = ThreadedEmitter(lambda: Emitter(flush_interval=0, request_timeout=60))
    threaded.track(event())
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        closing = pool.submit(threaded.close, 60)
        while not threaded._is_closed:
            time.sleep(0.01)
        with pytest.raises(EmitterClosedError, match="construct another"):
            threaded.track(event())
        assert not closing.done()
        running = threaded._running
        assert running is not None
        while running._closing is None:
            time.sleep(0.01)
        running.give_up()
        report = closing.result(5)
        assert report.failed + report.unconfirmed == 1
    assert threaded.stats.pending == 0
    assert threaded.close() is report


def test_a_drain_that_is_given_up_before_it_begins(rokt_sandbox: Sandbox) -> None:
    """It does not begin."""
    rokt_sandbox.fail_next("silence")
    threaded = ThreadedEmitter(lambda: Emitter(flush_interval=0, request_timeout=60))
    threaded.track(event())
    running = threaded._running
    assert running is not None
    running._loop.call_soon_threadsafe(running._give_up)
    report = threaded.close()
    assert report.failed + report.unconfirmed == 1


def test_a_slow_start_and_a_slow_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are waited for, however long they take."""
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.01)

    class Slow(RecordingTracker):
        async def start(self) -> None:
            await asyncio.sleep(0.1)

        async def aclose(self, timeout: float | None = None) -> DrainReport:
            await asyncio.sleep(0.1)
            return DrainReport(delivered=7)

    threaded = ThreadedEmitter(Slow)
    threaded.start()
    assert threaded.close() == DrainReport(delivered=7)


def test_a_start_that_is_interrupted_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker is open already, and is closed."""
    made = RecordingTracker()
    wait = Result.wait

    def interrupted(self: Any, timeout: float) -> bool:
        wait(self, timeout)
        raise KeyboardInterrupt

    threaded = ThreadedEmitter(lambda: made)
    with monkeypatch.context() as patch:
        patch.setattr(Result, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            threaded.start()
    while loops():
        time.sleep(0.01)
    assert made.health.state == "closed"


def test_a_close_that_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """By something of the application's: it is told, and the others are closed all the same."""

    class Odd(RecordingTracker):
        async def aclose(self, timeout: float | None = None) -> DrainReport:
            raise asyncio.CancelledError

    odd, good = ThreadedEmitter(Odd), ThreadedEmitter(RecordingTracker)
    odd.start()
    good.start()
    module._close_all()
    assert good.health.state == "closed"
    assert "could not be closed at the end: CancelledError" in caplog.text


def test_callers_share_a_start() -> None:
    """The second waits for the first's."""
    go = threading.Event()
    made: list[RecordingTracker] = []

    def make() -> RecordingTracker:
        assert go.wait(10)
        made.append(RecordingTracker())
        return made[-1]

    threaded = ThreadedEmitter(make)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        starting = [pool.submit(threaded.start) for _ in range(2)]
        time.sleep(0.1)
        go.set()
        assert [one.result(10) for one in starting] == [None, None]
    threaded.close()
    assert len(made) == 1


def test_an_interrupted_end_of_the_program_gives_up_all() -> None:
    """Not only the one that it waits for."""
    cancelled: list[str] = []

    class Slow(RecordingTracker):
        async def aclose(self, timeout: float | None = None) -> DrainReport:
            if timeout == 0:
                cancelled.append("given up")
            else:
                await asyncio.sleep(60)
            return DrainReport()

    both = [ThreadedEmitter(Slow), ThreadedEmitter(Slow)]
    for threaded in both:
        threaded.start()
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.daemon = True  # The end waits for other threads.
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        module._close_all()
    assert cancelled == ["given up", "given up"]
    module._open.clear()
    while loops():
        time.sleep(0.01)


def test_a_close_while_it_is_being_started() -> None:
    """The callers that start it, or wait for that, are refused, and the tracker is closed."""
    go = threading.Event()
    made = RecordingTracker()

    def make() -> RecordingTracker:
        assert go.wait(10)
        return made

    threaded = ThreadedEmitter(make)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        starting = pool.submit(threaded.start)
        time.sleep(0.1)
        tracking = pool.submit(threaded.track, event())
        time.sleep(0.1)
        closing = pool.submit(threaded.close)
        time.sleep(0.1)
        go.set()
        for refused in (starting, tracking):
            with pytest.raises(EmitterClosedError):
                refused.result(10)
        closing.result(10)
    assert made.health.state == "closed"


def test_a_start_that_is_interrupted(rokt_sandbox: Sandbox) -> None:
    """By a signal whose handler tracks: it is refused, and not held forever."""
    threaded: ThreadedEmitter

    def make() -> RecordingTracker:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        return RecordingTracker()

    threaded = ThreadedEmitter(make)
    refused: list[Exception] = []

    def handle(*_: object) -> None:
        try:
            threaded.track(event())
        except WrongContextError as error:
            refused.append(error)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        threaded.start()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert "is being started, and a signal interrupts that" in str(refused[0])
    assert threaded.track(event()).result(1)
    threaded.close()


@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupted_start_leaves_no_thread(*, fails: bool) -> None:
    """The tracker that was being made is closed; the next call makes another."""
    made: list[RecordingTracker] = []

    def make() -> RecordingTracker:
        is_first = not made
        made.append(RecordingTracker())
        if is_first:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            if fails:
                raise KeyError
        return made[-1]

    threaded = ThreadedEmitter(make)
    with pytest.raises(KeyboardInterrupt):
        threaded.start()
    while loops():
        time.sleep(0.01)
    assert made[0].health.state == ("ok" if fails else "closed")
    assert threaded.track(event()).result(1)
    assert len(made) == 2
    threaded.close()


def test_all_that_are_open_drain_at_the_same_time() -> None:
    """Or a program with three accounts would outlast its grace period."""
    meeting = threading.Barrier(2)

    class Slow(RecordingTracker):
        async def aclose(self, timeout: float | None = None) -> DrainReport:
            await asyncio.to_thread(meeting.wait, 10)
            return await super().aclose(timeout)

    both = [ThreadedEmitter(Slow), ThreadedEmitter(Slow)]
    for threaded in both:
        threaded.start()
    module._close_all()
    assert [threaded.health.state for threaded in both] == ["closed", "closed"]
    assert not meeting.broken


def test_flushes_while_it_is_closed(rokt_sandbox: Sandbox) -> None:
    """They end with the close: a loop that has ended has nothing left to send."""
    for _ in range(30):
        threaded = ThreadedEmitter(lambda: Emitter(flush_interval=0))
        threaded.track(event())

        def flush(of: ThreadedEmitter = threaded) -> bool:
            return [of.flush(5) for _ in range(20)] == [True] * 20

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            flushing = [pool.submit(flush) for _ in range(2)]
            threaded.close()
            assert [one.result(20) for one in flushing] == [True, True]


def test_a_loop_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has no file descriptors left: the call fails, and does not hang."""

    def fail() -> None:
        raise OSError(24, "Too many open files")

    threaded = ThreadedEmitter(RecordingTracker)
    with monkeypatch.context() as patch:
        patch.setattr("asyncio.events.new_event_loop", fail)
        with pytest.raises(OSError, match="Too many open files"):
            threaded.track(event())
    assert threaded.track(event()).result(1)
    threaded.close()


def test_a_close_in_a_signals_handler_during_the_start() -> None:
    """The start ends, finds it closed, and leaves nothing open."""
    made: list[RecordingTracker] = []

    def make() -> RecordingTracker:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        made.append(RecordingTracker())
        return made[-1]

    threaded = ThreadedEmitter(make)
    before = signal.signal(signal.SIGUSR1, lambda *_: threaded.close())
    try:
        with pytest.raises(EmitterClosedError):
            threaded.track(event())
    finally:
        signal.signal(signal.SIGUSR1, before)
    threaded.close()
    assert made[0].health.state == "closed"
    assert loops() == []


def test_a_flush_that_is_cancelled() -> None:
    """By something of the application's, on a loop that goes on: it is no success."""

    class Odd(RecordingTracker):
        async def flush(self, timeout: float | None = None) -> bool:
            raise asyncio.CancelledError

    with ThreadedEmitter(Odd) as threaded:
        assert not threaded.flush()


def test_the_end_does_not_wait_without_bound(rokt_sandbox: Sandbox) -> None:
    """For a thread that waits for what only the close brings."""
    rokt_sandbox.fail_next(*["silence"] * 9)
    threaded = ThreadedEmitter(lambda: Emitter(flush_interval=0, close_timeout=0.3, request_timeout=60))
    future = threaded.track(event())
    waiting = threading.Thread(target=future.exception)
    waiting.start()
    before = time.monotonic()
    module._close_all()
    assert time.monotonic() - before < 30
    waiting.join(5)
    assert not waiting.is_alive()
    assert ThreadedEmitter(RecordingTracker)._close_timeout() == 0.0


def test_a_publisher() -> None:
    """Any tracker will do."""
    queue = MemoryQueue()
    with ThreadedEmitter(lambda: Publisher(queue)) as threaded:
        sent = event()
        assert threaded.track(sent).result(5).event.parent_guid == sent.parent_guid
    assert threaded.stats.accepted == 1, "the final account"


def test_a_loop_that_has_ended_is_replaced(rokt_sandbox: Sandbox) -> None:
    """Something of the application's may have stopped it."""
    threaded = ThreadedEmitter(lambda: Emitter(flush_interval=0))
    threaded.start()
    assert threaded._running is not None
    running = threaded._running
    running._loop.call_soon_threadsafe(running._stopped.cancel)
    running.thread.join(5)
    assert threaded.track(event()).result(5).attempts == 1
    assert threaded.close() == DrainReport()


class Odd(RecordingTracker):
    """A tracker whose close fails."""

    async def aclose(self, timeout: float | None = None) -> DrainReport:
        raise KeyError("odd")


def test_a_close_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is raised; at the interpreter's end it is logged, and the others are closed all the same."""
    threaded = ThreadedEmitter(Odd)
    threaded.start()
    with pytest.raises(KeyError):
        threaded.close()
    odd, good = ThreadedEmitter(Odd), ThreadedEmitter(RecordingTracker)
    odd.start()
    good.start()
    module._close_all()
    assert good.health.state == "closed"
    assert "could not be closed at the end: KeyError" in caplog.text


def test_what_a_child_forgets() -> None:
    """It has a copy of its parent's object, and no thread for it."""
    threaded = ThreadedEmitter(RecordingTracker)
    threaded.start()
    running = threaded._running
    assert running is not None
    threaded._forget()
    threaded._forget()
    assert threaded.health.state == "new"

    def stop_twice() -> None:
        running._stop(None)
        running._stop(None)

    running._loop.call_soon_threadsafe(stop_twice)
    running.report()
    module._left_behind.clear()


# Ends of programs.

SCRIPT = """
import sys, os, logging
logging.basicConfig()
from rokt_events_async import Emitter, PartnerEvent, ThreadedEmitter
endpoint = os.environ["ROKT_ENDPOINT"].replace("127.0.0.1", "localhost")  # A name, which a thread resolves.
rokt = ThreadedEmitter(lambda: Emitter(endpoint=endpoint, flush_interval=60))
for number in range(30):
    rokt.track(PartnerEvent.viewed(session_id="s", parent_guid=f"g-{number}", client_unique_id="c"))
"""


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(3)", "raise KeyError('x')", "import threading; threading.Thread(target=print).start()"],
    ids=["falls off", "sys.exit", "an exception", "another thread"],
)
def test_a_script_that_ends_loses_nothing(ending: str, rokt_sandbox: Sandbox) -> None:
    """Without a close it drains as the interpreter ends, while names can still be resolved."""
    _, _, err = run_script(SCRIPT + ending)
    assert len(rokt_sandbox.events) == 30
    assert "Warning" not in err
    assert "will be lost" not in err


def test_a_script_that_cannot_drain_says_so(rokt_sandbox: Sandbox) -> None:
    """How many events, and their outcome."""
    rokt_sandbox.fail_next(*[503] * 100)
    script = SCRIPT.replace("flush_interval=60", "flush_interval=60, close_timeout=0.3")
    _, _, err = run_script(script)
    assert "closed with events undelivered: 30 failed" in err


def test_ctrl_c_while_it_drains(rokt_sandbox: Sandbox) -> None:
    """The second ends the program, which says what is lost."""
    rokt_sandbox.fail_next(*["silence"] * 50)

    def stop(process: subprocess.Popen[str]) -> None:
        while rokt_sandbox.count == 0:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)

    script = SCRIPT.replace("flush_interval=60", "flush_interval=60, close_timeout=50, request_timeout=40")
    script = script.replace("range(30)", "range(20)")  # No full batch: the first request is the drain's.
    before = time.monotonic()
    _, _, err = run_script(script, stop=stop)
    assert time.monotonic() - before < 40
    assert "closed with events undelivered: 20 unconfirmed" in err


LATE = """
def work():
    for number in range(5):
        time.sleep(0.05)
        rokt.track(PartnerEvent.viewed(session_id="t", parent_guid=f"t-{number}", client_unique_id="c"))
import time, threading
threading.Thread(target=work).start()
"""

LOCAL = """
def main():
    local = ThreadedEmitter(lambda: Emitter(endpoint=endpoint, flush_interval=60))
    for number in range(5):
        local.track(PartnerEvent.viewed(session_id="l", parent_guid=f"l-{number}", client_unique_id="c"))
main()
"""


@pytest.mark.parametrize("more", [LATE, LOCAL], ids=["a thread that goes on", "an object that is forgotten"])
def test_what_is_tracked_late_or_by_the_way(more: str, rokt_sandbox: Sandbox) -> None:
    """The program's own threads may track until they end, and a forgotten object is drained too."""
    _, _, err = run_script(SCRIPT + more)
    assert len(rokt_sandbox.events) == 35
    assert "lost" not in err
    assert "Error" not in err


HANDLER = """
import signal, threading
rokt = ThreadedEmitter(lambda: Emitter(flush_interval=60, close_timeout=1))
rokt.track(PartnerEvent.viewed(session_id="s", parent_guid="g", client_unique_id="c"))
reports = []
signal.signal(signal.SIGTERM, lambda *_: reports.append(rokt.close()))
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
reports.append(rokt.close())
print(len(reports), reports[0] is reports[1], rokt.stats.unconfirmed, rokt.close() is reports[0])
"""


def test_a_close_in_a_signals_handler(rokt_sandbox: Sandbox) -> None:
    """While the program closes: both wait for the same, and neither forever."""
    rokt_sandbox.fail_next(*["silence"] * 9)
    status, out, err = run_script(SCRIPT.split("rokt =", maxsplit=1)[0] + HANDLER)
    assert (status, out.split()) == (0, ["2", "True", "1", "True"]), err


GIVEN_UP = """
rokt = ThreadedEmitter(lambda: Emitter(flush_interval=60, close_timeout=50, request_timeout=40,
    on_undelivered=lambda error: print(error.outcome, flush=True)))
import time
try:
    with rokt:
        for number in range(3):
            event = PartnerEvent.viewed(session_id="s", parent_guid=f"g-{number}", client_unique_id="c")
            rokt.track(event)
except KeyboardInterrupt:
    print("interrupted", rokt.stats.pending, flush=True)
"""


def test_an_interrupted_close_gives_each_event_its_outcome(rokt_sandbox: Sandbox) -> None:
    """They reach `on_undelivered`, and the end of the interpreter waits for nothing more."""
    rokt_sandbox.fail_next(*["silence"] * 9)

    def stop(process: subprocess.Popen[str]) -> None:
        while rokt_sandbox.count == 0:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)

    _, out, err = run_script(SCRIPT.split("rokt =", maxsplit=1)[0] + GIVEN_UP, stop=stop)
    assert out.split("\n") == ["unconfirmed", "unconfirmed", "unconfirmed", "interrupted 0", ""], err


def test_forked_children_have_their_own(rokt_sandbox: Sandbox) -> None:
    """With a parent that has begun: each child has a thread of its own, and drains at its end."""
    script = (
        SCRIPT
        + """
import multiprocessing
def child(name):
    for number in range(20):
        rokt.track(PartnerEvent.viewed(session_id=name, parent_guid=f"{name}-{number}", client_unique_id="c"))
    assert rokt.stats.accepted == 20, rokt.stats
if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=child, args=(f"child-{n}",)) for n in range(3)]
    [one.start() for one in children]
    [one.join() for one in children]
    assert [one.exitcode for one in children] == [0, 0, 0]
"""
    )
    status, _, err = run_script(script)
    parents = {accepted["parentGuid"] for accepted in rokt_sandbox.events}
    assert status == 0, err
    assert len(parents) == len(rokt_sandbox.events) == 90


def test_a_child_of_a_bare_fork(rokt_sandbox: Sandbox) -> None:
    """It ends without exit handlers, and so has to close by itself."""
    threaded = ThreadedEmitter(lambda: Emitter(flush_interval=60))
    threaded.track(event("parent"))
    pid = os.fork()
    if pid == 0:  # pragma: no cover -- the child
        try:
            assert threaded.health.state == "new"
            threaded.track(event("child"))
            threaded.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert [accepted["sessionId"] for accepted in rokt_sandbox.events] == ["child"]
    threaded.close()
    assert [accepted["sessionId"] for accepted in rokt_sandbox.events] == ["child", "parent"]
