"""A world with a journal: several lives of one shop, most of which end in a crash.

One clock, one server and one disk go through all lives. What is held against their record, in the numbers of
`tests/README.md`:

12. What `await track()` has accepted is on disk; it is never lost, and told of at most once. A request leaves
    once its mark is written, and an outcome is told once its event is deleted. What the server has accepted
    twice is flagged, in the receipt or in the tally, and nothing is flagged without a reason. Nothing ends
    because the emitter closes, or because Rokt refuses the credentials. What is on disk alone is overtaken by
    no younger event of its session, and holds up no other session; `flush()` and a close wait for it. At most
    half of memory is for it. What is stored is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from rokt_events_async import (
    CredentialsRefusedError,
    Delivery,
    DeliveryDeferredError,
    DeliveryError,
    DeliveryFailedError,
    DeliveryUnconfirmedError,
    Emitter,
    JournalError,
    NotAcceptedError,
    Observer,
    PartnerEvent,
    Receipt,
    RetryPolicy,
)
from rokt_events_async._pipeline import breaker
from rokt_events_async._pipeline.commits import StoredDelivery
from rokt_events_async._pipeline.intake import DurableIntake
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.transport import HttpTransport
from rokt_events_async.outcomes import Cause
from tests.samples import CREDENTIALS
from tests.simulation.disk import Disk, FakeJournal
from tests.simulation.loop import DeadlockError, SimulatedLoop
from tests.simulation.network import Connection
from tests.simulation.server import Exchange, Peer
from tests.simulation.world import Violation

START = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)

PLANS = (
    "refused",
    "asked to wait",
    "between, accepted",
    "between, not accepted",
    "silence, accepted",
    "silence, not accepted",
    "reset, accepted",
    "reset, not accepted",
    "credentials",
)
CRASHES = (
    *(f"{when} {what}" for what in ("append", "mark", "settle") for when in ("before", "after")),
    "after telling",
    "before a page is taken",
    "after a page was taken",
    "before the server",
    "after the server",
    "at a turn",
)
"""Where a life can end."""


class Crash(KeyboardInterrupt):
    """The process is killed: nothing of it runs any more."""


class Lives:
    """A world drawn from a seed."""

    max_batch_size = 25

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.luck = luck = random.Random(f"lives {seed}")
        self.loop = SimulatedLoop(random.Random(f"order {seed}"))
        self.loop.after_turn = self._after_turn
        self.loop.connect = self._connect
        self.loop.resolve = lambda: None
        self.disk = Disk(self)
        self.record: list[Exchange] = []
        self.trace: list[str] = []
        self.reached: Counter[str] = Counter()
        self.accepted: dict[str, int] = {}
        """Events that `await track()` has accepted, by the life that did."""
        self.in_memory: set[str] = set()
        """Events that need not be on disk: accepted without waiting for it, or while it failed."""
        self.outcomes: dict[str, Receipt | DeliveryError] = {}
        self.deferred = 0
        self.returned = 0
        self.alone: dict[str, set[str]] = {}
        """The events of this life that are on disk alone, by their session."""
        self.left_sent: set[str] = set()
        """Events that were marked on disk when a life ended."""
        self.arriving: set[str] = set()
        """Events of requests on whose arrival a life has ended."""
        self.unwritten: set[str] = set()
        """Events whose outcome was told although the disk had not taken it."""
        self.connections: list[Connection] = []
        self.emitter: Emitter | None = None
        self.suspicions: list[str] = []
        """Violations noted where raising them would be swallowed: in an observer."""
        self._numbers = 0
        self._began = 0.0
        self.share = luck.choice([0.0, 0.0, 0.3, 0.7, 1.0])
        self.plans = luck.sample(PLANS, luck.randint(1, 3))
        self.latency = luck.choice([0.0, 0.001, 0.05])
        self.delays = luck.choice([(0.0,), (0.001, 0.01), (0.0, 0.3, 2.0)])
        self.disk_share = luck.choice([0.0, 0.0, 0.0, 0.2])
        self.retries = luck.random() < 0.6
        self.on_error = luck.choice(["raise", "raise", "memory"])
        self.settings: dict[str, Any] = {
            "flush_interval": luck.choice([0, 0.01, 0.25]),
            "max_batch_size": luck.choice([1, 3, 25]),
            "max_concurrency": luck.choice([1, 3, 16]),
            "max_pending": luck.choice([4, 20, 1000]),
            "max_session_share": luck.choice([0.25, 1.0]),
            "max_wait": luck.choice([0.25, None]),
            "when_full": "raise",
            "request_timeout": luck.choice([0.7, 3.0]),
            "close_timeout": luck.choice([0.5, 4.0]),
            "retry": RetryPolicy(retry_unconfirmed=self.retries),
        }
        self.stuck = "s1" if luck.random() < 0.25 else None
        """A session whose requests always fail."""
        self.outage = 0.0
        """For so many seconds of a life all requests fail, before only those of that session do."""
        if self.stuck is not None and luck.random() < 0.6:  # It alone, and it has more than its share.
            self.share = 0.0
            bounds = {"max_pending": 20, "max_session_share": 0.25, "max_batch_size": luck.choice([1, 3])}
            self.settings |= bounds
            self.outage = luck.choice([0.0, 5.0, 20.0])
        self.disk.max_rows = luck.choice([8, 10**9, 10**9, 10**9])
        self.is_calm = False
        self.crash_at = ""
        self._crash_in = 0

    # What the disk, the server and the network ask.

    def disk_delay(self) -> float:
        return self.luck.choice(self.delays)

    def disk_fails(self, *, appends: bool) -> bool:
        fails = not self.is_calm and self.luck.random() < self.disk_share
        self.reached["disk: fails with appends" if appends else "disk: fails without"] += fails
        return fails

    def may_crash(self, where: str) -> None:
        if where != self.crash_at or self.is_calm:
            return
        self._crash_in -= 1
        if self._crash_in <= 0:
            self.reached[f"crash: {where}"] += 1
            self.note(f"CRASH {where}")
            raise Crash

    def _after_turn(self) -> None:
        self.may_crash("at a turn")
        if self.emitter is not None:
            self._check_account(self.emitter)

    def draw_plan(self, session: str, *, is_closed: bool) -> str:
        if is_closed:
            return "at a closed connection"
        if not self.is_calm and (session == self.stuck or self.now() < self._began + self.outage):
            return "refused"
        if not self.is_calm and self.luck.random() < self.share:
            return self.luck.choice(self.plans)
        return "well"

    def draw(self, name: str, choices: list[Any]) -> Any:
        return self.luck.choice(choices)

    def now(self) -> float:
        return self.loop.time()

    def later(self, wait: float, call: Callable[..., Any], *args: Any) -> None:
        self.loop.call_later(wait, call, *args)

    def note(self, what: str) -> None:
        self.trace.append(f"{self.now():.6f} {what}")

    def violated(self, what: str) -> None:
        raise Violation(what)

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.now() - 1000.0)

    def check_time(self, event_time: datetime) -> None:
        """The lives are short: no event becomes old."""

    def _connect(self, factory: Callable[[], Any], _plan: object) -> Connection:
        connection = Connection(self.loop, factory(), self.latency, lambda _: None)
        connection.to_server = _Server(self, connection, self.record).receive
        self.connections.append(connection)
        return connection

    async def _start_connection(self, addr_infos: Any, **_: Any) -> Any:
        await asyncio.sleep(self.latency)
        return "well"

    def check_marked(self, exchange: Exchange) -> None:
        """What arrives at the server is marked on disk."""
        for event_id in exchange.ids:
            sent = self.disk.sent_of(event_id)
            is_closing = self.emitter is not None and self.emitter._state == "closing"
            is_late = is_closing or event_id in self.outcomes  # It was on its way when it was told of.
            if not sent and event_id not in self.in_memory and not is_late:
                self.violated(f"12: {event_id} is sent, and the disk says {sent}")
        if not self.retries:
            again = [event_id for event_id in exchange.ids if event_id in self.left_sent]
            if again:
                self.violated(f"12: {again[0]} was sent by an earlier life, and is sent again")

    # The lives.

    def run(self) -> None:
        """Plays it.

        Raises:
            Violation: An invariant does not hold.
        """
        faults: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self._on_fault(context, faults))
        logger = logging.getLogger("rokt_events_async")
        handler = _Faults(faults)
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            with self._patched():
                for _ in range(self.luck.randint(1, 3)):
                    self._live()
                self.is_calm = True
                self._live()
        except DeadlockError as error:
            raise Violation(f"12: {error}") from None
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagates
            self._bury()
            self.loop.close()
        if self.suspicions or faults:
            self.violated((self.suspicions + [f"a fault: {fault}" for fault in faults])[0])
        self._check_end()

    def _on_fault(self, context: dict[str, Any], faults: list[str]) -> None:
        """Notes a fault; what a killed process has left unread is none."""
        if "never retrieved" not in context["message"] or not self.disk.life:
            faults.append(repr(context.get("exception") or context["message"]))

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        with (
            warnings.catch_warnings(),
            mock.patch("aiohttp.connector.monotonic", self.loop.time),
            mock.patch.object(DurableIntake, "_defer", self._watched_defer(DurableIntake._defer)),
            mock.patch.object(Ledger, "bring_back", self._watched_return(Ledger.bring_back)),
            mock.patch.object(breaker, "MIN_FAILURES", self.luck.choice([2, 16])),
            mock.patch("aiohttp.connector.aiohappyeyeballs.start_connection", self._start_connection),
        ):
            warnings.simplefilter("ignore")
            yield

    def _watched_defer(self, original: Any) -> Any:
        def defer(intake: Any, delivery: Any) -> None:
            event, room = delivery.event, intake._room
            session, size = event.session_id, len(delivery.wire)
            has_room = room._fits(size) and room.fits_share(session, size)
            self.reached["deferred: behind others" if has_room else "deferred: no room"] += 1
            # A session that was passed over is so until the loader has seen that nothing of it is left.
            is_passed_over = intake._recovery._own.backlog.is_passed_over(session)
            if has_room and not (self.alone.get(session) or is_passed_over or self.disk_share):
                self.violated(f"12: {event.parent_guid} is deferred, though there is room for it")
            self.alone.setdefault(session, set()).add(event.parent_guid)
            original(intake, delivery)

        return defer

    def _watched_return(self, original: Any) -> Any:
        def bring_back(ledger: Any, delivery: Any, now: float, *, since: float) -> None:
            self.reached["brought back"] += 1
            self.alone[delivery.event.session_id].discard(delivery.event.parent_guid)
            original(ledger, delivery, now, since=since)

        return bring_back

    def _live(self) -> None:
        self.deferred = self.returned = 0
        self.alone.clear()
        self._began = self.now()
        self.crash_at = self.luck.choice([*CRASHES, "never"])
        self.disk.siblings_until = self.now() + self.luck.choice([0.0, 0.0, 3.0])
        self._crash_in = self.luck.randint(1, 400 if self.crash_at == "at a turn" else 12)
        try:
            self.loop.run_until_complete(self._life())
        except Crash:
            self._note_sent()
            self._bury()
        else:
            self._note_sent()
            self.disk.life += 1
        self.emitter = None

    def _note_sent(self) -> None:
        """Notes what the disk says was sent. What was clearly refused a moment ago must not be among it."""
        sent = self.disk.sent()
        since, until = max(self._began, self.now() - 0.9), self.now() - 0.1 - 4 * max(self.delays)
        for event_id in sorted(sent - self.left_sent):
            exchanges = [exchange for exchange in self.record if event_id in exchange.ids]
            last = exchanges[-1].told_at if exchanges else None
            are_clear = not any(exchange.may_have_accepted for exchange in exchanges)
            if not self.disk_share and last is not None and are_clear and since < last < until:
                self.violated(f"12: {event_id} was clearly refused, and stays marked")
        self.left_sent |= sent

    def _bury(self) -> None:
        """Nothing of a killed process runs any more; what it has written to its connections arrives."""
        self.disk.crash()
        emitter = self.emitter
        if emitter is not None and emitter._engine is not None and emitter._state != "closed":
            assert isinstance(emitter._engine.transport, HttpTransport)
            emitter._engine.transport.abandon()
            emitter._state = "closed"
        loop: Any = self.loop
        for handle in (*loop._ready, *loop._scheduled):
            if not isinstance(getattr(handle._callback, "__self__", None), _Server):
                handle.cancel()
        for connection in self.connections:
            connection._is_closing = True
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError, Crash):
                task.get_coro().close()
        for handle in (*loop._ready, *loop._scheduled):
            if not isinstance(getattr(handle._callback, "__self__", None), _Server):
                handle.cancel()

    async def _life(self) -> None:
        self.emitter = emitter = Emitter(
            CREDENTIALS,
            endpoint="http://localhost:8080/v1/partner/events",
            _clock=self.clock,
            _random=random.Random(f"client {self.seed} {self.disk.life}"),
            observers=[_Witness(self)],
            **self.settings,
        )
        journal: Any = FakeJournal(self.disk, takes_new=self.luck.random() < 0.4, on_error=self.on_error)
        emitter._journal = journal
        emitter._settings = _durable(emitter._settings)
        await emitter.start()
        callers = [asyncio.create_task(self._call(emitter)) for _ in range(self.luck.randint(1, 4))]
        await asyncio.wait(callers, timeout=None if self.is_calm else 30.0)
        if self.is_calm:
            await self._settle_all(emitter)
            await self._end(emitter, callers)
            return
        accepted = [event_id for event_id, life in self.accepted.items() if life == self.disk.life]
        if self.stuck is not None and not self.share:
            # One session may not fill the room.
            is_bounded = self.settings["max_pending"] > 4 and self.settings["max_session_share"] < 1
            before = [] if self.disk_share else [*self.disk.appended]
            await asyncio.sleep(120.0)
            if is_bounded and self.settings["max_batch_size"] <= 3:
                self._check_outcomes(accepted, self.stuck)
                held_up = [one for one in before if self._is_held_up(one)]
                if held_up:
                    self.violated(f"12: {held_up[0]} is on disk, behind those of a session that fails")
        elif not self.share and self.luck.random() < 0.7:
            if not await emitter.flush(timeout=600.0):  # The disk may fail, now and then.
                self.violated(f"12: the server is well, and events have no outcome: {emitter.stats}")
            self._check_outcomes(accepted, None)
        await self._end(emitter, callers)

    async def _end(self, emitter: Emitter, callers: list[asyncio.Task[None]]) -> None:
        await self._close(emitter)
        for caller in callers:
            await caller

    def _is_held_up(self, event_id: str) -> bool:
        return self.disk.appended[event_id][1] != self.stuck and self.disk.sent_of(event_id) is not None

    def _check_outcomes(self, accepted: list[str], stuck: str | None) -> None:
        """What this life has accepted has its outcome, but for a session whose requests fail."""
        for event_id in accepted:
            is_stuck = event_id in self.disk.appended and self.disk.appended[event_id][1] == stuck
            if event_id not in self.outcomes and not is_stuck and not self.disk_share:
                self.violated(f"12: the server is well, and {event_id} has no outcome")

    async def _settle_all(self, emitter: Emitter) -> None:
        """The server is well, and the disk too: everything ends."""
        await asyncio.sleep(5.0)  # What was cancelled may be stored yet.
        await emitter.flush()
        for _ in range(100):
            if not self.disk.rows:
                break
            await asyncio.sleep(30.0)  # Until the next file is adopted.
        if self.disk.rows:
            self.violated(f"12: {self.disk.rows} events stay on disk")
        await asyncio.sleep(30.0)  # The last commit is told, on a slow disk too.
        stats = emitter.stats
        if stats.journal is None or stats.journal.stored:
            self.violated(f"12: the disk is empty, and the account says {stats}")

    async def _close(self, emitter: Emitter) -> None:
        began = self.now()
        for _ in range(0 if self.is_calm else self.luck.choice([0, 0, 0, 2])):  # Stored as the close begins.
            self._numbers += 1
            self.in_memory.add(f"e{self._numbers}")
            with contextlib.suppress(NotAcceptedError):
                emitter.track_nowait(
                    PartnerEvent.viewed(
                        session_id="late", parent_guid=f"e{self._numbers}", client_unique_id="c"
                    )
                )
        report = await emitter.aclose()
        took = self.now() - began
        limit = self.settings["close_timeout"]
        if self.share == 1.0 and not self.disk_share:  # An outage: no longer than what is in flight.
            limit = min(limit, self.settings["request_timeout"] + 0.5)
        if took > limit + 2.0 + 4 * max(self.delays):
            self.violated(f"12: the close took {took} s of {limit}")
        if report.deferred != self.deferred - self.returned:
            told = f"{self.deferred} were told, and {self.returned} came back"
            self.violated(f"12: {report.deferred} events are deferred, {told}")
        is_quick = max(self.delays) <= 0.01 and self.latency <= 0.001 and limit >= 4.0
        if report.deferred and is_quick and not (self.share or self.stuck or self.disk_share):
            self.violated(f"12: {report.deferred} events are left, though the server is well")
        await asyncio.sleep(1.0)

    async def _call(self, emitter: Emitter) -> None:
        for _ in range(self.luck.randint(1, 30 if self.outage else 12)):
            await asyncio.sleep(self.luck.choice([0.0, 0.0, 0.01, 0.5, 3.0]))
            self._numbers += 1
            event_id = f"e{self._numbers}"
            session = f"s{self.luck.randint(1, 5)}"
            if self.stuck is not None and self.luck.random() < 0.5:
                session = self.stuck
            event = PartnerEvent.viewed(session_id=session, parent_guid=event_id, client_unique_id="c")
            try:
                await self._track(emitter, event)
            except JournalError as error:
                self.reached["caller: JournalError"] += 1
                if "not known" not in str(error) and self.disk.sent_of(event_id) is not None:
                    self.violated(f"12: {event_id} was not accepted, and is on disk")

    async def _track(self, emitter: Emitter, event: PartnerEvent) -> None:
        event_id = event.parent_guid
        if self.luck.random() < 0.15:
            self.in_memory.add(event_id)
            with contextlib.suppress(Exception):
                emitter.track_nowait(event)
            return
        if self.luck.random() < 0.1:
            self.reached["caller: cancelled"] += 1
            self.in_memory.add(event_id)
            with contextlib.suppress(TimeoutError, NotAcceptedError):
                async with asyncio.timeout(self.luck.choice([0.0, 0.0005, 0.2])):
                    await emitter.track(event)
            return
        try:
            delivery = await emitter.track(event)
        except Exception as error:
            if isinstance(error, JournalError):
                raise
            return
        assert isinstance(delivery, StoredDelivery)
        if delivery.commits is None:  # The disk failed, and it was accepted all the same.
            self.in_memory.add(event_id)
            return
        if self.disk.rows > self.disk.max_rows + 10:  # Four callers, and what did not wait.
            self.violated(f"12: {self.disk.rows} events are stored, {self.disk.max_rows} at most")
        self.note(f"accepted {event_id}")
        self.accepted[event_id] = self.disk.life

    # The invariants.

    def _check_account(self, emitter: Emitter) -> None:
        stats = emitter.stats
        if stats.journal is None:
            return
        ends = stats.delivered + stats.rejected + stats.expired + stats.failed + stats.unconfirmed
        if stats.accepted + stats.journal.recovered != ends + stats.journal.deferred + stats.pending:
            self.violated(f"12: the account does not add up: {stats}")
        bound = self.settings["max_pending"]
        if stats.pending > bound:
            self.violated(f"12: {stats.pending} events are in memory")
        assert emitter._engine is not None
        if emitter._engine.ledger.brought_back > max(1, bound // 2):
            self.violated(
                f"12: {emitter._engine.ledger.brought_back} of {bound} events in memory are brought back"
            )

    def told(self, event_id: str, outcome: Receipt | DeliveryError) -> None:
        """An observer was told an outcome."""
        self.note(f"told {outcome.outcome} {event_id}")
        self.reached[f"outcome: {outcome.outcome}"] += 1
        if event_id in self.outcomes:
            is_open = isinstance(outcome, DeliveryUnconfirmedError) or (
                isinstance(outcome, Receipt) and outcome.maybe_duplicate
            )
            before = self.outcomes[event_id]
            was_open = isinstance(before, DeliveryUnconfirmedError) and before.cause is Cause.CLOSED
            if not was_open and (event_id not in self.unwritten or not is_open):
                self.violated(f"12: {event_id} is told two outcomes")
        if self.disk.sent_of(event_id) is not None:
            # At the end of a close the emitter tells what the disk has not taken.
            if self.emitter is None or self.emitter._state != "closing":
                self.violated(f"12: {event_id} is told {outcome.outcome}, and is on disk")
            self.reached["told without the disk"] += 1
            self.unwritten.add(event_id)
        self.outcomes[event_id] = outcome

    def _check_end(self) -> None:
        by_id: dict[str, list[Exchange]] = {}
        for exchange in self.record:
            for event_id in exchange.ids:
                by_id.setdefault(event_id, []).append(exchange)
        for event_id, outcome in self.outcomes.items():
            self._check_outcome(event_id, outcome, by_id.get(event_id, []))
        self._check_order(by_id)
        tally = self.disk.tally()
        untold = [event_id for event_id in self.accepted if event_id not in self.outcomes]
        lost = [event_id for event_id in untold if not _accepted(by_id, event_id)]
        told: Counter[str] = Counter(
            outcome.outcome
            for event_id, outcome in self.outcomes.items()
            if not (event_id in self.in_memory and getattr(outcome, "cause", None) is Cause.CLOSED)
        )
        names = ("rejected", "expired", "failed", "unconfirmed")
        unaccounted = sum(tally[name] - told[name] for name in names)
        if not self.disk_share and len(lost) > max(0, unaccounted):
            self.violated(f"12: {lost[0]} was accepted, and nothing became of it")
        twice = [event_id for event_id in untold if _accepted(by_id, event_id) > 1]
        receipts = [outcome for outcome in self.outcomes.values() if isinstance(outcome, Receipt)]
        flagged = tally["maybe_duplicate"] - len([one for one in receipts if one.maybe_duplicate])
        ended = tally["unconfirmed"] - told["unconfirmed"]
        if not self.disk_share and len(twice) > max(0, flagged) + max(0, ended):
            self.violated(f"12: {twice[0]} was accepted twice, and the tally has {flagged}")
        ends = sum(tally[name] for name in (*names, "delivered"))
        if tally["accepted"] != ends:
            self.violated(f"12: the tally does not add up: {tally}")

    def _check_order(self, by_id: dict[str, list[Exchange]]) -> None:
        """No event is sent for the first time after a younger one of its session and file."""
        first = {exchange: place for place, exchange in reversed([*enumerate(map(id, self.record))])}
        latest: dict[tuple[str, str], tuple[int, str]] = {}
        for event_id, (file, session, _) in sorted(self.disk.appended.items(), key=lambda item: item[1]):
            if event_id not in by_id:
                continue
            sent_at = first[id(by_id[event_id][0])]
            before = latest.get((file, session), (-1, ""))
            if sent_at < before[0] and event_id not in self.in_memory:
                self.violated(f"12: {event_id} has overtaken {before[1]} of {session}")
            latest[file, session] = max(before, (sent_at, event_id))

    def _check_outcome(
        self, event_id: str, outcome: Receipt | DeliveryError, exchanges: list[Exchange]
    ) -> None:
        times = sum(event_id in exchange.accepted for exchange in exchanges)
        if isinstance(outcome, CredentialsRefusedError):
            self.violated(f"12: {event_id} ended because of the credentials")
        must_be_told = event_id not in self.in_memory
        if isinstance(outcome, DeliveryFailedError):
            if times or (must_be_told and outcome.cause is Cause.CLOSED):
                self.violated(f"12: {event_id} failed ({outcome.cause}), and was accepted {times} times")
        elif isinstance(outcome, DeliveryUnconfirmedError):
            has_left = exchanges or event_id in self.left_sent or event_id in self.arriving
            if must_be_told and not has_left:
                self.violated(f"12: {event_id} is unconfirmed, and never was sent")
        elif isinstance(outcome, Receipt):
            self._check_receipt(event_id, outcome, exchanges)

    def _check_receipt(self, event_id: str, receipt: Receipt, exchanges: list[Exchange]) -> None:
        times = sum(event_id in exchange.accepted for exchange in exchanges)
        if not times:
            self.violated(f"12: {event_id} is told delivered, and was not accepted")
        if times > 1 and not receipt.maybe_duplicate and event_id not in self.unwritten:
            self.violated(f"12: {event_id} was accepted {times} times without a flag")
        has_reason = event_id in self.left_sent or any(one.may_have_accepted for one in exchanges[:-1])
        if receipt.maybe_duplicate and not has_reason:
            self.violated(f"12: {event_id} is flagged without a reason")


def _accepted(by_id: dict[str, list[Exchange]], event_id: str) -> int:
    return sum(event_id in exchange.accepted for exchange in by_id.get(event_id, []))


def _durable(settings: Any) -> Any:
    import attrs

    return attrs.evolve(settings, is_durable=True)


class _Server(Peer):
    """A peer that looks at the disk, and around whose work a life can end."""

    def __init__(self, lives: Lives, connection: Connection, record: list[Exchange]) -> None:
        super().__init__(lives, connection, record)
        self._lives = lives
        self._life = lives.disk.life

    def _take(self, line: str, headers: dict[str, str], body: bytes) -> None:
        ids = {one["parentGuid"] for one in json.loads(body)["events"]}
        self._lives.arriving |= ids
        self._lives.may_crash("before the server")
        self._lives.arriving -= ids
        super()._take(line, headers, body)
        if not self._is_closed and self._life == self._lives.disk.life:
            self._lives.check_marked(self._lives.record[-1])
        self._lives.may_crash("after the server")


class _Witness(Observer):
    """Is told of every outcome."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives
        self._life = lives.disk.life

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        self._tell(delivery, receipt)

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        self._tell(delivery, error)

    def _tell(self, delivery: Delivery, outcome: Receipt | DeliveryError) -> None:
        if self._life == self._lives.disk.life:
            try:
                self._lives.told(delivery.event.parent_guid, outcome)
            except Violation as violation:
                self._lives.suspicions.append(str(violation))

    def on_deferred(self, delivery: Delivery) -> None:
        assert isinstance(delivery.exception(), DeliveryDeferredError)
        self._lives.deferred += 1

    def on_returned(self, count: int, left: int, oldest: datetime | None) -> None:
        self._lives.returned += count


class _Faults(logging.Handler):
    """Collects what must not be logged: faults of the library."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__()
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        if "fault" in record.getMessage() or "raised" in record.getMessage():
            self._faults.append(record.getMessage())


def play_lives(seed: int) -> tuple[Counter[str], str | None]:
    """Plays one seed. Returns what was reached, and what was violated."""
    lives = Lives(seed)
    try:
        lives.run()
    except Violation as violation:
        return lives.reached, str(violation)
    except AssertionError as error:
        return lives.reached, f"12: {error}"
    return lives.reached, None
