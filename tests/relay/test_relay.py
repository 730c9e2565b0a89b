"""The relay, on virtual time, with a queue in memory and a sandbox."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web

from rokt_events_async import (
    Credentials,
    Emitter,
    EmitterClosedError,
    InvalidSettingError,
    Observer,
    PartnerEvent,
    QueueRefusedError,
    QueueUnavailableError,
    RetryPolicy,
)
from rokt_events_async._protocol.encoding import encode
from rokt_events_async.outcomes import DeadLetter, RelayStats
from rokt_events_async.relay import Relay, RelayStoppedError
from rokt_events_async.relay.entries import Entry, NewEntry, partition_of
from rokt_events_async.relay.memory import MemoryQueue
from rokt_events_async.relay.queue import Findings
from rokt_events_async.sandbox import Sandbox
from tests.samples import CREDENTIALS, Clock, event, unchecked

MakeRelay = Callable[..., Relay]


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
async def make_relay(queue: MemoryQueue, sandbox: Sandbox) -> AsyncIterator[MakeRelay]:
    """Makes relays from the queue to the sandbox, and closes them."""
    made: list[Relay] = []

    def make(make_emitter: Any = None, **settings: Any) -> Relay:
        if make_emitter is None:
            make_emitter = functools.partial(Emitter, sandbox.credentials, endpoint=sandbox.url)
        one = Relay(settings.pop("queue", queue), make_emitter, **settings)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.aclose(0)


async def publish(queue: MemoryQueue, *events: PartnerEvent, tries: int = 0) -> None:
    entries = [
        NewEntry(
            partition_of(one.session_id, queue.partitions),
            f"id-{one.parent_guid}".encode(),
            encode(one.stamped(datetime.now(UTC))),
            tries=tries,
        )
        for one in events
    ]
    await queue.publish(entries, timeout=5)


async def eventually(condition: Callable[[], Any], within: float = 600.0) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not condition():
        assert loop.time() < deadline, "it does not come true"
        await asyncio.sleep(0.1)


async def left(queue: MemoryQueue) -> int:
    backlog = await queue.backlog()
    return sum(backlog.waiting) + backlog.pending


def guids(sandbox: Sandbox) -> list[str]:
    return [one["parentGuid"] for one in sandbox.events]


# Delivering.


async def test_events_are_delivered_and_acknowledged(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """In batches that had the linger's time to fill; then the queue is empty."""
    events = [event(f"s{number % 3}") for number in range(30)]
    await publish(queue, *events)
    async with make_relay() as relay:
        await eventually(lambda: relay.stats.acknowledged == 30)

        assert relay.health.is_ready
        assert relay.stats.held == 0
    assert sorted(guids(sandbox)) == sorted(one.parent_guid for one in events)
    assert len(sandbox.requests) == 3
    assert await left(queue) == 0
    assert relay.stats.delivered == relay.stats.read == 30
    assert relay.stats.acknowledged_elsewhere == relay.stats.redelivered == 0
    assert relay.health.state == "closed"
    assert await queue.relays() == []


