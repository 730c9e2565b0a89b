"""Bugs to be planted, one at a time: the invariants are worth what they find.

`python -m tests.simulation --bugs` prints how many seeds each took.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import aiohttp

from rokt_events_async import Cause, Delivery, Receipt, emitter
from rokt_events_async._pipeline import batching, health, retry, sender, splitting, transport
from rokt_events_async._pipeline.batching import Batches
from rokt_events_async._pipeline.breaker import Breaker
from rokt_events_async._pipeline.dead_letters import DeadLetters
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.intake import DroppingIntake, Intake
from rokt_events_async._pipeline.keyring import Episode
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.room import Room, _Line
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.sender import Sender
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.timeouts import Exchange, Timeouts
from rokt_events_async._pipeline.transport import HttpTransport, Request
from rokt_events_async._pipeline.trips import Batch, Trip
from rokt_events_async._protocol.replies import Reply, read_answer
from rokt_events_async._protocol.statuses import Disposition, classify
from rokt_events_async._protocol.verdicts import DELIVERED, UNKNOWN, Rejected
from rokt_events_async._tracking.hooks import Hook, Hooks
from tests.simulation.world import sweep

MAX_SEEDS = 500

Bug = Callable[[], AbstractContextManager[Any]]
BUGS: dict[str, Bug] = {}


def bug(name: str) -> Callable[[Bug], Bug]:
    def register(plant: Bug) -> Bug:
        BUGS[name] = plant
        return plant

    return register


def replace(cls: Any, name: str, new: Any) -> AbstractContextManager[Any]:
    return mock.patch.object(cls, name, new)


@contextlib.contextmanager
def together(*plants: AbstractContextManager[Any]) -> Iterator[None]:
    """Several replacements that make one bug."""
    with contextlib.ExitStack() as stack:
        for plant in plants:
            stack.enter_context(plant)
        yield


Play = Callable[[int], tuple[Counter[str], str | None]]
"""Plays a seed: what it reached, and what was violated."""


def first_seed(plant: Bug, play: Play, seeds: Iterable[int] = range(MAX_SEEDS)) -> tuple[int, str] | None:
    """The first seed that finds the bug, and what it says; `None` if none does."""
    try:
        for seed in seeds:
            with plant():
                _, violation = play(seed)
            if violation is not None:
                return seed, violation
        return None
    finally:
        sweep()


# Outcomes.


@bug("the result is set without looking whether the caller cancelled")
def _() -> Any:
    def settle(self: Delivery, outcome: Any) -> None:
        self.wire = b""
        if isinstance(outcome, Receipt):
            self.set_result(outcome)
        else:
            self.set_exception(outcome)
            self.exception()

    return replace(Delivery, "settle", settle)


@bug("absent from the answer is delivered, though the counts do not add up")
def _() -> Any:
    def match(events: Any, body: Any, clean: Any) -> list[Any]:
        answer = read_answer(body, clean)
        if answer is None:
            return [UNKNOWN] * len(events)
        named = {item.echo.get("parentguid"): item.errors for item in answer.unprocessed if item.echo}
        return [
            Rejected(named[event.parent_guid]) if event.parent_guid in named else DELIVERED
            for event in events
        ]

    return replace(sender, "match_unprocessed", match)


@bug("a 2xx that cannot be read is taken for a good one")
def _() -> Any:
    return replace(sender, "says_all_processed", lambda body, count: True)


@bug("what cannot be told is rejected")
def _() -> Any:
    original = Settlement.leave_open

    def leave_open(self: Any, batch: Any, deliveries: Any, cause: Any, reason: str) -> None:
        if cause is Cause.AMBIGUOUS:
            for delivery in deliveries:
                self.reject(batch, delivery, ())
        else:
            original(self, batch, deliveries, cause, reason)

    return replace(Settlement, "leave_open", leave_open)


@bug("a lost answer is taken for a clear refusal")
def _() -> Any:
    def on_no_reply(self: Any, trip: Any, batch: Any, reply: Any) -> Any:
        return self._on_failure(trip, batch, reply.reason, None)

    return replace(Sender, "_on_no_reply", on_no_reply)


@bug("502 and 504 are taken for clear refusals")
def _() -> Any:
    def lenient(status: int, **rest: Any) -> Disposition:
        return Disposition.RETRY if status in (502, 504) else classify(status, **rest)

    return replace(sender, "classify", lenient)


@bug("the receipt keeps a possible duplicate to itself")
def _() -> Any:
    original = Ledger.settle_delivered

    def settle(self: Any, deliveries: Any, *, attempts: int, maybe_duplicate: bool, now: float) -> None:
        original(self, deliveries, attempts=attempts, maybe_duplicate=False, now=now)

    return replace(Ledger, "settle_delivered", settle)


@bug("one bad event costs all that travel with it")
def _() -> Any:
    def refused(self: Any, trip: Any, batch: Any, reply: Any) -> None:
        for delivery in batch.deliveries:
            self._settlement.reject(batch, delivery, ())

    return replace(Sender, "_on_refused", refused)


# The account.


@bug("a permit is not given back for what was rejected")
def _() -> Any:
    original = Ledger._count

    def count(self: Any, outcome: Any, count: int, size: int) -> None:
        original(self, outcome, count, size)
        if outcome == "rejected":
            self._room.events += 1

    return replace(Ledger, "_count", count)


@bug("who is cancelled while it waits for room keeps what it was granted")
def _() -> Any:
    original = Room.wait

    async def wait(self: Any, session_id: str, size: int, *, timeout: float | None) -> bool:
        try:
            return await original(self, session_id, size, timeout=timeout)
        except asyncio.CancelledError:
            self._granted_events += 1
            raise

    return replace(Room, "wait", wait)


@bug("the bound on bytes is not looked at")
def _() -> Any:
    def take(self: Any, session_id: str, size: int) -> bool:
        if self._line.waiters or self._granted or self.events >= self._max_events:
            return False
        self._take(size)
        return True

    return replace(Room, "take_nowait", take)


@bug("an event is settled twice")
def _() -> Any:
    original = Ledger._count

    def count(self: Any, outcome: Any, count: int, size: int) -> None:
        original(self, outcome, count + (outcome == "delivered"), size)

    return replace(Ledger, "_count", count)


# Who is told.


@bug("an observer that raises takes others with it")
def _() -> Any:
    def call(self: Any, *values: Any) -> None:
        for _, method in self:
            method(*values)

    return replace(Hook, "__call__", call)


@bug("an event that is dropped is not told to observers")
def _() -> Any:
    def drop(self: Any, delivery: Any, error: Any, *, now: float) -> None:
        self._accepted += 1
        delivery.accepted_at = now
        self._outcomes[error.outcome] += 1
        delivery.settle(error)
        self._hooks.accepted(delivery)

    return replace(Ledger, "drop", drop)


@bug("the close does not wait for the handler of undelivered events")
def _() -> Any:
    async def finish(self: Any) -> None:
        self._waiting.clear()

    return replace(DeadLetters, "finish", finish)


# Batches and order.


@bug("the interval is pushed back by later events")
def _() -> Any:
    original = Batches.add

    def add(self: Any, session_id: str, item: Any, now: float, size: int = 0) -> bool:
        is_due = original(self, session_id, item, now, size)
        session = self._shards[hash(session_id) % 64].get(session_id)
        if session is not None and session.after is not batching._NOWHERE and not is_due:
            batching._unlink(session)
            session.opened_at = now
            self._opening.append(session)
        return is_due

    return replace(Batches, "add", add)


@bug("a batch may be one too large")
def _() -> Any:
    original = Batches.__init__

    def init(self: Any, *, max_batch_size: int, **rest: Any) -> None:
        original(self, max_batch_size=max_batch_size + 1, **rest)

    return replace(Batches, "__init__", init)


@bug("sessions are mixed")
def _() -> Any:
    original = Batches.add
    return replace(Batches, "add", lambda self, session_id, *rest: original(self, "s", *rest))


@bug("a session has two requests in flight, so that order is lost on a retry")
def _() -> Any:
    original = Batches.take

    def take(self: Any, *, now: float) -> Any:
        taken = original(self, now=now)
        if taken is not None:
            taken[0].in_flight = False
        return taken

    return replace(Batches, "take", take)


@bug("the second half goes first")
def _() -> Any:
    original = Batch.split

    def split(self: Any) -> None:
        original(self)
        self.halves = self.halves[::-1]

    return replace(Batch, "split", split)


@bug("session states stay when they are empty")
def _() -> Any:
    return replace(Batches, "_forget_if_empty", lambda self, session: None)


@bug("a session in flight is forgotten, and opened a second time")
def _() -> Any:
    original = Batches.take

    def take(self: Any, *, now: float) -> Any:
        taken = original(self, now=now)
        if taken is not None:
            self._shards[hash(taken[0].id) % 64].pop(taken[0].id, None)
        return taken

    def release(self: Any, session: Any, *, now: float) -> None:
        session.in_flight = False
        self.sessions -= 1

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with replace(Batches, "take", take), replace(Batches, "release", release):
            yield

    return both()


# Workers, retries and time.


@bug("the whole batch is sent again after a 207")
def _() -> Any:
    original = Sender._on_reply

    def on_reply(self: Any, trip: Any, batch: Any, reply: Any) -> Any:
        if isinstance(reply, Reply) and reply.status == 207:
            return self._on_failure(trip, batch, "HTTP 207", reply)
        return original(self, trip, batch, reply)

    return replace(Sender, "_on_reply", on_reply)


@bug("a 2xx that does not tell is sent again")
def _() -> Any:
    original = Sender._on_reply

    def on_reply(self: Any, trip: Any, batch: Any, reply: Any) -> Any:
        if isinstance(reply, Reply) and 200 <= reply.status <= 299 and read_answer(reply.body) is None:
            return self._on_failure(trip, batch, "unreadable", reply)
        return original(self, trip, batch, reply)

    return replace(Sender, "_on_reply", on_reply)


@bug("expiry is not checked before a retry")
def _() -> Any:
    return replace(Sender, "_drop_expired", lambda self, batch: None)


@bug("Retry-After is not heeded")
def _() -> Any:
    return replace(retry, "parse_retry_after", lambda value, *, now: 0.0)


@bug("a retry comes too soon")
def _() -> Any:
    return replace(retry, "next_wait", lambda policy, *, failures, retry_after, random: max(0.5, retry_after))


@bug("one attempt too many")
def _() -> Any:
    original = Sender._has_had_enough

    def has_had_enough(self: Any, batch: Any) -> Any:
        batch.attempts -= 1
        try:
            return original(self, batch)
        finally:
            batch.attempts += 1

    return replace(Sender, "_has_had_enough", has_had_enough)


@bug("deadlines are not kept")
def _() -> Any:
    return replace(Sender, "overdue_by", lambda self, now: lambda delivery: False)


@bug("what waits in the queue is forgotten while all workers are held up")
def _() -> Any:
    return replace(Pool, "_arm_sweep", lambda self: None)


@bug("more workers than allowed")
def _() -> Any:
    original = Pool.__init__

    def init(self: Any, **arguments: Any) -> None:
        original(self, **arguments)
        self._max_concurrency += 1

    return replace(Pool, "__init__", init)


@bug("no wake-up when the linger is over")
def _() -> Any:
    return replace(Pool, "_wake_at", lambda self, due_at: None)


@bug("a worker's end is swallowed, and its events with it")
def _() -> Any:
    return replace(Sender, "_interrupt", lambda self, trip, reason: None)


@bug("the close waits out a back-off")
def _() -> Any:
    original = Pool.stop

    async def stop(self: Any) -> None:
        while len(self._parking):
            await asyncio.sleep(0.1)
        await original(self)

    return replace(Pool, "stop", stop)


@bug("the close leaves the queue as it is")
def _() -> Any:
    return replace(Pool, "_give_up_some", lambda self: False)


def inherits_all_but(field: str, value: Any) -> Any:
    original = Batch._inherit

    def inherit(self: Any, deliveries: Any) -> Batch:
        batch = original(self, deliveries)
        setattr(batch, field, value)
        return batch

    return replace(Batch, "_inherit", inherit)


@bug("halves do not inherit failures")
def _() -> Any:
    return inherits_all_but("failures", 0)


@bug("halves do not inherit attempts")
def _() -> Any:
    return inherits_all_but("attempts", 0)


@bug("halves do not inherit that their events were sent again")
def _() -> Any:
    return inherits_all_but("is_resent", False)


@bug("halves do not inherit why the last attempt failed")
def _() -> Any:
    return inherits_all_but("reason", "")


@bug("halves are interrupted in reverse order")
def _() -> Any:
    return replace(Trip, "rest", lambda self: list(self._stack))


@bug("the first spoilt batch ends the splitting")
def _() -> Any:
    return replace(splitting, "MAX_SPOILT", 1)


@bug("overdue events are not dropped when their session is released")
def _() -> Any:
    def release(self: Any, trip: Any) -> None:
        items, size = trip.held
        self._queue.settle(trip.session, items=items, size=size)
        self._queue.release(trip.session, now=self._loop.time())
        self._on_released(trip.session.id)

    return replace(Pool, "_release", release)


# What holds others up.


@bug("a slot is kept while a trip waits")
def _() -> Any:
    original = Sender.advance

    async def advance(self: Any, trip: Any) -> Any:
        while (wait := await original(self, trip)) is not None:
            await asyncio.sleep(wait)

    return replace(Sender, "advance", advance)


@bug("the second half goes while the first one waits")
def _() -> Any:
    original = Sender._retry

    def retry_(self: Any, trip: Any, batch: Any, *rest: Any) -> Any:
        wait = original(self, trip, batch, *rest)
        if wait is not None and len(trip._stack) > 1:
            trip._stack[-2], trip._stack[-1] = trip._stack[-1], trip._stack[-2]
        return wait

    return replace(Sender, "_retry", retry_)


@bug("the breaker never closes")
def _() -> Any:
    return replace(Breaker, "on_answer", lambda self: None)


@bug("the breaker never opens")
def _() -> Any:
    original = Breaker.__init__

    def init(self: Any, **arguments: Any) -> None:
        original(self, **arguments)
        self._limit = 10**9

    return replace(Breaker, "__init__", init)


@bug("the trickle is a flood")
def _() -> Any:
    original = Breaker.__init__

    def init(self: Any, **arguments: Any) -> None:
        original(self, **arguments)
        self._interval = 0.02

    return replace(Breaker, "__init__", init)


@bug("the trickle takes parked trips first")
def _() -> Any:
    def take(self: Any) -> Any:
        now = self._loop.time()
        if not self._breaker.may_start(now=now):
            return None
        if self._retry_due(None, now) <= now:
            return self._take_parked(now)
        return self._take_fresh(now)

    return replace(Pool, "_take", take)


@bug("an outage is told of when one session has failed")
def _() -> Any:
    return replace(health, "_OUTAGE_SESSIONS", 1)


@bug("deadlines are not checked while parked")
def _() -> Any:
    return replace(Pool, "_sweep_parked", lambda self, now: 0)


@bug("deadlines are not checked while the breaker is open")
def _() -> Any:
    original = Pool._sweep

    def sweep_(self: Any, start: int) -> None:
        if self._breaker.is_open:
            self._sweep_after(self._sweep_interval, 0)
        else:
            original(self, start)

    return replace(Pool, "_sweep", sweep_)


@bug("an event accepted while starts are held up does not arm the sweep")
def _() -> Any:
    def enqueue(self: Any, session_id: str, delivery: Any, size: int, now: float) -> None:
        if self._queue.add(session_id, delivery, now, size):
            if self._breaker.starts_at <= now:
                self._wake(now)
        elif self._wake_timer is None:
            self._arm()

    return replace(Pool, "enqueue", enqueue)


@bug("a fresh batch waits for the wake-up of a parked trip")
def _() -> Any:
    def enqueue(self: Any, session_id: str, delivery: Any, size: int, now: float) -> None:
        if self._queue.add(session_id, delivery, now, size):
            self._wake(now)
        elif self._wake_timer is None or self._breaker.starts_at > now:
            self._arm()

    return replace(Pool, "enqueue", enqueue)


@bug("a session's share is not given back")
def _() -> Any:
    return replace(Batches, "settle", lambda self, session, *, items, size: None)


@bug("a session may hold more than its share")
def _() -> Any:
    return replace(Room, "fits_share", lambda self, session_id, size: True)


@bug("a session is not known to be heavy")
def _() -> Any:
    original = Batches.add

    def add(self: Any, session_id: str, item: Any, now: float, size: int = 0) -> bool:
        is_due = original(self, session_id, item, now, size)
        self.heavy.clear()
        return is_due

    return replace(Batches, "add", add)


@bug("a caller of a session at its share blocks the line for all")
def _() -> Any:
    original = Room._grant

    def grant(self: Any) -> None:
        waiters = self._line.waiters
        if not waiters or self.fits_share(waiters[0].session_id, waiters[0].size):
            original(self)

    line = replace(Room, "_line_for", lambda self, session_id, size: self._line)
    return together(line, replace(Room, "_grant", grant))


@bug("callers in line are not woken at a close")
def _() -> Any:
    original = Room.close

    def close(self: Any) -> None:
        line, self._line = self._line, _Line()
        original(self)
        self._line = line

    return replace(Room, "close", close)


@bug("a caller waits longer than it is asked to")
def _() -> Any:
    original = Room.wait

    async def wait(self: Any, session_id: str, size: int, *, timeout: float | None) -> bool:
        return await original(self, session_id, size, timeout=None if timeout is None else timeout + 5.0)

    return replace(Room, "wait", wait)


@bug("parked trips are forgotten at the end of a close")
def _() -> Any:
    original = Pool._give_up_some

    def give_up_some(self: Any) -> bool:
        for trip in tuple(self._parking):
            self._parking.remove(trip)
        return original(self)

    return replace(Pool, "_give_up_some", give_up_some)


@bug("a parked trip's session can be taken")
def _() -> Any:
    original = Pool._park

    def park(self: Any, trip: Any, until: float) -> None:
        original(self, trip, until)
        trip.session.in_flight = False

    return replace(Pool, "_park", park)


@bug("the last attempt of a close comes before Retry-After has passed")
def _() -> Any:
    original = Pool._park

    def park(self: Any, trip: Any, until: float) -> None:
        trip.not_before = -1.0
        original(self, trip, until)

    return replace(Pool, "_park", park)


@bug("waits do not grow")
def _() -> Any:
    return replace(retry, "_GROWTH", (1.0, 1.0))


# The transport.


@bug("a time-out swallows a cancellation of the same turn")
def _() -> Any:
    def has_timed_out(self: Any) -> bool:
        if self._timed_out:
            self._task.uncancel()
        return bool(self._timed_out)

    return replace(Exchange, "has_timed_out", has_timed_out)


@bug("one fresh connection is tried instead of two")
def _() -> Any:
    return replace(transport, "_FRESH_CONNECTIONS", 1)


@bug("redirects are followed")
def _() -> Any:
    original = aiohttp.ClientSession.post

    def post(self: Any, url: Any, **options: Any) -> Any:
        return original(self, url, **(options | {"allow_redirects": True}))

    return replace(aiohttp.ClientSession, "post", post)


@bug("a request that went out is taken for one that did not")
def _() -> Any:
    original = Request.write

    async def write(self: Any, writer: Any) -> None:
        try:
            await original(self, writer)
        finally:
            self.went_out = False

    return replace(Request, "write", write)


@bug("there is no time-out")
def _() -> Any:
    original = Timeouts.__init__

    def init(self: Any, seconds: float) -> None:
        original(self, 1e6)

    return replace(Timeouts, "__init__", init)


@bug("the connections stay open")
def _() -> Any:
    async def aclose(self: Any) -> None:
        """Forgets to."""

    return replace(HttpTransport, "aclose", aclose)


# Outcomes that are untrue, and credentials.


@bug("a time-out beats the bytes that are there")
def _() -> Any:
    def on_time(self: Any) -> None:
        self._timer = None
        while self._running:
            first = next(iter(self._running))
            if first.deadline > self._loop.time():
                self._timer = self._loop.call_at(first.deadline, self._on_time)
                return
            del self._running[first]
            first.time_out()

    return replace(Timeouts, "_on_time", on_time)


def classified(statuses: Any, as_what: Disposition) -> Any:
    def lenient(status: int, **rest: Any) -> Disposition:
        return as_what if status in statuses else classify(status, **rest)

    return replace(sender, "classify", lenient)


@bug("a 500 is taken for a clear refusal")
def _() -> Any:
    return classified((500,), Disposition.RETRY)


@bug("a status from a front is taken for a clear refusal")
def _() -> Any:
    return classified((520, 598, 599), Disposition.RETRY)


@bug("a 503 with a body is taken for a clear refusal")
def _() -> Any:
    return classified((503,), Disposition.RETRY)


@bug("a status that tells nothing is taken for a refusal")
def _() -> Any:
    return classified((300, 303, 409, 418), Disposition.FAILED)


@bug("the guard of splitting counts requests")
def _() -> Any:
    original = Sender._on_refused

    def refused(self: Any, trip: Any, batch: Any, reply: Any) -> None:
        self._guard.on_spoilt()
        trip.is_splitting = False
        original(self, trip, batch, reply)

    return replace(Sender, "_on_refused", refused)


@bug("what the guard leaves whole is called rejected")
def _() -> Any:
    original = Settlement.give_up

    def give_up(self: Any, batch: Any, deliveries: Any, cause: Any, reason: str, errors: Any = ()) -> None:
        if "for the whole request" not in reason:
            original(self, batch, deliveries, cause, reason, errors)
            return
        for delivery in deliveries:
            self.reject(batch, delivery, errors)

    return replace(Settlement, "give_up", give_up)


@bug("an answer that is no HTTP is followed by another attempt without end")
def _() -> Any:
    return replace(sender, "_MAX_UNREADABLE", 10**6)


@bug("every request probes while credentials are refused")
def _() -> Any:
    start = replace(Episode, "on_start", lambda self, *, now: None)
    return together(start, replace(Breaker, "pause", lambda self, *, until: None))


@bug("events fail at once though the credentials have worked")
def _() -> Any:
    def on_answer(self: Any, *, began: float) -> None:
        self.is_on = False

    return replace(Episode, "on_answer", on_answer)


@bug("events wait for credentials that have never worked")
def _() -> Any:
    return replace(Episode, "fails_at_once", lambda self, *, now: False)


@bug("an episode of refused credentials is told once in a life")
def _() -> Any:
    original = HealthMonitor._state

    def state(self: Any) -> Any:
        found = original(self)
        if found == "credentials_refused":
            self.since_first = getattr(self, "since_first", self._episode.reason)
            return found if self.since_first is self._episode.reason else "ok"
        return found

    return replace(HealthMonitor, "_state", state)


@bug("a 2xx does not end an episode")
def _() -> Any:
    def on_answer(self: Any, *, began: float) -> None:
        self.has_worked = True

    return replace(Episode, "on_answer", on_answer)


# The kill switch.


@bug("the kill switch lets events through")
def _() -> Any:
    return replace(DroppingIntake, "accept_nowait", Intake.accept_nowait)


@bug("the kill switch tells observers of what it drops")
def _() -> Any:
    made: list[Hooks] = []

    def keep(*given: Any) -> Hooks:
        if given:
            made.append(Hooks(*given))
        return made[-1]

    return replace(emitter, "Hooks", keep)
