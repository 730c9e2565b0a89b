"""What the live page shows: a bounded list of requests, the counters, and what is new since a cursor.

Pure: it is told what happens, and never waits. A request is written as text only when a page reads it.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import orjson

from rokt_events_async.sandbox.faults import Fault
from rokt_events_async.sandbox.record import RecordedRequest

KEPT: Final = 10_000
"""How many requests are kept."""

KEPT_BYTES: Final = 128 * 1024 * 1024
"""How many bytes of bodies and answers are kept."""

ROW_BODY: Final = 64 * 1024
"""Characters of a body in the list; more of it is in the detail."""

DETAIL_BODY: Final = 200_000
"""Characters of a body or an answer in the detail."""

_MESSAGE_BYTES: Final = 256 * 1024
"""A message to a page ends after the request that reaches this size, so that no page is held up by one."""

_LATE_KEPT: Final = 20_000
_READ_BODY: Final = 1024 * 1024
_RECENT: Final = 60
_LONGEST_CURSOR: Final = 100
_NAME: Final = 200
_NOTHING: Final[Mapping[str, Mapping[str, Any]]] = {}


@attrs.frozen
class Exchange:
    """What was sent as the answer.

    Attributes:
        body: The answer's body; `None` if there was no answer, or if `note` says what it was.
        headers: The answer's headers.
        note: What is shown in place of a body that is too large to be kept.
    """

    body: bytes | None
    headers: Mapping[str, str]
    note: str = ""


@attrs.define(eq=False)
class Entry:
    """A request as the page shows it."""

    number: int
    at: int
    fault: Fault
    status: int | None
    latency: int | None
    refusal: tuple[int, str, str] | None
    session: str | None
    total: int
    accepted: int
    refused: int
    twice: int
    codes: tuple[str, ...]
    types: tuple[str, ...]
    odd: Mapping[str, Mapping[str, Any]]
    headers: Mapping[str, str]
    body: bytes
    new: tuple[int, ...]
    head_size: int
    exchange: Exchange | None = None
    is_shown: bool = False

    def size(self) -> int:
        """The bytes that count against the bound."""
        answer = self.exchange.body if self.exchange is not None else None
        return self.head_size + len(self.body) + len(answer or b"")

    def write(self) -> bytes:
        """Returns it as JSON."""
        return _dump(
            {
                "n": self.number,
                "t": self.at,
                "status": self.status,
                "fault": None if self.fault == Fault() else str(self.fault),
                "latency": self.latency,
                "refusal": self.refusal,
                "session": self.session,
                "total": self.total,
                "accepted": self.accepted,
                "refused": self.refused,
                "twice": self.twice,
                "taken": self.fault.processes_events(),
                "told": self.fault.tells(),
                "codes": self.codes,
                "types": self.types,
                "odd": self.odd,
                "body": self.body[:ROW_BODY].decode(errors="replace"),
                "cut": len(self.body) > ROW_BODY,
            }
        )


@attrs.define(eq=False)
class _Session:
    """What is known of a session.

    Attributes:
        first: The number of the request in which each event was first accepted, by the event's identity.
        requests: How many of its requests are kept.
    """

    first: dict[int, int]
    requests: int = 1


@attrs.define(eq=False)
class Cursor:
    """How far a page has read.

    Attributes:
        epoch: Which record it has read; another one begins when the record is cleared.
        row: The place of the next request.
        late: The place of the next latency that came after its request was shown.
    """

    epoch: str
    row: int
    late: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.row}.{self.late}"


@attrs.frozen
class News:
    """What a page has not seen yet.

    Attributes:
        rows: Requests, each as JSON.
        late: Pairs of a request's number and its latency in milliseconds.
        missed: How many requests are no longer kept, and were never shown to this page.
        has_more: True if more requests are waiting.
    """

    rows: list[bytes]
    late: list[tuple[int, int]]
    missed: int
    has_more: bool


class Live:
    """The requests that a page can show, and the counters.

    Args:
        run: Tells this sandbox from another one that was here before.
        kept: How many requests are kept.
        kept_bytes: How many bytes of bodies and answers are kept.
    """

    def __init__(self, run: str, *, kept: int = KEPT, kept_bytes: int = KEPT_BYTES) -> None:
        self._run, self._kept, self._kept_bytes = run, kept, kept_bytes
        self._cleared = 0
        self._lock = threading.RLock()  # A test may clear the record from another thread.
        self._forget_all()

    def _forget_all(self) -> None:
        self._entries: deque[Entry] = deque()
        self._first = 0  # the place of the oldest entry
        self._by_number: dict[int, Entry] = {}
        self._bytes = 0
        self._late: deque[tuple[int, int]] = deque(maxlen=_LATE_KEPT)
        self._late_count = 0
        self._sessions: dict[str | None, _Session] = {}
        self._per_second: deque[list[int]] = deque(maxlen=_RECENT + 2)
        self.totals: dict[str, int] = dict.fromkeys(
            ("requests", "accepted", "refused", "twice", "sessions"), 0
        )

    @property
    def epoch(self) -> str:
        """Which record this is."""
        return f"{self._run}-{self._cleared}"

    def clear(self) -> None:
        """Forgets all requests and counters. Every page begins again."""
        with self._lock:
            self._cleared += 1
            self._forget_all()

    # What happens.

    def add(self, recorded: RecordedRequest, *, at: float) -> Entry:
        """Takes a request that was judged at the UNIX time `at`, and returns its place for `answered`."""
        with self._lock:
            return self._add(recorded, at)

    def _add(self, recorded: RecordedRequest, at: float) -> Entry:
        events = recorded.events
        sent: Sequence[Mapping[str, Any]] = [item.event for item in events]
        refusal = None
        if recorded.refusal is not None:
            problem = recorded.refusal.problem
            refusal = (recorded.refusal.status, problem.code, problem.message)
            sent = _events_of_refused(recorded.body)
        total = len(sent)
        session = _session_of(sent)
        new = dict.fromkeys([item.identity for item in events], recorded.number)
        accepted = sum([item.is_accepted for item in events])
        odd: Mapping[str, Mapping[str, Any]] = _NOTHING
        known = self._sessions.get(session)
        if (
            accepted < len(events)
            or len(new) < len(events)
            or (known and not known.first.keys().isdisjoint(new))
        ):
            odd, new = _look(recorded, known.first if known else {})
        twice = sum(["before" in what for what in odd.values()])
        codes = {code for what in odd.values() for code, _ in what.get("errors", ())}
        entry = Entry(
            number=recorded.number,
            at=int(at * 1000),
            fault=recorded.fault,
            status=recorded.status,
            latency=None,
            refusal=refusal,
            session=session,
            total=total,
            accepted=accepted,
            refused=total if refusal else len(odd) - twice,
            twice=twice,
            codes=(refusal[1],) if refusal else tuple(sorted(codes)),
            types=tuple([name[:_NAME] for name in {event.get("eventType") for event in sent} if name]),
            odd=odd,
            headers=recorded.headers,
            body=recorded.body,
            new=tuple(new),
            head_size=sum(map(len, recorded.headers.values())),
        )
        self._count(entry, new)
        self._entries.append(entry)
        self._by_number[entry.number] = entry
        self._bytes += entry.size()
        self._trim()
        return entry

    def _count(self, entry: Entry, new: dict[int, int]) -> None:
        second, is_odd = entry.at // 1000, entry.status not in (200, 207)
        if not self._per_second or self._per_second[-1][0] < second:
            self._per_second.append([second, 0, 0])
        self._per_second[-1][1] += 1
        self._per_second[-1][2] += is_odd
        totals = self.totals
        totals["requests"] += 1
        totals["accepted"] += entry.accepted
        totals["refused"] += entry.refused
        totals["twice"] += entry.twice
        known = self._sessions.get(entry.session)
        if known is not None:
            known.requests += 1
            known.first.update(new)
            return
        totals["sessions"] += entry.session is not None
        self._sessions[entry.session] = _Session(new)

    def _trim(self) -> None:
        while len(self._entries) > self._kept or (self._bytes > self._kept_bytes and len(self._entries) > 1):
            gone = self._entries.popleft()
            self._first += 1
            self._bytes -= gone.size()
            del self._by_number[gone.number]
            session = self._sessions[gone.session]
            session.requests -= 1
            if not session.requests:
                del self._sessions[gone.session]
            for identity in gone.new if session.requests else ():
                del session.first[identity]

    def answered(self, entry: Entry, *, latency: float | None, exchange: Exchange) -> None:
        """Takes the answer of a request, `latency` seconds after the request; `None` if there was none."""
        with self._lock:
            self._answered(entry, latency, exchange)

    def _answered(self, entry: Entry, latency: float | None, exchange: Exchange) -> None:
        if self._by_number.get(entry.number) is not entry:  # It is no longer kept.
            return
        entry.latency = None if latency is None else round(latency * 1000)
        self._bytes -= entry.size()
        entry.exchange = exchange
        self._bytes += entry.size()
        self._trim()
        if entry.is_shown and entry.latency is not None:
            self._late.append((entry.number, entry.latency))
            self._late_count += 1

    # What a page reads.

    def begin(self, last: str | None = None) -> tuple[Cursor, bool]:
        """Returns a page's cursor, and True if it goes on where `last`, a written cursor, has stopped."""
        epoch, _, places = (last or "")[:_LONGEST_CURSOR].partition(".")
        row, _, late = places.partition(".")
        if epoch == self.epoch and row.isdecimal() and late.isdecimal():
            end = self._first + len(self._entries)
            return Cursor(epoch, min(int(row), end), min(int(late), self._late_count)), True
        return Cursor(self.epoch, self._first, self._late_count), False

    def end(self) -> int:
        """The place after the newest request."""
        return self._first + len(self._entries)

    @property
    def is_trimmed(self) -> bool:
        """True if requests were forgotten since the record began."""
        return self._first > 0

    def recent(self, now: float) -> list[list[int]]:
        """Returns how many requests came in each of the last 60 seconds, and how many had no 2xx."""
        with self._lock:
            counts = {second: [count, odd] for second, count, odd in self._per_second}
        last = int(now) - 1
        return [counts.get(second, [0, 0]) for second in range(last - _RECENT + 1, last + 1)]

    def read(self, cursor: Cursor, most: int, *, behind: int = KEPT) -> News:
        """Returns what is new, with at most `most` requests, and moves the cursor.

        Args:
            behind: A page that is further behind than this many requests misses the older ones.
        """
        with self._lock:
            return self._read(cursor, most, behind)

    def _read(self, cursor: Cursor, most: int, behind: int) -> News:
        oldest = self._first if self.end() - cursor.row <= behind else max(self._first, self.end() - most)
        missed = max(0, oldest - cursor.row)
        place = cursor.row + missed
        rows: list[bytes] = []
        size = 0
        while place < self.end() and len(rows) < most and size < _MESSAGE_BYTES:
            entry = self._entries[place - self._first]
            entry.is_shown = True
            rows.append(entry.write())
            size += len(rows[-1])
            place += 1
        first_late = self._late_count - len(self._late)
        start = max(0, cursor.late - first_late)
        late = [self._late[index] for index in range(start, len(self._late))]
        cursor.row, cursor.late = place, self._late_count
        return News(rows, late, missed, place < self.end())

    def detail(self, number: int) -> dict[str, Any] | None:
        """Returns the bodies and headers of a request; `None` if it is not kept."""
        entry = self._by_number.get(number)
        if entry is None:
            return None
        exchange = entry.exchange
        answer = exchange.body if exchange is not None else None
        return {
            "body": _text(entry.body),
            "answer": None if answer is None else _text(answer),
            "note": exchange.note if exchange is not None else "",
            "request": list(entry.headers.items()),
            "response": list(exchange.headers.items()) if exchange is not None else [],
            "cut": len(entry.body) > DETAIL_BODY or len(answer or b"") > DETAIL_BODY,
            "isText": _is_text(entry.body),
        }


