"""One run: everything drawn from a seed, and the nine invariants held against the server's record."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import math
import random
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import attrs

from rokt_events_async import (
    Cause,
    CredentialsRefusedError,
    Delivery,
    DeliveryError,
    DrainReport,
    Emitter,
    EmitterClosedError,
    Health,
    InvalidEventError,
    Observer,
    PartnerEvent,
    QueueFullError,
    Receipt,
    RequestReport,
    RetryPolicy,
    RetryReport,
)
from rokt_events_async._pipeline import breaker
from rokt_events_async._pipeline.batching import Session
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.transport import HttpTransport
from tests.samples import CREDENTIALS
from tests.simulation.loop import DeadlockError, SimulatedLoop
from tests.simulation.network import Connection
from tests.simulation.server import (
    AGAIN,
    BODY_PLANS,
    CREDENTIALS_REFUSED,
    PLANS,
    REFUSED,
    SPOILT,
    STATUS_PLANS,
    WHOLE,
    Exchange,
    Peer,
)

START = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)
MAX_AGE = timedelta(days=3)
CONNECT_PLANS = ("no name", "refused", "hangs", "reset at once", "closed at once", "closed before use")
CALLER_ACTS = (
    "drops it",
    "cancels it",
    "awaits it",
    "awaits with a time-out",
    "re-enters from a callback",
    "a callback raises",
    "cancelled while tracking",
)
ENDINGS = (
    "waits for all",
    "closes early",
    "closes twice",
    "close cancelled",
    "workers cancelled",
    "workers cancelled at a time-out",
)
THEMES = (
    "any",
    "splits",
    "splits of all",
    "closed connections",
    "held up",
    "time-outs",
    "sick sessions",
    "hanging sessions",
    "rate limiter",
    "outage",
    "busy session",
    "lingers",
    "held loop",
    "credentials",
    "statuses",
    "answers",
)
"""What a seed is about: some states are too rare where everything is drawn by itself."""

EXTRA = (
    *("splits",) * 8,
    *("splits of all",) * 2,
    *("busy session",) * 2,
    *("credentials",) * 2,
    *("held loop",) * 3,
)
"""Themes that have more to find."""

HELD_UP = 0.3
"""Seconds: one retry wait, and the interval of the trickle."""

_DISABLED = 0.01
"""How often the kill switch is on."""

SLACK = 1.5
"""Seconds: how rarely what waits in the queue beyond its deadline is looked for, and a turn or two."""


class Violation(AssertionError):  # noqa: N818 -- the word for it
    """An invariant does not hold."""


@attrs.define
class Accepted:
    """An event that the client has accepted."""

    id: str
    session: str
    order: int
    at: float
    kind: str
    outcome: Receipt | DeliveryError | None = None
    settled_at: float | None = None


class World:
    """A world drawn from a seed.

    Args:
        calm: Whether nothing ever goes wrong.
    """

    def __init__(self, seed: int, *, calm: bool = False) -> None:
        self.seed = seed
        self.is_calm = calm
        self.luck = luck = random.Random(f"traffic {seed}")
        self._server_luck = random.Random(f"server {seed}")
        self.loop = SimulatedLoop(random.Random(f"order {seed}"))
        self.loop.after_turn = self.check_step
        self.loop.connect = self._connect
        self.loop.resolve = self._resolve
        self.trace: list[str] = []
        self.reached: Counter[str] = Counter()
        self.record: list[Exchange] = []
        self.accepted: list[Accepted] = []
        self.connections: set[int] = set()
        self._numbers = 0
        self._closed_at_once: list[float] = []
        self.suspicions: list[str] = []
        self._had_good_connections = False
        self._blocked_at = 0.0
        self._offsets: list[tuple[float, timedelta]] = [(0.0, timedelta(0))]

        share = 0.0 if calm else luck.choice([0.0, 0.05, 0.3, 0.7, 0.95])
        self.plans = luck.sample(PLANS, luck.randint(1, 6))
        self.connect_plans = luck.sample(CONNECT_PLANS, luck.randint(0, 3))
        self.share = share
        self.calm_at = 1000.0 + luck.choice([1.0, 10.0, 60.0, 200.0])
        self.latency = luck.choice([0.0, 0.001, 0.05] if calm else [0.0, 0.001, 0.05, 0.3])
        self.jumps = (
            []
            if calm
            else [luck.choice([-4000, -60, 60, 4000, 172_800]) for _ in range(luck.choice([0, 0, 0, 1, 2]))]
        )
        self.settings: dict[str, Any] = {
            "flush_interval": luck.choice([0, 0.01, 0.25, 2.0]),
            "max_batch_size": luck.choice([1, 2, 7, 25, 25]),
            "max_concurrency": luck.choice([1, 2, 3, 16]),
            "max_pending": luck.choice([1, 3, 10, 1000]),
            "max_pending_bytes": luck.choice([600, 5000, 10**7, 10**7]),
            "max_session_share": 1.0 if calm else luck.choice([0.1, 0.25, 1.0]),
            "max_wait": None if calm else luck.choice([0, 0.25, 2.0, None, None]),
            "when_full": luck.choice(["raise", "drop"]),
            "request_timeout": luck.choice([0.7, 3.0, 10.0]),
            "close_timeout": luck.choice([0, 0.4, 6.0, 400.0]),
            "retry": RetryPolicy(
                deadline=120.0 if calm else luck.choice([4.0, 20.0, 120.0]),
                max_attempts=luck.choice([None, None, None, 1, 2, 4]),
                retry_unconfirmed=luck.random() < 0.7,
            ),
        }
        theme = "any" if calm else luck.choice([*["any"] * 9, "answers", *THEMES[1:-1], *EXTRA])
        self.reached[f"theme: {theme}"] += 1
        bad = [] if calm else luck.choice([[], [REFUSED], [REFUSED, SPOILT]])
        self.kinds = ["SignalViewed"] * luck.choice([1, 12, 40]) + bad
        self.sessions = luck.choice([1, 3, 20, 300])
        self.ending = "waits for all" if calm else luck.choice(ENDINGS)
        self.bursts = luck.choice([(1,), (1, 1, 6), (1, 1, 1, 1, 1, 30)])
        self.sick: dict[str, tuple[str, float]] = {}  # Session: what its requests meet, and how often.
        self.busy = ""
        self.holds: list[tuple[float, float]] = []  # When, and for how many seconds.
        self.held = 0.0
        self.is_closing = False
        self.refusals: list[tuple[float, float]] = []  # From when until when credentials are refused.
        self._follow_theme(theme)
        if 4 * self.latency >= self.settings["request_timeout"]:
            self.latency = 0.05  # Or no answer would ever come in time, and a day would not be enough.
        self.breaker_limit = 16 if calm else luck.choice([1, 2, 4, 16])
        self.max_batch_size: int = self.settings["max_batch_size"]
        self.policy: RetryPolicy = self.settings["retry"]
        assert self.policy.deadline is not None
        self.deadline = self.policy.deadline
        self.is_prompt = (
            self.share == 0
            and SPOILT not in self.kinds
            and not self.sick
            and self.settings["max_concurrency"] >= self.sessions
            and not self.ending.startswith("workers cancelled")  # A pause follows.
            and not self.holds
            and not self.refusals
        )
        self.acts = ("drops it", "awaits it") if calm else CALLER_ACTS
        self.is_hurried = False
        # By a luck of its own: every other world stays as it was.
        self.is_disabled = not calm and random.Random(f"kill switch {seed}").random() < _DISABLED
        self.eye = Eye(self)
        self.handler = Handler(self, random.Random(f"handler {seed}"))

    def _follow_theme(self, theme: str) -> None:
        luck, settings = self.luck, self.settings
        if theme == "any":
            return
        self.calm_at = 1000.0 + luck.choice([10.0, 60.0])
        self.share = luck.choice([0.3, 0.7, 0.95])
        if theme in ("sick sessions", "hanging sessions", "rate limiter", "outage", "busy session"):
            self._follow_partial_failure(theme)
            return
        if theme in ("lingers", "held loop", "credentials"):
            self._leave_alone()
            self._disturb(theme)
            return
        if theme.startswith("splits"):
            settings |= {
                "max_batch_size": luck.choice([7, 25]),
                "max_pending": 1000,
                "max_pending_bytes": 10**7,
            }
            settings["retry"] = RetryPolicy(
                deadline=luck.choice([4.0, 20.0]), max_attempts=luck.choice([None, 2, 3, 4])
            )
            self.sessions = luck.choice([1, 3])
            self.kinds = ["SignalViewed"] * (12 if theme == "splits" else 0) + [SPOILT]
            self.plans = luck.sample(["refused", "between, accepted", "silence, accepted"], 2)
            self.share = luck.choice([0.3, 0.5]) if theme == "splits" else luck.choice([0.0, 0.1])
            self.bursts = (1, 6, 30)
        elif theme in ("statuses", "answers"):
            self.plans = (
                luck.sample([*STATUS_PLANS], 2) if theme == "statuses" else luck.sample(BODY_PLANS, 6)
            )
            self.kinds += [REFUSED] * (theme == "answers")
            self.share = 0.3
        elif theme == "closed connections":
            settings["max_concurrency"] = luck.choice([1, 2])
            self.connect_plans = ["closed before use"]
            self.share = 0.95
        else:
            self.plans = ["silence, accepted", "silence, not accepted", "drip"]
            settings["max_concurrency"] = luck.choice([1, 2, 3])
        if theme == "held up":
            settings["retry"] = RetryPolicy(deadline=4.0)
            settings |= {
                "max_pending": 1000,
                "flush_interval": 0.01,
                "request_timeout": luck.choice([3.0, 10.0]),
            }
            self.sessions = luck.choice([3, 6])
        elif theme == "time-outs":
            self.ending = "workers cancelled at a time-out"

    def _leave_alone(self) -> None:
        """Nothing goes wrong: what leaves late was held up by the emitter itself."""
        self.share = 0.0
        self.connect_plans = []
        self.sessions = self.luck.choice([1, 3])
        self.kinds = ["SignalViewed"]
        self.ending = "waits for all"
        self.settings |= {
            "flush_interval": self.luck.choice([0.25, 2.0]),
            "max_batch_size": 25,
            "max_concurrency": 16,
            "max_pending": 1000,
            "max_pending_bytes": 10**7,
        }

    def _disturb(self, theme: str) -> None:
        """The loop is held, or the credentials come and go, and nothing else is wrong."""
        luck, settings = self.luck, self.settings
        if theme == "held loop":
            settings["request_timeout"] = luck.choice([0.7, 3.0])
            self.latency = luck.choice([0.05, 0.3])
            holds = luck.choice([1, 3])
            self.holds = [(luck.random() * 10, luck.choice([0.5, 4.0, 12.0])) for _ in range(holds)]
        elif theme == "credentials":
            first = 1000.0 + luck.choice([0.0, 0.0, 1.0, 3.0])
            self.refusals = [(at, at + luck.choice([2.0, 10.0])) for at in (first, first + 20.0)]
            settings["retry"] = RetryPolicy(deadline=luck.choice([4.0, 120.0]))
            self.sessions = luck.choice([3, 20])

    def _follow_partial_failure(self, theme: str) -> None:
        """Some sessions fail, hang or are limited, or all of them do; the rest must not be held up."""
        luck, settings = self.luck, self.settings
        self.share = 0.0
        self.connect_plans = []
        self.sessions = luck.choice([4, 20])
        settings |= {"max_concurrency": luck.choice([2, 3, 16]), "max_pending": luck.choice([10, 1000])}
        settings |= {"max_pending_bytes": 10**7, "flush_interval": luck.choice([0.01, 0.25])}
        settings["retry"] = RetryPolicy(deadline=luck.choice([4.0, 20.0, 120.0]))
        plans = {
            "sick sessions": ["refused", "between, not accepted", "between, accepted"],
            "hanging sessions": ["silence, accepted", "silence, not accepted"],
            "rate limiter": ["asked to wait"],
            "outage": ["refused", "silence, not accepted", "between, not accepted"],
            "busy session": ["refused"],
        }[theme]
        count = self.sessions if theme in ("rate limiter", "outage") else luck.choice([1, 2, 3])
        rate = luck.choice([1.0, 1.0, 0.5])
        self.sick = {f"s{number}": (luck.choice(plans), rate) for number in range(count)}
        if theme == "outage" and luck.random() < 0.7:
            self.sessions, self.latency, self.bursts = 100, luck.choice([0.0, 0.05]), (1, 30)
            self.sick = {f"s{number}": ("refused", 1.0) for number in range(self.sessions)}
            settings |= {"max_concurrency": 16, "max_pending": 1000, "max_session_share": 1.0}
            settings["retry"] = RetryPolicy(deadline=20.0)
            self.calm_at = 1010.0
        if theme == "busy session":
            self.busy = "s0"
            settings["max_batch_size"] = luck.choice([1, 2])
            settings |= {"max_pending": luck.choice([10, 40]), "max_session_share": luck.choice([0.1, 0.25])}

    # What the server, the network and the clock ask.

    def draw_plan(self, session: str, *, is_closed: bool) -> str:
        sick, rate = self.sick.get(session, ("", 0.0))
        if is_closed:
            plan = "at a closed connection"
        elif any(since <= self.now() < until for since, until in self.refusals):
            plan = "credentials"
        elif self.now() < self.calm_at and self._server_luck.random() < rate:
            plan = sick
        elif self.now() < self.calm_at and self._server_luck.random() < self.share:
            plan = self._server_luck.choice(self.plans)
        else:
            plan = "well"
        self.reached[f"server: {plan}"] += 1
        return plan

    def draw(self, name: str, choices: list[Any]) -> Any:
        chosen = self._server_luck.choice(choices)
        self.reached[f"server: {name} {chosen}"] += 1
        return chosen

    def now(self) -> float:
        return self.loop.time()

    def later(self, wait: float, call: Callable[..., Any], *args: Any) -> None:
        self.loop.call_later(wait, call, *args)

    def note(self, what: str) -> None:
        self.trace.append(f"{self.now():.6f} {what}")

    def violated(self, what: str) -> None:
        raise Violation(what)

    def suspect(self, what: str) -> None:
        """Notes a violation where raising it would be swallowed: in an observer."""
        self.suspicions.append(what)

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.now() - 1000.0) + self._offsets[-1][1]

    def _jump(self, seconds: int) -> None:
        self._offsets.append((self.now(), self._offsets[-1][1] + timedelta(seconds=seconds)))
        self.reached[f"clock: {'back' if seconds < 0 else 'ahead'}"] += 1
        self.note(f"the clock jumps by {seconds} s")

    def _hold(self, seconds: float) -> None:
        self.held += seconds
        self.reached["loop: held"] += 1
        self.note(f"the loop is held for {seconds} s")
        self.loop.hold(seconds)

    def check_time(self, event_time: datetime) -> None:
        """Invariant 4: it was not too old at some moment of its request's time."""
        since = self.now() - self.settings["request_timeout"] - 2 * self.latency - 0.001 - self.held
        past = [offset for at, offset in self._offsets if at >= since]
        offset = min(
            [
                *past,
                self._offsets[-1][1],
                next(o for at, o in reversed(self._offsets) if at <= since or at == 0.0),
            ]
        )
        clock = START + timedelta(seconds=since - 1000.0) + offset
        # The wire's time is truncated to milliseconds.
        if clock - event_time > MAX_AGE + timedelta(milliseconds=1):
            self.violated(f"4: sent an event that is {clock - event_time} old")

    def check_fresh(self, duration: float) -> None:
        """A request gives up after three closed connections: two fresh ones, and a kept or a fresh one."""
        since = self.now() - duration - 1e-6
        fresh = [at for at in self._closed_at_once if at >= since]
        if len(fresh) < (2 if self._had_good_connections else 3):
            self.suspect(f"3: only {len(fresh)} fresh connections were tried")
        self.reached["fresh connections found closed"] += 1

    def _plan_connection(self) -> str:
        if self.connect_plans and self.now() < self.calm_at and self._server_luck.random() < self.share / 2:
            plan = self._server_luck.choice(self.connect_plans)
            self.reached[f"connection: {plan}"] += 1
            return plan
        return "well"

    def _resolve(self) -> None:
        if self._plan_connection() == "no name":
            raise socket.gaierror(-2, "Name or service not known")

    async def start_connection(self, addr_infos: Any, **_kwargs: Any) -> Any:
        port = addr_infos[0][4][1]
        if port != 8080:
            self.violated(f"8: a connection to port {port}")
        plan = self._plan_connection()
        if plan == "refused":
            raise ConnectionRefusedError(111, "Connection refused")
        if plan == "hangs":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self.latency)
        return plan

    def _connect(self, factory: Callable[[], Any], plan: str) -> Connection:
        connection = Connection(
            self.loop, factory(), self.latency, lambda gone: self.connections.discard(id(gone))
        )
        self.connections.add(id(connection))
        connection.to_server = Peer(self, connection, self.record).receive
        if plan == "closed before use":
            self._closed_at_once.append(self.now())
        else:
            self._had_good_connections = True
        if plan == "closed before use":
            connection.abort()
        elif plan == "reset at once":
            connection.reset()
        elif plan == "closed at once":
            connection.finish()
        self._keep = connection
        return connection

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Where aiohttp goes past the loop: to the clock, and to a socket."""
        with (
            mock.patch("aiohttp.connector.monotonic", self.loop.time),
            mock.patch.object(breaker, "MIN_FAILURES", self.breaker_limit),
            mock.patch.object(Pool, "_take", self._watched(Pool._take)),
            mock.patch("aiohttp.connector.aiohappyeyeballs.start_connection", self.start_connection),
        ):
            yield

    def _watched(self, take: Callable[[Pool], Any]) -> Callable[[Pool], Any]:
        """Invariant 10: with the breaker open, a parked batch is no probe while a fresh one waits."""

        def watched(pool: Pool) -> Any:
            was_open = pool._breaker.is_open
            trip = take(pool)
            if was_open and trip is not None and trip.is_retry and _has_fresh(pool, self.now()):
                self.suspect("10: a batch that has failed is a probe, and a fresh one waits")
            return trip

        return watched

    # The run.

    def run(self) -> None:
        """Plays it.

        Raises:
            Violation: An invariant does not hold; its number is in the message.
        """
        faults: list[str] = []
        self.loop.set_exception_handler(
            lambda _, context: faults.append(str(context.get("exception") or context["message"]))
        )
        handler = _Collecting(faults)
        logger = logging.getLogger("rokt_events_async")
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            with warnings.catch_warnings(), self.patched():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", "event type")
                warnings.filterwarnings("ignore", category=DeprecationWarning, module="backoff")
                self.loop.run_until_complete(self._live())
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        except DeadlockError as error:
            raise Violation(f"6: {error}") from None
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagates
            for task in asyncio.all_tasks(self.loop):
                task.get_coro().close()
            self.loop.close()
        expected = [fault for fault in faults if "planned" not in fault]
        if expected:
            self.violated(f"a fault: {expected[0]}")
        self.check_end()

    async def _live(self) -> None:
        with mock.patch.dict("os.environ", {"ROKT_DISABLED": "1"} if self.is_disabled else {}):
            self.emitter = emitter = Emitter(
                CREDENTIALS,
                endpoint="http://localhost:8080/v1/partner/events",
                _clock=self.clock,
                _random=random.Random(f"client {self.seed}"),
                observers=[Blind(), self.eye],
                on_undelivered=self.handler.choice,
                **self.settings,
            )
        self.reached["kill switch"] += self.is_disabled
        for at, seconds in self.holds:
            self.loop.call_later(at, self._hold, seconds)
        for seconds in self.jumps:
            self.loop.call_later(self.luck.random() * 100, self._jump, seconds)
        await emitter.start()
        callers = [asyncio.create_task(self._call()) for _ in range(self.luck.randint(1, 4))]
        await asyncio.wait(
            callers,
            timeout=None if self.ending == "waits for all" else self.luck.choice([0.01, 1.0, 8.0, None]),
        )
        self.reached[f"ending: {self.ending}"] += 1
        if self.ending.startswith("workers cancelled"):
            self.is_hurried = True
            await self._cancel_workers()
        if self.ending == "waits for all":
            await emitter.flush()
        await self._close()
        await asyncio.gather(*callers)
        await asyncio.sleep(2.0)  # What is still on its way to the server arrives.

    async def _cancel_workers(self) -> None:
        """Cancels all workers, perhaps in the turn in which the oldest request times out."""
        assert self.emitter._engine is not None
        pool, transport = self.emitter._engine.pool, self.emitter._engine.transport
        assert isinstance(transport, HttpTransport)
        exchanges = transport._timeouts._running
        cancelled = list(pool._workers)  # In order; that of `all_tasks` is by address.
        if self.ending == "workers cancelled at a time-out" and exchanges:
            self.reached["cancelled: at a time-out"] += 1
            first = next(iter(exchanges))
            del exchanges[first]
            first.time_out()
        for task in cancelled:
            task.cancel()
        await asyncio.sleep(self.luck.choice([0.001, 0.05, 3.0]))
        if any(not task.done() for task in cancelled):
            self.violated("5: a worker goes on after it was cancelled")

    async def _close(self) -> None:
        began = self.now()
        self.is_closing = True
        closing = [asyncio.create_task(self.emitter.aclose())]
        if self.ending == "closes twice":
            closing.append(asyncio.create_task(self.emitter.aclose()))
        if self.ending == "close cancelled":
            self.is_hurried = True
            self.loop.call_later(self.luck.choice([0, 0.1, 2.0]), closing[0].cancel)
        await asyncio.wait(closing)
        took = self.now() - began
        if took > self.settings["close_timeout"] + 0.5 + self.handler.grace + self.held:
            self.violated(f"6: the close took {took} s of {self.settings['close_timeout']}")
        if took >= self.settings["close_timeout"]:
            self.is_hurried = True
            self.reached["close: at its deadline"] += 1
        if _workers(self.loop):
            self.violated("5: workers are left after the close")
        if self.connections:
            self.violated("5: connections are left after the close")
        # What aiohttp has cancelled is not left.
        timers = [timer for timer in self.loop._scheduled if not timer.cancelled() and "rokt" in repr(timer)]  # type: ignore[attr-defined]
        if timers:
            self.violated(f"5: timers are left after the close: {timers}")

    async def _call(self) -> None:
        """A caller; what it does to each event is drawn."""
        for _ in range(self.luck.choice([1, 8, 25])):
            burst = self.luck.choice(self.bursts)
            for _ in range(burst):
                act = "drops it" if burst > 25 else self.luck.choice(self.acts)
                tracking = asyncio.create_task(self._track(act))
                if act == "cancelled while tracking":
                    self.loop.call_later(self.luck.choice([0.0, 0.5]), tracking.cancel)
                await asyncio.wait([tracking])
                if not tracking.cancelled() and tracking.exception() is not None:
                    raise tracking.exception()  # type: ignore[misc]
            await asyncio.sleep(self.luck.choice([0.0, 0.01, 0.3, 3.0]))
            if self.luck.random() < 0.05:
                self.reached["caller: flushes"] += 1
                with contextlib.suppress(EmitterClosedError):
                    await self.emitter.flush()

    def _draw_session(self) -> str:
        if self.busy and self.luck.random() < 0.7:
            return self.busy
        return f"s{self.luck.randrange(self.sessions)}"

    def _event(self) -> PartnerEvent:
        self._numbers += 1
        ages = [None] * 20 + [
            MAX_AGE - timedelta(seconds=self.luck.choice([0.3, 5.0, 60.0])),
            timedelta(minutes=-4),
        ]
        age = None if self.is_calm else self.luck.choice(ages)
        return PartnerEvent(
            event_type=self.luck.choice(self.kinds),
            session_id=self._draw_session(),
            parent_guid=f"e{self._numbers}",
            client_unique_id="order",
            metadata={"text": "x" * self.luck.choice([0, 0, 300])} if self.luck.random() < 0.3 else None,
            event_time=None if age is None else self.clock() - age,
        )

    async def _track(self, act: str) -> None:
        event = self._event()
        self.reached[f"caller: {act}"] += 1
        if self.luck.random() < 0.03:
            self._track_invalid()
        began = self.now()
        try:
            delivery = await self.emitter.track(event)
        except (QueueFullError, EmitterClosedError) as error:
            self.reached[f"caller: {type(error).__name__}"] += 1
            self.check_refusal(event.session_id, str(error))
            return
        except asyncio.CancelledError:
            self.reached["caller: cancelled while it waits for room"] += 1
            raise
        finally:
            max_wait = self.settings["max_wait"]
            if max_wait is not None and self.now() - began > max_wait + 0.01 + self.held:
                self.suspect(f"10: track() took {self.now() - began} s of {max_wait}")
        self._accept(delivery)
        await self._act(act, delivery)

    def check_refusal(self, session: str, text: str) -> None:
        """Invariant 5: an event finds no room only if a bound was hit, about."""
        stats, settings = self.emitter.stats, self.settings
        if "the queue is full" in text:
            assert self.emitter._engine is not None
            granted = self.emitter._engine.health._room._granted_events  # It is held too.
            is_roomy = stats.pending + granted < settings["max_pending"] - 3
            if is_roomy and stats.pending_bytes < settings["max_pending_bytes"] - 3000:
                self.suspect(f"5: {text}")
        elif (
            "its share" in text
            and settings["max_pending_bytes"] == 10**7
            and 2 * self.eye.pending[session] + 2 + self._in_flight(session) < self.session_share()
        ):
            self.suspect(f"5: it holds {self.eye.pending[session]} events, and {text}")

    def _in_flight(self, session: str) -> int:
        """What a trip in flight has settled counts until it waits, or is over."""
        assert self.emitter._engine is not None
        shards = self.emitter._engine.queue._shards
        found = shards[hash(session) % len(shards)].get(session)
        return self.max_batch_size if found is not None and found.in_flight else 0

    def session_share(self) -> int:
        """How many events a session may hold."""
        part, whole = self.settings["max_session_share"], self.settings["max_pending"]
        return int(min(whole, max(self.max_batch_size, int(part * whole))))

    def _track_invalid(self) -> None:
        event = attrs.evolve(self._event(), event_time=self.clock() - MAX_AGE - timedelta(seconds=1))
        with contextlib.suppress(EmitterClosedError):
            try:
                self.emitter.track_nowait(event)
            except InvalidEventError:
                self.reached["caller: an event too old"] += 1
            else:
                self.violated("4: an event too old was accepted")

    def _accept(self, delivery: Delivery) -> None:
        event = delivery.event
        entry = Accepted(
            event.parent_guid, event.session_id, len(self.accepted), self.now(), str(event.event_type)
        )
        self.accepted.append(entry)
        delivery.add_done_callback(lambda done: self._settled(entry, done))
        self.note(f"accepted {entry.id} of {entry.session}")

    def _settled(self, entry: Accepted, delivery: asyncio.Future[Receipt]) -> None:
        if delivery.cancelled():
            return
        outcome: Any = delivery.exception() or delivery.result()
        entry.outcome, entry.settled_at = outcome, self.now()
        self.reached[f"outcome: {outcome.outcome}"] += 1
        self.note(f"{outcome.outcome} {entry.id}")

    async def _act(self, act: str, delivery: Delivery) -> None:
        if act == "cancels it":
            delivery.cancel()
        elif act == "awaits it":
            with contextlib.suppress(DeliveryError):
                await delivery
        elif act == "awaits with a time-out":
            with contextlib.suppress(DeliveryError, TimeoutError):
                await asyncio.wait_for(delivery, 0.2)
        elif act == "re-enters from a callback":
            delivery.add_done_callback(self._re_enter)
        elif act == "a callback raises":
            delivery.add_done_callback(_raise)

    def _re_enter(self, _: Any) -> None:
        with contextlib.suppress(EmitterClosedError, QueueFullError):
            self._accept(self.emitter.track_nowait(self._event()))

    # The invariants.

    def check_step(self) -> None:
        """What holds at every turn of the loop."""
        emitter: Emitter | None = getattr(self, "emitter", None)
        if emitter is None:
            return
        stats = emitter.stats
        settled = stats.delivered + stats.rejected + stats.expired + stats.failed + stats.unconfirmed
        if stats.accepted != settled + stats.pending or stats.accepted != len(self.accepted):
            self.violated(f"1: {stats}, and {len(self.accepted)} were accepted")
        limits = (
            ("pending", stats.pending, self.settings["max_pending"]),
            ("bytes", stats.pending_bytes, self.settings["max_pending_bytes"]),
            ("in flight", stats.in_flight, self.settings["max_concurrency"]),
            ("connections", len(self.connections), self.settings["max_concurrency"]),
            ("sessions", stats.sessions, stats.pending),
        )
        for name, count, bound in limits:
            if not 0 <= count <= bound:
                self.violated(f"5: {count} {name}, at most {bound}")
        if len(_workers(self.loop)) > self.settings["max_concurrency"]:
            self.violated("5: too many workers")
        self._check_share()
        self._check_held_up(emitter)

    def _check_share(self) -> None:
        """Invariant 5: no session holds more than its share."""
        share = self.session_share()
        for session, count in self.eye.pending.items():
            if count > share:
                self.violated(f"5: {session} holds {count} events, at most {share}")

    def _check_held_up(self, emitter: Emitter) -> None:
        """Invariant 10: a due batch starts at once, if a slot is free and nothing holds all of them up."""
        assert emitter._engine is not None
        pool, now = emitter._engine.pool, self.now()
        is_free = emitter.stats.in_flight < self.settings["max_concurrency"]
        due_since = _fresh_since(pool)
        opened_at = self.eye.opened_at
        if opened_at is not None and self.eye.answered_at > opened_at:
            self.violated("10: the breaker is open after an answer")
        is_paused = opened_at is not None or now < self.eye.paused_until  # For all, by a rate limiter.
        is_paused = is_paused or self.eye.refused_at is not None or emitter._state != "open"
        if not is_free or is_paused or self.eye.started_at >= now or self.is_hurried:
            self._blocked_at = now
        elif due_since <= now and now - max(due_since, self._blocked_at) > HELD_UP + self.held:
            waited = now - max(due_since, self._blocked_at)
            self.violated(f"10: a due batch was held up for {waited} s: {pool._breaker.is_open}")
        if emitter._engine.health.snapshot().is_breaker_open:
            self.reached["breaker: open"] += 1

    def check_end(self) -> None:
        """What holds when all is over."""
        if self.suspicions:
            self.violated(self.suspicions[0])
        stats = self.emitter.stats
        if stats.pending or stats.pending_bytes or stats.sessions or stats.in_flight:
            self.violated(f"1: left at the end: {stats}")
        if self.is_disabled:
            self._check_disabled()
        else:
            self._check_sent()

    def _check_sent(self) -> None:
        """What holds of each event, and of what was told of it."""
        known = {entry.id: entry for entry in self.accepted}
        self._sessions = {entry.id: entry.session for entry in self.accepted}
        carried: dict[str, list[Exchange]] = {id_: [] for id_ in known}
        for exchange in self.record:
            for id_ in exchange.ids:
                if id_ not in known:
                    self.violated(f"1: the server received {id_}, which was never accepted")
                carried[id_].append(exchange)
        for entry in self.accepted:
            self._check_requests(entry, carried[entry.id])
            if entry.outcome is not None:
                self._check_outcome(entry, entry.outcome, carried[entry.id])
        self._check_order(carried)
        self._check_told()
        self._check_credentials()
        self._check_ends()
        self._check_released()
        if self.is_prompt:
            self._check_promptness(carried)
        self._count(carried)

    def _check_disabled(self) -> None:
        """Invariant 14: with the kill switch every event fails at once, told to its caller alone."""
        if self.record or self._had_good_connections:
            self.violated("14: something was sent with the kill switch on")
        for entry in self.accepted:
            cause = entry.outcome.cause if isinstance(entry.outcome, DeliveryError) else None
            if entry.outcome is not None and (cause is not Cause.DISABLED or entry.settled_at != entry.at):
                self.violated(f"14: {entry.id} ended with the kill switch on: {entry.outcome!r}")
        if self.emitter.stats.failed != len(self.accepted):
            self.violated(f"14: {self.emitter.stats}, and {len(self.accepted)} were dropped")
        if self.eye.accepted or self.eye.outcomes or self.handler.handled:
            self.violated("14: others were told of events that were dropped")

    def _check_requests(self, entry: Accepted, exchanges: list[Exchange]) -> None:
        for earlier, later in itertools.pairwise(exchanges):
            if not earlier.may_be_sent_again:
                self.violated(f"3: {entry.id} was sent again after {earlier}")
            if earlier.status in WHOLE:
                continue
            wait = 1.0 if earlier.status is None else max(1.0, earlier.retry_after)
            since = earlier.told_at if earlier.told_at is not None else earlier.at
            if later.at - since < wait - 1e-6:
                self.violated(f"9: {entry.id} was sent again after {later.at - since} s, {earlier}")
        failed = [exchange for exchange in exchanges if exchange.status is None or exchange.status in AGAIN]
        if self.policy.max_attempts is not None and len(failed) > self.policy.max_attempts:
            self.violated(f"9: {entry.id} failed {len(failed)} times, and was sent again: {exchanges}")

    def _check_outcome(
        self, entry: Accepted, outcome: Receipt | DeliveryError, exchanges: list[Exchange]
    ) -> None:
        accepted = [exchange for exchange in exchanges if entry.id in exchange.accepted]
        in_the_dark = [exchange for exchange in exchanges if exchange.may_have_accepted]
        name = outcome.outcome
        if name == "delivered" and not accepted:
            self.violated(f"2: {entry.id} is delivered, and the server never accepted it")
        if name == "rejected" and not self._is_refused(entry, exchanges):
            self.violated(f"2: {entry.id} is rejected, and the server never named it")
        if name in ("expired", "failed") and accepted:
            self.violated(f"2: {entry.id} is {name}, and the server accepted it")
        if name == "unconfirmed" and not in_the_dark and not self.is_hurried:
            self.violated(f"2: {entry.id} is unconfirmed, and every answer told: {exchanges}")
        is_unread = bool(exchanges) and exchanges[-1].plan == "names without end"
        if name == "rejected" and is_unread and exchanges[-1].status in (200, 207):
            self.violated(f"2: {entry.id} is rejected by an answer that is not to be read to its end")
        if isinstance(outcome, Receipt):
            self._check_receipt(entry, outcome, exchanges)
        else:
            self._check_reason(entry, outcome)
            self._check_guard(entry, outcome)
        self._check_deadline(entry, outcome)

    def _check_deadline(self, entry: Accepted, outcome: Receipt | DeliveryError) -> None:
        """Invariant 6; what never left, and had nothing of its session before it, waits for no request."""
        assert entry.settled_at is not None
        is_alone = list(self._sessions.values()).count(entry.session) == 1
        spare = 0.0 if outcome.attempts == 0 and is_alone else self.settings["request_timeout"]
        limit = entry.at + self.deadline + spare + SLACK + self.held
        if entry.settled_at > limit:
            self.violated(f"6: {entry.id} was settled {entry.settled_at - limit} s late")

    def _check_reason(self, entry: Accepted, error: DeliveryError) -> None:
        """Who is given up after a failed attempt is told why that one failed."""
        ends = ("the emitter was closed", f"its deadline of {self.deadline:g} s has passed")
        if error.reason in ends and entry.id in self.eye.retried:
            self.violated(f"2: {entry.id} does not tell why its last attempt failed: {error.reason}")

    def _is_refused(self, entry: Accepted, exchanges: list[Exchange]) -> bool:
        """Named in a 207, or refused alone."""
        return any(
            entry.id in exchange.named or (exchange.status in WHOLE and len(exchange.ids) == 1)
            for exchange in exchanges
        )

    def _check_guard(self, entry: Accepted, error: DeliveryError) -> None:
        """Invariant 11: a whole batch fails unsplit only after three of which every event was refused."""
        if error.cause is not Cause.STATUS or error.status not in WHOLE:
            return
        assert entry.settled_at is not None
        spoilt: list[set[str]] = []  # Refused batches, without those that are parts of others.
        for one in self.record:
            is_before = one.told_at is not None and one.told_at < entry.settled_at
            is_refused = one.status in WHOLE and len(one.ids) > 1 and entry.id not in one.ids
            if is_before and is_refused and not any(whole >= set(one.ids) for whole in spoilt):
                spoilt.append(set(one.ids))
        self.reached["guard of splitting"] += 1
        if len(spoilt) < 3:
            self.violated(f"11: {entry.id} failed unsplit, after {len(spoilt)} spoilt batches")

    def _check_receipt(self, entry: Accepted, receipt: Receipt, exchanges: list[Exchange]) -> None:
        accepted = [exchange for exchange in exchanges if entry.id in exchange.accepted]
        if len(accepted) > 1 and not receipt.maybe_duplicate:
            self.violated(f"3: {entry.id} was accepted {len(accepted)} times, its receipt does not say so")
        if receipt.maybe_duplicate and not any(exchange.may_have_accepted for exchange in exchanges):
            self.violated(f"3: {entry.id} may be a duplicate, and no answer was lost")
        if receipt.attempts < len(exchanges):
            self.violated(f"9: {entry.id} was sent {len(exchanges)} times, not {receipt.attempts}")

    def _check_order(self, carried: dict[str, list[Exchange]]) -> None:
        """Invariant 7: first received, and first accepted, in the order of acceptance, session by session."""
        places = {id(exchange): place for place, exchange in enumerate(self.record)}
        last: dict[tuple[str, str], tuple[int, int]] = {}
        for entry in self.accepted:
            firsts = {
                "received": next(iter(carried[entry.id]), None),
                "accepted": next((one for one in carried[entry.id] if entry.id in one.accepted), None),
            }
            for what, first in firsts.items():
                if first is None:
                    continue
                place = (places[id(first)], first.ids.index(entry.id))
                if place < last.get((entry.session, what), (-1, 0)):
                    self.violated(f"7: {entry.id} overtook others of {entry.session}: {what}")
                last[entry.session, what] = place

    def _check_promptness(self, carried: dict[str, list[Exchange]]) -> None:
        """Nothing is in the way: an event leaves when the interval is over, or after those before it."""
        for entry in self.accepted:
            if not carried[entry.id]:
                continue
            left_at = carried[entry.id][0].at
            before = sum(
                entry.at <= one.at < left_at and self._session_of(one) == entry.session for one in self.record
            )
            limit = self.settings["flush_interval"] + (before + 2) * (4 * self.latency + 0.01)
            if left_at - entry.at > limit:
                self.violated(f"6: {entry.id} left {left_at - entry.at} s after it was accepted")

    def _check_ends(self) -> None:
        """What is given up together ends in the order of acceptance, session by session."""
        order = {entry.id: entry.order for entry in self.accepted}
        last: dict[tuple[str, float], int] = {}
        for id_, (at, outcome) in self.eye.settled.items():  # In the order of their ends.
            if isinstance(outcome, Receipt) or not outcome.reason.startswith("the emitter was closed"):
                continue
            key = (self._sessions[id_], at)
            if order[id_] < last.get(key, -1):
                self.violated(f"7: {id_} ended after younger events of its session: {outcome.reason}")
            last[key] = order[id_]

    def _check_released(self) -> None:
        """Overdue events end when their session comes back from its flight, not at the next look."""
        flights: dict[str, list[tuple[float, float]]] = {}
        for entry in self.accepted:
            at, outcome = self.eye.settled[entry.id]
            if outcome.attempts:
                flights.setdefault(entry.session, []).append((entry.at, at))
        for entry in self.accepted:
            at, outcome = self.eye.settled[entry.id]
            due_at = entry.at + self.deadline
            back_at = max(
                [end for since, end in flights.get(entry.session, []) if since <= entry.at], default=0
            )
            if not outcome.attempts and back_at > due_at and at > back_at + 0.01:
                self.violated(
                    f"6: {entry.id} was overdue, and ended {at - back_at} s after its session came back"
                )

    def _check_told(self) -> None:
        """Who is told is told of every event, once, and of its true outcome."""
        eye = self.eye
        starts = sorted(eye.starts)
        if any(later - first < 0.99 for first, later in zip(starts, starts[10:], strict=False)):
            self.violated("10: more than ten requests in a second, with the breaker open")
        if eye.accepted != [entry.id for entry in self.accepted]:
            self.violated(f"1: the observer was told of {len(eye.accepted)} of {len(self.accepted)} events")
        for entry in self.accepted:
            told = eye.outcomes.get(entry.id, [])
            if len(told) != 1 or (entry.outcome is not None and told != [entry.outcome]):
                self.violated(f"1: of {entry.id} the observer was told {told}, it is {entry.outcome}")
        stats = self.emitter.stats
        if stats.possible_duplicates > len(eye.resent):
            self.violated(f"1: {stats.possible_duplicates} possible duplicates of {len(eye.resent)} events")
        if eye.requests < stats.requests or eye.closed != 1:
            self.violated(f"1: the observer was told of {eye.requests} requests, {eye.retries} retries")
        handled = self.handler.handled
        undelivered = eye.undelivered
        expected = undelivered if self.handler.is_quick else undelivered[: len(handled)]
        if self.handler.choice is not None and handled != expected:
            self.violated(f"1: {len(handled)} of {len(undelivered)} undelivered events were handled")

    def _check_credentials(self) -> None:
        """Invariant 11: one probe per retry wait while credentials are refused, and each episode is told."""
        eye = self.eye
        pairs = [pair for probes in eye.probes for pair in itertools.pairwise(sorted(probes))]
        if any(later - first < 0.99 for first, later in pairs):
            self.violated("11: more than one probe per retry wait, while credentials are refused")
        if eye.told_episodes != eye.episodes:
            self.violated(f"11: {eye.episodes} episodes of refused credentials, {eye.told_episodes} told")

    def _session_of(self, exchange: Exchange) -> str:
        return self._sessions[exchange.ids[0]]

    def _count(self, carried: dict[str, list[Exchange]]) -> None:
        for exchanges in carried.values():
            self.reached["sent again"] += len(exchanges) > 1
            self.reached["accepted twice"] += sum(bool(one.accepted) for one in exchanges) > 1
            self.reached["split"] += any(one.status in WHOLE and len(one.ids) > 1 for one in exchanges)
        self.reached["full batch"] += any(len(exchange.ids) == 25 for exchange in self.record)


class Blind(Observer):
    """Raises whatever it is told. Nothing else may be affected."""

    def _raise(self, *_told: Any) -> None:
        raise RuntimeError("planned: an observer's")

    on_accepted: Any = _raise
    on_request: Any = _raise
    on_retry: Any = _raise
    on_delivered: Any = _raise
    on_undelivered: Any = _raise
    on_health: Any = _raise
    on_closed: Any = _raise


class Eye(Observer):
    """Keeps what it is told."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.accepted: list[str] = []
        self.outcomes: dict[str, list[Receipt | DeliveryError]] = {}
        self.undelivered: list[DeliveryError] = []
        self.requests = self.retries = self.closed = 0
        self.sent: set[str] = set()
        self.resent: set[str] = set()
        self.retried: set[str] = set()
        self.pending: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.unreadable: Counter[str] = Counter()
        self.failed_sessions: set[str] = set()
        self.failures_in_a_row = 0
        self.failing_since: float | None = None
        self.answered_at = self.started_at = 0.0
        self.limited: dict[str, float] = {}
        self.paused_until = 0.0
        self.opened_at: float | None = None
        self.refused_at: float | None = None
        self.refused_sessions: set[str] = set()
        self.last_refused_at = 0.0
        self.probes: list[list[float]] = []  # When requests began, by episode.
        self.has_worked = False
        self.accepted_in_vain: set[str] = set()
        self.episodes = self.told_episodes = 0
        self.starts: list[float] = []
        self.states: list[str] = ["ok"]
        self.settled: dict[str, tuple[float, Receipt | DeliveryError]] = {}

    def on_accepted(self, delivery: Delivery) -> None:
        self.accepted.append(delivery.event.parent_guid)
        if self.refused_at is not None and not self.has_worked:
            self.accepted_in_vain.add(delivery.event.parent_guid)
        self.pending[delivery.event.session_id] += 1

    def on_request(self, request: RequestReport) -> None:
        self.requests += 1
        if (request.status is None) == (request.problem is None) or not request.deliveries:
            self._world.suspect(f"1: a request with neither status nor problem: {request}")
        if request.problem != "interrupted":
            self._note_time(request)
            self._note_credentials(request)
            self._check_silence(request)
            self._check_unreadable(request)
        ids = {delivery.event.parent_guid for delivery in request.deliveries}
        self.resent |= ids & self.sent
        self.sent |= ids
        if request.problem == "every connection was found closed":
            self._world.check_fresh(request.duration)

    def on_retry(self, retry: RetryReport) -> None:
        self.retries += 1
        self._check_growth(retry)
        self.retried |= {delivery.event.parent_guid for delivery in retry.deliveries}
        if retry.wait < 1.0:
            self._world.suspect(f"9: {retry}")

    def _check_growth(self, retry: RetryReport) -> None:
        """Invariant 9: from the fifth failure in a row of an event on, its wait doubles, up to a minute."""
        if retry.status in CREDENTIALS_REFUSED:
            return  # Their waits grow only while one session alone is refused.
        for delivery in retry.deliveries:
            self.failures[delivery.event.parent_guid] += 1
        count = max(self.failures[delivery.event.parent_guid] for delivery in retry.deliveries)
        least = min(60.0, 2.0 ** max(0, count - 4))
        if retry.wait < least:
            self._world.suspect(f"9: a wait of {retry.wait} s after {count} failures in a row")

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        self._told(delivery, receipt)

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        self._told(delivery, error)
        self.undelivered.append(error)
        if error.cause is Cause.QUEUE_FULL:
            self._world.check_refusal(delivery.event.session_id, str(error))

    def _told(self, delivery: Delivery, outcome: Receipt | DeliveryError) -> None:
        self.outcomes.setdefault(delivery.event.parent_guid, []).append(outcome)
        self.settled[delivery.event.parent_guid] = self._world.now(), outcome
        self.pending[delivery.event.session_id] -= 1
        self._check_refusal(delivery, outcome)
        if outcome.event is not delivery.event:
            self._world.suspect(f"1: told of another event: {outcome.event}")

    def _check_refusal(self, delivery: Delivery, outcome: Receipt | DeliveryError) -> None:
        """Invariant 11: credentials that have worked fail no event; with others, none waits."""
        if isinstance(outcome, Receipt):
            return
        if isinstance(outcome, CredentialsRefusedError) and self.has_worked:
            self._world.suspect(f"11: {outcome} though the credentials have worked")
        is_vain = delivery.event.parent_guid in self.accepted_in_vain and not self.has_worked
        is_vain = is_vain and bool(self._world.refusals)  # Elsewhere it may wait for a slot as well.
        if is_vain and outcome.cause is Cause.DEADLINE and outcome.attempts == 0:
            self._world.suspect(f"11: it waited, with credentials that have never worked: {outcome}")

    def _note_time(self, request: RequestReport) -> None:
        now = self._world.now()
        settings = self._world.settings
        if _is_failure(request):
            self.failed_sessions.add(request.deliveries[0].event.session_id)
            self.failures_in_a_row += 1
            limit = max(self._world.breaker_limit, settings["max_concurrency"])
            if self.failures_in_a_row >= limit and self.failing_since is None:
                self.failing_since = now
        else:
            self.failed_sessions.clear()
            self.failures_in_a_row, self.failing_since = 0, None
        if request.status == 429:
            self.limited[request.deliveries[0].event.session_id] = now
            if sum(at > now - 2.0 for at in self.limited.values()) >= 3:
                self.paused_until = now + 63.0  # The longest `Retry-After`, and what came within the wait.
        if request.status is not None and 200 <= request.status <= 299:
            self.answered_at = now
        began = now - request.duration
        self.started_at = max(self.started_at, began)
        if self.failing_since is not None and began > self.failing_since + 1e-6:
            self.starts.append(began)  # In the order of their ends.

    def _check_unreadable(self, request: RequestReport) -> None:
        """Invariant 11: what had an answer that is no HTTP is sent again once at most."""
        for delivery in request.deliveries if _is_no_http(request) else ():
            self.unreadable[delivery.event.parent_guid] += 1
            if self.unreadable[delivery.event.parent_guid] > 2:
                self._world.suspect(f"11: {delivery.event.parent_guid} was sent again after two such answers")

    def _note_credentials(self, request: RequestReport) -> None:
        """Invariant 11: while credentials are refused, one request per retry wait.

        While one session alone is refused, and others were not before, the others go on.
        """
        now = self._world.now()
        began = now - request.duration
        if self.refused_at is not None and began > self.refused_at + 1e-6:
            self.probes[-1].append(began)
        if request.status in CREDENTIALS_REFUSED:
            self.episodes += not self.refused_sessions and not self._world.is_closing
            self.refused_sessions.add(request.deliveries[0].event.session_id)
            self.last_refused_at = now
            if self.refused_at is None and (len(self.refused_sessions) > 1 or not self.has_worked):
                self.refused_at = now
                self.probes.append([now])
        elif request.status is not None and 200 <= request.status <= 299:
            self.has_worked = True
            if began > self.last_refused_at:
                self.refused_sessions.clear()
            if len(self.refused_sessions) < 2:
                self.refused_at = None

    def _check_silence(self, request: RequestReport) -> None:
        """Invariant 11: an answer that is there is read, though the loop was held until its time was up."""
        if request.problem is None or not request.problem.startswith("no answer"):
            return
        ids = tuple(delivery.event.parent_guid for delivery in request.deliveries)
        last = next((one for one in reversed(self._world.record) if one.ids == ids), None)
        if last is None or last.arrives_at is None or last.status is not None:
            return  # A status that was told is that of an earlier attempt.
        began = self._world.now() - request.duration
        if last.at > began - 1e-6 and last.arrives_at < self._world.now() - 1e-3:
            self._world.suspect(f"11: {ids} timed out, and the answer was there: {last}")

    def on_health(self, before: Health, after: Health) -> None:
        told = [(one.state, one.problems, one.is_breaker_open) for one in (before, after)]
        if told[0] == told[1]:
            self._world.suspect(f"1: told of no change: {after}")
        if after.state == "outage" and len(self.failed_sessions) < 3:
            self._world.suspect(f"10: an outage of {len(self.failed_sessions)} sessions")
        if after.is_breaker_open != before.is_breaker_open:
            self.opened_at = self._world.now() if after.is_breaker_open else None
        if before.state != self.states[-1]:
            self._world.suspect(f"1: told of {before.state} after {self.states[-1]}")
        self.states.append(after.state)
        self.told_episodes += after.state == "credentials_refused" != before.state
        self._world.reached[f"health: {after.state}"] += 1

    def on_closed(self, report: DrainReport) -> None:
        self.closed += 1


