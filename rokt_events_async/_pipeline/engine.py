"""The engine of one emitter, put together. It exists from the emitter's start on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from rokt_events_async._pipeline.breaker import Breaker
from rokt_events_async._pipeline.dead_letters import DeadLetters
from rokt_events_async._pipeline.drain import Drain
from rokt_events_async._pipeline.health import HealthMonitor
from rokt_events_async._pipeline.hooks import Hooks
from rokt_events_async._pipeline.intake import Intake
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.retry import Random
from rokt_events_async._pipeline.scheduler import Pool
from rokt_events_async._pipeline.sender import Sender
from rokt_events_async._pipeline.settlement import Settlement
from rokt_events_async._pipeline.threadsafe import Listeners
from rokt_events_async._pipeline.transport import Transport
from rokt_events_async.settings import Credentials, EmitterSettings


@attrs.frozen
class Engine:
    """The parts that need a loop."""

    transport: Transport
    health: HealthMonitor
    sender: Sender
    pool: Pool
    intake: Intake
    drain: Drain


def assemble(
    *,
    settings: EmitterSettings,
    credentials: Credentials,
    transport: Transport,
    ledger: Ledger,
    hooks: Hooks,
    dead_letters: DeadLetters | None,
    listeners: Listeners[Any],
    clock: Callable[[], datetime],
    random: Random,
    loop: asyncio.AbstractEventLoop,
    on_closed: Callable[[], None],
) -> Engine:
    """Returns an engine for the running loop."""
    context = contextvars.copy_context()
    if dead_letters is not None:
        dead_letters.bind(loop, context)
    breaker = Breaker(max_concurrency=settings.max_concurrency, wait=settings.retry.wait)
    health = HealthMonitor(breaker=breaker, ledger=ledger, hooks=hooks, clock=clock, now=loop.time)
    settlement = Settlement(ledger, credentials, now=loop.time)
    sender = Sender(
        settings=settings,
        transport=transport,
        ledger=ledger,
        settlement=settlement,
        breaker=breaker,
        health=health,
        hooks=hooks,
        clock=clock,
        random=random,
        now=loop.time,
    )
    pool = Pool(
        settings=settings,
        sender=sender,
        settlement=settlement,
        breaker=breaker,
        on_released=ledger.on_released,
        loop=loop,
        context=context,
    )
    ledger.watch(pool.held_by)
    health.watch(pool)
    return Engine(
        transport=transport,
        health=health,
        sender=sender,
        pool=pool,
        intake=Intake(
            settings=settings,
            ledger=ledger,
            pool=pool,
            health=health,
            hooks=hooks,
            clock=clock,
            loop=loop,
        ),
        drain=Drain(
            pool=pool,
            ledger=ledger,
            transport=transport,
            health=health,
            hooks=hooks,
            dead_letters=dead_letters,
            listeners=listeners,
            on_closed=on_closed,
        ),
    )
