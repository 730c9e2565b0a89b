"""Bugs of the journal, to be planted one at a time in `lives`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rokt_events_async import Delivery, DeliveryFailedError
from rokt_events_async._pipeline import trips
from rokt_events_async._pipeline.backlog import Backlog
from rokt_events_async._pipeline.commits import Commits, StoredDelivery, is_settled
from rokt_events_async._pipeline.intake import DurableIntake
from rokt_events_async._pipeline.keyring import Episode
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.recovery import Recovery
from rokt_events_async._pipeline.sender import Sender
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.store import Page
from rokt_events_async._pipeline.trips import Batch
from rokt_events_async.outcomes import Cause
from tests.simulation.bugs import Bug, replace, together

JOURNAL_BUGS: dict[str, Bug] = {}


def bug(name: str) -> Callable[[Bug], Bug]:
    def register(plant: Bug) -> Bug:
        JOURNAL_BUGS[name] = plant
        return plant

    return register


@bug("track() returns before the commit")
def _() -> Any:
    async def accept(self: Any, delivery: Any, *, max_wait: Any) -> None:
        self.accept_nowait(delivery)

    return replace(DurableIntake, "accept", accept)


@bug("an event is accepted although it could not be stored")
def _() -> Any:
    def on_refused(self: Any, delivery: Any, failure: Any) -> None:
        if delivery.waiter is not None:
            delivery.commits = self._recorder.own
            self._on_stored(delivery)

    return replace(DurableIntake, "_on_refused", on_refused)


@bug("the mark is not awaited")
def _() -> Any:
    async def mark(self: Recorder, deliveries: Iterable[Delivery]) -> bool:
        for delivery in deliveries:
            if isinstance(delivery, StoredDelivery) and delivery.commits is not None:
                delivery.commits._marks.append(([delivery], self._loop.create_future()))
                delivery.commits._schedule()
        return True

    return replace(Recorder, "mark", mark)


@bug("a mark that could not be written counts as written")
def _() -> Any:
    original = Recorder.mark

    async def mark(self: Recorder, deliveries: Iterable[Delivery]) -> bool:
        await original(self, deliveries)
        return True

    return replace(Recorder, "mark", mark)


@bug("a clear refusal leaves the mark")
def _() -> Any:
    return replace(Sender, "_unmark", lambda self, batch, deliveries: None)


@bug("a lost answer takes the mark back")
def _() -> Any:
    def unmark(self: Any, batch: Batch, deliveries: Iterable[Delivery]) -> None:
        if self._recorder is not None and batch.is_marked:
            batch.is_marked = False
            self._recorder.unmark(deliveries)

    def hand_over(self: Any, batch: Batch) -> None:
        pending = [one for one in batch.deliveries if not is_settled(one)]
        unmark(self, batch, pending)
        batch.deliveries = self._settlement.defer(pending)

    return replace(Sender, "_hand_over", hand_over)


@bug("an outcome is told before the commit")
def _() -> Any:
    original = Commits.settle

    def settle(self: Commits, deliveries: Any, outcome: Any, *, maybe_duplicate: bool, tell: Any) -> None:
        tell(deliveries)
        original(self, deliveries, outcome, maybe_duplicate=maybe_duplicate, tell=lambda _: None)

    return replace(Commits, "settle", settle)


@bug("an outcome that could not be written is forgotten")
def _() -> Any:
    original = Commits._on_failed

    def on_failed(self: Commits, group: Any, failure: Any) -> None:
        group.settled.clear()
        original(self, group, failure)

    return replace(Commits, "_on_failed", on_failed)


@bug("a mark in a group that failed with its appends is forgotten")
def _() -> Any:
    original = Commits._on_failed

    def on_failed(self: Commits, group: Any, failure: Any) -> None:
        if group.appends:
            group.marks.clear()
        original(self, group, failure)

    return replace(Commits, "_on_failed", on_failed)


@bug("the flag of what an earlier process sent spreads over the batch")
def _() -> Any:
    def runs(deliveries: list[Delivery]) -> list[Batch]:
        batch = Batch(deliveries)
        batch.maybe_accepted = any(trips._was_sent(delivery) for delivery in deliveries)
        return [batch]

    return replace(trips, "_runs", runs)


@bug("what an earlier process sent is not flagged")
def _() -> Any:
    return replace(trips, "_was_sent", lambda delivery: False)


@bug("what an earlier process sent is sent again, though the policy forbids it")
def _() -> Any:
    def leave_sent(self: Any, delivery: Any) -> None:
        raise AssertionError("replaced below")

    original = Recovery.__init__

    def init(self: Any, **parts: Any) -> None:
        original(self, **parts)
        self._retry_unconfirmed = True

    return together(replace(Settlement, "leave_sent", leave_sent), replace(Recovery, "__init__", init))


@bug("the runs of a recovered batch are sent in the wrong order")
def _() -> Any:
    original = trips._runs

    def runs(deliveries: list[Delivery]) -> list[Batch]:
        return original(deliveries)[:1]

    return replace(trips, "_runs", runs)


@bug("an event that found no room on the way back is passed over")
def _() -> Any:
    original = Recovery._bring_back

    def bring_back(self: Recovery, source: Any, stored: Any, event: Any) -> bool:
        original(self, source, stored, event)
        return True

    return replace(Recovery, "_bring_back", bring_back)


@bug("a file is done with while its last events are in memory")
def _() -> Any:
    def go_on_with(self: Recovery, earlier: Any) -> bool:
        earlier.stuck = 10**9
        return original(self, earlier)

    original = Recovery._go_on_with
    return replace(Recovery, "_go_on_with", go_on_with)


@bug("files of other processes are not adopted")
def _() -> Any:
    return replace(Recovery, "_on_look_timer", lambda self: None)


@bug("a close fails what is on disk")
def _() -> Any:
    return replace(Settlement, "defer", lambda self, deliveries: list(deliveries))


@bug("a close in an outage goes on with the queue")
def _() -> Any:
    from rokt_events_async._pipeline.scheduler import Pool

    return together(
        replace(Pool, "_defer_queue", lambda self: None),
        replace(Sender, "defer", lambda self, trip: None),
    )


@bug("refused credentials end what is on disk")
def _() -> Any:
    original = Episode.__init__

    class Never(Episode):
        has_worked = property(lambda self: False, lambda self, value: None)

    def init(self: Any, **parts: Any) -> None:
        original(self, **parts)
        self.__class__ = Never

    return replace(Episode, "__init__", init)


@bug("recovered events are counted as accepted")
def _() -> Any:
    from rokt_events_async._pipeline.ledger import Ledger

    def recover(self: Ledger, delivery: Delivery, now: float) -> None:
        self.admit(delivery, now)
        self._recovered += 1

    return replace(Ledger, "recover", recover)


@bug("an event cancelled while it was stored is not accepted")
def _() -> Any:
    original = DurableIntake._on_stored

    def on_stored(self: DurableIntake, delivery: StoredDelivery) -> None:
        if delivery.waiter is not None and delivery.waiter.cancelled():
            return
        original(self, delivery)

    return replace(DurableIntake, "_on_stored", on_stored)


@bug("what is being stored at a close is told as failed")
def _() -> Any:
    return replace(
        Settlement,
        "_end_alone",
        lambda self, delivery, error, cause, reason: self._settle(
            delivery,
            (DeliveryFailedError if cause is Cause.CLOSED else error)(
                reason, event=delivery.event, cause=cause, reason=reason
            ),
        ),
    )


# The journal as overflow queue.


@bug("a new event overtakes deferred ones of its session")
def _() -> Any:
    return replace(Recovery, "is_behind", lambda self, session_id: False)


@bug("whatever is deferred, all sessions queue behind it")
def _() -> Any:
    return replace(Recovery, "is_behind", lambda self, session_id: not self._own.backlog.is_empty)


@bug("a session at its share stops what is behind it")
def _() -> Any:
    def take_page(self: Recovery, source: Any, page: Any) -> dict[int, str]:
        for place, stored in enumerate(page.events):
            event = self._decode(source, stored)
            assert event is not None
            if not self._may_hold(event.session_id, len(stored.wire)):
                source.not_before = self._loop.time() + 0.5
                read_to = stored.number - 1
                return original(self, source, Page(page.events[:place], read_to, page.stored))
        return original(self, source, page)

    original = Recovery._take_page
    return replace(Recovery, "_take_page", take_page)


@bug("a session that was passed over is never come back to")
def _() -> Any:
    return replace(Backlog, "on_released", lambda self, session_id: None)


@bug("a session that was passed over is done with after one page")
def _() -> Any:
    def take_session(self: Recovery, source: Any, session_id: str, page: Any) -> None:
        original(self, source, session_id, page)
        source.backlog._passed.pop(session_id, None)
        source.backlog._ready.pop(session_id, None)

    original = Recovery._take_session
    return replace(Recovery, "_take_session", take_session)


@bug("what is passed over in an earlier process's file is not made findable")
def _() -> Any:
    return replace(Recovery, "_make_findable", lambda self, commits, sessions: None)


@bug("a page that does not fit counts as read")
def _() -> Any:
    original = Backlog.read

    def read(self: Backlog, number: int, *, at: int | None = None) -> None:
        original(self, max(number, min(self.until, number + 1)), at=at)

    return replace(Backlog, "read", read)


@bug("the loader reads up to what is not written yet")
def _() -> Any:
    original = Recovery._ask

    def ask(self: Recovery, source: Any) -> bool:
        written, source.commits.written = source.commits.written, 10**9
        try:
            return original(self, source)
        finally:
            source.commits.written = written

    return replace(Recovery, "_ask", ask)


@bug("what comes back is counted twice")
def _() -> Any:
    from rokt_events_async._pipeline.ledger import Ledger

    return replace(Ledger, "bring_back", lambda self, delivery, now: self.admit(delivery, now))


@bug("all of memory is for what comes back")
def _() -> Any:
    original = Recovery.__init__

    def init(self: Any, **parts: Any) -> None:
        original(self, **parts)
        self._limit = self._limit * 4

    return replace(Recovery, "__init__", init)


@bug("a flush does not wait for what is deferred")
def _() -> Any:
    async def brought_back(self: Recovery, until: int) -> None:
        return

    return replace(Recovery, "brought_back", brought_back)


@bug("a close leaves what is deferred, though requests succeed")
def _() -> Any:
    return replace(Recovery, "close", Recovery.stop)


@bug("the journal takes more than its bound")
def _() -> Any:
    original = Recorder._on_commit

    def on_commit(self: Recorder, result: Any) -> None:
        original(self, result)
        self.is_full = False

    return replace(Recorder, "_on_commit", on_commit)


@bug("what waits behind a deferred batch is sent at a close")
def _() -> Any:
    from rokt_events_async._pipeline.scheduler import Pool

    return replace(Pool, "_leave_rest", lambda self, trip: None)


@bug("what comes back at a close overtakes what was left")
def _() -> Any:
    from rokt_events_async._pipeline.scheduler import Pool

    return replace(Pool, "has_left", lambda self, session_id: False)
