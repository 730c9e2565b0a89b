"""The deciding parts of the fleet: entries, shares, turns, what an outcome means, metrics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rokt_events_async import (
    ApiError,
    Cause,
    CredentialsRefusedError,
    DeliveryDeferredError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    EventExpiredError,
    EventRejectedError,
    Health,
    InvalidEventError,
    PartnerEvent,
    Receipt,
)
from rokt_events_async._protocol.encoding import encode
from rokt_events_async.outcomes import DeadLetter, LastError, RelayHealth, RelayStats
from rokt_events_async.relay._judging import judge, judge_invalid
from rokt_events_async.relay._shares import share_of
from rokt_events_async.relay._turns import Turns
from rokt_events_async.relay.entries import (
    Entry,
    Held,
    NewEntry,
    UnreadableEntryError,
    partition_of,
    read_entry,
)
from rokt_events_async.relay.letters import event_of, why_not_replay
from rokt_events_async.relay.metrics import as_prometheus
from tests.samples import NOW, event

# Entries.


def entry_of(made: PartnerEvent, **changes: Any) -> Entry:
    new = NewEntry(3, b"id-1", encode(made.stamped(NOW)), **changes)
    return Entry(3, b"1-0", tuple([one.encode() if isinstance(one, str) else one for one in new.fields()]))


def test_an_event_survives_its_entry() -> None:
    """With its time, its metadata and the trace that it travels with."""
    made = event(metadata={"a": "ä"}).stamped(NOW.replace(microsecond=0))

    held = read_entry(entry_of(made, trace_parent="00-abc"))

    assert held.event == made
    assert (held.publish_id, held.is_repeated, held.trace_parent) == (b"id-1", False, "00-abc")


def test_the_layout_of_format_1() -> None:
    """A reader of the next format must still read exactly this."""
    written = (
        b'{"eventTime":"2026-05-04T12:00:00.123Z","eventType":"SignalViewed","sessionId":"s",'
        b'"parentGuid":"p","clientUniqueId":"c","metadata":[{"name":"n","value":"v"}]}'
    )
    known = (b"v", b"1", b"i", b"abc-1", b"e", written, b"a", b"2", b"t", b"00-1-2-01")

    held = read_entry(Entry(0, b"1-0", (*known, b"later", b"unknown")))

    assert held.event.to_dict() == {
        "eventTime": "2026-05-04T12:00:00.123Z",
        "eventType": "SignalViewed",
        "sessionId": "s",
        "parentGuid": "p",
        "clientUniqueId": "c",
        "metadata": [{"name": "n", "value": "v"}],
    }
    assert held.is_repeated


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((), "format must be 1, got none"),
        ((b"v", b"2", b"i", b"x", b"e", b"{}"), "format must be 1, got '2'"),
        ((b"v", b"\xff"), "format must be 1, got"),
        ((b"v", b"1", b"i", b"x"), "has no field e"),
        ((b"v", b"1", b"e", b"{}"), "has no field i"),
        ((b"v", b"1", b"i", b"x", b"e", b"no json"), "cannot be read"),
        ((b"v", b"1", b"i", b"x", b"e", b"[" * 100_000), "cannot be read"),
        ((b"v", b"1", b"i", b"x", b"e", b"[]"), "cannot be read"),
        ((b"v", b"1", b"i", b"x", b"e", b'{"eventTime":"x"}'), "cannot be read"),
        ((b"v", b"1", b"i"), "has no field e"),
    ],
)
def test_unreadable_entries(fields: tuple[bytes, ...], message: str) -> None:
    """Each says what is wrong."""
    with pytest.raises(UnreadableEntryError, match=message):
        read_entry(Entry(0, b"1-0", fields))


def wire(**changes: Any) -> bytes:
    """An event's JSON, with other values."""
    values = {
        "eventTime": "2026-05-04T12:00:00.123Z",
        "eventType": "SignalViewed",
        "sessionId": "s",
        "parentGuid": "p",
        "clientUniqueId": "c",
    }
    return json.dumps(values | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"eventType": ""},
        {"sessionId": ""},
        {"clientUniqueId": ""},
        {"sessionId": 7},
        {"metadata": [{"name": "", "value": ""}]},
        {"metadata": [{"name": "a", "value": 5}]},
        {"metadata": [{"name": "a", "value": ["b"]}]},
    ],
)
def test_events_that_no_publisher_would_write(changes: dict[str, Any]) -> None:
    """They are unreadable too: Rokt would refuse each, or its whole request."""
    with pytest.raises(UnreadableEntryError):
        read_entry(Entry(0, b"1-0", (b"v", b"1", b"i", b"x", b"e", wire(**changes))))


