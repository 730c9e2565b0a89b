"""The flush workers: they pull what is due, post it, and see every event to its outcome.

How it works
------------
A worker is a task that runs while something is due, up to `max_concurrency` at a time; with nothing to
do there is none. It takes a batch, carries it until each of its events is settled, and gives the session
back. One timer wakes the first worker when the next batch falls due, and a worker that leaves something
due behind starts the next one.

What travels together is a `_Part`. It begins as a batch and may be halved; the halves inherit the
history. The journey of a part:

```
          ┌────────────────────────── wait ◀──────────────────────────┐
          ▼                                                           │ again
   overdue, expired leave ──▶ POST ──▶ judge ──▶ settled / halved / given up
```

Every path ends in an outcome. A worker that is cancelled or dies of a fault settles what it carries: as
unconfirmed if it may have been accepted, otherwise as failed. What has waited in the queue beyond its
deadline, because all workers are held up, is given up by a second timer that runs only while they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import traceback
from collections.abc import Callable, Iterable
from contextvars import Context
from datetime import datetime, timedelta
from typing import Final

from rokt_events_async._pipeline import retry as retry_
from rokt_events_async._pipeline.batching import Batches, Session
from rokt_events_async._pipeline.hooks import Observers, log
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.transport import Request, Transport
from rokt_events_async._protocol import encoding
from rokt_events_async._protocol.verdicts import Meaning, NoReply, Rejected, Reply, Told, attribute, judge
from rokt_events_async.errors import (
    ApiError,
    CredentialsRefusedError,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    EventExpiredError,
    EventRejectedError,
)
from rokt_events_async.events import MAX_AGE, is_expired
from rokt_events_async.observers import RequestReport, RetryReport
from rokt_events_async.outcomes import Delivery
from rokt_events_async.settings import Credentials, RetryPolicy

_MAX_REFUSALS: Final = 16
"""Refusals in a row after which requests are no longer halved, until the next 2xx.

