"""`rokt-events demo`: a shop's traffic against a sandbox, and both accounts compared."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
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
from rokt_events_async.cli._help import Command, refuse_disabled
from rokt_events_async.cli.fleet import run_fleet
from rokt_events_async.sandbox import RecordedRequest, Sandbox
from rokt_events_async.testing import Claim, claim_of, disagreements

_SESSIONS_PER_SECOND: Final = 50
"""How many of the demo's sessions begin per second."""

_LONGEST: Final = 6.0
"""Seconds within which all sessions have begun."""

_BAD_EVENTS: Final = 5
"""How many of the demo's events the API refuses."""

_EXAMPLES: Final = 3


@attrs.frozen(kw_only=True)
class _Pace:
    """How the demo is played.

    Attributes:
        faults: The sandbox's faults, each with its rate.
        latency: The bounds of its latency in seconds.
        spread: Seconds within which all sessions begin, of their number.
        gap: Seconds between two events of a session.
        bad: Every so many sessions has an event that the API refuses; `None` for the first few alone.
        has_page: True to serve the page, and go on serving it at the end.
    """

    faults: dict[Any, float]
    latency: tuple[float, float]
    spread: Callable[[int], float]
    gap: tuple[float, float]
    bad: int | None
    has_page: bool

    def is_bad(self, index: int) -> bool:
        return index < _BAD_EVENTS if self.bad is None else index % self.bad == 0

    def __str__(self) -> str:
        shares = ", ".join(f"{rate:.0%} {fault}" for fault, rate in self.faults.items())
        shortest, longest = (round(bound * 1000) for bound in self.latency)
        return f"{shares} of requests, {shortest} to {longest} ms latency"


_FAST: Final = _Pace(
    faults={503: 0.05},
    latency=(0.005, 0.05),
    spread=lambda sessions: min(sessions / _SESSIONS_PER_SECOND, _LONGEST),
    gap=(0.05, 0.05),
    bad=None,
    has_page=False,
)
_WATCHED: Final = _Pace(
    faults={503: 0.05, "reset-after": 0.02, "429-retry-after": 0.01, "slow": 0.02},
    latency=(0.02, 0.3),
    spread=lambda sessions: sessions / 3,
    gap=(0.2, 2.0),
    bad=15,
    has_page=True,
)


@click.command(
    cls=Command,
    examples=(
        "rokt-events demo",
        "rokt-events demo --watch",
        "rokt-events demo --fleet",
    ),
)
@click.option(
    "--sessions", type=click.IntRange(1, 100_000), default=300, show_default=True, help="Checkout sessions."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the traffic and the faults.")
@click.option("--fleet", is_flag=True, help="Four publishers, a real Valkey, two relays, one of them killed.")
@click.option("--watch", is_flag=True, help="Play slowly, with more faults, on the sandbox's live page.")
def demo(sessions: int, seed: int, fleet: bool, watch: bool) -> int:  # noqa: FBT001 -- by click
    """Plays a shop against a sandbox, and compares accounts.

    The sandbox has faults, some events are bad, and each must end as the sandbox has recorded it.

    With --fleet the events go through a queue, and nothing must be lost when a relay is killed. With --watch
    the demo prints an address to open in a browser, and plays slowly enough to be watched there. The exit
    status is 1 if the accounts differ.
    """
    refuse_disabled()
    if fleet and watch:
        raise click.UsageError("--fleet and --watch cannot be used together: a fleet has no page")
    try:
        return asyncio.run(run_fleet(seed) if fleet else _demo(sessions, seed, _WATCHED if watch else _FAST))
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


async def _demo(sessions: int, seed: int, pace: _Pace) -> int:
    console = Console(soft_wrap=True)
    luck = random.Random(seed)  # noqa: S311 -- traffic, no secret
    tally = _Tally()
    started = time.monotonic()
    seen: list[RecordedRequest] = []  # The demo's own: a page can clear the sandbox's record.
    sandbox = Sandbox(
        faults=pace.faults, latency=pace.latency, seed=seed, page=pace.has_page, on_request=seen.append
    )
    console.print(f"{sessions} checkout sessions against a sandbox: {pace}")
    async with sandbox:
        if pace.has_page:
            console.print(f"Watch it at {sandbox.page_url}", style="bold")
        async with Emitter(sandbox.credentials, endpoint=sandbox.url, journal=False) as emitter:
            await _play_all(console, emitter, sessions, luck, tally, pace)
            await emitter.aclose()
            stats = emitter.stats
        _print_account(console, stats, time.monotonic() - started)
        _print_rejections(console, tally)
        status = _print_verdict(console, seen, tally)
        if pace.has_page:
            console.print(f"The page stays at {sandbox.page_url} until Ctrl-C.")
            await _interrupted()
    return status


async def _interrupted() -> None:
    """Waits until Ctrl-C, which is the usual end here."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def _play_all(
    console: Console, emitter: Emitter, sessions: int, luck: random.Random, tally: _Tally, pace: _Pace
) -> None:
    plans = [list(_session(luck, is_bad=pace.is_bad(index))) for index in range(sessions)]
    shops = []
    for plan in plans:
        delays = [luck.uniform(0, pace.spread(sessions)), *(luck.uniform(*pace.gap) for _ in plan[1:])]
        shops.append(_play(emitter, plan, delays, tally))
    watch = asyncio.create_task(_watch(console, emitter, sum(map(len, plans))))
    try:
        await asyncio.gather(*shops)
    finally:
        watch.cancel()
        await asyncio.wait([watch])


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


async def _play(emitter: Emitter, plan: list[PartnerEvent], delays: list[float], tally: _Tally) -> None:
    deliveries = []
    for event, delay in zip(plan, delays, strict=True):
        await asyncio.sleep(delay)
        deliveries.append(await emitter.track(event))
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


def _print_verdict(console: Console, seen: list[RecordedRequest], tally: _Tally) -> int:
    found = disagreements(seen, tally.claims)
    counts = Counter(claim.outcome for claim in tally.claims)
    accepted = sum(event.is_accepted for request in seen for event in request.events)
    if not found:
        console.print(
            f"\nBoth accounts agree: the sandbox accepted {accepted} events, "
            f"and {counts['delivered']} were called delivered.",
            style="bold green",
        )
        return 0
    console.print(f"\nThe accounts differ in {len(found)} places:", style="bold red")
    for line in found[:10]:
        console.print(f"  {line}", highlight=False)
    return 1
