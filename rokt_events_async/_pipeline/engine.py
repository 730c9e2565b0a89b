"""The engine of one emitter, put together. It exists from the emitter's start on."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from rokt_events_async._pipeline.backlog import Backlogs
from rokt_events_async._pipeline.batching import Batches
from rokt_events_async._pipeline.breaker import Breaker
from rokt_events_async._pipeline.dead_letters import DeadLetters
from rokt_events_async._pipeline.drain import Drain
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.intake import DroppingIntake, DurableIntake, Intake
from rokt_events_async._pipeline.keyring import Episode, Keyring
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.parking import Parking
from rokt_events_async._pipeline.recorder import Recorder
from rokt_events_async._pipeline.recovery import Recovery
from rokt_events_async._pipeline.retry import Random
from rokt_events_async._pipeline.room import Room, session_share
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.sender import Sender
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.transport import Transport
from rokt_events_async._tracking.hooks import Hooks
from rokt_events_async._tracking.threadsafe import Listeners
from rokt_events_async.outcomes import Delivery, EmitterStats
from rokt_events_async.settings import EmitterSettings


@attrs.frozen
class Engine:
    """The parts that need a loop."""

    queue: Batches[Delivery]
    ledger: Ledger
    transport: Transport
    health: HealthMonitor
    sender: Sender
    pool: Pool
    recorder: Recorder | None
    recovery: Recovery | None
    intake: Intake
    drain: Drain

    def start(self) -> None:
        """Begins with what earlier processes have left."""
        if self.recovery is not None:
            self.recovery.start()

    async def settled(self) -> None:
        """Waits until every event that this emitter has accepted by now has its outcome."""
        until = 0 if self.recovery is None else self.recovery.deferred_until
        if self.recovery is not None:
            await self.recovery.brought_back(until)
        await self.ledger.settled()
        if self.recovery is not None:
            await self.ledger.returned_settled()

    def stats(self) -> EmitterStats:
        """Returns a snapshot of the account. Safe from any thread."""
        return self.ledger.stats(
            sessions=self.queue.sessions,
            in_flight=self.sender.in_flight,
            requests=self.sender.requests,
            retries=self.sender.retries,
        )


def assemble(
    *,
    settings: EmitterSettings,
    keyring: Keyring,
    transport: Transport,
    recorder: Recorder | None,
    max_bytes: int,
    drops: bool,
    hooks: Hooks,
    dead_letters: DeadLetters | None,
    listeners: Listeners[Any],
    clock: Callable[[], datetime],
    random: Random,
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context,
    on_closed: Callable[[], None],
) -> Engine:
    """Returns an engine for the running loop.

    Args:
        drops: True to accept and drop all events.
    """

    def now() -> float:
        return loop.time()  # Looked up each time: a test may replace the loop's clock.

    if dead_letters is not None:
        dead_letters.bind(loop, context)
    share = session_share(settings)
    queue: Batches[Delivery] = Batches(
        max_batch_size=settings.max_batch_size,
        linger=settings.flush_interval,
        heavy=(share[0] / 2, share[1] / 2),
        size_of=lambda delivery: len(delivery.wire),
    )
    parking = Parking()
    room = Room(settings, queue)
    backlogs = None if recorder is None else Backlogs(recorder.own.store.last)
    ledger = Ledger(room, hooks, recorder)
    breaker = Breaker(max_concurrency=settings.max_concurrency, wait=settings.retry.wait)
    episode = Episode(wait=sum(settings.retry.wait) / 2)
    # The journal waits for credentials that work; it may have been written with others.
    episode.has_worked = settings.is_durable
    health = HealthMonitor(
        breaker=breaker,
        episode=episode,
        queue=queue,
        parking=parking,
        room=room,
        ledger=ledger,
        recorder=recorder,
        backlogs=backlogs,
        hooks=hooks,
        clock=clock,
        now=now,
        call_later=functools.partial(loop.call_later, context=context),
    )
    settlement = Settlement(ledger, recorder=recorder, clean=keyring.clean, now=now)
    sender = Sender(
        settings=settings,
        transport=transport,
        ledger=ledger,
        settlement=settlement,
        keyring=keyring,
        episode=episode,
        recorder=recorder,
        breaker=breaker,
        health=health,
        hooks=hooks,
        clock=clock,
        random=random,
        now=now,
    )
    pool = Pool(
        settings=settings,
        queue=queue,
        parking=parking,
        sender=sender,
        settlement=settlement,
        breaker=breaker,
        on_released=room.on_released if backlogs is None else backlogs.on_released,
        loop=loop,
        context=context,
    )
    recovery = None
    intake_parts: dict[str, Any] = {
        "settings": settings,
        "room": room,
        "ledger": ledger,
        "pool": pool,
        "health": health,
        "hooks": hooks,
        "clock": clock,
        "loop": loop,
    }
    if recorder is None or backlogs is None:
        intake = DroppingIntake(**intake_parts) if drops else Intake(**intake_parts)
    else:
        recovery = Recovery(
            settings=settings,
            backlogs=backlogs,
            recorder=recorder,
            room=room,
            ledger=ledger,
            pool=pool,
            settlement=settlement,
            health=health,
            hooks=hooks,
            clock=clock,
            random=random,
            loop=loop,
            context=context,
        )
        intake = DurableIntake(recorder=recorder, recovery=recovery, max_bytes=max_bytes, **intake_parts)
    return Engine(
        queue=queue,
        ledger=ledger,
        transport=transport,
        health=health,
        sender=sender,
        pool=pool,
        recorder=recorder,
        recovery=recovery,
        intake=intake,
        drain=Drain(
            pool=pool,
            room=room,
            ledger=ledger,
            transport=transport,
            keyring=keyring,
            health=health,
            hooks=hooks,
            dead_letters=dead_letters,
            listeners=listeners,
            recorder=recorder,
            recovery=recovery,
            on_closed=on_closed,
        ),
    )
