"""Which event of a batch became what: the matching rules, and that they never guess."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rokt_events_async import ApiError, PartnerEvent
from rokt_events_async._protocol import encoding
from rokt_events_async._protocol.replies import says_all_processed
from rokt_events_async._protocol.statuses import Disposition, classify
from rokt_events_async._protocol.verdicts import DELIVERED, UNKNOWN, Rejected, Verdict, match_unprocessed
from rokt_events_async.sandbox import ECHO_FORMS, Echo
from rokt_events_async.sandbox.echoes import write_verdicts
from rokt_events_async.sandbox.rules import Judged, Problem
from rokt_events_async.sandbox.rules import judge as judge_body
from tests.samples import NOW, event, unchecked

REASON = {"code": "SessionIdMissing", "message": "no"}
REFUSED = Rejected((ApiError("SessionIdMissing", "no"),))


def timed(**changes: Any) -> PartnerEvent:
    return event(event_time=NOW, **changes)


def echo_of(of: PartnerEvent, **changes: Any) -> dict[str, Any]:
    echo = of.to_dict() | changes
    return {name: value for name, value in echo.items() if value is not ...}


def answer(processed: Any, *echoes: Any, errors: Any = (REASON,)) -> bytes:
    unprocessed = [{"event": echo, "errors": list(errors)} for echo in echoes]
    return json.dumps({"processedEventsCount": processed, "unprocessedEvents": unprocessed}).encode()


A, B, C = (timed(parent_guid=name) for name in "abc")


# Status lines.


@pytest.mark.parametrize(
    ("meaning", "statuses"),
    [
        (Disposition.ANSWERED, [200, 201, 204, 206, 207, 299]),
        (Disposition.REFUSED, [400, 413, 422]),
        (Disposition.CREDENTIALS_REFUSED, [401, 403]),
        (Disposition.RETRY, [429, 503]),
        (Disposition.RETRY_MAYBE_ACCEPTED, [408, 500, 502, 504, 507, 520, 530, 598, 599]),
        (Disposition.FAILED, [301, 302, 307, 308, 404, 405, 407, 410, 415, 501, 505]),
        (Disposition.UNCONFIRMED, [101, 199, 300, 303, 304, 402, 409, 418, 431, 600, 999]),
    ],
)
def test_what_a_status_means(meaning: Disposition, statuses: list[int]) -> None:
    """The design's table of statuses."""
    assert {classify(status) for status in statuses} == {meaning}


def test_a_503_with_a_body_comes_from_between() -> None:
    """The API's own has none; with `Retry-After` it is a clear refusal either way."""
    assert classify(503, has_body=True) is Disposition.RETRY_MAYBE_ACCEPTED
    assert classify(503, has_body=True, asks_to_wait=True) is Disposition.RETRY


# Bodies.


def test_all_processed() -> None:
    """The ordinary 200."""
    assert match_unprocessed([A, B], answer(2)) == [DELIVERED, DELIVERED]


def test_the_200_example_of_the_specification() -> None:
    """Five processed, none unprocessed."""
    body = b'{ \n"processedEventsCount": 5,\n"unprocessedEvents": [],\n"success": true }'

    assert match_unprocessed([A, B, C, A, B], body) == [DELIVERED] * 5


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"processedEventsCount": NaN}',
        b'{"processedEventsCount": true, "unprocessedEvents": []}',
        b'{"processedEventsCount": "2"}',
        b'{"processedEventsCount": 2.0}',
        b'{"processedEventsCount": -1}',
        b'{"processedEventsCount": 2, "unprocessedEvents": {}}',
        b'{"processedEventsCount": 2',
        b"[" * 100_000,
        b'{"processedEventsCount":' + b"[" * 5000,
        b'{"processedEventsCount": 1, "unprocessedEvents": []}',
        b'{"processedEventsCount": 3, "unprocessedEvents": []}',
        b'{"processedEventsCount": 99999999999999999999}',
    ],
)
def test_what_cannot_be_read_or_does_not_add_up_confirms_nothing(body: bytes | None) -> None:
    """The server took something; it does not say what."""
    assert match_unprocessed([A, B], body) == [UNKNOWN] * 2


