"""Events as the bytes of a request (specification, "Root/Body" to "NameValuePair").

An event is encoded once, by hand for speed. `PartnerEvent.to_dict` is cattrs's view of the same model,
and a test compares the two byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import attrs
import orjson

from rokt_events_async._fields import format_time, problem
from rokt_events_async.errors import InvalidEventError
from rokt_events_async.events import NameValuePair, PartnerEvent, restore

ENVELOPE: Final = (b'{"events":[', b"]}")


@attrs.define
class Stamp:
    """The text of the wire's time for all events of one millisecond, written once.

    Attributes:
        since: A moment of that millisecond, in UTC.
        until: When the next millisecond begins.
    """

    since: datetime
    until: datetime
    text: str

    @classmethod
    def at(cls, now: datetime) -> Stamp:
        """Returns a stamp that is valid from `now`, in UTC, to the end of its millisecond."""
        until = now + timedelta(microseconds=1000 - now.microsecond % 1000)
        return cls(now, until, format_time(now))


Pairs = tuple[NameValuePair, ...]

_written: Final[dict[int, tuple[Pairs, orjson.Fragment]]] = {}
"""Metadata and its JSON. By identity: hashing the pairs would cost more than writing them."""

_MAX_WRITTEN: Final = 1024

_MAX_TEXT: Final = 2048
"""The most bytes of metadata that are kept for the next event: a mebibyte or two for all."""


def _write_pairs(metadata: Pairs) -> tuple[Pairs, orjson.Fragment]:
    """Writes metadata once for all events that share it; events with equal metadata do."""
    text = orjson.dumps([{"name": pair.name, "value": pair.value} for pair in metadata])
    known = metadata, orjson.Fragment(text)
    if len(text) <= _MAX_TEXT:
        if len(_written) >= _MAX_WRITTEN:
            _written.clear()
        _written[id(metadata)] = known
    return known


def encode(event: PartnerEvent, time: str | None = None) -> bytes:
    """Returns the bytes of one stamped event. They are sent whatever becomes of the object.

    Args:
        time: The event's time as the wire has it, if that is known.
    """
    moment = event.event_time
    assert moment is not None, "an event is stamped when it is accepted"
    is_cut = time is None and type(moment) is datetime and moment.microsecond > 0
    wire: dict[str, Any]
    if metadata := event.metadata:
        known = _written.get(id(metadata))
        if known is None or known[0] is not metadata:
            known = _write_pairs(metadata)
        wire = {  # One literal: adding a sixth item to five would make the dictionary grow.
            "eventTime": moment if is_cut else time or format_time(moment),
            "eventType": event.event_type,
            "sessionId": event.session_id,
            "parentGuid": event.parent_guid,
            "clientUniqueId": event.client_unique_id,
            "metadata": known[1],
        }
    else:
        wire = {
            "eventTime": moment if is_cut else time or format_time(moment),
            "eventType": event.event_type,
            "sessionId": event.session_id,
            "parentGuid": event.parent_guid,
            "clientUniqueId": event.client_unique_id,
        }
    if is_cut:
        # orjson writes a time four times faster than `isoformat`, in microseconds.
        encoded = orjson.dumps(wire, option=orjson.OPT_UTC_Z)
        return encoded[:_MILLISECONDS_END] + encoded[_MICROSECONDS_END:]
    # orjson returns a buffer of a kilobyte that was cut down; the copy is smaller.
    return b"%b" % orjson.dumps(wire)


_MILLISECONDS_END: Final = len('{"eventTime":"2022-06-28T07:11:01.711')
_MICROSECONDS_END: Final = _MILLISECONDS_END + 3


def decode(wire: bytes) -> PartnerEvent:
    """Returns the event that `encode` has written. It was valid then, and is not validated again.

    Raises:
        InvalidEventError: It is not what `encode` writes.
    """
    try:
        return restore(orjson.loads(wire))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = problem("event", type(error).__name__, "must be what was stored")
        raise InvalidEventError((what,)) from None


def join(events: Iterable[bytes]) -> bytes:
    """Returns the body of a request that carries these encoded events."""
    opening, closing = ENVELOPE
    return b"".join((opening, b",".join(events), closing))