def test_partitions_are_stable() -> None:
    """Publishers of all versions must agree."""
    assert [partition_of(session, 16) for session in ("s-1", "s-2", "ä")] == [14, 4, 3]


# Shares.

IDS = st.sets(
    st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1), min_size=1, max_size=20
)


@given(IDS, st.integers(1, 40))
def test_shares_cover_all_partitions_evenly(relays: set[str], partitions: int) -> None:
    """Each partition has one reader, and no relay reads more than its even share."""
    shares = [share_of(relay, relays, partitions) for relay in relays]

    assert sorted(number for share in shares for number in share) == list(range(partitions))
    assert max(map(len, shares)) <= -(-partitions // len(relays))


def test_few_partitions_change_hands() -> None:
    """When a relay ends, the partitions of the others mostly stay."""
    before = {one: share_of(one, "abcd", 64) for one in "abcd"}
    after = {one: share_of(one, "abc", 64) for one in "abc"}
    kept = sum([len(set(before[one]) & set(after[one])) for one in "abc"])

    assert kept >= 40


def test_a_relay_counts_itself_as_alive() -> None:
    """Also before it has said so."""
    assert share_of("a", [], 4) == (0, 1, 2, 3)


# Turns.


def test_a_shallow_queue_is_read_as_a_whole() -> None:
    """There are no turns."""
    turns = Turns(1000)
    turns.note({0: 400, 1: 500, 2: 0})

    assert turns.choose([0, 1, 2], now=0) == (0, 1, 2)
    assert not turns.is_turn


def test_deep_partitions_take_turns() -> None:
    """One at a time, with those that are not deep; each turn ends by time, by number, or when it is empty."""
    turns = Turns(1000)
    turns.note({0: 5000, 1: 10, 2: 5000, 3: 5000})

    assert turns.choose([0, 1, 2, 3], now=0) == (0, 1)
    assert turns.is_turn
    turns.count(0, 1000)
    turns.count(1, 5)
    assert turns.choose([0, 1, 2, 3], now=4) == (0, 1)
    assert turns.choose([0, 1, 2, 3], now=5) == (1, 2)
    turns.count(2, 4000)
    assert turns.choose([0, 1, 2, 3], now=6) == (1, 3)
    turns.count(3, 0)
    assert turns.choose([0, 1, 2, 3], now=6) == (0, 1, 3)
    turns.count(0, 0)
    assert turns.choose([0, 1, 2, 3], now=6) == (0, 1, 2, 3)
    assert not turns.is_turn


def test_a_share_that_shrinks_ends_a_turn() -> None:
    """Another relay reads that partition now."""
    turns = Turns(1000)
    turns.note({0: 5000, 1: 5000, 2: 5000})
    turns.choose([0, 1, 2], now=0)

    assert turns.choose([1, 2], now=0) == (1,)
    assert turns.choose([1], now=0) == (1,)


# Judging.


def held() -> Held:
    return read_entry(entry_of(event(event_time=NOW)))


def test_a_delivered_entry_is_acknowledged() -> None:
    """Its receipt says so."""
    one = held()
    assert judge(one, Receipt(one.event, 1, maybe_duplicate=False), relay_id="r", now=NOW) == "acknowledge"


FAILED, UNCONFIRMED = DeliveryFailedError, DeliveryUnconfirmedError


@pytest.mark.parametrize(
    ("kind", "cause", "after", "verdict"),
    [
        (FAILED, Cause.CLOSED, 0, "leave"),
        (UNCONFIRMED, Cause.CLOSED, 0, "leave"),
        (CredentialsRefusedError, Cause.CREDENTIALS, 0, "stop"),
        (FAILED, Cause.DEADLINE, 0, "again"),
        (FAILED, Cause.QUEUE_FULL, 0, "again"),
        (FAILED, Cause.DEADLINE, 4, "failed"),
        (FAILED, Cause.STATUS, 0, "failed"),
        (FAILED, Cause.ATTEMPTS, 0, "failed"),
        (FAILED, Cause.INTERNAL_ERROR, 0, "failed"),
        (UNCONFIRMED, Cause.DEADLINE, 0, "unconfirmed"),
        (UNCONFIRMED, Cause.ATTEMPTS, 0, "unconfirmed"),
        (EventExpiredError, Cause.EXPIRED, 0, "expired"),
    ],
)
def test_what_an_error_means(kind: Any, cause: Cause, after: int, verdict: str) -> None:
    """Leave, stop, again; everything else is a dead letter with the outcome."""
    one = held()
    error = kind("text", event=one.event, attempts=2, status=500, reason="why", cause=cause)

    found = judge(one, error, relay_id="r", now=NOW + timedelta(days=after))

    if isinstance(found, DeadLetter):
        assert (found.outcome, found.cause, found.reason) == (verdict, str(cause), "why")
        assert (found.attempts, found.status, found.relay_id) == (2, 500, "r")
        assert found.fields == one.entry.fields
    else:
        assert found == verdict


def test_a_rejected_event_keeps_rokts_reasons() -> None:
    """They are in the dead letter."""
    one, reasons = held(), (ApiError("A", "b"),)
    found = judge(one, EventRejectedError("text", event=one.event, errors=reasons), relay_id="r", now=NOW)

    assert isinstance(found, DeadLetter)
    assert found.errors == reasons


@pytest.mark.parametrize("error", [asyncio.CancelledError(), DeliveryDeferredError("text", event=event())])
def test_an_outcome_that_is_not_known(error: BaseException) -> None:
    """An observer cancelled the delivery, say: the event may be sent, and is not sent again."""
    found = judge(held(), error, relay_id="r", now=NOW)

    assert isinstance(found, DeadLetter)
    assert (found.outcome, found.cause) == ("unconfirmed", "unknown")


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        (timedelta(days=4), "expired"),
        (timedelta(minutes=-6), "again"),
        (timedelta(hours=-2), "rejected"),
    ],
)
def test_an_event_whose_time_does_not_fit(since: timedelta, expected: str) -> None:
    """Too old is expired; a little ahead is a matter of clocks; far ahead is rejected."""
    found = judge_invalid(held(), InvalidEventError(()), relay_id="r", now=NOW + since)

    assert (found.outcome if isinstance(found, DeadLetter) else found) == expected