@pytest.mark.parametrize(
    "body", [b'{"PROCESSEDEVENTSCOUNT":2}', b'{"processedEventsCount":2,"unprocessedEvents":null}']
)
def test_keys_in_any_case_and_a_missing_list(body: bytes) -> None:
    """Read leniently where nothing is in doubt."""
    assert match_unprocessed([A, B], body) == [DELIVERED] * 2


def test_a_named_event_is_rejected_and_the_others_are_delivered() -> None:
    """Whatever `success` says."""
    assert match_unprocessed([A, B, C], answer(2, echo_of(B))) == [DELIVERED, REFUSED, DELIVERED]


@pytest.mark.parametrize(
    "changes",
    [
        {"eventTime": "2026-05-04T12:00:00.123+00:00"},
        {"eventTime": "2026-05-04T14:00:00.123+02:00"},
        {"eventTime": "2026-05-04T12:00:00.1230000Z"},
        {"eventTime": "2026-05-04T12:00:00.123"},
        {"eventTime": "2026-05-04T12:00:00.124Z"},
        {"eventTime": "0001-01-01T00:00:00+00:00"},
        {"eventTime": "0001-01-01T00:00:00"},
        {"eventTime": None},
        {"eventTime": ...},
        {"eventTime": ""},
        {"eventType": "SIGNALVIEWED"},
        {"eventType": "Unknown"},
        {"metadata": None},
        {"metadata": []},
        {"instanceGuid": "made by the server"},
        {"metadata": [{"name": "added", "value": "by the server"}]},
        {"metadata": [{"Name": "added", "Value": None}]},
    ],
)
def test_what_an_echo_may_look_like(changes: dict[str, Any]) -> None:
    """Written again by a typed server, in all the ways that are known."""
    assert match_unprocessed([A, B], answer(1, echo_of(B, **changes))) == [DELIVERED, REFUSED]


@pytest.mark.parametrize(
    "changes",
    [
        {"clientUniqueId": "order-2"},
        {"clientUniqueId": None},
        {"clientUniqueId": 1},
        {"sessionId": ""},
        {"sessionId": ["session"]},
        {"parentGuid": "B"},
        {"parentGuid": ...},
        {"eventType": "SignalResponse"},
        {"eventType": None},
        {"eventTime": "2026-05-04T12:00:00.125Z"},
        {"eventTime": "2026-05-04T12:01:00.123Z"},
        {"eventTime": "0001-01-01T00:00:00+14:00"},
        {"eventTime": "9999-12-31T23:59:59-14:00"},
        {"eventTime": "yesterday"},
        {"eventTime": 1651622400},
        {"metadata": "x"},
        {"metadata": [1]},
        {"metadata": [{"name": 1, "value": "x"}]},
    ],
)
def test_an_echo_of_an_event_that_was_not_sent(changes: dict[str, Any]) -> None:
    """It fits no event, so it may mean any: nothing is claimed."""
    assert match_unprocessed([A, B], answer(1, echo_of(B, **changes))) == [UNKNOWN] * 2


@pytest.mark.parametrize("echo", [None, "a", [], 7])
def test_an_echo_that_is_none(echo: Any) -> None:
    """No object, no match."""
    assert match_unprocessed([A, B], answer(1, echo)) == [UNKNOWN] * 2


def test_an_invalid_type_may_be_echoed_as_anything() -> None:
    """With `InvalidEventType` among the errors, the type identifies no event."""
    body = answer(1, echo_of(B, eventType="None"), errors=[{"code": "InvalidEventType", "message": "x"}])

    assert match_unprocessed([A, B], body)[0] is DELIVERED
    assert isinstance(match_unprocessed([A, B], body)[1], Rejected)