Those of single events do not count: that they were refused says nothing about the others.
"""

_SLICE: Final = 500
"""Events or sessions handled between two turns of the loop when many are to be given up."""

_RESTART: Final = 0.1
"""Seconds after which work goes on when a worker was cancelled from outside."""


_INTERRUPTED: Final = NoReply("interrupted")


class _Part:
    """Events that travel together, and the history they share."""

    __slots__ = (
        "attempts",
        "deliveries",
        "failures",
        "halves",
        "is_again",
        "is_lost",
        "is_resent",
        "reason",
        "request",
        "status",
    )

    def __init__(self, deliveries: list[Delivery]) -> None:
        self.deliveries = deliveries
        self.attempts = 0
        self.failures = 0
        self.status: int | None = None
        self.reason = ""
        """Why the last attempt failed, in words."""
        self.is_again = False
        """Whether its next request is a retry."""
        self.is_lost = False
        """Whether an answer was lost, so that its events may have been accepted."""
        self.is_resent = False
        """Whether they were sent again after that."""
        self.request: Request | None = None
        """The request whose consequences are not drawn yet."""
        self.halves: tuple[_Part, ...] = ()
        """What goes on in its place, if it was refused as a whole."""

    def with_cause(self, reason: str) -> str:
        """A reason to give up, and why the last attempt failed, if one did."""
        return f"{reason}, after {self.reason}" if self.reason else reason

    def may_be_accepted(self) -> bool:
        return self.is_lost or (self.request is not None and self.request.went_out)

    def take_front(self, is_overdue: Callable[[Delivery], bool]) -> list[Delivery]:
        overdue = list(itertools.takewhile(is_overdue, self.deliveries))
        del self.deliveries[: len(overdue)]
        return overdue

    def halve(self) -> None:
        middle = (len(self.deliveries) + 1) // 2
        self.halves = (self._with(self.deliveries[:middle]), self._with(self.deliveries[middle:]))

    def _with(self, deliveries: list[Delivery]) -> _Part:
        part = _Part(deliveries)
        part.attempts, part.failures, part.status = self.attempts, self.failures, self.status
        part.is_lost, part.is_resent, part.reason = self.is_lost, self.is_resent, self.reason
        return part


class FlushWorkers:
    """Carries due batches to their outcomes.

    Args:
        context: What the tasks run in, so that they do not inherit some caller's.
        clock: The aware now.
    """

    def __init__(
        self,
        *,
        batches: Batches[Delivery],
        ledger: Ledger,
        transport: Transport,
        observers: Observers,
        credentials: Credentials,
        endpoint: str,
        policy: RetryPolicy,
        max_concurrency: int,
        request_timeout: float,
        clock: Callable[[], datetime],
        random: retry_.Random,
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        self._batches = batches
        self._ledger = ledger
        self._transport = transport
        self._observers = observers
        self._credentials = credentials
        self._endpoint = endpoint
        self._policy = policy
        self._max_concurrency = max_concurrency
        self._sweep_interval = min(1.0, max(0.05, request_timeout / 2))
        self._clock = clock
        self._random = random
        self._loop = loop
        self._context = context
        self.now = loop.time
        self._workers: dict[asyncio.Task[None], None] = {}  # In order: a set's would be by address.
        self.wake_timer: asyncio.Handle | None = None
        """Wakes somebody for the oldest batch, if set; a batch that is opened later is not older."""
        self._wakes_at = math.inf  # Kept here: uvloop gives a handle without `when()` for what is due now.
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._is_stopping = False
        self._refusals = 0
        self._has_warned_of_credentials = False
        self.in_flight = 0
        self.requests = 0
        self.retries = 0

    # When to run.

    def start_one(self) -> None:
        """Starts a worker, unless enough are running: something is due."""
        if self._is_stopping:
            return
        if len(self._workers) >= self._max_concurrency:
            self._arm_sweep()
            return
        # Not by the loop's task factory: an eager one would run the worker inside of `track()`.
        task = asyncio.Task(
            self._work(), loop=self._loop, name="rokt-events-flush", context=self._context.copy()
        )
        self._workers[task] = None
        task.add_done_callback(self._on_worker_done)

    def arm(self) -> None:
        """Sees to it that somebody wakes when the next batch falls due."""
        if len(self._workers) >= self._max_concurrency:
            self._arm_sweep()
            return
        due_at = self._batches.next_due()
        if due_at is not None:
            self._wake_at(max(due_at, self.now()))

    def _wake_at(self, when: float) -> None:
        if self.wake_timer is not None:
            if self._wakes_at <= when:
                return
            self.wake_timer.cancel()
        self._wakes_at = when
        self.wake_timer = self._loop.call_at(when, self._on_due, context=self._context)

    def _on_due(self) -> None:
        self.wake_timer = None
        self.start_one()

    def _on_worker_done(self, task: asyncio.Task[None]) -> None:
        del self._workers[task]
        if not self._workers and self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            _log_fault(fault)
        if self._is_stopping:
            return
        if task.cancelled() or fault is not None:
            # From outside, perhaps at the loop's end, or by a fault: nothing new right now.
            self._wake_at(self.now() + _RESTART)
        else:
            self.arm()

    def _stop_timers(self) -> None:
        """Nothing wakes any more."""
        for timer in (self.wake_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        self.wake_timer = self._sweep_timer = None

    async def stop(self) -> None:
        """Interrupts back-offs and requests, and gives all that is pending its outcome.

        Being cancelled makes it hurry, and does not keep it from that.
        """
        self._is_stopping = True
        self._stop_timers()
        for task in self._workers:
            task.cancel()
        while self._workers:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(self._workers)
        self._batches.flush()
        while self._give_up_some():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def _give_up_some(self) -> bool:
        """Gives up a slice of the queue, as closed before it was sent. Whether there was anything."""
        handled = 0
        while handled < _SLICE and (taken := self._batches.take(now=math.inf)) is not None:
            session, deliveries = taken
            self._abandon(deliveries, "the emitter was closed")
            self._batches.release(session, now=self.now())
            handled += len(deliveries)
        return handled > 0

    def _abandon(self, deliveries: Iterable[Delivery], reason: str) -> None:
        """Fails events that were never sent."""
        for delivery in deliveries:
            error = DeliveryFailedError(f"not sent: {reason}", event=delivery.event, reason=reason)
            self._ledger.settle_undelivered(delivery, error)

    # What waits too long while all workers are held up.

    def _arm_sweep(self) -> None:
        if self._sweep_timer is None:
            self._sweep_after(self._sweep_interval, 0)

    def _sweep_after(self, wait: float, start: int) -> None:
        self._sweep_timer = self._loop.call_later(wait, self._sweep, start, context=self._context)

    def _sweep(self, start: int) -> None:
        is_overdue = self._overdue_by(self.now())
        overdue, start = self._batches.take_overdue(is_overdue, start=start, at_most=_SLICE)
        self._give_up_overdue(overdue)
        if len(self._workers) >= self._max_concurrency:
            is_done = start == 0 and len(overdue) < _SLICE
            self._sweep_after(self._sweep_interval if is_done else 0, start)
        else:
            self._sweep_timer = None

    def _give_up_overdue(self, deliveries: Iterable[Delivery]) -> None:
        self._abandon(deliveries, f"its deadline of {self._policy.deadline:g} s passed in the queue")

    def _overdue_by(self, now: float) -> Callable[[Delivery], bool]:
        accepted_before = now - self._policy.deadline
        return lambda delivery: delivery.accepted_at <= accepted_before

    # One worker.

    async def _work(self) -> None:
        unsent = 0
        while (taken := self._batches.take(now=self.now())) is not None:
            self._see_to_next()
            session, deliveries = taken
            requests = self.requests
            try:
                await self._carry(deliveries)
            finally:
                self._release(session)
            unsent = unsent + len(deliveries) if self.requests == requests else 0
            if unsent >= _SLICE:  # All of them overdue or expired: nothing has let the loop turn.
                unsent = 0
                await asyncio.sleep(0)

    def _see_to_next(self) -> None:
        """Somebody else is to take what is due next, for this worker is busy from now on."""
        if len(self._workers) >= self._max_concurrency:
            self._arm_sweep()
            return
        due_at = self._batches.next_due()
        if due_at is not None and due_at <= self.now():
            self.start_one()
        else:
            self.arm()

    def _release(self, session: Session[Delivery]) -> None:
        now = self.now()
        if session.has_more:
            overdue = self._batches.drop_overdue(session, self._overdue_by(now), at_most=_SLICE)
            self._give_up_overdue(overdue)
        self._batches.release(session, now=now)

    async def _carry(self, deliveries: list[Delivery]) -> None:
        """Sees a batch to its end; halves go the first one first, for the order."""
        parts = [_Part(deliveries)]
        try:
            while parts:
                part = parts[-1]
                wait = await self._attempt(part)
                if wait is not None:
                    await retry_.repeat(functools.partial(self._attempt, part), wait=wait)
                parts.pop()
                parts.extend(reversed(part.halves))
        except Exception as fault:  # noqa: BLE001 -- whatever the fault, its events are to be settled
            self._interrupt(parts, "a fault in the library, see the log")
            _log_fault(fault)
        except BaseException:  # Cancelled; or an exit, which is to end the program.
            self._interrupt(parts, "the emitter was closed")
            raise

    def _interrupt(self, parts: list[_Part], reason: str) -> None:
        for part in reversed(parts):
            pending = [delivery for delivery in part.deliveries if delivery.generation is not None]
            part.is_lost = part.may_be_accepted()
            self._give_up(part, pending, part.with_cause(reason))

    async def _attempt(self, part: _Part) -> float | None:
        """Sends a part, and settles what that settles. Returns the wait before it is sent again, if it is."""
        self._drop_overdue(part)
        self._drop_expired(part)
        if not part.deliveries:
            return None
        request = self._next_request(part)
        began = self.now()
        reply: Reply | NoReply = _INTERRUPTED
        self.in_flight += 1
        try:
            reply = await self._transport.post(request)
        finally:
            self.in_flight -= 1
            if self._observers.request:
                self._tell_of_request(part, request, reply, self.now() - began)
        return self._on_reply(part, reply)

    def _tell_of_request(
        self, part: _Part, request: Request, reply: Reply | NoReply, duration: float
    ) -> None:
        report = RequestReport(
            deliveries=tuple(part.deliveries),
            endpoint=self._endpoint,
            size=len(request.body),
            attempt=part.attempts,
            started_at=self._clock() - timedelta(seconds=duration),
            duration=duration,
            status=reply.status if isinstance(reply, Reply) else None,
            problem=reply.reason if isinstance(reply, NoReply) else None,
        )
        self._observers.tell(self._observers.request, report)

    def _next_request(self, part: _Part) -> Request:
        part.request = Request(encoding.join([delivery.wire for delivery in part.deliveries]))
        part.attempts += 1
        self.requests += 1
        self.retries += part.is_again
        part.is_again = False
        if part.is_lost and not part.is_resent:
            part.is_resent = True
            self._ledger.possible_duplicates += len(part.deliveries)
        return part.request

    def _drop_overdue(self, part: _Part) -> None:
        now = self.now()
        if part.deliveries[0].accepted_at <= now - self._policy.deadline:  # The first was accepted first.
            overdue = part.take_front(self._overdue_by(now))
            reason = f"its deadline of {self._policy.deadline:g} s has passed"
            self._give_up(part, overdue, part.with_cause(reason))

    def _drop_expired(self, part: _Part) -> None:
        now = self._clock()
        oldest = now - MAX_AGE
        for delivery in part.deliveries:
            time = delivery.event.event_time
            if time is not None and time < oldest:
                break
        else:
            return
        expired = [delivery for delivery in part.deliveries if is_expired(_time(delivery), now=now)]
        part.deliveries = [delivery for delivery in part.deliveries if delivery not in expired]
        for delivery in expired:
            error = DeliveryUnconfirmedError if part.is_lost else EventExpiredError
            self._end(part, delivery, error, "it became older than 3 days before it could be sent")

    # What a reply does to a part.

    def _on_reply(self, part: _Part, reply: Reply | NoReply) -> float | None:
        """Settles what the reply settles. Returns the wait before the part is sent again, if it is."""
        if isinstance(reply, NoReply):
            return self._on_no_reply(part, reply)
        part.status = reply.status
        match judge(reply.status):
            case Meaning.ANSWERED:
                self._on_answer(part, reply)
                return None
            case Meaning.REFUSED:
                self._on_refused(part, reply)
                return None
            case Meaning.CREDENTIALS:
                self._on_credentials_refused(part, reply)
                return None
            case Meaning.AGAIN:
                return self._again(part, f"HTTP {reply.status}", reply)
            case Meaning.AGAIN_MAYBE_ACCEPTED:
                part.is_lost = True
                return self._again(part, f"HTTP {reply.status}", reply)
            case _:
                reason = f"HTTP {reply.status}{self._hint(reply.status)}"
                self._give_up(part, part.deliveries, reason, self._read_errors(reply))
                return None

    def _hint(self, status: int) -> str:
        if 300 <= status <= 399:
            return ", redirects are not followed"
        return f", is the endpoint right? It is {self._endpoint}" if status in (404, 405) else ""

    def _on_no_reply(self, part: _Part, reply: NoReply) -> float | None:
        assert part.request is not None
        if part.request.went_out:
            part.is_lost = True
            if not self._policy.retry_unconfirmed:
                self._give_up(part, part.deliveries, f"{reply.reason} after the request went out")
                return None
        return self._again(part, reply.reason, None)

    def _again(self, part: _Part, reason: str, reply: Reply | None) -> float | None:
        """The wait before the next attempt; whoever cannot have one is given up before the wait."""
        part.request = None
        part.failures += 1
        part.reason = reason
        if self._policy.max_attempts is not None and part.failures >= self._policy.max_attempts:
            attempts = "1 failed attempt" if part.failures == 1 else f"{part.failures} failed attempts"
            self._give_up(part, part.deliveries, f"{reason}, {attempts}")
            return None
        value = reply.headers.get("Retry-After") if reply else None
        retry_after = retry_.parse_retry_after(value, now=self._clock())
        wait = retry_.next_wait(self._policy, retry_after=retry_after, random=self._random)
        overdue = part.take_front(self._overdue_by(self.now() + wait))
        self._give_up(part, overdue, f"{reason}, and its deadline falls before the next attempt")
        if not part.deliveries:
            return None
        part.is_again = True
        if self._observers.retry:
            status = reply.status if reply else None
            report = RetryReport(tuple(part.deliveries), part.attempts, status, reason, wait)
            self._observers.tell(self._observers.retry, report)
        return wait

    def _on_answer(self, part: _Part, reply: Reply) -> None:
        self._refusals = 0
        if encoding.says_all_processed(reply.body, len(part.deliveries)):
            self._deliver(part, part.deliveries)
            return
        verdicts = attribute([delivery.event for delivery in part.deliveries], reply.body)
        for delivery, verdict in zip(part.deliveries, verdicts, strict=True):
            if verdict is Told.DELIVERED:
                self._deliver(part, (delivery,))
            elif isinstance(verdict, Rejected):
                self._reject(part, delivery, self._without_secret(verdict.errors))
            else:
                what = "its answer cannot be read" if reply.body is None else "its answer does not tell"
                self._end(part, delivery, DeliveryUnconfirmedError, f"HTTP {reply.status}, {what}")

    def _deliver(self, part: _Part, deliveries: Iterable[Delivery]) -> None:
        self._ledger.settle_delivered(deliveries, attempts=part.attempts, maybe_duplicate=part.is_lost)

    def _on_refused(self, part: _Part, reply: Reply) -> None:
        """One event may have spoilt the request for all: it is looked for by halving."""
        part.request = None
        if len(part.deliveries) > 1:
            self._refusals += 1
            if self._refusals <= _MAX_REFUSALS:
                part.halve()
                return
        errors = self._read_errors(reply)
        for delivery in part.deliveries:
            self._reject(part, delivery, errors)

    def _on_credentials_refused(self, part: _Part, reply: Reply) -> None:
        credentials = self._credentials
        reason = (
            f"HTTP {reply.status}: Rokt refused the credentials of pub_id {credentials.pub_id!r} "
            f"with tag_id {credentials.tag_id!r}"
        )
        errors = self._read_errors(reply)
        if not self._has_warned_of_credentials:
            self._has_warned_of_credentials = True
            text = "%s%s; no event can be delivered with them"
            log(logging.ERROR, text, reason, _in_words(errors))
        error = DeliveryUnconfirmedError if part.is_lost else CredentialsRefusedError
        for delivery in part.deliveries:
            self._end(part, delivery, error, reason, errors)

    def _read_errors(self, reply: Reply) -> tuple[ApiError, ...]:
        return self._without_secret(encoding.read_errors(reply.body))

    def _without_secret(self, errors: tuple[ApiError, ...]) -> tuple[ApiError, ...]:
        """What a server says of a request may repeat its headers; the secret goes no further."""
        secret = self._credentials.secret
        return tuple(
            ApiError(
                error.code and error.code.replace(secret, "<hidden>"),
                error.message.replace(secret, "<hidden>"),
            )
            for error in errors
        )

    def _give_up(
        self,
        part: _Part,
        deliveries: Iterable[Delivery],
        reason: str,
        errors: tuple[ApiError, ...] = (),
    ) -> None:
        error = DeliveryUnconfirmedError if part.is_lost else DeliveryFailedError
        for delivery in deliveries:
            self._end(part, delivery, error, reason, errors)

    def _reject(self, part: _Part, delivery: Delivery, errors: tuple[ApiError, ...]) -> None:
        reason = f"HTTP {part.status}"
        self._ledger.settle_undelivered(
            delivery,
            EventRejectedError(
                f"rejected by Rokt, {reason}{_in_words(errors)}",
                event=delivery.event,
                errors=errors,
                attempts=part.attempts,
                status=part.status,
                reason=reason,
            ),
        )

    def _end(
        self,
        part: _Part,
        delivery: Delivery,
        error: type[DeliveryError],
        reason: str,
        errors: tuple[ApiError, ...] = (),
    ) -> None:
        """Ends an event with an error of its own: on a shared one, tracebacks would pile up."""
        self._ledger.settle_undelivered(
            delivery,
            error(
                f"{_LEADS[error]} ({reason}{_in_words(errors)})",
                event=delivery.event,
                attempts=part.attempts,
                status=part.status,
                reason=reason,
            ),
        )


_LEADS: Final[dict[type[DeliveryError], str]] = {
    EventExpiredError: "expired, never accepted",
    DeliveryFailedError: "not delivered, never accepted",
    CredentialsRefusedError: "not delivered, never accepted",
    DeliveryUnconfirmedError: "unconfirmed, perhaps accepted",
}


def _log_fault(fault: BaseException) -> None:
    """Where it happened and what it is, but not its text: that may be anybody's, headers included."""
    where = "".join(traceback.format_tb(fault.__traceback__))
    text = "a flush worker died of a fault, its events have been settled: %s\n%s"
    log(logging.ERROR, text, type(fault).__name__, where)


def _time(delivery: Delivery) -> datetime:
    assert delivery.event.event_time is not None, "an event is stamped when it is accepted"
    return delivery.event.event_time


def _in_words(errors: tuple[ApiError, ...]) -> str:
    return ": " + "; ".join(map(str, errors)) if errors else ""
