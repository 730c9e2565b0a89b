"""`rokt-events queue status`: what lies in a queue, and who works at it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table

from rokt_events_async import RoktEventsError
from rokt_events_async.cli._help import Group, counted, plain_console
from rokt_events_async.cli._queues import fail, queue_option, to_queue
from rokt_events_async.relay.queue import Backlog, EventQueue, RelayPresence


@click.group(cls=Group, examples=("rokt-events queue status",))
def queue() -> None:
    """Looks at a queue."""


@queue.command(examples=("rokt-events queue status --queue redis://localhost --json",))
@queue_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(queue: str | None, as_json: bool) -> int:  # noqa: FBT001 -- by click
    """Prints what waits, what relays hold, and who is alive.

    The exit status is 1 if entries wait or are pending and no relay is alive.
    """
    try:
        found = asyncio.run(_look(to_queue(queue)))
    except RoktEventsError as error:
        fail(error)
    if as_json:
        print(json.dumps(_as_dict(*found), indent=2))
    else:
        _show(*found)
    backlog, relays = found
    has_work = bool(sum(backlog.waiting) + backlog.pending)
    return int(has_work and not any(one.is_alive for one in relays))


async def _look(queue: EventQueue) -> tuple[Backlog, list[RelayPresence]]:
    try:
        return await queue.backlog(), await queue.relays()
    finally:
        await queue.aclose()


def _oldest_age(backlog: Backlog) -> float | None:
    if backlog.oldest is None:
        return None
    return round(max(0.0, (datetime.now(UTC) - backlog.oldest).total_seconds()), 1)


def _rate(relays: list[RelayPresence]) -> float:
    return round(sum([float(one.status.get("rate", 0)) for one in relays]), 1)


def _as_dict(backlog: Backlog, relays: list[RelayPresence]) -> dict[str, Any]:
    return {
        "waiting": sum(backlog.waiting),
        "waiting_by_partition": list(backlog.waiting),
        "pending": backlog.pending,
        "oldest_age": _oldest_age(backlog),
        "published": backlog.published,
        "delivered_per_second": _rate(relays),
        "relays": [
            {
                "relay_id": one.relay_id,
                "alive": one.is_alive,
                "pending": one.pending,
                "status": dict(one.status),
            }
            for one in relays
        ],
        "dead_letters": backlog.dead_letters,
        "dead_letters_dropped": backlog.dead_letters_dropped,
        "used_bytes": backlog.used_bytes,
        "max_bytes": backlog.max_bytes,
    }


def _show(backlog: Backlog, relays: list[RelayPresence]) -> None:
    console = plain_console()
    age = _oldest_age(backlog)
    oldest = "" if age is None else f", the oldest published {age:.0f} s ago"
    console.print(
        f"{counted(sum(backlog.waiting), 'event')} waiting, relays hold {backlog.pending:,}{oldest}; "
        f"{backlog.published:,} published so far, {_rate(relays):g} delivered per second"
    )
    if relays:
        table = Table("relay", "", "partitions", "holds", "delivered", "per second", "Rokt")
        for one in relays:
            table.add_row(
                one.relay_id,
                "alive" if one.is_alive else "ended",
                str(len(one.status.get("partitions", ()))),
                str(one.pending),
                str(one.status.get("delivered", "-")),
                str(one.status.get("rate", "-")),
                str(one.status.get("rokt", "-")),
            )
        console.print(table)
    else:
        console.print("no relay is here: `rokt-events relay` starts one")
    dropped = (
        f" ({backlog.dead_letters_dropped:,} older ones dropped)" if backlog.dead_letters_dropped else ""
    )
    console.print(f"{counted(backlog.dead_letters, 'dead letter')}{dropped}")
    if backlog.used_bytes is not None and backlog.max_bytes is not None:
        share = backlog.used_bytes / backlog.max_bytes
        full = ": full, and publications are refused" if share >= 1 else ""
        console.print(f"{share:.0%} of the server's {backlog.max_bytes / 2**20:,.0f} MiB are in use{full}")