def test_uuids_match_in_any_casing_and_other_ids_do_not() -> None:
    """Session ids and parent guids are opaque strings, a UUID's casing aside."""
    guid = "58BCBAA0-E13C-4A3D-84CD-2803CCC35394"
    upper = timed(session_id=guid, parent_guid=guid)

    assert match_unprocessed(
        [upper, A], answer(1, echo_of(upper, sessionId=guid.lower(), parentGuid=guid.lower()))
    ) == [
        REFUSED,
        DELIVERED,
    ]


def test_two_casings_of_a_uuid_are_two_readings() -> None:
    """A server that lowers guids cannot be told from one that does not."""
    guid = "58bcbaa0-e13c-4a3d-84cd-2803ccc35394"
    lower, upper = timed(parent_guid=guid), timed(parent_guid=guid.upper())

    assert match_unprocessed([lower, upper], answer(1, echo_of(lower))) == [UNKNOWN] * 2


def test_equal_events_are_interchangeable() -> None:
    """Which of two that are equal in every field was refused makes no difference."""
    assert match_unprocessed([A, A, A], answer(2, echo_of(A))) == [REFUSED, DELIVERED, DELIVERED]
    assert match_unprocessed([A, B, A], answer(1, echo_of(A), echo_of(A))) == [REFUSED, DELIVERED, REFUSED]


def test_an_exact_echo_does_not_outrank_another_that_fits() -> None:
    """The server may have added the metadata, or shifted the time: then the exact one is the wrong one."""
    with_note = timed(parent_guid="p", metadata={"note": "x"})
    without = timed(parent_guid="p")
    body = answer(1, echo_of(with_note))

    assert match_unprocessed([without, with_note], body) == [UNKNOWN, UNKNOWN]
    body = answer(1, echo_of(without), echo_of(with_note))
    assert match_unprocessed([without, with_note, A], body) == [REFUSED, REFUSED, DELIVERED]
    early, late = (attrs.evolve(A, event_time=NOW + timedelta(milliseconds=n)) for n in (0, 1))
    assert match_unprocessed([early, late], answer(1, echo_of(early))) == [UNKNOWN, UNKNOWN]
    assert match_unprocessed([early, late], answer(0, echo_of(early), echo_of(early))) == [REFUSED, REFUSED]


@pytest.mark.parametrize(
    "body",
    [
        b'{"processedEventsCount":0,"processedEventsCount":2,"unprocessedEvents":[],"success":true}',
        b'{"ProcessedEventsCount":0,"processedEventsCount":2,"unprocessedEvents":[]}',
        b'{"processedEventsCount":2,"unprocessedEvents":[1],"unprocessedEvents" : []}',
        b'{"processedEventsCount":2,"unprocessed\\u0045vents":[],"unprocessedEvents":[{}]}',
        answer(1, echo_of(A) | {"sessionID": "x"}),
        answer(1, echo_of(A), errors=[{"code": "X", "Code": "InvalidEventType"}]),
        b'{"processedEventsCount":0,"processedEventsCount":2,"unprocessedEvents":[],"success":[1e15,1e12]}',
        answer(1, echo_of(B), errors=[{"code": "x", "message": "MARK"}])
        .replace(b'"sessionId"', b'"parentGuid":"a","sessionId"')
        .replace(b"MARK", b"\\u0022: bad"),
        answer(1, echo_of(B), errors=[{"code": "x", "message": "MARK"}])
        .replace(b'"sessionId"', b'"parentGuid":"a","sessionId"')
        .replace(b'": ', b'":')
        .replace(b"MARK", b"\\u005c: bad"),
        b'{"processedEventsCount":2,"unprocessedEvents":[],"success":' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"processedEventsCount":2,"unprocessedEvents":[],"x":' + b"[" * 900 + b"]" * 900 + b"}",
        answer(1, echo_of(B)).replace(b'"sessionId"', b'"parentGuid":"x","sessionId"'),
    ],
)
def test_an_answer_that_contradicts_itself_claims_nothing(body: bytes) -> None:
    """A key that stands twice in one object, also in two casings."""
    assert not says_all_processed(body, 2)
    assert DELIVERED not in match_unprocessed([A, B], body)
    assert not any(isinstance(one, Rejected) for one in match_unprocessed([A, B], body))


