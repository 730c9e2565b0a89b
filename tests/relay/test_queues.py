"""What every queue does: one suite over the queue in memory, a real Valkey and a real Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rokt_events_async import ApiError
from rokt_events_async._protocol.encoding import encode
from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay import EventQueue
from rokt_events_async.relay.entries import Entry, NewEntry, read_entry
from rokt_events_async.relay.letters import event_of
from rokt_events_async.relay.queue import Taken
from tests.relay.conftest import MakeQueue
from tests.samples import event

pytestmark = pytest.mark.every_loop

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _short_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries can be taken after a twentieth of a second instead of a whole one."""
    monkeypatch.setattr("rokt_events_async.relay.redis._MIN_IDLE", 50)


def new_entry(partition: int = 0, **changes: Any) -> NewEntry:
    wire = encode(event(**changes).stamped(datetime.now(UTC)))
    return NewEntry(partition, b"publish-%d" % next(_numbers), wire)


async def opened(make_queue: MakeQueue) -> EventQueue:
    queue = make_queue()
    await queue.open_relay(heartbeat_timeout=15)
    return queue


async def publish(queue: EventQueue, *entries: NewEntry) -> list[str]:
    replies = await queue.publish(entries, timeout=5)
    assert all(isinstance(one, str) for one in replies)
    return [str(one) for one in replies]


async def read(queue: EventQueue, relay: str = "a", partitions: Sequence[int] = (0,)) -> list[Entry]:
    return await queue.read(relay, partitions, count=100, wait=0.5)


async def take(queue: EventQueue, relay: str, owner: str, **changes: Any) -> Taken:
    settings: dict[str, Any] = {"after": b"", "count": 100, "skip": lambda _partition, _id: False}
    return await queue.take(relay, owner, 0, **(settings | changes))


def letter(entry: Entry, **changes: Any) -> DeadLetter:
    values: dict[str, Any] = {
        "fields": entry.fields,
        "partition": entry.partition,
        "outcome": "rejected",
        "cause": "rejected",
        "reason": "Rokt refused it",
        "status": 207,
        "errors": (ApiError("InvalidEventType", "ä"),),
        "attempts": 1,
        "relay_id": "a",
        "at": datetime.now(UTC),
    }
    return DeadLetter(**(values | changes))


async def test_entries_are_read_in_order_by_one_relay(make_queue: MakeQueue) -> None:
    """What one relay has read, another does not get."""
    queue = await opened(make_queue)
    sent = [new_entry() for _ in range(5)]
    await publish(queue, *sent)

    first = await queue.read("a", [0], count=3, wait=0.5)
    second = await read(queue, "b")

    assert [read_entry(entry).publish_id for entry in (*first, *second)] == [one.publish_id for one in sent]
    assert len(first) == 3
    assert await queue.read("a", [0], count=3, wait=0) == []


async def test_what_was_published_before_any_relay_is_read(make_queue: MakeQueue) -> None:
    """Publishers may be there first."""
    queue = make_queue()
    await queue.open_publisher(require_durable=False)
    await publish(queue, new_entry())
    await queue.open_relay(heartbeat_timeout=15)

    assert len(await read(queue)) == 1


async def test_a_read_waits_for_entries(make_queue: MakeQueue) -> None:
    """It returns when one arrives, and with none when its time is over."""
    queue, other = await opened(make_queue), make_queue()
    reading = asyncio.create_task(queue.read("a", [0, 3], count=10, wait=10))
    await asyncio.sleep(0.05)
    await publish(other, new_entry(3))

    assert [entry.partition for entry in await reading] == [3]
    assert await queue.read("a", [0], count=10, wait=0.02) == []


async def test_an_acknowledged_entry_is_gone(make_queue: MakeQueue) -> None:
    """The second acknowledgement finds nothing."""
    queue = await opened(make_queue)
    await publish(queue, new_entry(0), new_entry(1))
    entries = await read(queue, partitions=(0, 1))

    assert await queue.acknowledge(entries) == 2
    assert await queue.acknowledge(entries) == 0
    backlog = await queue.backlog()
    assert (sum(backlog.waiting), backlog.pending, backlog.published) == (0, 0, 2)
    assert backlog.oldest is None


async def test_the_backlog_counts_what_waits_and_what_is_pending(make_queue: MakeQueue) -> None:
    """By partition, with the oldest entry's time."""
    queue = await opened(make_queue)
    await publish(queue, new_entry(2), new_entry(2), new_entry(5))
    await read(queue, partitions=(5,))

    backlog = await queue.backlog()
    assert backlog.waiting[2] == 2
    assert sum(backlog.waiting) == 2
    assert backlog.pending == 1
    assert backlog.oldest is not None
    assert abs(datetime.now(UTC) - backlog.oldest) < timedelta(minutes=1)


