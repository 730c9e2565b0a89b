"""What the live page is told: pure, without a loop or a socket."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from rokt_events_async.sandbox import rules
from rokt_events_async.sandbox._live import DETAIL_BODY, ROW_BODY, Exchange, Live
from rokt_events_async.sandbox._page import is_loopback
from rokt_events_async.sandbox.echoes import ECHO_FORMS, ECHO_NOTES, Echo
from rokt_events_async.sandbox.faults import FAULT_NOTES, FAULTS, Fault
from rokt_events_async.sandbox.record import RecordedRequest, record_event

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def wire(**changes: Any) -> dict[str, Any]:
    """An event as it is sent."""
    return {
        "eventType": "SignalViewed",
        "eventTime": "2026-01-02T00:00:00Z",
        "sessionId": "session",
        "parentGuid": "parent",
        "clientUniqueId": "order",
        **changes,
    }


def recorded(number: int, *events: dict[str, Any], fault: Fault | int | str | None = None) -> RecordedRequest:
    """A request as the sandbox records it."""
    met = Fault.of(fault)
    body = json.dumps({"events": events}).encode()
    verdict = rules.judge(body, now=NOW)
    if isinstance(verdict, rules.Refusal):
        return RecordedRequest(number, {}, body, met, verdict.status, verdict, ())
    items = tuple(record_event(judged, met) for judged in verdict)
    return RecordedRequest(number, {}, body, met, met.status or 200, None, items)


def rows(live: Live, most: int = 1000) -> list[dict[str, Any]]:
    """All rows that a new page is shown."""
    return [json.loads(row) for row in live.read(live.begin()[0], most).rows]


def test_the_counters() -> None:
    """Accepted, refused, seen twice; a retry of what was taken, and one of what was not."""
    live = Live("run")
    good, bad = wire(parentGuid="a"), wire(parentGuid="b", eventType="Odd")
    live.add(recorded(1, good, bad), at=1.5)
    live.add(recorded(2, wire(parentGuid="c"), fault=503), at=2)
    live.add(recorded(3, wire(parentGuid="c"), fault="reset-after"), at=3)
    live.add(recorded(4, wire(parentGuid="c"), good, wire(sessionId="", parentGuid="d")), at=4)

    assert live.totals == {"requests": 4, "accepted": 4, "refused": 2, "twice": 2, "sessions": 1}
    first, second, third, fourth = rows(live)
    assert (first["t"], first["accepted"], first["refused"], first["codes"]) == (
        1500,
        1,
        1,
        ["InvalidEventType"],
    )
    assert first["odd"] == {"1": {"errors": [["InvalidEventType", "Event type is invalid"]]}}
    assert (second["taken"], second["told"], second["accepted"], second["refused"]) == (False, False, 0, 0)
    assert (third["taken"], third["told"], third["accepted"], third["fault"]) == (
        True,
        False,
        1,
        "reset-after",
    )
    assert fourth["odd"]["0"] == {"before": 3}
    assert fourth["odd"]["1"] == {"before": 1}
    assert fourth["twice"] == 2


def test_the_same_event_twice_in_one_request() -> None:
    """The second of them is the one that is counted twice."""
    live = Live("run")
    live.add(recorded(1, wire(), wire(), wire(metadata=[{"name": "a", "value": "b"}])), at=1)
    assert rows(live)[0]["odd"] == {"1": {"before": 1}}
    assert live.totals["twice"] == 1


@pytest.mark.parametrize(
    ("events", "total", "codes"),
    [
        ((), 0, ["NoEventsProvided"]),
        ([wire()] * 26, 26, ["TooManyEvents"]),
        ([wire(), wire(sessionId="other")], 2, ["SandboxMixedSessionIds"]),
        ([wire(eventTime=5)], 1, ["InvalidRequestPayload"]),
    ],
)
def test_whole_requests_that_are_refused(events: Any, total: int, codes: list[str]) -> None:
    """All of their events are refused, if they could be read."""
    live = Live("run")
    live.add(recorded(1, *events), at=1)
    (row,) = rows(live)
    assert (row["total"], row["refused"], row["accepted"], row["codes"]) == (total, total, 0, codes)
    assert row["refusal"][1:2] == codes
    assert (row["session"], row["types"]) == (("session", ["SignalViewed"]) if total else (None, []))


def test_a_page_reads_what_is_new() -> None:
    """In pieces, and on from where it stopped; a latency is in its row, or told later."""
    live = Live("run")
    entries = [live.add(recorded(number, wire(parentGuid=str(number))), at=number) for number in range(1, 6)]
    live.answered(entries[0], latency=0.0123, exchange=Exchange(b"", {}))
    cursor, goes_on = live.begin()
    assert not goes_on
    news = live.read(cursor, 2)
    assert [json.loads(row)["n"] for row in news.rows] == [1, 2]
    assert json.loads(news.rows[0])["latency"] == 12
    assert (news.has_more, news.missed, news.late) == (True, 0, [])
    live.answered(entries[1], latency=1.0, exchange=Exchange(b"", {}))
    live.answered(entries[2], latency=2.0, exchange=Exchange(b"", {}))
    written = str(cursor)
    news = live.read(cursor, 100)
    assert news.late == [(2, 1000)]
    assert not news.has_more
    assert live.read(cursor, 100).rows == []
    again, goes_on = live.begin(written)
    assert goes_on
    assert live.read(again, 100) == news


@pytest.mark.parametrize(
    "last", ["", "other-0.1.1", "run-0.x.1", "run-0.1", "run-0", "run-0.-1.2", "run-0." + "1" * 5000 + ".1"]
)
def test_a_page_that_cannot_go_on_begins_again(last: str) -> None:
    """Another sandbox was here before, or what it sends is no cursor."""
    live = Live("run")
    live.add(recorded(1, wire()), at=1)
    cursor, goes_on = live.begin(last)
    assert not goes_on
    assert len(live.read(cursor, 10).rows) == 1


def test_a_cursor_from_the_future_is_bounded() -> None:
    """It shows nothing twice, and then what comes."""
    live = Live("run")
    cursor, goes_on = live.begin("run-0.100.100")
    assert goes_on
    live.add(recorded(1, wire()), at=1)
    assert len(live.read(cursor, 10).rows) == 1


def test_what_is_kept_is_bounded() -> None:
    """By number and by bytes; a page that was too slow hears how much it missed."""
    live = Live("run", kept=3)
    cursor, _ = live.begin()
    entries = [live.add(recorded(number, wire()), at=number) for number in range(1, 6)]
    news = live.read(cursor, 10)
    assert [json.loads(row)["n"] for row in news.rows] == [3, 4, 5]
    assert news.missed == 2
    assert live.detail(1) is None
    live.answered(entries[0], latency=1.0, exchange=Exchange(b"", {}))  # It is forgotten already.
    assert len(live._by_number) == 3
    known = live._sessions["session"]
    assert known.requests == 3
    assert list(known.first.values()) == [5], "the first of them was forgotten, and so another is"

    small = Live("run", kept_bytes=500)
    for number in range(1, 6):
        entry = small.add(recorded(number, wire(sessionId=f"s-{number}")), at=number)
        small.answered(entry, latency=0.1, exchange=Exchange(b"x" * 100, {}))
    assert len(rows(small)) < 5
    assert small._bytes <= 500
    assert small.totals["requests"] == 5
    small.add(recorded(6, wire(clientUniqueId="x" * 1000)), at=6)
    assert [row["n"] for row in rows(small)] == [6], "one is always kept"


def test_clearing() -> None:
    """Another record begins: pages begin again, and what was still on its way is dropped."""
    live = Live("run")
    entry = live.add(recorded(1, wire()), at=1)
    cursor, _ = live.begin()
    live.clear()
    assert cursor.epoch != live.epoch
    assert live.totals["requests"] == 0
    live.add(recorded(1, wire(parentGuid="new")), at=2)
    live.answered(entry, latency=9.0, exchange=Exchange(b"old", {}))
    assert rows(live)[0]["latency"] is None
    assert live.begin(str(cursor))[1] is False


def test_bodies_are_cut_in_rows_and_details() -> None:
    """A page is never sent a book."""
    live = Live("run")
    entry = live.add(recorded(1, wire(clientUniqueId="x" * DETAIL_BODY)), at=1)
    (row,) = rows(live)
    assert len(row["body"]) == ROW_BODY
    assert row["cut"]
    detail = live.detail(1)
    assert detail is not None
    assert len(detail["body"]) == DETAIL_BODY
    assert (detail["cut"], detail["answer"], detail["response"]) == (True, None, [])
    live.answered(entry, latency=None, exchange=Exchange(b"\xff{", {"A": "b"}, "a note"))
    detail = live.detail(1)
    assert detail is not None
    assert (detail["answer"], detail["response"], detail["note"]) == ("\ufffd{", [("A", "b")], "a note")


@pytest.mark.parametrize(
    ("body", "types"),
    [
        (b'{"Events": [{"EVENTTYPE": "A", "eventtype": "B", "SessionId": "s"}, 5, {"eventType": 7}]}', ["B"]),
        (b'{"events": {}}', []),
        (b'{"event": []}', []),
        (b"[]", []),
        (b"{", []),
        (b"[" * 100_000, []),
        (b'{"events": [{"eventType": "A"}], "x": "' + b"x" * 1024 * 1024 + b'"}', []),
    ],
)
def test_what_can_be_read_of_a_refused_body(body: bytes, types: list[str]) -> None:
    """Its types and sessions, whatever the case of its names; of one that cannot be read, nothing."""
    live = Live("run")
    refusal = rules.Refusal(401, "Unauthorized", rules.UNAUTHORIZED)
    live.add(RecordedRequest(1, {}, body, Fault(), 401, refusal, ()), at=1)
    (row,) = rows(live)
    assert row["types"] == types
    assert (row["total"], row["refused"]) == ((2, 2) if types else (0, 0))


def test_the_last_minute() -> None:
    """Whole seconds, the newest last; those without a 2xx beside them."""
    live = Live("run")
    for number, (at, fault) in enumerate(
        [(10.5, None), (11.0, 503), (11.9, None), (69.5, None), (70.1, 503)]
    ):
        live.add(recorded(number, wire(parentGuid=str(number)), fault=fault), at=at)
    recent = live.recent(71.5)
    assert len(recent) == 60
    assert recent[-2:] == [[1, 0], [1, 1]]
    assert recent[0] == [2, 1], "second 11"
    assert sum(count for count, _ in recent) == 4
    assert live.recent(1000) == [[0, 0]] * 60


def test_a_page_that_is_far_behind_goes_on_with_the_newest() -> None:
    """What it shows is what happens now; it hears how much it has missed."""
    live = Live("run")
    cursor, _ = live.begin()
    for number in range(1, 101):
        live.add(recorded(number, wire(parentGuid=str(number))), at=1)
    news = live.read(cursor, 10, behind=50)
    assert news.missed == 90
    assert [json.loads(row)["n"] for row in news.rows] == list(range(91, 101))
    assert not live.is_trimmed


def test_headers_count_as_bytes() -> None:
    """A client can send a hundred of them, each of kilobytes."""
    live = Live("run", kept_bytes=100_000)
    for number in range(1, 30):
        one = recorded(number, wire(parentGuid=str(number)))
        live.add(attrs.evolve(one, headers={"X": "x" * 8000}), at=1)
    assert len(rows(live)) < 13


def test_text_that_utf_8_cannot_hold() -> None:
    """A lone surrogate is JSON, and must not stop the page."""
    live = Live("run")
    live.add(recorded(1, wire(eventType="\ud800")), at=1)
    assert rows(live)[0]["types"] == ["\ud800"]


def test_a_message_ends_when_it_is_large() -> None:
    """No page is held up by a single message."""
    live = Live("run")
    for number in range(1, 12):
        live.add(recorded(number, wire(clientUniqueId="x" * 50_000, parentGuid=str(number))), at=number)
    cursor, _ = live.begin()
    assert len(live.read(cursor, 100).rows) == 6
    assert len(live.read(cursor, 100).rows) == 5


def test_every_fault_and_form_has_its_words() -> None:
    """The page lists them all."""
    assert set(FAULT_NOTES) - {"500", "503"} == set(FAULTS)
    assert set(ECHO_NOTES) == set(ECHO_FORMS) - {"default"}
    for name in ECHO_NOTES:
        assert Echo.of(name).names() == [name]
    assert Echo.of("only-200", "foreign").names() == ["only-200", "foreign"]


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1:8787", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8787", True),
        ("[::1]", True),
        ("", False),
        ("evil.example:8787", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("192.168.0.1:8787", False),
        ("0.0.0.0:8787", False),
        ("[::]:80", False),
    ],
)
def test_loopback_by_name(host: str, is_it: bool) -> None:
    """A name that another page can make resolve to loopback is none."""
    assert is_loopback(host) is is_it