def test_keys_in_texts_are_no_keys() -> None:
    """Whatever a server writes into its messages."""
    body = answer(1, echo_of(B), errors=[{"code": "X", "message": 'say "code": and \\"code\\": "'}])
    spaced = body.replace(b'":', b'" :')

    assert isinstance(match_unprocessed([A, B], body)[1], Rejected)
    assert isinstance(match_unprocessed([A, B], spaced)[1], Rejected)


def test_a_byte_order_mark_is_skipped() -> None:
    """Windows servers write one."""
    assert match_unprocessed([A, B], b"\xef\xbb\xbf" + answer(2)) == [DELIVERED, DELIVERED]


def test_an_echo_without_metadata_may_mean_the_event_that_has_some() -> None:
    """Two readings are possible, so neither is claimed."""
    with_note, without = timed(parent_guid="p", metadata={"note": "x"}), timed(parent_guid="p")

    assert match_unprocessed([with_note, without, A], answer(2, echo_of(without))) == [
        UNKNOWN,
        UNKNOWN,
        DELIVERED,
    ]


def test_elimination() -> None:
    """If every reading names an event, it is rejected, though each echo by itself is in doubt."""
    one, two = (attrs.evolve(timed(parent_guid="p"), event_time=NOW + timedelta(seconds=n)) for n in (0, 1))
    vague = echo_of(one, eventTime="0001-01-01T00:00:00+00:00")

    assert match_unprocessed([one, two, A], answer(2, vague)) == [UNKNOWN, UNKNOWN, DELIVERED]
    assert match_unprocessed([one, two, A], answer(1, vague, vague)) == [REFUSED, REFUSED, DELIVERED]
    assert match_unprocessed([one, two, A], answer(1, vague, echo_of(two))) == [REFUSED, REFUSED, DELIVERED]


def test_more_vague_echoes_than_events_fit_none() -> None:
    """Two echoes for one event: it is rejected, and no other event is delivered for certain."""
    vague = echo_of(A, eventTime=None)

    assert match_unprocessed([A, B, C], answer(1, vague, vague)) == [REFUSED, UNKNOWN, UNKNOWN]


