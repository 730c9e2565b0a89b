"""Every fault and every echo form of the sandbox, over a real socket, held against its record."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from rokt_events_async import (
    ApiError,
    Cause,
    Delivery,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    EventRejectedError,
    PartnerEvent,
    Receipt,
    RetryPolicy,
)
from rokt_events_async.sandbox import ECHO_FORMS, FAULTS, Echo, Fault, Sandbox
from rokt_events_async.sandbox.audit import disagreements
from rokt_events_async.testing import claim_of
from tests.samples import event, unchecked

pytestmark = pytest.mark.filterwarnings("ignore:event type")

LOSES_THE_ANSWER = {
    "silence",
    "silence-processed",
    "reset-before",
    "reset-during",
    "reset-after",
    "garbage",
    "504-processed",
    "slow-beyond-patience",
}
SPOILS_THE_ANSWER = {"cut", "empty", "html", "huge", "compressed", "nonsense"}
IS_A_CLEAR_REFUSAL = {"503-retry-after", "429-retry-after"}
COMES_FROM_BETWEEN = {"500", "502", "504", "408", "503-html"}
MISCOUNTS = {"count-too-high", "count-too-low"}


async def settle(sandbox: Sandbox, **settings: Any) -> list[tuple[Delivery, Receipt | DeliveryError]]:
    """Sends 24 good events of 4 sessions, each with a refused one in its midst, and hears of them all."""
    events = [event(f"session-{index % 4}") for index in range(12)]
    events += [event(f"session-{index}", event_type="SignalUnheardOf") for index in range(4)]
    events += [event(f"session-{index % 4}", metadata={"kind": str(index)}) for index in range(12)]
    async with Emitter(sandbox.credentials, endpoint=sandbox.url, close_timeout=300.0, **settings) as emitter:
        deliveries = [await emitter.track(item) for item in events]
        outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
        assert emitter.stats.pending == 0
    settled: list[tuple[Delivery, Receipt | DeliveryError]] = []
    for delivery, outcome in zip(deliveries, outcomes, strict=True):
        assert isinstance(outcome, Receipt | DeliveryError)
        settled.append((delivery, outcome))
    return settled


def assert_agreement(sandbox: Sandbox, settled: list[tuple[Delivery, Receipt | DeliveryError]]) -> None:
    claims = [claim_of(delivery.event, outcome) for delivery, outcome in settled]
    assert disagreements(sandbox.requests, claims) == []


def outcomes_of(settled: list[tuple[Delivery, Receipt | DeliveryError]]) -> set[str]:
    return {outcome.outcome for _, outcome in settled}


@pytest.mark.parametrize("form", ECHO_FORMS)
async def test_each_echo_form_is_attributed(form: str) -> None:
    """Whatever the echo looks like, refused events are found, or none is claimed."""
    async with Sandbox(echo=Echo.of(form), seed=7) as sandbox:
        settled = await settle(sandbox)

    assert_agreement(sandbox, settled)
    if form in ("foreign", "wrong-count"):
        assert "unconfirmed" in outcomes_of(settled)
    else:
        assert outcomes_of(settled) == {"delivered", "rejected"}
        rejected = [outcome for _, outcome in settled if isinstance(outcome, EventRejectedError)]
        assert len(rejected) == 4


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations(sorted(set(ECHO_FORMS) - {"default"}), 2))
)
async def test_echo_forms_combine(one: str, other: str) -> None:
    """Two oddities at once lead to no false claim either."""
    async with Sandbox(echo=Echo.of(one, other), seed=7) as sandbox:
        settled = await settle(sandbox)

    assert_agreement(sandbox, settled)


@pytest.mark.parametrize("name", [*FAULTS, "500", "502", "504", "408", "429", "slow-beyond-patience"])
async def test_each_fault_once(name: str) -> None:
    """A fault on the first requests: everything is settled, and both accounts agree."""
    fault = Fault(delay=60.0) if name == "slow-beyond-patience" else Fault.of(name)
    async with Sandbox(script=[fault] * 4) as sandbox:
        settled = await settle(sandbox)

    assert_agreement(sandbox, settled)
    outcomes = outcomes_of(settled)
    duplicates = [outcome.maybe_duplicate for _, outcome in settled if isinstance(outcome, Receipt)]
    if name in SPOILS_THE_ANSWER:
        assert outcomes == {"unconfirmed"}
    elif name in MISCOUNTS:
        assert outcomes == {"rejected", "unconfirmed"}
    elif name == "redirect":
        assert outcomes == {"failed"}
    elif name == "drip":
        assert outcomes == {"unconfirmed"}, "only a bound on the whole exchange stops it"
    elif name in LOSES_THE_ANSWER | COMES_FROM_BETWEEN:
        assert outcomes == {"delivered", "rejected"}
        assert all(duplicates)
    else:
        assert outcomes == {"delivered", "rejected"}
        assert not any(duplicates)


@pytest.mark.parametrize("name", sorted({*FAULTS, "500", "502", "504", "408", "429"} - {"slow"}))
async def test_each_fault_for_ever(name: str) -> None:
    """A server that never recovers: everything ends by its deadline, honestly."""
    loop = asyncio.get_running_loop()
    async with Sandbox(faults={name: 1.0}) as sandbox:
        started = loop.time()
        settled = await settle(sandbox, retry=RetryPolicy(deadline=30.0))

        assert loop.time() - started < 30 + 10 + 5
    assert_agreement(sandbox, settled)
    if name in IS_A_CLEAR_REFUSAL or name == "429":
        assert outcomes_of(settled) == {"failed"}
    elif name in LOSES_THE_ANSWER | COMES_FROM_BETWEEN:
        assert outcomes_of(settled) == {"unconfirmed"}


@pytest.mark.parametrize("name", sorted(LOSES_THE_ANSWER - {"504-processed", "slow-beyond-patience"}))
async def test_a_lost_answer_is_not_sent_again_when_told_so(name: str) -> None:
    """`retry_unconfirmed=False`: one request, and unconfirmed."""
    async with Sandbox(faults={name: 1.0}) as sandbox:
        settled = await settle(sandbox, retry=RetryPolicy(retry_unconfirmed=False))

    assert outcomes_of(settled) == {"unconfirmed"}
    assert len(sandbox.requests) == 4


async def test_a_504_is_sent_again_all_the_same() -> None:
    """The specification asks for it: `retry_unconfirmed` speaks of lost answers, and this one came."""
    async with Sandbox(script=[504]) as sandbox:
        async with Emitter(
            sandbox.credentials, endpoint=sandbox.url, retry=RetryPolicy(retry_unconfirmed=False)
        ) as emitter:
            receipt = await emitter.deliver(event())

    assert receipt.maybe_duplicate


@pytest.mark.parametrize("status", [300, 301, 302, 303, 308, 404, 405, 407, 409, 415, 451, 501, 505])
async def test_other_statuses_end_at_once(status: int) -> None:
    """Never sent again: as failed if the server says that it did not take them, else as unconfirmed."""
    async with Sandbox(faults={status: 1.0}) as sandbox:
        settled = await settle(sandbox)

    assert outcomes_of(settled) == {"unconfirmed" if status in (300, 303, 409, 451) else "failed"}
    assert {one.cause for _, one in settled if isinstance(one, DeliveryError)} == {Cause.STATUS}
    assert {outcome.status for _, outcome in settled if isinstance(outcome, DeliveryError)} == {status}
    assert len(sandbox.requests) == 4


async def test_bad_luck_of_every_kind() -> None:
    """A tenth of everything, drawn from a seed: both accounts still agree."""
    names = [name for name in FAULTS if name not in ("huge", "slow", "compressed")]
    async with Sandbox(faults={name: 0.9 / len(names) for name in names}, seed=3) as sandbox:
        settled = []
        for _ in range(3):
            settled += await settle(sandbox, max_batch_size=2)

    assert_agreement(sandbox, settled)


async def test_duplicates_are_counted() -> None:
    """Events sent again after a lost answer are possible duplicates, each counted once."""
    async with Sandbox(script=["reset-after", "silence-processed", None]) as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            receipts = await asyncio.gather(*(emitter.deliver(event()) for _ in range(5)))

    assert all(receipt.maybe_duplicate and receipt.attempts == 3 for receipt in receipts)
    assert emitter.stats.possible_duplicates == 5
    assert len(sandbox.events) == 15


# A lost answer, and then one that tells.


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_lost_and_then_refused_is_rejected(status: int) -> None:
    """Rokt refuses what the event says, whatever became of the first request."""
    async with Sandbox(script=["reset-after", status]) as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            with pytest.raises(EventRejectedError):
                await emitter.deliver(event())


@pytest.mark.parametrize("then", [401, 403, 404, "redirect", 501])
async def test_lost_and_then_no_verdict_is_unconfirmed(then: int | str) -> None:
    """It may have been accepted by the first request, and nothing said otherwise."""
    async with Sandbox(script=["reset-after", then]) as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            with pytest.raises(DeliveryUnconfirmedError):
                await emitter.deliver(event())


# The specification's examples, over a real socket.


async def test_the_request_example() -> None:
    """Comments removed, times moved to now: 200, and three receipts."""
    common = {
        "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "sessionId": "aec20024-8d23-46be-95f3-9be5d86292a9",
        "clientUniqueId": "10f7d87b-e879-47b2-9638-a667e63beae2",
    }
    examples = [
        ("SignalImpression", "58bcbaa0-e13c-4a3d-84cd-2803ccc35394", "AdditionalData", "ImpressionSlot"),
        ("SignalViewed", "b3a1d523-5490-49f0-a379-7a67628a4cdd", "AdditionalData", "ImpressionCreative"),
        ("SignalResponse", "6bea8e29-b3cd-4717-bd82-59ccbca0d863", "experienceId", "RedButton"),
    ]
    wire = [
        common | {"eventType": kind, "parentGuid": guid, "metadata": [{"name": name, "value": value}]}
        for kind, guid, name, value in examples
    ]
    async with Sandbox() as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            receipts = await asyncio.gather(*(emitter.deliver(PartnerEvent.from_dict(data)) for data in wire))

    assert [receipt.attempts for receipt in receipts] == [1, 1, 1]
    assert [request.status for request in sandbox.requests] == [200]
    assert json.loads(sandbox.requests[0].body) == {"events": wire}


async def test_the_422_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """26 events in one request, which only a fault could send: refused, split, and nothing is lost."""
    async with Sandbox() as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            assert emitter._engine is not None
            monkeypatch.setattr(emitter._engine.pool._queue, "_max_batch_size", 26)
            receipts = await asyncio.gather(*(emitter.deliver(event()) for _ in range(26)))

    assert {receipt.attempts for receipt in receipts} == {2}
    assert [request.status for request in sandbox.requests] == [422, 200, 200]
    assert str(sandbox.requests[0]) == "#1  422  refused  TooManyEvents"


async def test_the_400_example() -> None:
    """A body that cannot be read: the event that spoilt it is told in the API's words."""
    async with Sandbox() as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            delivery = await emitter.track(event())
            delivery.wire = delivery.wire[:-1]
            with pytest.raises(EventRejectedError) as caught:
                await delivery

    assert caught.value.errors == (ApiError("InvalidRequestPayload", "Request body format is not valid"),)
    assert caught.value.status == 400