def _is_no_http(request: RequestReport) -> bool:
    return request.problem is not None and "no HTTP" in request.problem


def _is_failure(request: RequestReport) -> bool:
    """Whether a request asks to be repeated. An answer that cannot be read is an answer."""
    return request.status in AGAIN or (request.status is None and not _is_no_http(request))


class Handler:
    """The application's `on_undelivered`; which, is drawn."""

    def __init__(self, world: World, luck: random.Random) -> None:
        self._world = world
        self.handled: list[DeliveryError] = []
        kind = luck.choice(["none", "plain", "raises", "coroutine", "slow"])
        self.choice: Any = None if kind == "none" else getattr(self, kind)
        self.is_quick = kind != "slow"
        self.grace = 1.0 if kind == "slow" else 0.0
        world.reached[f"handler: {kind}"] += 1

    def plain(self, error: DeliveryError) -> None:
        self.handled.append(error)
        self._world.note(f"handled {error.event.parent_guid}")

    def raises(self, error: DeliveryError) -> None:
        self.plain(error)
        raise RuntimeError("planned: a handler's")

    async def coroutine(self, error: DeliveryError) -> None:
        await asyncio.sleep(0)
        self.plain(error)

    async def slow(self, error: DeliveryError) -> None:
        self.plain(error)
        await asyncio.sleep(0.3)


