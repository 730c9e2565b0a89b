"""Answers by the ten thousand, valid, bent and broken: nothing raises, and no verdict lacks a proof."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from rokt_events_async import PartnerEvent
from rokt_events_async._pipeline.transport import MAX_BODY
from rokt_events_async._protocol import verdicts as verdicts_module
from rokt_events_async._protocol.encoding import encode
from rokt_events_async._protocol.replies import read_errors, says_all_processed
from rokt_events_async._protocol.verdicts import DELIVERED, UNKNOWN, Rejected, Verdict, match_unprocessed
from tests.samples import NOW, event

ANSWERS = 20_000
TRUE_ANSWERS = 50_000
BATCHES = 40

Bend = Callable[[random.Random, Any], Any]


def batch(luck: random.Random) -> list[PartnerEvent]:
    """Events of one session, some of them hard to tell apart."""
    size = luck.choice([1, 2, 3, 7, 25])
    guids = [luck.choice(["same", f"guid-{number}"]) for number in range(size)]
    return [
        event(
            parent_guid=guid,
            event_type=luck.choice(["SignalViewed", "SignalImpression"]),
            metadata={"a": "1"} if luck.random() < 0.5 else None,
        ).stamped(NOW)
        for guid in guids
    ]


def valid(luck: random.Random, events: list[PartnerEvent]) -> dict[str, Any]:
    """What a server in good order answers."""
    named = [one.to_dict() for one in events if luck.random() < luck.choice([0, 0.3, 1])]
    errors = [{"code": "EventTimeIsInvalid", "message": "no"}]
    return {
        "processedEventsCount": len(events) - len(named),
        "unprocessedEvents": [{"event": echo, "errors": errors} for echo in named],
        "success": not named,
    }


JUNK: list[Any] = [None, True, -1, 0, 1, 25, 10**30, 1.5, "", "x", "1", [], [[]], {}, {"event": {}}, "\ud800"]


def bend(luck: random.Random, value: Any) -> Any:
    """One thing in it is otherwise."""
    if isinstance(value, dict) and value and luck.random() < 0.85:
        key = luck.choice(sorted(value))
        changed = dict(value)
        act = luck.randrange(5)
        if act == 0:
            del changed[key]
        elif act == 1:
            changed[luck.choice([key.upper(), key.title(), f"{key}2"])] = changed.pop(key)
        else:
            changed[key] = bend(luck, value[key])
        return changed
    if isinstance(value, list) and value and luck.random() < 0.85:
        place = luck.randrange(len(value))
        act = luck.randrange(4)
        if act == 0:
            return value[:place] + value[place + 1 :]
        if act == 1:
            return [*value, value[place]]
        return [*value[:place], bend(luck, value[place]), *value[place + 1 :]]
    return luck.choice(JUNK)


def bite(luck: random.Random, body: bytes) -> bytes:
    """Some of its bytes are otherwise."""
    changed = bytearray(body)
    for _ in range(luck.choice([1, 1, 3, 20])):
        place = luck.randrange(len(changed) + 1)
        act = luck.randrange(3)
        if act == 0:
            del changed[place : place + luck.choice([1, 5, 500])]
        elif act == 1:
            changed[place:place] = luck.choice([b"{", b"]", b'"', b",", b"\xff", b"0", b"null", b"\x00"])
        elif place < len(changed):
            changed[place] = luck.randrange(256)
    return bytes(changed)


def answer(luck: random.Random, events: list[PartnerEvent]) -> bytes:
    root: Any = valid(luck, events)
    kind = luck.randrange(10)
    if kind == 0:
        return luck.randbytes(luck.choice([0, 1, 30, 3000]))
    for _ in range(luck.choice([0, 1, 1, 2, 5])):
        root = bend(luck, root)
    body = json.dumps(root).encode()
    return bite(luck, body) if kind < 4 else body


def proof(body: bytes, count: int) -> tuple[int, int] | None:
    """How many of `count` events a body says were processed and not, if that adds up; read in another way."""
    try:
        root = json.loads(body)
    except ValueError:
        return None
    if not isinstance(root, dict):
        return None
    lowered = {key.lower(): value for key, value in root.items()}
    processed, unprocessed = lowered.get("processedeventscount"), lowered.get("unprocessedevents") or []
    if type(processed) is not int or not isinstance(unprocessed, list):
        return None
    adds_up = processed >= 0 and processed + len(unprocessed) == count
    return (processed, len(unprocessed)) if adds_up else None


def check(verdicts: list[Verdict], body: bytes, events: list[PartnerEvent]) -> None:
    delivered = verdicts.count(DELIVERED)
    rejected = sum(isinstance(verdict, Rejected) for verdict in verdicts)
    assert len(verdicts) == len(events)
    assert delivered + rejected + verdicts.count(UNKNOWN) == len(events)
    if delivered:
        told = proof(body, len(events))
        assert told is not None, body
        assert delivered <= told[0]
        assert rejected <= told[1]


@pytest.mark.parametrize("number", range(BATCHES))
def test_no_answer_raises_and_none_delivers_without_proof(number: int) -> None:
    """The count must be there, and add up, or no event is delivered."""
    luck = random.Random(number)
    reached = set()
    for _ in range(ANSWERS // BATCHES):
        events = batch(luck)
        body = answer(luck, events)
        verdicts = match_unprocessed(events, body)
        check(verdicts, body, events)
        if says_all_processed(body, len(events)):
            assert verdicts == [DELIVERED] * len(events), body
        read_errors(body)
        reached |= {type(verdict) if isinstance(verdict, Rejected) else verdict for verdict in verdicts}

    assert reached == {Rejected, DELIVERED, UNKNOWN}


# A server in good order whose echoes differ from what was sent, within what the rules allow for.


def close_batch(luck: random.Random) -> list[PartnerEvent]:
    """Events of one session that differ by a millisecond, by metadata, or by nothing."""
    size = luck.choice([2, 3, 7, 25])
    notes: list[dict[str, str] | None] = [None, {"a": "1"}, {"a": "2"}, {"a": "1", "b": "2"}]
    return [
        event(
            parent_guid=luck.choice(["same", "same", f"guid-{number}"]),
            event_type=luck.choice(["SignalViewed", "SignalImpression"]),
            metadata=luck.choice(notes),
        ).stamped(NOW + timedelta(milliseconds=luck.randrange(4)))
        for number in range(size)
    ]


def shift(luck: random.Random, echo: dict[str, Any]) -> None:
    moment = datetime.fromisoformat(echo["eventTime"])
    if moment > NOW - timedelta(days=1):  # Otherwise it is forgotten.
        echo["eventTime"] = (moment + timedelta(milliseconds=luck.choice([-1, 1]))).isoformat()


def enrich(luck: random.Random, echo: dict[str, Any]) -> None:
    added = [{"name": luck.choice("abc"), "value": luck.choice("123")} for _ in range(luck.choice([1, 1, 2]))]
    echo["metadata"] = [*echo.get("metadata", []), *added]
    luck.shuffle(echo["metadata"])


def replace_metadata(luck: random.Random, echo: dict[str, Any]) -> None:
    echo["metadata"] = [{"name": "server", "value": luck.choice("123")}]


def drop_metadata(_luck: random.Random, echo: dict[str, Any]) -> None:
    echo.pop("metadata", None)


def forget(luck: random.Random, echo: dict[str, Any]) -> None:
    name, value = luck.choice([("eventTime", "0001-01-01T00:00:00+00:00"), ("eventType", "Unknown")])
    echo[name] = value


MUTATIONS = (shift, enrich, replace_metadata, drop_metadata, forget)
"""In their order: a server that replaces an event's metadata by another event's could not be told."""


def answer_of_a_true_server(
    luck: random.Random, events: list[PartnerEvent]
) -> tuple[bytes, Counter[bytes], Counter[bytes]]:
    """The answer, and how many events of each kind were accepted and refused."""
    rate = luck.choice([0.1, 0.5, 0.9])
    mutations = sorted(luck.sample(MUTATIONS, luck.choice([0, 1, 1, 2, 3])), key=MUTATIONS.index)
    accepted: Counter[bytes] = Counter()
    refused: Counter[bytes] = Counter()
    echoes = []
    for one in events:
        if luck.random() >= rate:
            accepted[encode(one)] += 1
            continue
        refused[encode(one)] += 1
        echo = one.to_dict()
        for mutate in mutations:
            if luck.random() < 0.7:
                mutate(luck, echo)
        echoes.append({"event": echo, "errors": [{"code": "X", "message": "no"}]})
    luck.shuffle(echoes)
    processed = len(events) - len(echoes) + (luck.choice([-1, 1]) if luck.random() < 0.1 else 0)
    root = {"processedEventsCount": max(0, processed), "unprocessedEvents": echoes, "success": not echoes}
    return json.dumps(root).encode(), accepted, refused


def play(number: int, answers: int) -> int:
    """Matches so many answers. Returns how many events something was claimed of."""
    luck = random.Random(f"inverted {number}")
    claimed = 0
    for _ in range(answers):
        sent = close_batch(luck)
        body, accepted, refused = answer_of_a_true_server(luck, sent)
        verdicts = match_unprocessed(sent, body)
        told = [(encode(one), verdict) for one, verdict in zip(sent, verdicts, strict=True)]
        delivered = Counter(wire for wire, verdict in told if verdict == DELIVERED)
        rejected = Counter(wire for wire, verdict in told if isinstance(verdict, Rejected))
        assert delivered <= accepted, body
        assert rejected <= refused, body
        claimed += delivered.total() + rejected.total()
    return claimed


@pytest.mark.parametrize("number", range(BATCHES))
def test_nothing_is_inverted(number: int) -> None:
    """Times shifted, metadata added, replaced and dropped, all together."""
    assert play(number, TRUE_ANSWERS // BATCHES) > TRUE_ANSWERS // BATCHES


def exact_first(echo: Any, alike: Any) -> Any:
    """An exact fit outranks all others."""
    near = choose(echo, alike)
    exact = [kind for kind in near if echo._time == kind.time and echo._contains(kind)]
    return exact or near


def contained(echo: Any, alike: Any) -> Any:
    """Metadata that was replaced fits an event that was sent without any."""
    return [
        kind
        for kind in alike
        if echo._fits_type_and_time(kind) and (not echo._metadata or echo._contains(kind))
    ]


choose = verdicts_module._Echo.choose


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [
        (verdicts_module, "_TIME_TOLERANCE", timedelta(0)),
        (verdicts_module._Echo, "choose", exact_first),
        (verdicts_module._Echo, "choose", contained),
    ],
    ids=["no tolerance", "equal outranks near", "replaced metadata"],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, bug: Any) -> None:
    """The fuzz is worth what it finds."""
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(AssertionError):  # noqa: PT012 -- whichever batch is the first
        for number in range(BATCHES):
            play(number, 500)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MAX_BODY,
        b'{"a":' * (MAX_BODY // 5),
        json.dumps({"processedEventsCount": 0, "unprocessedEvents": [{"event": {}}] * 20_000}).encode()[
            :MAX_BODY
        ],
        json.dumps(
            {"processedEventsCount": 0, "unprocessedEvents": [{"event": {"sessionId": "session"}}] * 4_000}
        ).encode(),
        json.dumps(
            {"processedEventsCount": 0, "unprocessedEvents": [{"event": {"x": "y" * 10_000}}] * 25}
        ).encode(),
    ],
    ids=["arrays", "objects", "cut", "echoes", "fat"],
)
def test_the_largest_answers_stay_small_in_memory(body: bytes) -> None:
    """A body that is as large as one may be takes a bounded multiple of itself."""
    events = [event(parent_guid="same").stamped(NOW) for _ in range(25)]
    tracemalloc.start()
    try:
        match_unprocessed(events, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 40 * MAX_BODY