async def test_the_order_within_a_session(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """It is that of publication, though requests fail."""
    sandbox.fail_next(503, 503)
    events = [event("one") for _ in range(120)]
    await publish(queue, *events)
    async with make_relay() as relay:
        await eventually(lambda: relay.stats.acknowledged == 120)

    assert guids(sandbox) == [one.parent_guid for one in events]


async def test_dead_letters(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """What Rokt refuses, with its reasons; what cannot be read; what became too old."""

    class Watcher(Observer):
        def __init__(self) -> None:
            self.letters: list[DeadLetter] = []

        def on_dead_letter(self, letter: DeadLetter) -> None:
            self.letters.append(letter)

    good = event("s")
    refused = unchecked(event_type="SignalUnheardOf", session_id="s")
    old = event("s").stamped(datetime.now(UTC) - timedelta(days=4))
    early = event("s").stamped(datetime.now(UTC) + timedelta(hours=2))
    await publish(queue, good, refused, old, early)
    poison = NewEntry(3, b"x", b"rubbish")
    await queue.publish([poison], timeout=5)
    watcher = Watcher()
    async with make_relay(observers=[watcher]) as relay:
        await eventually(lambda: relay.stats.dead_letters == 4 and relay.stats.delivered == 1)

    letters = {one.outcome: one for one in await queue.dead_letters()}
    assert Counter(one.outcome for one in await queue.dead_letters()) == {
        "rejected": 2,
        "expired": 1,
        "unreadable": 1,
    }
    assert letters["unreadable"].fields[-1] == b"rubbish"
    assert letters["unreadable"].relay_id == relay.relay_id
    assert sorted(one.outcome for one in watcher.letters) == ["expired", "rejected", "rejected", "unreadable"]
    assert [one.errors[0].code for one in watcher.letters if one.errors] == ["InvalidEventType"]
    assert guids(sandbox) == [good.parent_guid]
    assert await left(queue) == 0


async def test_an_outage_of_rokt(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """However long: nothing is taken from the relay that waits, nothing is sent twice."""
    sandbox.fail_next(*[503] * 300)
    events = [event(f"s{number}") for number in range(50)]
    await publish(queue, *events)
    async with make_relay(heartbeat_timeout=2) as relay, make_relay(heartbeat_timeout=2) as other:
        began = asyncio.get_running_loop().time()
        await eventually(lambda: relay.health.emitter.state == "outage")
        assert relay.health.is_ready
        await eventually(lambda: relay.stats.acknowledged + other.stats.acknowledged == 50)

        assert asyncio.get_running_loop().time() - began > 10
        assert relay.stats.taken_over == other.stats.taken_over == 0
    assert sorted(guids(sandbox)) == sorted(one.parent_guid for one in events)


# Other relays.


@asynccontextmanager
async def dead_relay(queue: MemoryQueue, *, marked: int) -> AsyncIterator[list[Entry]]:
    """A relay that has read entries, marked some, and ended without a word."""
    await queue.beat("dead", "n", {}, timeout=3)
    entries = await queue.read("dead", range(16), count=1000, wait=1)
    entries.sort(key=lambda entry: int(entry.id))
    await queue.mark("dead", entries[:marked])
    yield entries


async def test_entries_of_an_ended_relay_are_taken_over(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """Not before its heartbeat has expired; what may have been sent is counted."""
    await publish(queue, *[event(f"s{number}") for number in range(10)])
    async with dead_relay(queue, marked=4), make_relay(heartbeat_timeout=3) as relay:
        await asyncio.sleep(2.5)
        assert relay.stats.taken_over == 0
        await eventually(lambda: relay.stats.acknowledged == 10, within=3)

    assert (relay.stats.taken_over, relay.stats.redelivered) == (10, 4)
    assert len(sandbox.events) == 10


async def test_what_may_have_been_sent_is_not_sent_again(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """With `retry_unconfirmed=False` it is a dead letter, unconfirmed."""
    await publish(queue, *[event(f"s{number}") for number in range(10)])
    make = functools.partial(
        Emitter, sandbox.credentials, endpoint=sandbox.url, retry=RetryPolicy(retry_unconfirmed=False)
    )
    async with dead_relay(queue, marked=4), make_relay(make) as relay:
        await eventually(lambda: relay.stats.acknowledged == 6 and relay.stats.dead_letters == 4)

    assert {one.cause for one in await queue.dead_letters()} == {"redelivered"}
    assert len(sandbox.events) == 6


async def test_more_entries_than_the_window_holds(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """Of an ended relay, of a predecessor, and while Rokt is away: they are taken as room comes free."""
    await publish(queue, *[event(f"s{number}") for number in range(150)])
    async with dead_relay(queue, marked=0):
        await queue.beat("one", "n", {}, timeout=2)
        await publish(queue, *[event(f"t{number}") for number in range(150)])
        await queue.read("one", range(16), count=1000, wait=1)
        sandbox.fail_next(*[503] * 60)
        async with make_relay(window=60, relay_id="one") as relay:
            await eventually(lambda: relay.stats.acknowledged == 300)

    assert relay.stats.taken_over == 150
    assert len(sandbox.events) == 300


async def test_relays_share_the_partitions(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """Evenly; when one ends, the other reads all."""
    async with make_relay() as first:
        async with make_relay() as second:
            await eventually(lambda: len(first.stats.partitions) == len(second.stats.partitions) == 8)
            assert set(first.stats.partitions) | set(second.stats.partitions) == set(range(16))
            assert first.stats.relays == 2
        await eventually(lambda: len(first.stats.partitions) == 16)


async def test_two_relays_with_one_id(
    queue: MemoryQueue, make_relay: MakeRelay, caplog: pytest.LogCaptureFixture
) -> None:
    """The second says that it waits for the first to expire, and then what is wrong."""
    async with make_relay(relay_id="one"):
        with pytest.raises(RelayStoppedError, match="another living relay has the id 'one'"):
            await make_relay(relay_id="one").run()
    assert caplog.text.count("the relay one waits: its id is another relay's") == 1


async def test_what_is_gone_is_told_of(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay, caplog: pytest.LogCaptureFixture
) -> None:
    """The queue may have lost its data: what the relay holds is not sent, and must not vanish in silence."""
    await publish(queue, *[event(f"s{number}") for number in range(7)])
    async with make_relay(flush_interval=30) as relay:
        await eventually(lambda: relay.stats.held == 7)
        await queue.acknowledge([held.entry for held in relay._window._known.values()])
        await eventually(lambda: relay.stats.acknowledged_elsewhere == 7)
    assert caplog.text.count("held 7 entries that are gone from the queue") == 1
    assert sandbox.events == []


async def test_a_relay_that_is_started_again_with_its_id(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """It fetches what its predecessor held, once that has expired."""
    await publish(queue, *[event(f"s{number}") for number in range(5)])
    async with dead_relay(queue, marked=2), make_relay(relay_id="dead") as relay:
        await eventually(lambda: relay.stats.acknowledged == 5)

    assert relay.stats.redelivered == 2


async def test_an_id_that_is_taken_later(queue: MemoryQueue, make_relay: MakeRelay) -> None:
    """A relay that was stopped for long finds another process with its id, and stops."""
    relay = make_relay(relay_id="one", heartbeat_timeout=5)
    running = asyncio.create_task(relay.run())
    await eventually(lambda: relay.health.is_ready)
    queue._relays.pop("one")
    await queue.beat("one", "another", {}, timeout=100)
    with pytest.raises(RelayStoppedError, match="has taken the id 'one'"):
        await running


async def test_entries_that_another_relay_has_acknowledged(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """They are not sent, and counted."""
    await publish(queue, event("s"), event("s"))
    async with make_relay(flush_interval=5) as relay:
        await eventually(lambda: relay.stats.held == 2)
        (first, *_) = [held.entry for held in relay._window._known.values()]
        await queue.acknowledge([first])
        await eventually(lambda: relay.stats.held == 0)

    assert relay.stats.acknowledged_elsewhere == 1
    assert len(sandbox.events) == 1


async def test_entries_that_were_taken_while_the_relay_stood_still(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """After a heartbeat that came too late, it asks which are still its own, and sends no others."""
    await publish(queue, *[event(f"s{number}") for number in range(4)])
    async with make_relay(flush_interval=100, heartbeat_timeout=5) as relay:
        await eventually(lambda: relay.stats.held == 4)
        entries = [held.entry for held in relay._window._known.values()]
        queue._partitions[entries[0].partition].pending[int(entries[0].id)].owner = "robber"
        relay._heart._last_beat -= 50
        relay._window.flush(now=asyncio.get_running_loop().time())
        relay._signals.due.set()
        await eventually(lambda: relay.stats.held == 0)

    assert relay.stats.acknowledged_elsewhere == 1
    assert len(sandbox.events) == 3
    assert await left(queue) == 1


async def test_more_relays_than_partitions(sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """The one without a share waits for one."""
    queue = MemoryQueue(partitions=1)
    async with make_relay(queue=queue, relay_id="a") as first:
        async with make_relay(queue=queue, relay_id="b") as second:
            await publish(queue, event())
            await eventually(lambda: first.stats.delivered + second.stats.delivered == 1)
            assert sorted([first.stats.partitions, second.stats.partitions]) == [(), (0,)]
        await publish(queue, event())
        await eventually(lambda: first.stats.delivered + second.stats.delivered == 2)


async def test_entries_of_a_relay_that_was_forgotten(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """It came back after the others had forgotten it, read, and ended."""
    await publish(queue, event())
    async with dead_relay(queue, marked=0):
        queue._relays.pop("dead")
    async with make_relay() as relay:
        await eventually(lambda: relay.stats.taken_over == 1)
        await eventually(lambda: relay.stats.acknowledged == 1)


async def test_leaving_does_not_end_another_with_the_same_id(
    queue: MemoryQueue, make_relay: MakeRelay
) -> None:
    """One that never had the id, and one that has lost it."""
    async with make_relay(relay_id="one") as living:
        async with make_relay(relay_id="one"):
            await asyncio.sleep(3)
        assert [one.is_alive for one in await queue.relays()] == [True]
        await eventually(lambda: living.stats.relays == 1)


async def test_a_server_that_comes_back_as_it_was_before(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """Entries that are read a second time are in the window already."""
    await publish(queue, event("a"), event("b"))
    async with make_relay(flush_interval=5) as relay:
        await eventually(lambda: relay.stats.held == 2)
        for place in queue._partitions:
            place.last_read = 0
        await eventually(lambda: relay.stats.acknowledged == 2)

    assert relay.stats.read == 2
    assert len(sandbox.events) == 2


async def test_the_first_entry_of_a_publication_is_lost(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """The server came back as it was before; the second entry, which was confirmed, is sent."""
    one = event("s")
    await publish(queue, one)
    async with make_relay(flush_interval=10) as relay:
        await eventually(lambda: relay.stats.held == 1)
        (held,) = relay._window._known.values()
        queue._remove(held.entry)
        await publish(queue, one, tries=1)
        await eventually(lambda: relay.stats.delivered == 1)

    assert guids(sandbox) == [one.parent_guid]
    assert (relay.stats.acknowledged_elsewhere, relay.stats.repeats_dropped) == (1, 0)
    assert await left(queue) == 0


async def test_entries_that_a_dead_connection_has_read(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """The server took it for alive: they are pending for this relay, which finds them."""
    async with make_relay(relay_id="one", flush_interval=0) as relay:
        await eventually(lambda: relay.health.is_ready)
        await asyncio.sleep(2)
        queue._arrived = asyncio.Event()  # The relay's own read does not wake up.
        await publish(queue, event())
        assert len(await queue.read("one", range(16), count=10, wait=0)) == 1
        await eventually(lambda: relay.stats.delivered == 1, within=10)


# A queue that fails.


class FaultyQueue(MemoryQueue):
    """A queue whose named calls fail so many times, before or after they take effect."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Counter[str] = Counter()
        self.after: Counter[str] = Counter()
        self.errors: dict[str, Exception] = {}
        self.findings = Findings(is_server_old=True)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not asyncio.iscoroutinefunction(found):
            return found

        @functools.wraps(found)
        async def faulty(*args: Any, **kwargs: Any) -> Any:
            error = self.errors.get(name, QueueUnavailableError("away"))
            if self.before[name] > 0:
                self.before[name] -= 1
                raise error
            result = await found(*args, **kwargs)
            if self.after[name] > 0:
                self.after[name] -= 1
                raise error
            return result

        return faulty

    async def open_relay(self, *, heartbeat_timeout: float) -> Findings:
        await super().open_relay(heartbeat_timeout=heartbeat_timeout)
        return self.findings


CALLS = ["read", "take", "mark", "acknowledge", "bury", "beat", "backlog", "trim", "open_relay"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_calls_that_fail(
    sandbox: Sandbox, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    """Whether or not they took effect: nothing is lost, and nothing is sent twice."""
    monkeypatch.setattr("rokt_events_async.relay._heart._TRIM_EVERY", 5.0)
    queue = FaultyQueue()
    getattr(queue, when)[call] = 3
    events = [event(f"s{number}") for number in range(20)]
    await publish(queue, *events, unchecked(event_type="SignalUnheardOf"))
    async with make_relay(queue=queue) as relay:
        await eventually(lambda: not relay.stats.held and relay.stats.delivered == 20)
        await eventually(lambda: getattr(queue, when)[call] == 0)
        await eventually(lambda: relay.health.state == "ok")

    assert sorted(guids(sandbox)) == sorted(one.parent_guid for one in events)
    assert await left(queue) == 0
    assert len(await queue.dead_letters()) == 1


async def test_a_queue_that_is_away_at_the_start(sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """The relay starts, is not ready, and keeps trying."""
    queue = FaultyQueue()
    queue.is_down = True
    await asyncio.sleep(0)
    async with make_relay(queue=queue) as relay:
        await asyncio.sleep(30)
        assert relay.health.state == "starting"
        assert not relay.health.is_ready
        assert "switched off" in str(relay.health.last_error)
        queue.is_down = False
        await publish(queue, event())
        await eventually(lambda: relay.stats.delivered == 1)


async def test_a_close_before_the_queue_was_ever_reached(make_relay: MakeRelay) -> None:
    """It ends."""
    queue = FaultyQueue()
    queue.is_down = True
    async with make_relay(queue=queue) as relay:
        pass

    assert relay.health.state == "closed"


async def test_no_entries_are_taken_after_a_lost_connection(sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """The others have lost it too, and must have the time to say that they are alive."""
    queue = FaultyQueue()
    await publish(queue, *[event(f"s{number}") for number in range(5)])
    async with dead_relay(queue, marked=0), make_relay(queue=queue, heartbeat_timeout=4) as relay:
        await asyncio.sleep(2.5)
        queue.before["beat"] = 1
        await asyncio.sleep(3.5)
        assert relay.stats.taken_over == 0
        await eventually(lambda: relay.stats.taken_over == 5, within=3)


async def test_no_entries_are_taken_from_a_young_server(sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """Heartbeats do not survive its restart."""
    queue = FaultyQueue()
    queue.findings = Findings(is_server_old=False, warnings=("it has no append-only file",))
    await publish(queue, event())
    async with dead_relay(queue, marked=0), make_relay(queue=queue, heartbeat_timeout=6) as relay:
        await asyncio.sleep(5)
        assert relay.stats.taken_over == 0
        await eventually(lambda: relay.stats.taken_over == 1, within=3)


@pytest.mark.parametrize("call", ["open_relay", "read", "acknowledge", "mark", "beat"])
async def test_a_queue_that_refuses(make_relay: MakeRelay, call: str) -> None:
    """The relay stops with the reason, and what it read stays in the queue."""
    queue = FaultyQueue()
    queue.before[call], queue.errors[call] = 1000, QueueRefusedError("NOPERM")
    await publish(queue, event())
    with pytest.raises(QueueRefusedError, match="NOPERM"):
        await make_relay(queue=queue).run()


async def test_a_fault_in_the_queues_client(make_relay: MakeRelay, caplog: pytest.LogCaptureFixture) -> None:
    """The relay stops, and the log has the place."""
    queue = FaultyQueue()
    queue.before["read"], queue.errors["read"] = 1, ZeroDivisionError("fault")
    with pytest.raises(RelayStoppedError, match="ZeroDivisionError"):
        await make_relay(queue=queue).run()

    assert "a loop of the relay raised" in caplog.text


async def test_a_farewell_that_fails(make_relay: MakeRelay, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged: others take over later."""
    queue = FaultyQueue()
    async with make_relay(queue=queue):
        queue.before["leave"] = 1
    assert "could not take its leave" in caplog.text


async def test_pages_that_are_too_large_to_come_in_time(sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """They become smaller until they do."""

    class Slow(MemoryQueue):
        async def read(self, relay_id: str, partitions: Any, *, count: int, wait: float) -> list[Entry]:
            found = await super().read(relay_id, partitions, count=count, wait=wait)
            if len(found) > 5:
                raise QueueUnavailableError("no answer within 5 s", was_asked=True)
            return found

        async def take(self, *arguments: Any, count: int, **options: Any) -> Any:
            found = await super().take(*arguments, count=count, **options)
            if len(found.entries) > 5:
                raise QueueUnavailableError("no answer within 5 s", was_asked=True)
            return found

    queue = Slow()
    await publish(queue, *[event(f"s{number}") for number in range(200)])
    async with make_relay(queue=queue) as relay:
        await eventually(lambda: relay.stats.acknowledged == 200)

    assert len(sandbox.events) == 200


async def test_bytes_are_bounded(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """Apart from the first page, whose events are of a size that is not known."""
    sandbox.fail_next(*[503] * 100)
    await publish(queue, *[event(f"s{n}", metadata={"a": "x" * 10_000}) for n in range(1000)])
    async with make_relay(window_bytes=2_000_000, flush_interval=0.2) as relay:
        await asyncio.sleep(2)
        assert 1_000_000 < relay.stats.held_bytes < 2_500_000
        await eventually(lambda: relay.stats.acknowledged == 1000)


# Sessions.


class PickyRokt:
    """Accepts all events but those of one session, which it answers with 500."""

    def __init__(self) -> None:
        self.bad = "bad"
        self.accepted: list[str] = []
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        events = json.loads(await request.read())["events"]
        if events[0]["sessionId"] == self.bad:
            return web.Response(status=500)
        self.accepted += [one["parentGuid"] for one in events]
        return web.json_response({"processedEventsCount": len(events), "unprocessedEvents": []})


async def test_a_failing_session_does_not_stop_the_others(queue: MemoryQueue, make_relay: MakeRelay) -> None:
    """It holds its share of the window, and more of it waits in the queue; all of it comes in the end."""
    rokt = PickyRokt()
    bad = [event("bad") for _ in range(300)]
    await publish(queue, *bad)
    async with rokt.running():
        make = functools.partial(Emitter, CREDENTIALS, endpoint=rokt.url)
        async with make_relay(make, window=200) as relay:
            await eventually(lambda: relay.stats.passed_over > 0)
            others = [event(f"s{number}") for number in range(400)]
            await publish(queue, *others)
            await eventually(lambda: relay.stats.acknowledged == 400, within=30)
            assert relay.stats.delivered == 400
            assert relay.stats.passed_over > 100
            rokt.bad = ""
            await eventually(lambda: relay.stats.acknowledged == 700)

    assert sorted(rokt.accepted) == sorted(one.parent_guid for one in (*bad, *others))


async def test_a_session_that_always_fails_ends_as_dead_letters(
    queue: MemoryQueue, make_relay: MakeRelay
) -> None:
    """After `max_unconfirmed_attempts`: it does not go on forever."""
    rokt = PickyRokt()
    await publish(queue, event("bad"), event("good"))
    async with rokt.running():
        make = functools.partial(
            Emitter, CREDENTIALS, endpoint=rokt.url, retry=RetryPolicy(max_unconfirmed_attempts=4)
        )
        async with make_relay(make) as relay:
            await eventually(lambda: relay.stats.dead_letters == 1)

    (letter,) = await queue.dead_letters()
    assert (letter.outcome, letter.cause, letter.status) == ("unconfirmed", "attempts", 500)


async def test_a_session_with_more_entries_than_its_share(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """What was passed over is fetched again, in order, and another session does not wait for it."""
    bad = [event("one") for _ in range(700)]
    await publish(queue, *bad, *[event(f"s{number}") for number in range(5)])
    async with make_relay(window=200) as relay:
        await eventually(lambda: relay.stats.passed_over > 0)
        await eventually(lambda: relay.stats.acknowledged == 705)

        assert relay.stats.passed_over == 0
        assert relay.stats.read == 705
    assert [one["parentGuid"] for one in sandbox.events if one["sessionId"] == "one"] == [
        one.parent_guid for one in bad
    ]


async def test_repeated_publications_are_recognised(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """The second entry is dropped; one whose first is not known here is sent, and counted."""
    twice, once = event("s"), event("s")
    await publish(queue, twice)
    await publish(queue, twice, once, tries=1)
    async with make_relay() as relay:
        await eventually(lambda: relay.stats.acknowledged == 3)

    assert (relay.stats.repeated, relay.stats.repeats_dropped) == (2, 1)
    assert sorted(guids(sandbox)) == sorted([twice.parent_guid, once.parent_guid])


async def test_memory_of_publications_is_bounded(queue: MemoryQueue, make_relay: MakeRelay) -> None:
    """The oldest are forgotten."""
    async with make_relay(window=50) as relay:
        assert relay._loops is not None
        publications = relay._loops.reader._publications
        for number in range(20_000):
            publications.first_place(b"%d" % number, (0, b"1-0"))
        assert len(publications) == 2 * 50 + 16_000


async def test_the_account_of_what_is_passed_over(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """An entry that is fetched several times counts once."""
    await publish(queue, *[event("one") for _ in range(500)])
    async with dead_relay(queue, marked=500), make_relay(window=200) as relay:
        await eventually(lambda: relay.stats.acknowledged == 500)

    assert relay.stats.redelivered == relay.stats.read == 500


async def test_an_event_ahead_of_the_relays_clock(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """The clocks of its publisher and of this relay differ: it is offered again."""
    clock = Clock(datetime.now(UTC) - timedelta(minutes=6))
    await publish(queue, event())
    make = functools.partial(Emitter, sandbox.credentials, endpoint=sandbox.url, _clock=clock)
    async with make_relay(make, _clock=clock) as relay:
        await asyncio.sleep(20)
        assert (relay.stats.held, relay.stats.dead_letters) == (1, 0)
        clock.advance(minutes=6)
        await eventually(lambda: relay.stats.acknowledged == 1)


# Credentials, emitters, settings.


async def test_refused_credentials_stop_the_relay(queue: MemoryQueue, sandbox: Sandbox) -> None:
    """If they never worked. The entries stay as they were."""
    await publish(queue, *[event(f"s{number}") for number in range(3)])
    wrong = Credentials(pub_id="rpub-wrong", secret="rsec-for-nothing", tag_id="1")
    relay = Relay(queue, functools.partial(Emitter, wrong, endpoint=sandbox.url))
    with pytest.raises(RelayStoppedError, match=r"refused the credentials.*the events stay in the queue"):
        await relay.run()

    assert await queue.dead_letters() == []
    assert await left(queue) == 3
    assert not any(one.is_marked for place in queue._partitions for one in place.pending.values())


async def test_a_relay_that_stops_by_itself(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """Beside the application's own work: it gives up its share, is not ready, and `async with` raises."""
    wrong = Credentials(pub_id="rpub-wrong", secret="rsec-for-nothing", tag_id="1")
    await publish(queue, event())
    relay = make_relay(functools.partial(Emitter, wrong, endpoint=sandbox.url))
    with pytest.raises(RelayStoppedError, match="refused the credentials"):
        await lives_until_closed(relay)
    assert not relay.health.is_ready
    assert [one.is_alive for one in await queue.relays()] == [False]


async def lives_until_closed(relay: Relay) -> None:
    async with relay:
        await eventually(lambda: relay.health.state == "closed")


async def test_an_emitter_that_something_else_closes(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """The relay stops: it could deliver nothing."""
    made: list[Emitter] = []

    def make(**settings: Any) -> Emitter:
        made.append(Emitter(sandbox.credentials, endpoint=sandbox.url, **settings))
        return made[0]

    relay = make_relay(make)
    await relay.start()
    await made[0].aclose()
    await publish(queue, event())
    with pytest.raises(RelayStoppedError, match="was closed by something else"):
        await lives_until_closed(relay)
    assert await left(queue) == 1


async def test_an_emitter_that_was_closed_before_the_relay(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """What the relay holds stays in the queue."""
    made: list[Emitter] = []

    def make(**settings: Any) -> Emitter:
        made.append(Emitter(sandbox.credentials, endpoint=sandbox.url, **settings))
        return made[0]

    await publish(queue, event())
    async with make_relay(make, flush_interval=1000, close_timeout=1) as relay:
        await eventually(lambda: relay.stats.held == 1)
        await made[0].aclose()

    assert await left(queue) == 1
    assert not any(one.is_marked for place in queue._partitions for one in place.pending.values())


async def test_an_observer_that_cancels_deliveries(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """The outcome is not known then: a dead letter, and nothing is sent twice."""

    class Canceller(Observer):
        def on_accepted(self, delivery: Any) -> None:
            delivery.cancel()

    await publish(queue, event())
    make = functools.partial(Emitter, sandbox.credentials, endpoint=sandbox.url, observers=[Canceller()])
    async with make_relay(make) as relay:
        await eventually(lambda: relay.stats.dead_letters == 1)

    (letter,) = await queue.dead_letters()
    assert (letter.outcome, letter.cause) == ("unconfirmed", "unknown")
    assert len(sandbox.events) == 1


async def test_a_stop_after_a_lost_answer(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """The event may have been sent: its entry stays, and stays marked."""
    sandbox.fail_next(*["504-processed"] * 100)
    await publish(queue, event())
    async with make_relay(flush_interval=0, close_timeout=0):
        await eventually(lambda: sandbox.count >= 1)
        await asyncio.sleep(0.5)

    assert await left(queue) == 1
    assert all(one.is_marked for place in queue._partitions for one in place.pending.values())


async def test_the_emitter_has_settings_that_fit(sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """What a `partial` has set stays; a factory without arguments is used as it is, and bounds the window."""
    seen: list[Emitter] = []

    def plain() -> Emitter:
        seen.append(Emitter(sandbox.credentials, endpoint=sandbox.url, max_pending=70))
        return seen[-1]

    def taking(**settings: Any) -> Emitter:
        seen.append(Emitter(sandbox.credentials, endpoint=sandbox.url, **settings))
        return seen[-1]

    def partial(flush_interval: float, **settings: Any) -> Emitter:
        return taking(flush_interval=flush_interval, **settings)

    async with make_relay(plain) as relay:
        assert relay._window.size == 70
    async with make_relay(taking, window=500):
        assert seen[-1].max_pending >= 500
        assert seen[-1].flush_interval == 0
        assert seen[-1].retry.deadline == 3 * 24 * 3600
    async with make_relay(functools.partial(partial, flush_interval=0.5)):
        assert seen[-1].flush_interval == 0.5


async def test_a_short_deadline_is_said(
    sandbox: Sandbox, make_relay: MakeRelay, caplog: pytest.LogCaptureFixture
) -> None:
    """The relay works all the same."""
    async with make_relay(lambda: Emitter(sandbox.credentials, endpoint=sandbox.url)):
        assert "has a delivery deadline of 120 s" in caplog.text


async def test_an_event_that_the_emitter_gave_up_too_soon(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """It was not accepted, and is offered again: the queue keeps it."""
    await publish(queue, event())
    sandbox.fail_next(*[503] * 5)
    make = functools.partial(
        Emitter, sandbox.credentials, endpoint=sandbox.url, retry=RetryPolicy(deadline=2, wait=(1, 1))
    )
    async with make_relay(make) as relay:
        await eventually(lambda: relay.stats.acknowledged == 1)

    assert await queue.dead_letters() == []


async def test_an_emitter_without_room(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """The events are offered again."""
    events = [event(f"s{number}") for number in range(30)]
    await publish(queue, *events)
    make = functools.partial(
        Emitter, sandbox.credentials, endpoint=sandbox.url, max_pending_bytes=600, max_session_share=1
    )
    async with make_relay(make) as relay:
        await eventually(lambda: relay.stats.acknowledged == 30)

    assert len(sandbox.events) == 30


@pytest.mark.parametrize("make", [lambda: None, lambda **_: "emitter"])
async def test_a_factory_that_makes_none(make_relay: MakeRelay, make: Any) -> None:
    """The error says what it got."""
    with pytest.raises(InvalidSettingError, match="make_emitter must return an Emitter"):
        await make_relay(make).start()


async def test_a_coroutine_is_no_factory(make_relay: MakeRelay) -> None:
    """It is closed, and said."""

    async def make(**_: Any) -> Emitter:
        raise AssertionError

    with pytest.raises(InvalidSettingError, match="got a coroutine"):
        await make_relay(make).start()


async def test_a_journal_is_refused(
    sandbox: Sandbox, make_relay: MakeRelay, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that comes from the environment."""
    monkeypatch.setenv("ROKT_JOURNAL", str(tmp_path))
    with pytest.raises(InvalidSettingError, match="must have no journal"):
        await make_relay().start()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relay_id": ""}, "relay_id must be a non-empty printable string, got ''"),
        ({"relay_id": 7}, "relay_id must be a non-empty printable string, got 7"),
        ({"window": 10}, "window must be a whole number >= 50, got 10"),
        (
            {"heartbeat_timeout": 0.1},
            "heartbeat_timeout must be a finite number >= 0.5 and <= 86400, got 0.1",
        ),
        ({"flush_interval": -1}, "flush_interval must be a finite number >= 0, got -1"),
        ({"queue": "redis://localhost"}, "such as RedisQueue"),
        ({"make_emitter": 5}, "make_emitter must be callable, as Emitter is, got 5"),
    ],
)
def test_settings_out_of_bounds(settings: dict[str, Any], message: str) -> None:
    """One clear error."""
    values: dict[str, Any] = {"queue": MemoryQueue(), "make_emitter": Emitter} | settings
    with pytest.raises(InvalidSettingError, match=message):
        Relay(values.pop("queue"), values.pop("make_emitter"), **values)


# Life.


async def test_run_until_stopped(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """What it holds is drained without its linger."""
    relay = make_relay(flush_interval=1000)
    running = asyncio.create_task(relay.run())
    await publish(queue, event(), event())
    await eventually(lambda: relay.stats.held == 2)
    relay.stop()
    stats = await running

    assert (stats.delivered, stats.acknowledged) == (2, 2)


async def test_a_stop_drains_all_that_it_holds(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """Thousands of entries, and more of one session than may be out."""
    await publish(
        queue, *[event(f"s{number % 100}") for number in range(3000)], *[event("one") for _ in range(200)]
    )
    async with make_relay(flush_interval=1000) as relay:
        await eventually(lambda: relay.stats.read == 3200)

    assert len(sandbox.events) == 3200
    assert await left(queue) == 0


async def test_a_close_while_it_is_being_started(make_relay: MakeRelay) -> None:
    """The start says that it came too late, and nothing is left running."""

    class SlowQueue(MemoryQueue):
        async def open_relay(self, *, heartbeat_timeout: float) -> Findings:
            await asyncio.sleep(5)
            return await super().open_relay(heartbeat_timeout=heartbeat_timeout)

    queue = SlowQueue()
    relay = make_relay(queue=queue)
    starting = asyncio.create_task(relay.start())
    await asyncio.sleep(1)
    await relay.aclose()
    with pytest.raises(EmitterClosedError, match="closed while it was being started"):
        await starting
    await asyncio.sleep(5)
    assert await queue.relays() == []


async def test_run_that_is_cancelled(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """It drains, too."""
    relay = make_relay(flush_interval=1000)
    running = asyncio.create_task(relay.run())
    await publish(queue, event())
    await eventually(lambda: relay.stats.held == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert len(sandbox.events) == 1
    assert await left(queue) == 0


async def test_a_stop_in_an_outage(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """Nothing becomes a dead letter; what was not accepted is left unmarked."""
    sandbox.fail_next(*[503] * 1000)
    await publish(queue, *[event(f"s{number}") for number in range(40)])
    async with make_relay(close_timeout=3, flush_interval=0.1) as relay:
        await eventually(lambda: relay.health.emitter.is_breaker_open)
        await publish(queue, event("late"))
    assert await queue.dead_letters() == []
    assert await left(queue) == 41
    assert not any(one.is_marked for place in queue._partitions for one in place.pending.values())
    assert relay.stats.delivered == 0


async def test_a_second_interrupt_ends_the_drain(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """At once, and the rest stays in the queue."""
    sandbox.fail_next(*[503] * 1000)
    await publish(queue, event())
    relay = make_relay(close_timeout=1000, flush_interval=0)
    await relay.start()
    await eventually(lambda: sandbox.count > 2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    closing = asyncio.create_task(relay.aclose())
    await asyncio.sleep(5)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    assert loop.time() - began < 20
    assert relay.health.state == "closed"
    assert await left(queue) == 1


async def test_starting_and_closing_in_any_order(make_relay: MakeRelay) -> None:
    """Twice is once; closed stays closed."""
    relay = make_relay()
    await relay.start()
    await relay.start()
    assert "Relay" in repr(relay)
    await asyncio.gather(relay.aclose(), relay.aclose())
    await relay.aclose()
    with pytest.raises(EmitterClosedError):
        await relay.start()
    unused = make_relay()
    assert " new," in repr(unused)
    await unused.aclose()
    assert " closed," in repr(unused)
    with pytest.raises(EmitterClosedError):
        await unused.run()
    with pytest.raises(TypeError, match="async with"):
        with unused:
            pass
    unused.__exit__()


async def test_observers_see_the_account_grow(
    queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay
) -> None:
    """About once per second, and a last time at the close."""

    class Watcher(Observer):
        def __init__(self) -> None:
            self.seen: list[RelayStats] = []

        def on_relay(self, before: RelayStats, after: RelayStats) -> None:
            assert before == (self.seen[-1] if self.seen else RelayStats())
            self.seen.append(after)

    watcher = Watcher()
    await publish(queue, event())
    async with make_relay(observers=[watcher], flush_interval=3):
        await asyncio.sleep(10)

    assert 8 <= len(watcher.seen) <= 12
    assert watcher.seen[-1].acknowledged == 1
    assert any(stats.pending == 1 and stats.relays == 1 for stats in watcher.seen)


async def test_the_status_of_a_relay(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """It tells the others what it does, and how fast."""
    async with make_relay(flush_interval=0, relay_id="r") as relay:
        for _ in range(10):
            await publish(queue, *[event(f"s{number}") for number in range(10)])
            await asyncio.sleep(1)
        await asyncio.sleep(2)
        (presence,) = await queue.relays()

        assert presence.status["delivered"] == relay.stats.delivered == 100
        assert 2 < presence.status["rate"] < 15
        assert presence.status["rokt"] == "ok"


async def test_dead_letters_are_trimmed(queue: MemoryQueue, sandbox: Sandbox, make_relay: MakeRelay) -> None:
    """To the youngest ones."""
    await publish(queue, *[unchecked(event_type="SignalUnheardOf") for _ in range(5)])
    async with make_relay(max_dead_letters=2):
        await asyncio.sleep(130)

    assert len(await queue.dead_letters()) == 2
    assert (await queue.backlog()).dead_letters_dropped == 3