class _Collecting(logging.Handler):
    """Faults of the library are logged; nothing else counts here."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "fault" in message:
            self._faults.append(message)


def _fresh_since(pool: Pool) -> float:
    """Since when, at least, a batch is due of a session that is neither in flight nor slow."""
    queue = pool._queue
    since = [one.ready_at for one in queue._ready if not one.is_slow]
    for ring in (queue._flushed, queue._opening):
        link = ring.after
        while isinstance(link, Session):
            if not (link.in_flight or link.is_ready or link.is_slow):
                since.append(link.opened_at + queue._linger)
            link = link.after
    return min(since, default=math.inf)


def _has_fresh(pool: Pool, now: float) -> bool:
    """Whether a batch is due that was never sent, of a session whose last request did not time out."""
    queue = pool._queue
    heads = [head for head in (queue._flushed.after, queue._opening.after) if isinstance(head, Session)]
    due = [one for one in heads if one.after is not None and now > one.opened_at + queue._linger]
    return any(not one.is_slow and not one.in_flight for one in [*queue._ready, *due])


def _raise(_: Any) -> None:
    raise RuntimeError("planned: a callback of the application's")


def _workers(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks(loop) if task.get_name() == "rokt-events-flush"]


def play(seed: int, *, calm: bool = False) -> tuple[Counter[str], str | None]:
    """What a seed reached, and what it violated, if it did."""
    world = World(seed, calm=calm)
    try:
        world.run()
    except Violation as found:
        if hasattr(world, "emitter"):
            world.emitter._state = "closed"  # It has no last word.
        return world.reached, str(found)
    return world.reached, None


def sweep() -> None:
    """Takes away, without a word, what worlds have left open in which something was violated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
