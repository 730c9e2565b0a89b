"""An event as a dictionary in the wire's names, and its times as text."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given

from rokt_events_async import InvalidEventError, NameValuePair, PartnerEvent
from rokt_events_async._fields import format_time
from tests.samples import event
from tests.strategies import EXAMPLE, events


@given(events())
def test_dictionaries_go_both_ways(made: PartnerEvent) -> None:
    """`from_dict(to_dict())` is the event, its time truncated to milliseconds."""
    back = PartnerEvent.from_dict(json.loads(json.dumps(made.to_dict())))

    assert back.to_dict() == made.to_dict()
    assert made.event_time is not None
    assert back.event_time == made.event_time.replace(microsecond=made.event_time.microsecond // 1000 * 1000)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made.to_dict()["eventTime"], re.ASCII)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2022, 6, 28, 7, 11, 1, 711999, tzinfo=UTC), "2022-06-28T07:11:01.711Z"),
        (datetime(2022, 6, 28, 7, 11, 1, tzinfo=UTC), "2022-06-28T07:11:01.000Z"),
        (datetime(987, 6, 28, tzinfo=UTC), "0987-06-28T00:00:00.000Z"),
    ],
)
def test_times_have_exactly_three_digits_truncated(moment: datetime, text: str) -> None:
    """`…T07:11:01.711Z`, never rounded into the future."""
    assert format_time(moment) == text


def test_pairs_are_read_in_either_case() -> None:
    """The table says `Name`, the example `name`."""
    made = PartnerEvent.from_dict(
        EXAMPLE | {"metadata": [{"Name": "a", "Value": "b"}, {"name": "c", "value": "d"}]}
    )

    assert made.metadata == (NameValuePair("a", "b"), NameValuePair("c", "d"))


def test_an_event_without_time_has_none_in_its_dictionary() -> None:
    """Nor does one without metadata have any."""
    assert set(event().to_dict()) == {"eventType", "sessionId", "parentGuid", "clientUniqueId"}
    assert PartnerEvent.from_dict(event().to_dict()).event_time is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, ["event_type", "session_id", "parent_guid", "client_unique_id"]),
        ([], ["event"]),
        (EXAMPLE | {"sesionId": "typo"}, ["event"]),
        (EXAMPLE | {"eventTime": "yesterday"}, ["event_time"]),
        (EXAMPLE | {"eventTime": "2022-06-28T07:11:01.711", "sessionId": 5}, ["session_id"]),
        (
            EXAMPLE | {"metadata": [1, {"name": "a"}, {"nmae": "a", "value": "b"}]},
            ["metadata[0]", "metadata[1].value", "metadata[2]"],
        ),
        (EXAMPLE | {"metadata": "x"}, ["metadata"]),
        (EXAMPLE | {"eventTime": ""}, ["event_time"]),
    ],
)
def test_dictionaries_that_are_no_event(data: Any, expected: list[str]) -> None:
    """All that is wrong at once, and nothing is silently dropped."""
    with pytest.raises(InvalidEventError) as caught:
        PartnerEvent.from_dict(data)

    assert [problem.field for problem in caught.value.errors] == expected