async def test_entries_of_an_ended_relay_are_taken(make_queue: MakeQueue) -> None:
    """In order, page by page, with the marks of what may have been sent; then the relay can be forgotten."""
    queue = await opened(make_queue)
    await queue.beat("a", "n", {}, timeout=15)
    await publish(queue, *[new_entry() for _ in range(5)])
    entries = await read(queue, "a")
    assert await queue.mark("a", entries[:2]) == set(entries[:2])
    await queue.leave("a", "n")
    await asyncio.sleep(0.1)  # Two that take at once must not both get an entry.

    assert not await queue.forget("a")
    assert (await take(queue, "b", "living")).entries == []
    first = await take(queue, "b", "a", count=3)
    second = await take(queue, "b", "a", count=3, after=first.last)
    taken = [*first.entries, *second.entries]
    assert [entry.id for entry in taken] == [entry.id for entry in entries]
    assert [entry.fields for entry in taken] == [entry.fields for entry in entries]
    assert [entry.may_have_been_sent for entry in taken] == [True, True, False, False, False]
    assert second.last == b""
    assert (await queue.backlog()).pending_of == {"b": 5}
    assert await queue.forget("a")


async def test_nothing_is_taken_from_a_living_relay(make_queue: MakeQueue) -> None:
    """Whatever the one that takes believes."""
    queue = await opened(make_queue)
    await queue.beat("a", "n", {}, timeout=15)
    await publish(queue, new_entry())
    await read(queue, "a")
    await asyncio.sleep(0.1)

    assert (await take(queue, "b", "a")).entries == []


async def test_a_relay_fetches_its_own_entries_again(make_queue: MakeQueue) -> None:
    """But those that it holds."""
    queue = await opened(make_queue)
    await publish(queue, *[new_entry() for _ in range(3)])
    entries = await read(queue)
    held = entries[1].id

    taken = await take(queue, "a", "a", skip=lambda partition, id_: (partition, id_) == (0, held))
    assert (await take(queue, "a", "a", skip=lambda *_: True)).entries == []

    assert [entry.id for entry in taken.entries] == [entries[0].id, entries[2].id]
    assert not any(entry.may_have_been_sent for entry in taken.entries)


async def test_marks_tell_what_is_still_pending(make_queue: MakeQueue) -> None:
    """What another relay has acknowledged is not; a mark can be taken back."""
    queue = await opened(make_queue)
    await publish(queue, *[new_entry() for _ in range(2)])
    entries = await read(queue)
    await queue.acknowledge(entries[:1])

    assert await queue.mark("a", entries) == {entries[1]}
    await queue.unmark("a", entries)
    assert [entry.may_have_been_sent for entry in (await take(queue, "a", "a")).entries] == [False]


async def test_heartbeats(make_queue: MakeQueue) -> None:
    """All see who is alive; another process with a living relay's id is turned away."""
    queue = await opened(make_queue)

    roster = await queue.beat("a", "one", {"held": 3}, timeout=15)
    assert roster is not None
    assert roster.alive == ("a",)
    assert await queue.beat("a", "two", {}, timeout=15) is None
    await queue.beat("b", "three", {}, timeout=0.05)
    await asyncio.sleep(0.1)
    roster = await queue.beat("a", "one", {"held": 4}, timeout=15)
    assert roster is not None
    assert (roster.alive, roster.gone) == (("a",), ("b",))
    assert [(one.relay_id, one.is_alive, one.status) for one in await queue.relays()] == [
        ("a", True, {"held": 4}),
        ("b", False, {}),
    ]
    assert not await queue.forget("a")
    assert await queue.forget("b")


async def test_the_relays_with_what_they_hold(make_queue: MakeQueue) -> None:
    """Pending entries by relay; before the first relay there are none."""
    queue = await opened(make_queue)
    assert await queue.relays() == []
    await queue.beat("a", "n", {}, timeout=15)
    await publish(queue, new_entry(0), new_entry(1))
    await read(queue, partitions=(0, 1))

    assert [one.pending for one in await queue.relays()] == [2]


async def test_dead_letters(make_queue: MakeQueue) -> None:
    """The entry as it was, with all that is known; buried once; what is gone is not buried."""
    queue = await opened(make_queue)
    await publish(queue, new_entry(0, metadata={"ä": "\x00ß"}), new_entry(0))
    first, second = await read(queue)
    await queue.acknowledge([second])
    expected = letter(first)

    assert await queue.bury([(first, expected), (second, letter(second))]) == 1
    assert await queue.bury([(first, expected)]) == 0
    (found,) = await queue.dead_letters()
    assert found.id
    assert {name: getattr(found, name) for name in _SHARED} == {
        name: getattr(expected, name) for name in _SHARED
    }
    assert (await queue.backlog()).dead_letters == 1
    assert (await queue.backlog()).pending == 0


_SHARED = (
    "fields",
    "partition",
    "outcome",
    "cause",
    "reason",
    "status",
    "errors",
    "attempts",
    "relay_id",
    "at",
)


