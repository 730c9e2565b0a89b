"""The journey of one batch: what may still be sent, one request, and what its reply does to the events.

```
                            park ◀──────────── retry ◀───────────────┐
                             │                                       │
   overdue, expired leave ◀──┘──▶ POST ──▶ classify ──▶ settled / split / given up
```

Every path ends in an outcome. A batch whose task is cancelled, or dies of a fault, is settled too: as
unconfirmed if Rokt may have accepted it, otherwise as failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

from rokt_events_async._pipeline import retry
from rokt_events_async._pipeline.breaker import Breaker
from rokt_events_async._pipeline.commits import is_settled
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.keyring import Episode, Keyring
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.settlement import Settlement, in_words
from rokt_events_async._pipeline.splitting import SplitGuard
from rokt_events_async._pipeline.transport import Request, Transport
from rokt_events_async._pipeline.trips import Batch, Trip
from rokt_events_async._protocol.encoding import join
from rokt_events_async._protocol.replies import NoReply, Reply, says_all_processed
from rokt_events_async._protocol.statuses import Disposition, classify
from rokt_events_async._protocol.verdicts import Delivered, Rejected, match_unprocessed
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.log import log_fault
from rokt_events_async.events import MAX_AGE, is_expired
from rokt_events_async.observers import RequestReport, RetryReport
from rokt_events_async.outcomes import Cause, Delivery
from rokt_events_async.settings import EmitterSettings

_MAX_SERVER_ERRORS: Final = 3
"""After this many failures with a 5xx other than 503 a batch is split: one event may make the server fail."""

_INTERRUPTED: Final = NoReply("interrupted")


class Sender:
    """Sends batches and settles their events.

    Args:
        clock: Returns the aware now.
        now: Returns the loop's time.
    """

    def __init__(
        self,
        *,
        settings: EmitterSettings,
        transport: Transport,
        ledger: Ledger,
        settlement: Settlement,
        keyring: Keyring,
        episode: Episode,
        recorder: Recorder | None,
        breaker: Breaker,
        health: HealthMonitor,
        hooks: Hooks,
        clock: Callable[[], datetime],
        random: retry.Random,
        now: Callable[[], float],
    ) -> None:
        self._endpoint = settings.endpoint
        self._policy = settings.retry
        self._deadline = settings.deadline
        self._transport = transport
        self._ledger = ledger
        self._settlement = settlement
        self._keyring = keyring
        self._episode = episode
        self._recorder = recorder
        self._guard = SplitGuard(wait=sum(settings.retry.wait) / 2)
        self._breaker = breaker
        self._health = health
        self._hooks = hooks
        self._clock = clock
        self._random = random
        self._now = now
        self.in_flight = 0
        self.requests = 0
        self.retries = 0

    async def advance(self, trip: Trip) -> float | None:
        """Sends what is left of a trip, until each event is settled or a batch must wait.

        Halves go in order, the first one first.

        Returns:
            The seconds to wait before the next attempt; `None` if the trip is over.
        """
        try:
            while (batch := trip.batch) is not None:
                wait = await self._attempt(trip, batch)
                if batch.halves or wait is None:
                    trip.advance()
                if wait is not None:
                    return wait
            if trip.is_spoilt:
                self._guard.on_spoilt()
        except Exception as fault:  # noqa: BLE001 -- whatever the fault, its events have to be settled
            self._interrupt(trip, Cause.INTERNAL_ERROR, "a fault in the library, see the log")
            log_fault(fault)
        except BaseException:  # Cancelled; or an exit, which has to end the program.
            self.close(trip)
            raise
        return None

    def close(self, trip: Trip) -> None:
        """Settles what is left of a trip, or defers it, because the emitter is closed."""
        for batch in trip.rest():
            batch.interrupt()
            self._hand_over(batch)
        self._interrupt(trip, Cause.CLOSED, "the emitter was closed")

    def defer(self, trip: Trip) -> None:
        """Hands over to the next process what is left of a trip and is in the journal.

        What must not be sent again, because Rokt may have accepted it, ends here.
        """
        for batch in trip.rest():
            self._hand_over(batch)
            if batch.maybe_accepted and not self._policy.retry_unconfirmed:
                reason = batch.with_last_reason("the emitter was closed")
                self._settlement.give_up(batch, batch.deliveries, Cause.CLOSED, reason)
                batch.deliveries = []
        trip.prune()

    def _hand_over(self, batch: Batch) -> None:
        if self._recorder is None or (batch.maybe_accepted and not self._policy.retry_unconfirmed):
            return
        pending = [delivery for delivery in batch.deliveries if not is_settled(delivery)]
        self._unmark(batch, pending)
        if batch.has_lost:  # A process that ends in good order is not what these events kill.
            self._recorder.unmark(pending, at_least=1)
        batch.deliveries = self._settlement.defer(pending)

    def _unmark(self, batch: Batch, deliveries: Iterable[Delivery]) -> None:
        """Writes that this process has not had events accepted, unless it may have."""
        if self._recorder is not None and batch.is_marked and not batch.has_lost:
            batch.is_marked = False
            self._recorder.unmark(deliveries)

    def _interrupt(self, trip: Trip, cause: Cause, reason: str) -> None:
        for batch in trip.rest():
            pending = [delivery for delivery in batch.deliveries if not is_settled(delivery)]
            batch.interrupt()
            self._settlement.give_up(batch, pending, cause, batch.with_last_reason(reason))
        trip.clear()

    def give_up_overdue(self, trip: Trip) -> None:
        """Gives up the overdue events of a parked trip; empty batches leave it."""
        now = self._now()
        while (batch := trip.batch) is not None:
            self._drop_overdue(batch, now)
            if batch.deliveries:
                return
            trip.advance()

    # One attempt.

    async def _attempt(self, trip: Trip, batch: Batch) -> float | None:
        """Sends a batch once and settles what the reply settles. Returns the wait before the next attempt."""
        now = self._now()
        if not self._has_any(batch, now):
            return None
        if self._episode.is_on:
            if self._episode.fails_at_once(now=now) and not trip.is_splitting:
                self._settlement.refuse_credentials(batch, self._episode.reason)
                return None
            if now < self._episode.probe_at and self._is_held(trip):
                return self._wait_until(trip, self._episode.probe_at, now)
            await self._prepare_probe(now)
            now = self._now()
            if not self._has_any(batch, now):
                return None
        if self._recorder is not None and not batch.is_marked:
            batch.is_marked = await self._recorder.mark(batch.deliveries)
            if not batch.is_marked:  # Never sent unmarked: it waits for the disk.
                now = self._now()
                return self._wait_until(trip, now + (self._policy.wait[0] or _LEAST_WAIT), now)
            now = self._now()
            if not self._has_any(batch, now):
                return None
        return self._on_reply(trip, batch, await self._post(batch, now))

    def _wait_until(self, trip: Trip, moment: float, now: float) -> float:
        """Returns the wait until a moment before which nothing is sent, a close's last attempt neither."""
        trip.not_before = moment
        return moment - now

    async def _post(self, batch: Batch, now: float) -> Reply | NoReply:
        """Sends a batch once."""
        request = self._next_request(batch, now)
        self._breaker.on_start(now=now)
        reply: Reply | NoReply = _INTERRUPTED
        self.in_flight += 1
        try:
            reply = await self._transport.post(request)
        finally:
            self.in_flight -= 1
            if self._hooks.request:
                self._report_request(batch, request, reply, self._now() - now)
        return reply

    def _has_any(self, batch: Batch, now: float) -> bool:
        """Gives up what is overdue or expired. Returns True if events are left."""
        self._drop_overdue(batch, now)
        self._drop_expired(batch)
        return bool(batch.deliveries)

    def _is_held(self, trip: Trip) -> bool:
        """Returns True if a batch has to wait for the next probe: another one, or its other half, was it."""
        return self._episode.holds_all or not self._episode.has_worked or trip.is_splitting

    async def _prepare_probe(self, now: float) -> None:
        """Lets no other request start meanwhile, and asks for other credentials."""
        self._episode.on_start(now=now)
        if self._episode.has_worked and self._episode.holds_all:
            self._breaker.pause(until=self._episode.probe_at)
        await self._keyring.refresh(now=now)

    def _report_request(
        self, batch: Batch, request: Request, reply: Reply | NoReply, duration: float
    ) -> None:
        report = RequestReport(
            deliveries=tuple(batch.deliveries),
            endpoint=self._endpoint,
            size=len(request.body),
            attempt=batch.attempts,
            started_at=self._clock() - timedelta(seconds=duration),
            duration=duration,
            status=reply.status if isinstance(reply, Reply) else None,
            problem=reply.reason if isinstance(reply, NoReply) else None,
        )
        self._hooks.request(report)

    def _next_request(self, batch: Batch, now: float) -> Request:
        batch.request = Request(join([delivery.wire for delivery in batch.deliveries]))
        batch.began, batch.credentials = now, self._keyring.current
        batch.was_maybe_accepted = batch.maybe_accepted
        batch.attempts += 1
        self.requests += 1
        self.retries += batch.is_retry
        batch.is_retry = False
        if batch.maybe_accepted and not batch.is_resent:
            batch.is_resent = True
            self._ledger.count_possible_duplicates(len(batch.deliveries))
        return batch.request

    def _drop_overdue(self, batch: Batch, now: float) -> None:
        if batch.deliveries[0].accepted_at <= now - self._deadline:  # The first was accepted first.
            overdue = batch.take_front(self.overdue_by(now))
            reason = f"its deadline of {self._deadline:g} s has passed"
            self._settlement.give_up(batch, overdue, Cause.DEADLINE, batch.with_last_reason(reason))

    def overdue_by(self, now: float) -> Callable[[Delivery], bool]:
        """Returns the test for events whose delivery deadline has passed at `now`."""
        accepted_before = now - self._deadline
        return lambda delivery: delivery.accepted_at <= accepted_before

    def _drop_expired(self, batch: Batch) -> None:
        now = self._clock()
        oldest = now - MAX_AGE
        for delivery in batch.deliveries:
            time = delivery.event.event_time
            if time is not None and time < oldest:
                break
        else:
            return
        expired = [delivery for delivery in batch.deliveries if is_expired(_time(delivery), now=now)]
        batch.deliveries = [delivery for delivery in batch.deliveries if delivery not in expired]
        for delivery in expired:
            self._settlement.expire(batch, delivery)

    # What a reply does to a batch.

    def _on_reply(self, trip: Trip, batch: Batch, reply: Reply | NoReply) -> float | None:
        """Settles what the reply settles. Returns the wait before the next attempt, if there is one."""
        if isinstance(reply, NoReply):
            return self._on_no_reply(trip, batch, reply)
        batch.status = reply.status
        trip.session.is_slow = False
        disposition = Disposition.ANSWERED if reply.status in _ANSWERED else self._classify(reply)
        if disposition is not Disposition.ANSWERED:
            batch.last_cause = Cause.STATUS
        wait = None
        match disposition:
            case Disposition.ANSWERED:
                self._on_answer(trip, batch, reply)
            case Disposition.RETRY | Disposition.RETRY_MAYBE_ACCEPTED:
                if disposition is Disposition.RETRY_MAYBE_ACCEPTED:
                    batch.lose()
                return self._on_failure(trip, batch, f"HTTP {reply.status}", reply)
            case Disposition.REFUSED:
                self._breaker.on_answer()
                self._on_refused(trip, batch, reply)
            case Disposition.CREDENTIALS_REFUSED:
                self._breaker.on_answer()
                wait = self._on_credentials_refused(trip, batch, reply)
            case _:
                self._breaker.on_answer()
                self._on_final(batch, disposition, reply)
        if self._health.is_watching:
            self._health.refresh()
        return wait

    def _classify(self, reply: Reply) -> Disposition:
        asks_to_wait = self._retry_after(reply) is not None
        # A body that was lost, or is too large, is a body.
        return classify(reply.status, asks_to_wait=asks_to_wait, has_body=reply.body != b"")

    def _retry_after(self, reply: Reply) -> float | None:
        value = reply.headers.get("Retry-After")
        return None if value is None else retry.parse_retry_after(value, now=self._clock())

    def _on_final(self, batch: Batch, disposition: Disposition, reply: Reply) -> None:
        """Ends a batch whose answer is neither good nor to be retried."""
        reason = f"HTTP {reply.status}{self._hint(reply.status)}"
        if disposition is Disposition.UNCONFIRMED:
            self._settlement.leave_open(batch, batch.deliveries, Cause.STATUS, reason)
        else:
            errors = self._settlement.read_errors(reply)
            self._settlement.give_up(batch, batch.deliveries, Cause.STATUS, reason, errors)

    def _hint(self, status: int) -> str:
        if 300 <= status <= 399:
            return ", redirects are not followed"
        return f", is the endpoint right? It is {self._endpoint}" if status in (404, 405) else ""

    def _on_no_reply(self, trip: Trip, batch: Batch, reply: NoReply) -> float | None:
        assert batch.request is not None
        if reply.is_timeout or reply.is_unreadable:
            trip.session.is_slow = reply.is_timeout
        if not batch.request.went_out:
            batch.last_cause = Cause.UNREACHABLE
            return self._on_failure(trip, batch, reply.reason, None)
        batch.lose()
        batch.last_cause = Cause.UNREADABLE if reply.is_unreadable else Cause.NO_ANSWER
        if reply.is_unreadable:
            batch.unreadable += 1
        if not self._policy.retry_unconfirmed:
            reason = f"{reply.reason} after the request went out"
        elif batch.unreadable > _MAX_UNREADABLE:
            reason = f"{reply.reason}, {_attempts(batch)}"
        else:
            return self._on_failure(trip, batch, reply.reason, None)
        self._note_failure(trip, batch, reply.reason, None)
        self._settlement.give_up(batch, batch.deliveries, batch.last_cause, reason)
        return None

    def _note_failure(self, trip: Trip, batch: Batch, reason: str, reply: Reply | None) -> float:
        """Tells the breaker and the health of a failed attempt. Returns the `Retry-After`, in seconds."""
        now = self._now()
        status = reply.status if reply else None
        retry_after = (self._retry_after(reply) if reply else None) or 0.0
        if batch.last_cause is Cause.UNREADABLE:
            self._breaker.on_answer()  # It is one, though it cannot be read.
        else:
            self._breaker.on_failure(trip.session.id, now=now, retry_after=retry_after, status=status)
        self._health.on_failure(reason, now=now)
        return retry_after

    def _on_failure(self, trip: Trip, batch: Batch, reason: str, reply: Reply | None) -> float | None:
        """Returns the wait after a failed attempt, if the batch is retried."""
        was_open = self._breaker.is_open
        is_clear = batch.request is not None and not batch.request.went_out
        is_clear = is_clear or (reply is not None and self._classify(reply) is Disposition.RETRY)
        retry_after = self._note_failure(trip, batch, reason, reply)
        batch.failures += 1
        batch.server_errors += reply is not None and reply.status >= 500 and reply.status != 503
        if batch.was_maybe_accepted and not is_clear and not was_open:
            batch.resends += 1
        wait = self._retry(trip, batch, reason, retry_after)
        if is_clear:
            self._unmark(batch, batch.deliveries)
        is_suspect = batch.server_errors >= _MAX_SERVER_ERRORS and len(batch.deliveries) > 1
        if wait is not None and is_suspect and not was_open:
            batch.split()
        return wait

    def _retry(self, trip: Trip, batch: Batch, reason: str, retry_after: float = 0.0) -> float | None:
        """Returns the wait before the next attempt. Events that cannot have one are given up now."""
        now = self._now()
        batch.request = None
        batch.reason = reason
        if (cause := self._has_had_enough(batch)) is not None:
            self._settlement.give_up(batch, batch.deliveries, Cause.ATTEMPTS, f"{reason}{cause}")
            return None
        wait = retry.next_wait(
            self._policy, failures=batch.failures, retry_after=retry_after, random=self._random
        )
        trip.not_before = now + max(retry_after, self._policy.wait[0])
        overdue = batch.take_front(self.overdue_by(now + wait))
        self._settlement.give_up(
            batch, overdue, Cause.DEADLINE, f"{reason}, and its deadline falls before the next attempt"
        )
        if not batch.deliveries:
            return None
        batch.is_retry = True
        if self._hooks.retry:
            self._report_retry(batch, wait)
        return wait

    def _has_had_enough(self, batch: Batch) -> str | None:
        """Returns why a batch must not be sent again, if it must not."""
        attempts = _attempts(batch)
        if self._policy.max_attempts is not None and batch.attempts >= self._policy.max_attempts:
            return f", {attempts}"
        if batch.resends >= self._policy.max_unconfirmed_attempts:
            return f", {attempts}, and Rokt may have accepted it each time"
        return None

    def _report_retry(self, batch: Batch, wait: float) -> None:
        pending, sessions = self._health.backlog()
        self._hooks.retry(
            RetryReport(
                tuple(batch.deliveries),
                batch.attempts,
                batch.status if batch.last_cause in _WITH_STATUS else None,
                batch.reason,
                wait,
                pending=pending,
                sessions=sessions,
            )
        )

    def _on_answer(self, trip: Trip, batch: Batch, reply: Reply) -> None:
        self._guard.on_answer()
        self._breaker.on_answer()
        if self._episode.is_on or not self._episode.has_worked:
            was_on = self._episode.is_on
            self._episode.on_answer(began=batch.began)
            if was_on and not self._episode.is_on:
                self._breaker.resume()
        if says_all_processed(reply.body, len(batch.deliveries)):
            self._settlement.deliver(batch, batch.deliveries)
            return
        events = [delivery.event for delivery in batch.deliveries]
        verdicts = match_unprocessed(events, reply.body, self._keyring.clean)
        for delivery, verdict in zip(batch.deliveries, verdicts, strict=True):
            match verdict:
                case Delivered():
                    self._settlement.deliver(batch, (delivery,))
                case Rejected(errors):
                    self._settlement.reject(batch, delivery, errors)
                case unknown:
                    cause = Cause.UNREADABLE if unknown.is_unreadable else Cause.AMBIGUOUS
                    batch.last_cause = cause
                    what = "cannot be read" if unknown.is_unreadable else "does not tell"
                    self._settlement.leave_open(
                        batch, (delivery,), cause, f"HTTP {reply.status}, its answer {what}"
                    )

    def _on_refused(self, trip: Trip, batch: Batch, reply: Reply) -> None:
        """Splits the batch, because a single event may have made the server refuse it."""
        batch.request = None
        if len(batch.deliveries) > 1 and (trip.is_splitting or self._guard.may_split(now=self._now())):
            trip.is_splitting = True
            batch.split()
            return
        trip.refused += len(batch.deliveries)
        errors = self._settlement.read_errors(reply)
        if len(batch.deliveries) > 1:
            reason = f"HTTP {reply.status} for the whole request, as for those before it"
            self._settlement.give_up(batch, batch.deliveries, Cause.STATUS, reason, errors)
            return
        for delivery in batch.deliveries:
            self._settlement.reject(batch, delivery, errors)

    def _on_credentials_refused(self, trip: Trip, batch: Batch, reply: Reply) -> float | None:
        """Fails the batch if its credentials have never worked; otherwise it waits until they do."""
        batch.last_cause = Cause.CREDENTIALS
        credentials = self._keyring.current
        self._unmark(batch, batch.deliveries)
        if batch.credentials is not credentials:  # They have been replaced since: that says nothing of them.
            return self._retry(trip, batch, f"HTTP {reply.status}")
        now, episode = self._now(), self._episode
        reason = (
            f"HTTP {reply.status}: Rokt refused the credentials of pub_id {credentials.pub_id!r} "
            f"with tag_id {credentials.tag_id!r}"
        )
        errors = self._settlement.read_errors(reply)
        what = (
            "events wait until it takes them" if episode.has_worked else "no event can be delivered with them"
        )
        episode.on_refused(trip.session.id, reason, now=now)
        self._health.on_failure(f"{reason}{in_words(errors)}; {what}", now=now)
        if not episode.has_worked:
            self._settlement.refuse_credentials(batch, reason, errors)
            return None
        if episode.holds_all:
            self._breaker.pause(until=episode.probe_at)
        else:
            batch.failures += 1  # It may be that session's own trouble: its waits grow.
        return self._retry(trip, batch, f"HTTP {reply.status}")


_ANSWERED: Final = (200, 207)
"""The statuses that nearly all answers have."""

_WITH_STATUS: Final = (Cause.STATUS, Cause.CREDENTIALS)

_LEAST_WAIT: Final = 0.1
"""Seconds to wait for the disk if the policy has no wait."""

_MAX_UNREADABLE: Final = 1
"""How many answers that are no HTTP are followed by another attempt."""


def _attempts(batch: Batch) -> str:
    return f"{batch.attempts} attempt{'' if batch.attempts == 1 else 's'}"


def _time(delivery: Delivery) -> datetime:
    assert delivery.event.event_time is not None, "an event is stamped when it is accepted"
    return delivery.event.event_time