# Letters.


def test_which_letters_may_be_published_again() -> None:
    """Not those that are too old, nor those that are no events."""
    fields = entry_of(event(event_time=NOW)).fields
    good = DeadLetter(fields=fields, partition=0, outcome="failed", at=NOW)
    bad = DeadLetter(fields=(b"v", b"9"), partition=0, outcome="unreadable", at=NOW)

    assert event_of(good) is not None
    assert event_of(bad) is None
    assert why_not_replay(good, now=NOW) is None
    assert "3 days" in str(why_not_replay(good, now=NOW + timedelta(days=4)))
    assert "cannot be read" in str(why_not_replay(bad, now=NOW))


# Metrics.


def test_metrics_in_prometheus_format() -> None:
    """Each has its help, its type and one value."""
    stats = RelayStats(delivered=1_234_567, waiting=3, oldest_age=2.5, partitions=(1, 2))
    text = as_prometheus(RelayHealth(state="ok", emitter=Health(state="outage"), stats=stats))
    lines = text.splitlines()

    assert "rokt_relay_delivered_total 1234567" in lines
    assert "rokt_relay_oldest_age_seconds 2.5" in lines
    assert "rokt_relay_partitions 2" in lines
    assert "rokt_relay_ready 1" in lines
    assert "rokt_client_outage 1" in lines
    names = Counter(line.split()[2] for line in lines if line.startswith("# TYPE"))
    assert set(names.values()) == {1}
    assert len(lines) == 3 * len(names) + 4
    assert 'rokt_client_outcomes_total{outcome="failed"} 0' in lines
    assert "rokt_client_credentials_refused 0" in lines


def test_ready_means_the_queue_alone() -> None:
    """Never Rokt."""
    error = LastError("no route", datetime.now(UTC))
    assert RelayHealth(state="ok", emitter=Health(state="outage")).is_ready
    assert not RelayHealth(state="queue_unavailable", last_error=error, emitter=Health(state="ok")).is_ready
