"""Bytes and models, both ways."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rokt_events_async import EventType, NameValuePair, PartnerEvent
from rokt_events_async._protocol import encoding
from rokt_events_async.sandbox import rules
from tests.samples import NOW, event
from tests.strategies import EXAMPLE, events


@given(events())
def test_encoding_by_hand_is_what_cattrs_says(made: PartnerEvent) -> None:
    """Byte for byte."""
    assert encoding.encode(made) == orjson.dumps(made.to_dict())
    assert list(orjson.loads(encoding.encode(made))) == list(made.to_dict())


def test_metadata_is_written_once_and_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event carries its own, however many others there were; memory is bounded."""
    monkeypatch.setattr(encoding, "_MAX_WRITTEN", 3)
    monkeypatch.setattr(encoding, "_written", {})
    made = [event(metadata={"number": str(number)}).stamped(NOW) for number in range(10)]
    for _ in range(2):
        for one in made:
            wire = json.loads(encoding.encode(one))
            assert wire["metadata"] == [{"name": "number", "value": one.metadata[0].value}]
            assert len(encoding._written) <= 3


@given(events(), st.integers(-1500, 1500))
def test_a_stamp_is_good_to_the_end_of_its_millisecond(made: PartnerEvent, microseconds: int) -> None:
    """There, the text that it has is what the wire has."""
    time = made.event_time
    assert time is not None
    assume(datetime(1, 1, 3, tzinfo=UTC) < time < datetime(9999, 12, 30, tzinfo=UTC))
    stamp = encoding.Stamp.at(time + timedelta(microseconds=microseconds))

    if stamp.since <= time < stamp.until:
        assert encoding.encode(made, stamp.text) == encoding.encode(made)
    else:
        assert time < stamp.since or encoding.encode(made, stamp.text) != encoding.encode(made)


@given(st.lists(events(), min_size=1, max_size=5))
def test_a_body_is_what_the_second_reading_reads(batch: list[PartnerEvent]) -> None:
    """The sandbox's rules, which share no code with this, find the same values."""
    one_session = [PartnerEvent.from_dict(made.to_dict() | {"sessionId": "s"}) for made in batch]
    judged = rules.judge(encoding.join(map(encoding.encode, one_session)), now=NOW)

    assert isinstance(judged, list)
    for item, made in zip(judged, one_session, strict=True):
        assert (item.event.event_type, item.event.parent_guid) == (made.event_type, made.parent_guid)
        assert item.event.client_unique_id == made.client_unique_id
        assert item.event.metadata == (tuple((pair.name, pair.value) for pair in made.metadata) or None)
        assert item.event.moment is not None
        assert made.event_time is not None
        assert timedelta(0) <= made.event_time - item.event.moment.at < timedelta(milliseconds=1)


def test_the_example_of_the_specification() -> None:
    """Read, and written again."""
    made = PartnerEvent.from_dict(EXAMPLE)

    assert made.event_type is EventType.SIGNAL_IMPRESSION
    assert made.metadata == (NameValuePair("AdditionalData", "ImpressionSlot"),)
    assert made.to_dict() == EXAMPLE
