"""Which event of a batch ended how, by the body of a 2xx. Pure.

An answer names the events that were
not accepted only by an echo: the event, as the server wrote it. The matching rules:

1. An echo *fits* an event if no field rules it out. Strings are compared exactly, where missing, null and
   `""` are the same; `sessionId` and `parentGuid` also as the same UUID in another casing; `eventTime` as an
   instant within 1 ms; `eventType` without regard to case; and what was sent as `metadata` is contained in
   what came back. A default or missing time, an `Unknown` type or one called invalid, and missing metadata
   fit any event.
2. An echo names an event only if all events that it fits are interchangeable: their bytes are the same. An
   exact fit does not outrank another: the server may have shifted a time or added metadata, and then the
   exact one is the wrong one.
3. The rest is matched as a whole, if the counts add up: an event that every possible reading names is
   rejected, one that no reading names is delivered. If they do not, an event is named only by an echo that
   tells every field.
4. An event is unknown if readings differ, and so is every event that is not named if an echo fits none.
5. An answer that contradicts itself names nothing.

Nothing else is used: not the order of the echoes, not `success`, not the counts alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import attrs
import orjson

from rokt_events_async._fields import DEFAULT_TIME, format_time, parse_time
from rokt_events_async._protocol.encoding import encode
from rokt_events_async._protocol.replies import Answer, Clean, Unprocessed, lower_keys, read_answer
from rokt_events_async._protocol.texts import clean
from rokt_events_async.errors import ApiError
from rokt_events_async.events import PartnerEvent


@attrs.frozen
class Delivered:
    """The server accepted the event."""


@attrs.frozen
class Rejected:
    """The server refused the event, for these reasons; none if the answer gave none."""

    errors: tuple[ApiError, ...]


@attrs.frozen
class Unknown:
    """The answer does not say what happened to the event.

    Attributes:
        is_unreadable: True if there is no answer that can be read, False if it has several readings.
    """

    is_unreadable: bool = attrs.field(default=False, eq=False)


Verdict = Delivered | Rejected | Unknown

DELIVERED: Final = Delivered()
UNKNOWN: Final = Unknown()
UNREADABLE: Final = Unknown(is_unreadable=True)

_ECHOES_PER_EVENT: Final = 4
"""How many echoes per event are read. An answer with more is nonsense, and costs time."""


def match_unprocessed(
    events: Sequence[PartnerEvent], body: bytes | None, clean: Clean = clean
) -> list[Verdict]:
    """Returns what the body of a 2xx says of each event that was sent, in their order.

    Args:
        clean: Makes the server's text fit for errors.
    """
    answer = read_answer(body, clean, at_most=_ECHOES_PER_EVENT * len(events))
    if answer is None:
        return [UNREADABLE] * len(events)
    if answer.is_contradictory:
        return [UNKNOWN] * len(events)
    if answer.processed == len(events) and not answer.unprocessed:
        return [DELIVERED] * len(events)
    return _Matching(events, answer).verdicts()


class _Matching:
    """One answer compared with the events of its request."""

    def __init__(self, events: Sequence[PartnerEvent], answer: Answer) -> None:
        self._count = len(events)
        unprocessed = len(answer.unprocessed)
        self._echoes = answer.unprocessed[: _ECHOES_PER_EVENT * self._count]
        self._adds_up = answer.processed + unprocessed == self._count
        self._all_refused = answer.processed == 0 and unprocessed == self._count
        self._kinds = _kinds_of(events)
        by_ids: dict[Any, list[_Kind]] = {}
        for kind in self._kinds:
            by_ids.setdefault(kind.ids, []).append(kind)
        self._fits: list[list[_Kind]] = []
        self._is_full: list[bool] = []  # By echo: does it tell every field of the events that it fits?
        for unprocessed_event in self._echoes:
            echo = _Echo(unprocessed_event)
            alike = by_ids.get(echo.ids)
            fits = echo.choose(alike) if alike else []
            self._fits.append(fits)
            self._is_full.append(all(echo.tells_all_of(kind) for kind in fits))
        self._named: dict[int, int] = {}  # event: echo
        self._open: list[int] = []  # echoes that fit several events that differ
        self._strays = False  # True if an echo fits no event

    def verdicts(self) -> list[Verdict]:
        for echo in range(len(self._echoes)):
            self._name(echo)
        if self._all_refused:
            return self._refuse_all()
        if not self._adds_up:
            return self._result(possible=set(range(self._count)))
        return self._match_rest()

    def _name(self, echo: int) -> None:
        """Rule 2: finds the event that an echo names without any doubt."""
        fits = self._fits[echo]
        if not fits:
            self._strays = True
        elif len(fits) > 1 or not (self._adds_up or self._is_full[echo]):
            self._open.append(echo)
        elif free := [index for index in fits[0].indices if index not in self._named]:
            self._named[free[0]] = echo
        else:
            self._strays = True  # The same event, named once too often.

    def _match_rest(self) -> list[Verdict]:
        """Rule 3: an alternating walk from every free event finds the events that could be free instead."""
        fits = {
            echo: [one for kind in self._fits[echo] for one in kind.indices if one not in self._named]
            for echo in self._open
        }
        matched: dict[int, int] = {}
        for echo in self._open:
            if not _augment(echo, fits, matched, set()):
                self._strays = True
        possible = set().union(*fits.values()) if fits else set()
        doubtful = _reachable(possible - matched.keys(), fits, matched)
        self._named |= {event: echo for event, echo in matched.items() if event not in doubtful}
        return self._result(possible=possible)

    def _result(self, *, possible: set[int]) -> list[Verdict]:
        """Rule 4; `possible` are the events that some reading names."""
        verdicts: list[Verdict] = []
        for index in range(self._count):
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
            for index in range(self._count)
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

_Pairs = Counter[tuple[str, str]]
"""Metadata in the form in which it is compared: how often each pair stands there."""

_TIME_TOLERANCE: Final = timedelta(milliseconds=1)


class _Kind:
    """Sent events whose bytes are the same, in the form in which they are compared."""

    def __init__(self, event: PartnerEvent, wire: bytes) -> None:
        assert event.event_time is not None, "an event is stamped when it is accepted"
        self.indices: list[int] = []
        self.ids = (event.client_unique_id, _as_id(event.session_id), _as_id(event.parent_guid))
        self.type = event.event_type.casefold()
        self.time = parse_time(format_time(event.event_time))
        self.metadata = event.metadata
        self._wire = wire
        self._pairs: _Pairs | None = None

    @property
    def pairs(self) -> _Pairs:
        """The metadata, read once."""
        if self._pairs is None:
            self._pairs = Counter([(pair.name, pair.value) for pair in self.metadata])
        return self._pairs

    def has_metadata(self, text: bytes) -> bool:
        """Returns True if the metadata was sent as this text. It comes last in an event."""
        return self._wire.endswith(b'"metadata":%b}' % text)


def _kinds_of(events: Sequence[PartnerEvent]) -> list[_Kind]:
    kinds: dict[bytes, _Kind] = {}
    for index, event in enumerate(events):
        wire = encode(event)
        if (kind := kinds.get(wire)) is None:
            kind = kinds[wire] = _Kind(event, wire)
        kind.indices.append(index)
    return list(kinds.values())


class _Echo:
    """An echo in the form in which it is compared, read once for all events."""

    def __init__(self, unprocessed: Unprocessed) -> None:
        echo = unprocessed.echo
        self.ids: tuple[str, str, str] | None = None
        if echo is None:
            return
        ids = [_as_text(echo.get(name)) for name in ("clientuniqueid", "sessionid", "parentguid")]
        client, session, parent = ids
        if client is None or session is None or parent is None:
            return
        self.ids = client, _as_id(session), _as_id(parent)
        event_type = echo.get("eventtype")
        self._type = event_type.casefold() if isinstance(event_type, str) else None
        self._fits_any_type = event_type == "Unknown" or unprocessed.calls_type_invalid
        self._time, self._fits_any_time = _read_time(echo.get("eventtime"))
        metadata = echo.get("metadata")
        self._metadata = None if metadata == [] else metadata
        self._text: bytes | None = None
        self._pairs: _Pairs | None = None
        self._has_read_pairs = False

    def choose(self, alike: Iterable[_Kind]) -> list[_Kind]:
        """Returns those that it fits, of kinds with its ids: rule 1.

        An event without metadata fits whatever came back, and so says little. If another differs in its
        metadata only, the server may have replaced that, and it fits none for certain.
        """
        near = [kind for kind in alike if self._fits_type_and_time(kind)]
        if self._metadata is None:
            return near
        contained = [kind for kind in near if self._contains(kind)]
        if len(contained) == len(near) or any(kind.metadata for kind in contained):
            return contained
        return []

    def _fits_type_and_time(self, kind: _Kind) -> bool:
        return (self._fits_any_type or self._type == kind.type) and (
            self._fits_any_time or (self._time is not None and abs(self._time - kind.time) <= _TIME_TOLERANCE)
        )

    def tells_all_of(self, kind: _Kind) -> bool:
        """Returns True if each field of events that it fits was compared."""
        is_silent = self._fits_any_time or bool(kind.metadata) is not bool(self._metadata)
        return self._type == kind.type and not is_silent

    def _contains(self, kind: _Kind) -> bool:
        """Returns True if the metadata that was sent is contained in the one that came back."""
        if not isinstance(self._metadata, list) or len(self._metadata) < len(kind.metadata):
            return False
        if self._text is None:
            self._text = orjson.dumps(self._metadata)
        if kind.has_metadata(self._text):  # As it was sent: nothing has to be read.
            return True
        if not self._has_read_pairs:
            self._has_read_pairs = True
            self._pairs = _read_pairs(self._metadata)
        return self._pairs is not None and _is_contained(kind.pairs, self._pairs)


_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


def _as_text(value: Any) -> str | None:
    """Returns the string; `""` if it is missing, `None` if it is something else."""
    if value is None:
        return ""
    return value if isinstance(value, str) else None


def _as_id(value: str) -> str:
    """Returns an id in the form in which it is compared: a UUID in lower case, anything else as it is."""
    return value.lower() if _UUID.fullmatch(value) else value


def _read_time(value: Any) -> tuple[datetime | None, bool]:
    """Returns the time, and whether it fits any."""
    if value is None or value == "":
        return None, True
    try:
        moment = parse_time(value)
    except (TypeError, ValueError):
        return None, False
    return moment, moment == DEFAULT_TIME


_MAX_PAIRS: Final = 1000
"""How many metadata pairs of an echo are read, unless they are as they were sent."""


def _read_pairs(value: list[Any]) -> _Pairs | None:
    """Returns the pairs, or `None` if that is no metadata. Nearly always all have the keys of the first."""
    if len(value) > _MAX_PAIRS or not all(
        isinstance(item, dict) and len(item) <= _MAX_KEYS for item in value
    ):
        return None
    names = ("Name", "Value") if "Name" in value[0] else ("name", "value")
    try:
        if set(map(len, value)) != {2}:
            raise KeyError
        pairs = list(map(itemgetter(*names), value))
    except KeyError:
        lowered = list(map(lower_keys, value))
        if list(map(len, lowered)) != list(map(len, value)):
            return None  # A key in two casings.
        pairs = [(item.get("name"), item.get("value")) for item in lowered]
    if not _are_strings(pairs):
        pairs = [(name, "" if text is None else text) for name, text in pairs]
        if not _are_strings(pairs):
            return None
    return Counter(pairs)


_MAX_KEYS: Final = 16


def _are_strings(pairs: list[tuple[Any, Any]]) -> bool:
    return set(map(type, chain.from_iterable(pairs))) == {str}


def _is_contained(few: _Pairs, many: _Pairs) -> bool:
    if not few.keys() <= many.keys():
        return False
    return all(many[pair] >= count for pair, count in few.items() if count > 1)
