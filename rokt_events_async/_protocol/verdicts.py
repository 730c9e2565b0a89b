"""What an answer means, and which event of a batch ended how. Pure.

`classify` reads the status, and `match_unprocessed` the body of a 2xx. An answer names the events that were
not accepted only by an echo: the event, as the server wrote it. The matching rules:

1. Field by field, a value is *equal* (strings exactly, missing and `""` the same; `sessionId` and
   `parentGuid` also as the same UUID in another casing; `eventTime` as an instant; `eventType` without
   regard to case; `metadata` pair by pair), or *near* (a time within 1 ms; metadata that contains what
   was sent), or *silent* (a default time, an `Unknown` type or one called invalid, no metadata: it
   fits any event), or it rules the event out.
2. Full matches come first: an echo that is silent on nothing names the events it is equal to, or else
   near to. Events whose bytes are the same are interchangeable. An echo names no event if several that
   differ fit equally well, or if it has no metadata and any other event fits at all: the server may have
   dropped the metadata.
3. The rest is matched as a whole, if the counts add up: an event that every possible reading names is
   rejected, one that no reading names is delivered.
4. An event is unknown if readings differ, and so is every event that is not named if an echo fits none.

Nothing else is used: not the order of the echoes, not `success`, not the counts alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from typing import Any, Final

import attrs

from rokt_events_async._fields import DEFAULT_TIME, format_time, parse_time
from rokt_events_async._protocol.encoding import encode
from rokt_events_async._protocol.replies import Answer, Unprocessed, lower_keys, read_answer
from rokt_events_async.errors import ApiError
from rokt_events_async.events import PartnerEvent

# What a status means.


class Disposition(Enum):
    """What a status means for the request it answers."""

    ANSWERED = "answered"
    """The server took the request, and its body tells of each event."""

    REFUSED = "refused"
    """The server refused the content, the whole of it."""

    RETRY = "retry"
    """Not accepted for now."""

    RETRY_MAYBE_ACCEPTED = "retry, maybe accepted"
    """An intermediary answered, perhaps after the server took the events."""

    CREDENTIALS_REFUSED = "credentials refused"
    """The server refused the credentials."""

    FAILED = "failed"
    """Never sent again as it is."""


_DISPOSITIONS: Final = {
    400: Disposition.REFUSED,
    413: Disposition.REFUSED,
    422: Disposition.REFUSED,
    401: Disposition.CREDENTIALS_REFUSED,
    403: Disposition.CREDENTIALS_REFUSED,
    408: Disposition.RETRY_MAYBE_ACCEPTED,
    429: Disposition.RETRY,
    501: Disposition.FAILED,
    502: Disposition.RETRY_MAYBE_ACCEPTED,
    504: Disposition.RETRY_MAYBE_ACCEPTED,
    505: Disposition.FAILED,
}


def classify(status: int) -> Disposition:
    """Returns what a status means for the request it answers."""
    if 200 <= status <= 299:
        return Disposition.ANSWERED
    return _DISPOSITIONS.get(status, Disposition.RETRY if 500 <= status <= 599 else Disposition.FAILED)


# What the body of a 2xx says.


@attrs.frozen
class Delivered:
    """The server accepted the event."""


@attrs.frozen
class Rejected:
    """The server refused the event, for these reasons; none if the answer gave none."""

    errors: tuple[ApiError, ...]


@attrs.frozen
class Unknown:
    """The answer does not say what happened to the event."""


Verdict = Delivered | Rejected | Unknown

DELIVERED: Final = Delivered()
UNKNOWN: Final = Unknown()

_ECHOES_PER_EVENT: Final = 4
"""How many echoes per event are read. An answer with more is nonsense, and costs time."""


def match_unprocessed(events: Sequence[PartnerEvent], body: bytes | None) -> list[Verdict]:
    """Returns what the body of a 2xx says of each event that was sent, in their order."""
    answer = read_answer(body)
    if answer is None:
        return [UNKNOWN] * len(events)
    if answer.processed == len(events) and not answer.unprocessed:
        return [DELIVERED] * len(events)
    return _Matching(events, answer).verdicts()


class _Fit(IntEnum):
    """How well an echo fits an event, worst first."""

    NONE = 0
    SILENT = 1
    NEAR = 2
    EQUAL = 3


class _Matching:
    """One answer compared with the events of its request."""

    def __init__(self, events: Sequence[PartnerEvent], answer: Answer) -> None:
        self._events = events
        self._echoes = answer.unprocessed[: _ECHOES_PER_EVENT * len(events)]
        unprocessed = len(answer.unprocessed)
        self._adds_up = answer.processed + unprocessed == len(events)
        self._all_refused = answer.processed == 0 and unprocessed == len(events)
        self._keys = [encode(event) for event in events]
        sent = [_Sent(event) for event in events]
        self._fits = [[_fit(echo, one) for one in sent] for echo in self._echoes]
        self._named: dict[int, int] = {}  # event: echo
        self._open: list[int] = []  # echoes that named no event by a full match
        self._strays = False  # True if an echo fits no event

    def verdicts(self) -> list[Verdict]:
        for echo in range(len(self._echoes)):
            self._name_in_full(echo)
        if self._all_refused:
            return self._refuse_all()
        if not self._adds_up:
            return self._result(possible=set(range(len(self._events))))
        return self._match_rest()

    def _name_in_full(self, echo: int) -> None:
        """Rule 2: finds the event that an echo names without any doubt."""
        fits = self._fits[echo]
        best = max(fits)
        if best is _Fit.NONE:
            self._strays = True
            return
        candidates = [index for index, fit in enumerate(fits) if fit is best]
        if _metadata_is_silent(self._echoes[echo]):
            candidates = [index for index, fit in enumerate(fits) if fit is not _Fit.NONE]
        is_named = best is not _Fit.SILENT and len({self._keys[index] for index in candidates}) == 1
        if not is_named:
            self._open.append(echo)
            return
        free = [index for index in candidates if index not in self._named]
        if free:
            self._named[free[0]] = echo
        else:
            self._strays = True  # The same event, named once too often.

    def _match_rest(self) -> list[Verdict]:
        """Rule 3: an alternating walk from every free event finds the events that could be free instead."""
        fits = {echo: self._candidates(echo) for echo in self._open}
        matched: dict[int, int] = {}
        for echo in self._open:
            if not _augment(echo, fits, matched, set()):
                self._strays = True
        possible = set().union(*fits.values()) if fits else set()
        doubtful = _reachable(possible - matched.keys(), fits, matched)
        self._named |= {event: echo for event, echo in matched.items() if event not in doubtful}
        return self._result(possible=possible)

    def _candidates(self, echo: int) -> list[int]:
        return [
            index
            for index, fit in enumerate(self._fits[echo])
            if fit is not _Fit.NONE and index not in self._named
        ]

    def _result(self, *, possible: set[int]) -> list[Verdict]:
        """Rule 4; `possible` are the events that some reading names."""
        verdicts: list[Verdict] = []
        for index in range(len(self._events)):
            if index in self._named:
                verdicts.append(Rejected(self._echoes[self._named[index]].errors))
            elif index in possible or self._strays:
                verdicts.append(UNKNOWN)
            else:
                verdicts.append(DELIVERED)
        return verdicts

    def _refuse_all(self) -> list[Verdict]:
        """None processed and all unprocessed: only the reasons have to be matched."""
        self._match_rest()
        spare = {echo.errors for index, echo in enumerate(self._echoes) if index not in self._named.values()}
        reasons = spare.pop() if len(spare) == 1 else ()
        return [
            Rejected(self._echoes[self._named[index]].errors if index in self._named else reasons)
            for index in range(len(self._events))
        ]


def _augment(echo: int, fits: dict[int, list[int]], matched: dict[int, int], seen: set[int]) -> bool:
    """Finds an event for an echo, moving others if need be (Kuhn's algorithm)."""
    for event in fits[echo]:
        if event in seen:
            continue
        seen.add(event)
        if event not in matched or _augment(matched[event], fits, matched, seen):
            matched[event] = echo
            return True
    return False


def _reachable(free: set[int], fits: dict[int, list[int]], matched: dict[int, int]) -> set[int]:
    """Returns the events that some maximum matching leaves free; `free` are those of this matching."""
    doubtful, frontier = set(free), list(free)
    while frontier:
        event = frontier.pop()
        for other, echo in matched.items():
            if other not in doubtful and event in fits[echo]:
                doubtful.add(other)
                frontier.append(other)
    return doubtful


# How an echo fits an event.


class _Sent:
    """A sent event in the form in which it is compared."""

    def __init__(self, event: PartnerEvent) -> None:
        assert event.event_time is not None, "an event is stamped when it is accepted"
        self.type = event.event_type.casefold()
        self.session_id = _as_id(event.session_id)
        self.parent_guid = _as_id(event.parent_guid)
        self.client_unique_id = event.client_unique_id
        self.time = parse_time(format_time(event.event_time))
        self.metadata = Counter((pair.name, pair.value) for pair in event.metadata)


def _fit(unprocessed: Unprocessed, sent: _Sent) -> _Fit:
    """Rule 1, over all fields."""
    echo = unprocessed.echo
    if echo is None:
        return _Fit.NONE
    if (echo.get("clientuniqueid") or "") != sent.client_unique_id:
        return _Fit.NONE
    if _as_id(echo.get("sessionid")) != sent.session_id:
        return _Fit.NONE
    if _as_id(echo.get("parentguid")) != sent.parent_guid:
        return _Fit.NONE
    return min(
        _fit_type(echo.get("eventtype"), sent.type, unprocessed.errors),
        _fit_time(echo.get("eventtime"), sent.time),
        _fit_metadata(echo.get("metadata"), sent.metadata),
    )


_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


def _as_id(value: Any) -> Any:
    """Returns an id in the form in which it is compared: a UUID in lower case, anything else as it is."""
    if isinstance(value, str) and _UUID.fullmatch(value):
        return value.lower()
    return value or ""


def _fit_type(value: Any, sent: str, errors: tuple[ApiError, ...]) -> _Fit:
    if value == "Unknown":
        return _Fit.SILENT
    if isinstance(value, str) and value.casefold() == sent:
        return _Fit.EQUAL
    is_called_invalid = any(error.code == "InvalidEventType" for error in errors)
    return _Fit.SILENT if is_called_invalid else _Fit.NONE


def _fit_time(value: Any, sent: datetime) -> _Fit:
    if value is None or value == "":
        return _Fit.SILENT
    try:
        moment = parse_time(value)
    except (TypeError, ValueError):
        return _Fit.NONE
    if moment == DEFAULT_TIME:
        return _Fit.SILENT
    if moment == sent:
        return _Fit.EQUAL
    return _Fit.NEAR if abs(moment - sent) <= _TIME_TOLERANCE else _Fit.NONE


_TIME_TOLERANCE: Final = timedelta(milliseconds=1)


def _fit_metadata(value: Any, sent: Counter[tuple[str, str]]) -> _Fit:
    if not value:
        return _Fit.SILENT if sent else _Fit.EQUAL
    echoed = _read_pairs(value)
    if echoed is None or not sent <= echoed:
        return _Fit.NONE
    return _Fit.EQUAL if echoed == sent else _Fit.NEAR


def _metadata_is_silent(unprocessed: Unprocessed) -> bool:
    return unprocessed.echo is not None and not unprocessed.echo.get("metadata")


def _read_pairs(value: Any) -> Counter[tuple[str, str]] | None:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    pairs = [lower_keys(item) for item in value]
    named: list[tuple[Any, Any]] = [(pair.get("name"), pair.get("value") or "") for pair in pairs]
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in named):
        return None
    return Counter(named)
