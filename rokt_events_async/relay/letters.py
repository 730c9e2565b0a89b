"""Dead letters: the event in one, and whether it may be published again. Pure."""

from __future__ import annotations

from datetime import datetime

from rokt_events_async.events import PartnerEvent, is_expired
from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay.entries import Entry, UnreadableEntryError, read_entry


def event_of(letter: DeadLetter) -> PartnerEvent | None:
    """Returns the event of a dead letter, `None` if it cannot be read."""
    try:
        return read_entry(Entry(letter.partition, b"", letter.fields)).event
    except UnreadableEntryError:
        return None


def fields_to_replay(letter: DeadLetter) -> tuple[bytes, ...]:
    """Returns the fields with which a dead letter is published again.

    It is a publication of its own: with the old publish id a relay would take it for a repetition.
    """
    pairs = zip(letter.fields[::2], letter.fields[1::2], strict=False)
    new_id = b"replay-%b" % letter.id.encode()
    kept = [(name, new_id if name == b"i" else value) for name, value in pairs if name != b"a"]
    return tuple([part for pair in kept for part in pair])


def why_not_replay(letter: DeadLetter, *, now: datetime) -> str | None:
    """Returns why a dead letter must not be published again, `None` if it may be."""
    event = event_of(letter)
    if event is None:
        return "it cannot be read as an event"
    if event.event_time is not None and is_expired(event.event_time, now=now):
        return "its event is older than 3 days, and Rokt would refuse it"
    return None
