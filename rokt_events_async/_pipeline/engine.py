"""The engine of one emitter, put together. It exists from the emitter's start on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from rokt_events_async._pipeline.dead_letters import DeadLetters
from rokt_events_async._pipeline.drain import Drain
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
    settlement = Settlement(ledger, credentials)
    sender = Sender(
        settings=settings,
        transport=transport,
        ledger=ledger,
        settlement=settlement,
        hooks=hooks,
        clock=clock,
        random=random,
        now=loop.time,
    )
    pool = Pool(settings=settings, sender=sender, settlement=settlement, loop=loop, context=context)
    return Engine(
        transport=transport,
        sender=sender,
        pool=pool,
        intake=Intake(settings=settings, ledger=ledger, pool=pool, hooks=hooks, clock=clock, loop=loop),
        drain=Drain(
            pool=pool,
            ledger=ledger,
            transport=transport,
            hooks=hooks,
            dead_letters=dead_letters,
            listeners=listeners,
            on_closed=on_closed,
        ),
    )
