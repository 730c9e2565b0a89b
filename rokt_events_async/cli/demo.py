"""`rokt-events demo`: a shop's traffic against a sandbox, and both accounts compared."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rokt_events_async import (
    Delivery,
    DeliveryError,
    Emitter,
    EmitterStats,
    EventRejectedError,
    PartnerEvent,
    Receipt,
)
from rokt_events_async.cli.fleet import run_fleet
from rokt_events_async.sandbox import Sandbox
from rokt_events_async.testing import Claim, claim_of, disagreements

_SESSIONS_PER_SECOND: Final = 50
"""How many of the demo's sessions begin per second."""

_LONGEST: Final = 6.0
"""Seconds within which all sessions have begun."""

_BAD_EVENTS: Final = 5
"""How many of the demo's events the API refuses."""

_EXAMPLES: Final = 3


@click.command()
@click.option(
    "--sessions", type=click.IntRange(1, 100_000), default=300, show_default=True, help="Checkout sessions."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the traffic and the faults.")
@click.option("--fleet", is_flag=True, help="Four publishers, a real Valkey, two relays, one of them killed.")
def demo(sessions: int, seed: int, fleet: bool) -> int:  # noqa: FBT001 -- by click
    """Plays a shop's traffic against a sandbox with faults, and compares both accounts.

    With --fleet the events go through a queue, and nothing must be lost when a relay is killed. The exit
    status is 1 if the accounts differ.
    """
    try:
        return asyncio.run(run_fleet(seed) if fleet else _demo(sessions, seed))
    except KeyboardInterrupt:
        raise click.Abort from None


@attrs.define
class _Tally:
    """The outcomes so far."""

    claims: list[Claim] = attrs.Factory(list)
    rejections: list[EventRejectedError] = attrs.Factory(list)

    def add(self, delivery: Delivery, outcome: Receipt | DeliveryError) -> None:
        if isinstance(outcome, EventRejectedError):
            self.rejections.append(outcome)
        self.claims.append(claim_of(delivery.event, outcome))


async def _demo(sessions: int, seed: int) -> int:
    console = Console(soft_wrap=True)
    luck = random.Random(seed)  # noqa: S311 -- traffic, no secret
    tally = _Tally()
    started = time.monotonic()
    sandbox = Sandbox(faults={503: 0.05}, latency=(0.005, 0.05), seed=seed)
    console.print(
        f"{sessions} checkout sessions against a sandbox: 5 % of requests answered 503, 5 to 50 ms latency"
    )
    async with sandbox, Emitter(sandbox.credentials, endpoint=sandbox.url) as emitter:
        plans = [list(_session(luck, is_bad=index < _BAD_EVENTS)) for index in range(sessions)]
        spread = min(sessions / _SESSIONS_PER_SECOND, _LONGEST)
        shops = [_play(emitter, plan, luck.uniform(0, spread), tally) for plan in plans]
        watch = asyncio.create_task(_watch(console, emitter, sum(map(len, plans))))
        try:
            await asyncio.gather(*shops)
        finally:
            watch.cancel()
            await asyncio.wait([watch])
        await emitter.aclose()
        stats = emitter.stats
    _print_account(console, stats, time.monotonic() - started)
    _print_rejections(console, tally)
    return _print_verdict(console, sandbox, tally)


def _session(luck: random.Random, *, is_bad: bool) -> Iterator[PartnerEvent]:
    """The usual sequence of a session: placement, slots, creatives, viewed, response."""
    common: dict[str, Any] = {
        "session_id": _guid(luck),
        "client_unique_id": f"order-{luck.randrange(10**6):06}",
    }
    yield PartnerEvent.impression(parent_guid=_guid(luck), metadata=_kind("ImpressionPlacement"), **common)
    creatives = [_guid(luck) for _ in range(luck.randint(1, 4))]
    for _ in creatives:
        yield PartnerEvent.impression(parent_guid=_guid(luck), metadata=_kind("ImpressionSlot"), **common)
    for creative in creatives:
        yield PartnerEvent.impression(parent_guid=creative, metadata=_kind("ImpressionCreative"), **common)
        yield PartnerEvent.viewed(parent_guid=creative, metadata=_kind("ViewedCreative"), **common)
    if is_bad:
        with warnings.catch_warnings(action="ignore"):  # The type is unknown on purpose.
            yield PartnerEvent(event_type="SignalHovered", parent_guid=creatives[0], **common)
    if luck.random() < 0.5:
        yield PartnerEvent.response(parent_guid=_guid(luck), metadata=_kind("RedButton"), **common)


def _kind(value: str) -> dict[str, str]:
    return {"AdditionalData": value}


def _guid(luck: random.Random) -> str:
    return str(uuid.UUID(int=luck.getrandbits(128), version=4))


async def _play(emitter: Emitter, plan: list[PartnerEvent], delay: float, tally: _Tally) -> None:
    await asyncio.sleep(delay)
    deliveries = []
    for event in plan:
        deliveries.append(await emitter.track(event))
        await asyncio.sleep(0.05)
    for delivery in deliveries:
        try:
            tally.add(delivery, await delivery)
        except DeliveryError as error:
            tally.add(delivery, error)


async def _watch(console: Console, emitter: Emitter, total: int) -> None:
    """Shows the progress: a bar on a terminal, elsewhere a line every two seconds."""
    if not console.is_terminal:
        while True:
            stats = emitter.stats
            console.print(f"  {stats.accepted - stats.pending} of {total} events settled, {_in_short(stats)}")
            await asyncio.sleep(2)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=total)
        while True:
            stats = emitter.stats
            progress.update(bar, completed=stats.accepted - stats.pending, description=_in_short(stats))
            await asyncio.sleep(0.1)


def _in_short(stats: EmitterStats) -> str:
    return f"{stats.pending} pending, {stats.requests} requests, {stats.retries} retries"


def _print_account(console: Console, stats: EmitterStats, seconds: float) -> None:
    table = Table(title="Outcomes of the events", title_justify="left")
    table.add_column("")
    table.add_column("events", justify="right")
    for name in ("accepted", "delivered", "rejected", "expired", "failed", "unconfirmed", "pending"):
        table.add_row(name, str(getattr(stats, name)))
    console.print(table)
    console.print(
        f"{stats.requests} requests ({stats.retries} of them retries), "
        f"{stats.accepted / max(1, stats.requests - stats.retries):.1f} events per request, {seconds:.1f} s"
    )


def _print_rejections(console: Console, tally: _Tally) -> None:
    if not tally.rejections:
        return
    console.print(f"\n{len(tally.rejections)} events rejected, for example:")
    for error in tally.rejections[:_EXAMPLES]:
        reasons = "; ".join(map(str, error.errors))
        console.print(f"  {error.event.event_type} {error.event.parent_guid}: {reasons}", highlight=False)


def _print_verdict(console: Console, sandbox: Sandbox, tally: _Tally) -> int:
    found = disagreements(sandbox.requests, tally.claims)
    counts = Counter(claim.outcome for claim in tally.claims)
    if not found:
        console.print(
            f"\nBoth accounts agree: the sandbox accepted {len(sandbox.events)} events, "
            f"and {counts['delivered']} were called delivered.",
            style="bold green",
        )
        return 0
    console.print(f"\nThe accounts differ in {len(found)} places:", style="bold red")
    for line in found[:10]:
        console.print(f"  {line}", highlight=False)
    return 1