async def test_the_207_example() -> None:
    """Its four errors come back as one `EventRejectedError`, the others as receipts."""
    bad = unchecked(
        event_type="Unknown",
        session_id="",
        parent_guid="",
        client_unique_id="265d3a90-4c84-4c17-99af-e09b862b925c",
    )
    async with Sandbox() as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            travel_with(emitter, "session")
            deliveries = [await emitter.track(event("session")) for _ in range(5)]
            spoilt = await emitter.track(bad)
            spoilt.wire = spoilt.wire.replace(
                spoilt.event.to_dict()["eventTime"].encode(), b"0001-01-01T00:00:00Z"
            )
            outcomes = await asyncio.gather(*deliveries, spoilt, return_exceptions=True)

    error = outcomes.pop()
    assert isinstance(error, EventRejectedError)
    assert [(problem.code, problem.message) for problem in error.errors] == [
        ("InvalidEventType", "Event type is invalid"),
        ("SessionIdMissing", "SessionId is missing or invalid"),
        ("ParentGuidIsMissing", "ParentGuid is null or empty"),
        ("EventTimeIsMissing", "EventTime is null or default"),
    ]
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert [len(request.events) for request in sandbox.requests] == [6]
    assert sandbox.requests[0].status == 207


def travel_with(emitter: Emitter, session: str) -> None:
    """Files events without a session under this one, which the public face would never do."""
    assert emitter._engine is not None
    queue = emitter._engine.pool._queue
    file = queue.add

    def add(session_id: str, item: Delivery, now: float, size: int = 0) -> bool:
        return file(session_id or session, item, now, size)

    queue.add = add  # type: ignore[method-assign]


async def test_credentials_refused() -> None:
    """A 401 says which credentials, fails every event, and is logged once."""
    async with Sandbox() as sandbox:
        from rokt_events_async import Credentials, CredentialsRefusedError

        wrong = Credentials(pub_id="rpub-wrong", secret="rsec-wrong", tag_id="7")
        async with Emitter(wrong, endpoint=sandbox.url) as emitter:
            for _ in range(2):
                with pytest.raises(CredentialsRefusedError, match="'rpub-wrong' with tag_id '7'") as caught:
                    await emitter.deliver(event())

    assert caught.value.cause is Cause.CREDENTIALS
    assert isinstance(caught.value, DeliveryFailedError)
    assert len(sandbox.requests) == 1, "the second event fails without a request"


async def test_refused_credentials_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not once an event: a shop on its busiest day has many."""
    async with Sandbox(faults={403: 1.0}) as sandbox:
        async with Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
            await asyncio.gather(
                *(emitter.deliver(event(f"s{index}")) for index in range(5)), return_exceptions=True
            )

    assert len([record for record in caplog.records if record.name == "rokt_events_async"]) == 1
