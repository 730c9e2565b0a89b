"""Events that hypothesis draws, and the event of the specification's example."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from rokt_events_async import EventType, NameValuePair, PartnerEvent

EXAMPLE: dict[str, Any] = {
    "eventType": "SignalImpression",
    "eventTime": "2022-06-28T07:11:01.711Z",
    "parentGuid": "58bcbaa0-e13c-4a3d-84cd-2803ccc35394",
    "sessionId": "aec20024-8d23-46be-95f3-9be5d86292a9",
    "clientUniqueId": "10f7d87b-e879-47b2-9638-a667e63beae2",
    "metadata": [{"name": "AdditionalData", "value": "ImpressionSlot"}],
}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@st.composite
def events(draw: st.DrawFn) -> PartnerEvent:
    """Any valid event."""
    times = st.datetimes(min_value=datetime(1, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001 -- hypothesis adds it
    return PartnerEvent(
        event_type=draw(st.sampled_from(EventType)),
        session_id=draw(texts),
        parent_guid=draw(texts),
        client_unique_id=draw(texts),
        metadata=[
            NameValuePair(*pair) for pair in draw(st.lists(st.tuples(texts, texts | st.just("")), max_size=3))
        ],
        event_time=draw(times),
    )