def _dump(content: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(content)
    except TypeError:  # A lone surrogate, which JSON can escape and UTF-8 cannot hold.
        return json.dumps(content).encode()


def _look(
    recorded: RecordedRequest, known: Mapping[int, int]
) -> tuple[dict[str, dict[str, Any]], dict[int, int]]:
    """Returns what is odd about the events of a request, and the identities of those that are new."""
    odd: dict[str, dict[str, Any]] = {}
    new: dict[int, int] = {}
    for index, item in enumerate(recorded.events):
        if item.errors:
            odd[str(index)] = {"errors": [[error.code, error.message] for error in item.errors]}
        elif item.is_accepted:
            before = known.get(item.identity) or new.get(item.identity)
            if before is None:
                new[item.identity] = recorded.number
            else:
                odd[str(index)] = {"before": before}
    return odd, new


def _session_of(events: Sequence[Mapping[str, Any]]) -> str | None:
    for event in events:
        if session := event.get("sessionId"):
            return str(session)[:_NAME]
    return None


_WIRE: Final = {"eventtype": "eventType", "sessionid": "sessionId"}


def _events_of_refused(body: bytes) -> list[dict[str, str]]:
    """Returns types and sessions of the events of a request that was refused, if it can be read."""
    if len(body) > _READ_BODY:
        return []
    try:
        root = json.loads(body)
    except (ValueError, RecursionError):
        return []
    lists = (
        [value for name, value in root.items() if name.lower() == "events"] if isinstance(root, dict) else []
    )
    if not lists or not isinstance(lists[-1], list):
        return []
    return [
        {
            _WIRE[name.lower()]: value
            for name, value in event.items()
            if name.lower() in _WIRE and isinstance(value, str)
        }
        for event in lists[-1]
        if isinstance(event, dict)
    ]


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text(body: bytes) -> str:
    return body[:DETAIL_BODY].decode(errors="replace")