async def buried(queue: EventQueue, count: int, **changes: Any) -> list[DeadLetter]:
    await publish(queue, *[new_entry(0) for _ in range(count)])
    await queue.bury([(entry, letter(entry, **changes)) for entry in await read(queue)])
    return await queue.dead_letters()


async def test_dead_letters_page_by_page(make_queue: MakeQueue) -> None:
    """The oldest first."""
    queue = await opened(make_queue)
    letters = await buried(queue, 5)

    first = await queue.dead_letters(count=3)
    assert await queue.dead_letters(after=first[-1].id, count=3) == letters[3:]
    assert first == letters[:3]


async def test_replaying_twice_is_once(make_queue: MakeQueue) -> None:
    """The entry is published as it was, and its letter is gone."""
    queue = await opened(make_queue)
    letters = await buried(queue, 2)

    assert await queue.replay(letters) == 2
    assert await queue.replay(letters) == 0
    again = [read_entry(entry) for entry in await read(queue)]
    assert [held.event for held in again] == [event_of(one) for one in letters]
    assert len({held.publish_id for held in again} | {b"publish"}) == 3
    assert await queue.dead_letters() == []


async def test_a_replayed_publication_is_a_new_one(make_queue: MakeQueue) -> None:
    """Also one that its publisher had sent twice: a relay must not take it for a repetition."""
    queue = await opened(make_queue)
    entry = new_entry()
    await publish(queue, entry)
    await publish(queue, entry)
    first, second = await read(queue)
    await queue.acknowledge([first])
    await queue.bury([(second, letter(second))])
    await queue.replay(await queue.dead_letters())

    (again,) = [read_entry(one) for one in await read(queue)]
    assert not again.is_repeated
    assert again.publish_id != entry.publish_id


async def test_another_relays_entries_cannot_be_marked(make_queue: MakeQueue) -> None:
    """Nor unmarked: it would be robbed, and its marks lost."""
    queue = await opened(make_queue)
    await publish(queue, new_entry())
    entries = await read(queue, "a")

    assert await queue.mark("b", entries) == set()
    assert await queue.mark("a", entries) == set(entries)
    await queue.unmark("b", entries)
    assert [one.may_have_been_sent for one in (await take(queue, "a", "a")).entries] == [True]


async def test_leaving_is_of_this_process(make_queue: MakeQueue) -> None:
    """Another one with the same id stays alive."""
    queue = await opened(make_queue)
    await queue.beat("a", "one", {}, timeout=15)
    await queue.leave("a", "another")

    assert [one.is_alive for one in await queue.relays()] == [True]


async def test_deleting_dead_letters(make_queue: MakeQueue) -> None:
    """Twice finds nothing."""
    queue = await opened(make_queue)
    letters = await buried(queue, 2)

    assert await queue.delete(letters[:1]) == 1
    assert await queue.delete(letters[:1]) == 0
    assert await queue.dead_letters() == letters[1:]


async def test_dead_letters_are_bounded_by_number(make_queue: MakeQueue) -> None:
    """The oldest go first, and are counted."""
    queue = await opened(make_queue)
    letters = await buried(queue, 5)
    long_ago = datetime.now(UTC) - timedelta(days=1)

    assert await queue.trim(at_most=2, oldest=long_ago) == 3
    assert await queue.trim(at_most=2, oldest=long_ago) == 0
    assert await queue.dead_letters() == letters[3:]
    assert (await queue.backlog()).dead_letters_dropped == 3


async def test_dead_letters_are_bounded_by_age(make_queue: MakeQueue) -> None:
    """All that are older go."""
    queue = await opened(make_queue)
    await buried(queue, 2)

    assert await queue.trim(at_most=10, oldest=datetime.now(UTC) + timedelta(hours=1)) == 2


async def test_a_poison_entry_passes_through(make_queue: MakeQueue) -> None:
    """Bytes of any kind come back as they were, also as a dead letter that is published again."""
    queue = await opened(make_queue)
    poison = new_entry()
    poison.wire, poison.publish_id = bytes(range(256)), b""
    await publish(queue, poison)
    (entry,) = await read(queue)
    await queue.bury([(entry, letter(entry, outcome="unreadable", errors=(), status=None))])
    letters = await queue.dead_letters()

    assert entry.fields == (b"v", b"1", b"i", b"", b"e", bytes(range(256)))
    assert letters[0].fields == entry.fields
    assert await queue.replay(letters) == 1
    assert (await read(queue))[0].fields[4:] == entry.fields[4:]


async def test_the_tries_of_an_entry(make_queue: MakeQueue) -> None:
    """They grow when it is sent, and from the second on the entry says so."""
    queue = await opened(make_queue)
    entry = new_entry()
    await publish(queue, entry)
    await publish(queue, entry)

    first, second = await read(queue)
    assert entry.tries == 2
    assert not read_entry(first).is_repeated
    assert read_entry(second).is_repeated