def test_the_same_event_named_twice() -> None:
    """One of the echoes means another event."""
    body = answer(1, echo_of(A), echo_of(A))

    assert match_unprocessed([A, B, C], body) == [REFUSED, UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("processed", [0, 1, 3, 25])
def test_counts_that_do_not_add_up(processed: int) -> None:
    """An event named by a full match is rejected, the rest is unknown; weak matches name none."""
    assert match_unprocessed([A, B, C], answer(processed, echo_of(B))) == [
        UNKNOWN,
        REFUSED,
        UNKNOWN,
    ]
    vague = answer(processed, echo_of(B, eventTime=None))
    assert match_unprocessed([A, B, C], vague) == [UNKNOWN] * 3


def test_none_processed_and_all_unprocessed_rejects_all() -> None:
    """Readable or not; the reasons are told where they can be."""
    other = {"code": "Other", "message": ""}
    body = json.dumps(
        {
            "processedEventsCount": 0,
            "unprocessedEvents": [
                {"event": None, "errors": [other]},
                {"event": echo_of(A), "errors": [REASON]},
            ],
        }
    ).encode()

    assert match_unprocessed([A, B], body) == [REFUSED, Rejected((ApiError("Other", ""),))]
    assert match_unprocessed([A, B], answer(0, 1, 2)) == [REFUSED, REFUSED]
    assert match_unprocessed(
        [A, B], b'{"processedEventsCount":0,"unprocessedEvents":[{"errors":[{}]},{}]}'
    ) == [
        Rejected(()),
        Rejected(()),
    ]


def test_a_flood_of_echoes_is_read_no_further() -> None:
    """Nonsense costs no time: 20,000 echoes of a batch of 25."""
    events = [timed(parent_guid=str(number)) for number in range(25)]
    body = answer(0, *[echo_of(events[0])] * 20_000)

    verdicts = match_unprocessed(events, body)
    assert isinstance(verdicts[0], Rejected)
    assert set(verdicts[1:]) == {UNKNOWN}


# The property: whatever is refused, and however it is echoed, no claim is false.

GUIDS = ["58bcbaa0-e13c-4a3d-84cd-2803ccc35394", "58BCBAA0-E13C-4A3D-84CD-2803CCC35394", "slot"]
TYPES = ["SignalImpression", "SignalViewed", "signalviewed", "Unknown", "SignalNew"]
METADATA = [(), (("a", "1"),), (("a", "1"), ("b", "")), (("b", "2"), ("a", "1"))]
OFFSETS = [0, 1, 2, 1000]


@st.composite
def batches(draw: st.DrawFn) -> list[PartnerEvent]:
    """Events that are hard to tell apart."""
    return [
        unchecked(
            event_type=draw(st.sampled_from(TYPES)),
            session_id="session",
            parent_guid=draw(st.sampled_from(GUIDS)),
            client_unique_id="order",
            metadata=event(metadata=dict(draw(st.sampled_from(METADATA)))).metadata,
            event_time=NOW + timedelta(milliseconds=draw(st.sampled_from(OFFSETS))),
        )
        for _ in range(draw(st.integers(1, 8)))
    ]


SWITCHES = sorted({name for form in ECHO_FORMS.values() for name in form} - {"count_offset"})
REFUSAL = Problem("SandboxTest", "refused by the test")


@settings(max_examples=1500)
@given(batches(), st.data())
def test_attribution_is_the_truth_or_says_that_it_does_not_know(
    events: list[PartnerEvent], data: st.DataObject
) -> None:
    """Random batches, verdicts, echo forms and orders.

    Never delivered if refused, never rejected if accepted, up to events that are equal in every field,
    which are interchangeable; and the truth where the echo tells it.
    """
    refused = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    switches = {name: data.draw(st.booleans(), label=name) for name in SWITCHES if name != "foreign"}
    is_foreign = data.draw(st.sampled_from([False, False, False, True]))
    offset = data.draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
    body = encoding.join([encoding.encode(one) for one in events])
    judged = judge_body(body, now=NOW)
    assert isinstance(judged, list)
    truth = [
        Judged(item.event, (REFUSAL,) if is_refused else ())
        for item, is_refused in zip(judged, refused, strict=True)
    ]
    form = Echo(**switches, foreign=is_foreign, count_offset=max(offset, -refused.count(False)))
    written = write_verdicts(truth, form, random.Random(data.draw(st.integers(0, 99))))

    verdicts = match_unprocessed(events, written.body)

    for key in {encoding.encode(one) for one in events}:
        alike = [index for index, one in enumerate(events) if encoding.encode(one) == key]
        assert _count(verdicts, alike, DELIVERED) <= sum(not refused[index] for index in alike)
        assert _count(verdicts, alike, REFUSED_BY_TEST) <= sum(refused[index] for index in alike)
    if form == Echo(shuffle=form.shuffle, only_200=form.only_200, pascal_case=form.pascal_case) and _is_plain(
        events
    ):
        assert [isinstance(verdict, Rejected) for verdict in verdicts] == refused
    if not any(refused) and form.count_offset == 0:
        assert set(verdicts) == {DELIVERED}


REFUSED_BY_TEST = Rejected((ApiError(REFUSAL.code, REFUSAL.message),))


def _count(verdicts: list[Verdict], indices: list[int], verdict: Verdict) -> int:
    return sum(verdicts[index] == verdict for index in indices)


def _is_plain(events: list[PartnerEvent]) -> bool:
    """Whether each has a parent of its own, a type of the specification's, and thus one reading."""
    parents = [one.parent_guid.lower() for one in events]
    return len(set(parents)) == len(events) and all(one.event_type != "Unknown" for one in events)


def test_no_more_than_four_echoes_per_event_are_read() -> None:
    """An answer with more is nonsense: the event that its fifth echo names is unknown."""
    sent, stranger = timed(), timed()
    within = answer(0, *[echo_of(stranger)] * 3, echo_of(sent))
    beyond = answer(0, *[echo_of(stranger)] * 4, echo_of(sent))

    assert match_unprocessed([sent], within) == [REFUSED]
    assert match_unprocessed([sent], beyond) == [UNKNOWN]


@pytest.mark.parametrize("text", ['":)', '\\": x', ":", '"', '":', 'a,":b'])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " : ")])
def test_any_text_of_a_customer_is_no_contradiction(text: str, separators: tuple[str, str]) -> None:
    """However a server escapes it."""
    sent = timed(parent_guid="a", metadata={"smile": text})
    body = json.dumps(json.loads(answer(1, echo_of(sent))), separators=separators)
    for form in (body, body.replace('\\"', "\\u0022"), body.replace("\\\\", "\\u005c")):
        verdicts = match_unprocessed([sent, B], form.encode())
        assert [type(verdict) for verdict in verdicts] == [Rejected, type(DELIVERED)], form


