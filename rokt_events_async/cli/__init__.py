"""The command line: a demo, and the sandbox to point an application at. In the extra `[cli]`."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs

from rokt_events_async import (
    Delivery,
    DeliveryError,
    Emitter,
    EmitterStats,
    EventRejectedError,
    PartnerEvent,
    Receipt,
    __version__,
)
from rokt_events_async.sandbox import ECHO_FORMS, FAULTS, Echo, RecordedRequest, Sandbox
from rokt_events_async.sandbox.audit import Claim, disagreements

try:
    import click
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:  # pragma: no cover -- a test runs it in a process without the extra
    raise SystemExit(
        f"rokt-events: the command line needs {error.name}: pip install 'rokt_events_async[cli]'"
    ) from None

_SESSIONS_A_SECOND: Final = 50
"""How many of the demo's sessions begin each second."""

_LONGEST: Final = 6.0
"""Seconds within which all of them have begun."""

_BAD_EVENTS: Final = 5
"""Events of the demo that the API will refuse."""

_EXAMPLES: Final = 3


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rokt-events")
@click.pass_context
def cli(context: click.Context) -> None:
    """Tries and tests rokt_events_async without Rokt."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a mistake in its arguments is one line, and exit status 2."""
    try:
        status = cli.main(arguments, prog_name="rokt-events", standalone_mode=False)
    except click.ClickException as error:
        print(f"rokt-events: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print("rokt-events: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


# The demo.


@cli.command()
@click.option(
    "--sessions", type=click.IntRange(1, 100_000), default=300, show_default=True, help="Checkout sessions."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the traffic and the bad luck.")
def demo(sessions: int, seed: int) -> int:
    """Plays a shop's traffic against a sandbox with some bad luck, and checks both accounts."""
    try:
        return asyncio.run(_demo(sessions, seed))
    except KeyboardInterrupt:
        raise click.Abort from None


@attrs.define
class _Tally:
    """What the demo has heard so far, by event."""

    claims: list[Claim] = attrs.Factory(list)
    rejections: list[EventRejectedError] = attrs.Factory(list)

    def add(self, delivery: Delivery, outcome: Receipt | DeliveryError) -> None:
        if isinstance(outcome, EventRejectedError):
            self.rejections.append(outcome)
        self.claims.append(claim_of(delivery.event, outcome))


def claim_of(event: PartnerEvent, outcome: Receipt | DeliveryError) -> Claim:
    """What an outcome says of its event, in the terms of the sandbox's audit."""
    if isinstance(outcome, Receipt):
        return Claim(event=event.to_dict(), outcome="delivered", maybe_duplicate=outcome.maybe_duplicate)
    codes = tuple(error.code for error in getattr(outcome, "errors", ()))
    return Claim(event=event.to_dict(), outcome=outcome.outcome, codes=codes)


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
        spread = min(sessions / _SESSIONS_A_SECOND, _LONGEST)
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
        with warnings.catch_warnings(action="ignore"):  # That it is unknown is the point.
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
    """Shows how far it is: a bar on a terminal, a line every two seconds elsewhere."""
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
    table = Table(title="What became of the events", title_justify="left")
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


# The sandbox.


class _Rates(click.ParamType[Any]):
    """`503=0.05`: a fault and how often it happens."""

    name = "FAULT=RATE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        name, _, rate = str(value).partition("=")
        try:
            return name, float(rate)
        except ValueError:
            self.fail(f"must be FAULT=RATE, as in 503=0.05, got {value!r}", param, ctx)


class _Latency(click.ParamType[Any]):
    """`0.1`, or `0.01-0.2` to draw between the two."""

    name = "SECONDS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        shortest, _, longest = str(value).partition("-")
        try:
            return float(shortest), float(longest or shortest)
        except ValueError:
            self.fail(f"must be SECONDS or SHORTEST-LONGEST, as in 0.01-0.2, got {value!r}", param, ctx)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="0 takes a free one."
)
@click.option(
    "--echo",
    "echoes",
    multiple=True,
    type=click.Choice(list(ECHO_FORMS)),
    help="Form of the answers; can be repeated.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    type=_Rates(),
    help="What goes wrong, and how often; can be repeated. A status, or one of: " + ", ".join(FAULTS) + ".",
)
@click.option(
    "--latency", type=_Latency(), default="0", help="Before every answer; 0.01-0.2 draws between the two."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the faults and the latency.")
def sandbox(
    host: str,
    port: int,
    echoes: tuple[str, ...],
    faults: tuple[tuple[str, float], ...],
    latency: tuple[float, float],
    seed: int,
) -> int:
    """Serves the Server Events API on loopback until Ctrl-C, and logs a line for each request."""
    console = Console(highlight=False, soft_wrap=True)

    def log(request: RecordedRequest) -> None:
        console.print(f"{time.strftime('%H:%M:%S')}  {request}")

    try:
        served = Sandbox(
            host=host,
            port=port,
            echo=Echo.of(*echoes),
            faults=dict(faults),
            latency=latency,
            seed=seed,
            on_request=log,
            history=1000,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        asyncio.run(_serve(served, console))
    except OSError as error:
        raise click.UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    except KeyboardInterrupt:
        console.print(f"stopped after {served.count} requests")
    return 0


async def _serve(served: Sandbox, console: Console) -> None:
    async with served:
        credentials = served.credentials
        console.print("Serving the Server Events API. To talk to it, an application needs")
        console.print(f"  export ROKT_PUB_ID={credentials.pub_id}")
        console.print(f"  export ROKT_SECRET={credentials.secret}")
        console.print(f"  export ROKT_TAG_ID={credentials.tag_id}")
        console.print(f"  export ROKT_ENDPOINT={served.url}")
        console.print(f'  Emitter(endpoint="{served.url}")')
        console.print("Ctrl-C stops it.")
        await asyncio.Event().wait()
