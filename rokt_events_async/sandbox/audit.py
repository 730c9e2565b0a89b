"""Compares a client's account with the sandbox's record, event by event."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from rokt_events_async.sandbox.record import RecordedRequest

Outcome = Literal["delivered", "rejected", "expired", "failed", "unconfirmed"]


@attrs.frozen(kw_only=True)
class Claim:
    """What a client says of one event.

    Args:
        event: The event in the wire's names, as it was sent.
        outcome: One of the five outcomes.
        codes: The API's codes, if it was rejected.
        maybe_duplicate: True if the client says that the event may have been counted twice.
    """

    event: Mapping[str, Any]
    outcome: Outcome
    codes: tuple[str | None, ...] = ()
    maybe_duplicate: bool = False


@attrs.define
class _Seen:
    accepted: int = 0
    refused_with: set[tuple[str | None, ...]] = attrs.Factory(set)


def disagreements(requests: Iterable[RecordedRequest], claims: Iterable[Claim]) -> list[str]:
    """Returns where the client's account and the record differ; empty if they agree.

    They agree if delivered events were accepted, rejected events were refused with the claimed codes,
    expired and failed events were never accepted, events that were accepted twice are claimed as possible
    duplicates, and every accepted event is claimed.
    """
    record = _read_record(requests)
    claimed: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        claimed[_key(claim.event)].append(claim)
    found: list[str] = []
    for key in record.keys() | claimed.keys():
        found.extend(f"{problem}: {key}" for problem in _compare(record[key], claimed[key]))
    return sorted(found)


def _compare(seen: _Seen, claims: Sequence[Claim]) -> list[str]:
    """Compares the claims on events that are equal in every field with the record of these events."""
    problems = []
    delivered = sum(claim.outcome == "delivered" for claim in claims)
    open_ended = any(claim.outcome == "unconfirmed" or claim.maybe_duplicate for claim in claims)
    if seen.accepted < delivered:
        problems.append(f"{delivered} called delivered, {seen.accepted} accepted")
    if seen.accepted > delivered and not open_ended:
        problems.append(f"{seen.accepted} accepted, only {delivered} called delivered")
    return problems + [
        f"called rejected with {claim.codes}, refused with {sorted(map(str, seen.refused_with))}"
        for claim in claims
        if claim.outcome == "rejected" and claim.codes not in seen.refused_with
    ]


def _read_record(requests: Iterable[RecordedRequest]) -> dict[str, _Seen]:
    record: dict[str, _Seen] = defaultdict(_Seen)
    for request in requests:
        for item in request.events:
            seen = record[_key(item.event)]
            seen.accepted += item.is_accepted
            seen.refused_with |= {tuple(problem.code for problem in item.errors)} if item.errors else set()
        if request.refusal is not None:
            for event in events_of(request.body):
                record[_key(event)].refused_with.add((request.refusal.problem.code,))
    return record


def events_of(body: bytes) -> list[Mapping[str, Any]]:
    """Returns the events of a request that was refused as a whole, if its body can be read."""
    try:
        events = json.loads(body)["events"]
    except (ValueError, TypeError, KeyError):
        return []
    return events if isinstance(events, list) else []


def _key(event: Mapping[str, Any]) -> str:
    return json.dumps(event, sort_keys=True)