def test_an_invalid_type_is_seen_beyond_the_cut_of_the_errors() -> None:
    """Their text is cut; what they say of the type is not."""
    other = attrs.evolve(A, event_type="SignalResponse")
    long = [{"code": f"E{number}", "message": "m" * 100} for number in range(30)]
    errors = [*long, {"code": "InvalidEventType", "message": ""}]

    assert match_unprocessed([A, other], answer(1, echo_of(A), errors=errors)) == [UNKNOWN] * 2
    assert match_unprocessed([A, other], answer(1, echo_of(A), errors=long * 10)) == [UNKNOWN] * 2
    assert match_unprocessed([A, other], answer(1, echo_of(A), errors=long))[1] is DELIVERED


@pytest.mark.parametrize("value", [0, False, [], {}, 1.5])
def test_a_metadata_value_of_another_type_fits_none(value: Any) -> None:
    """Only missing, null and `""` are the same."""
    empty, zero = (timed(parent_guid="p", metadata={"k": text}) for text in ("", "0"))
    body = answer(1, echo_of(empty, metadata=[{"name": "k", "value": value}]))
    assert match_unprocessed([empty, zero], body) == [UNKNOWN] * 2
    body = answer(1, echo_of(empty, metadata=[{"name": "k", "value": None}]))
    assert isinstance(match_unprocessed([empty, A], body)[0], Rejected)
    two = answer(1, echo_of(empty, metadata=[{"name": "k", "value": "", "Value": "0"}]))
    assert match_unprocessed([empty, zero], two) == [UNKNOWN] * 2


def test_an_echo_with_more_metadata_than_is_read_fits_none() -> None:
    """Unless it came back as it was sent: reading it would take too long."""
    many = timed(parent_guid="p", metadata={f"k{number}": "v" for number in range(1001)})
    pairs = echo_of(many)["metadata"]
    assert isinstance(match_unprocessed([many, A], answer(1, echo_of(many)))[0], Rejected)
    assert match_unprocessed([many, A], answer(1, echo_of(many, metadata=pairs[::-1]))) == [UNKNOWN] * 2


def test_three_vague_echoes_of_two_events() -> None:
    """None was processed, so all are refused; what the third one means is not told."""
    one, two = (attrs.evolve(A, event_time=NOW + timedelta(seconds=number)) for number in (0, 1))
    vague = echo_of(one, eventTime=None)
    assert match_unprocessed([one, two, B], answer(0, vague, vague, vague)) == [REFUSED] * 3
