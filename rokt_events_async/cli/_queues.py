"""What the commands about queues share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from rokt_events_async import InvalidSettingError, RoktEventsError
from rokt_events_async.relay import EventQueue

queue_option: Callable[..., Any] = click.option(
    "--queue", metavar="URL", help="The queue, redis:// or rediss://; by default ROKT_QUEUE_URL."
)


def fail(error: RoktEventsError) -> NoReturn:
    """Ends a command: with exit status 2 for a wrong use, otherwise with 1."""
    if isinstance(error, InvalidSettingError):
        raise click.UsageError(str(error)) from None
    print(f"rokt-events: {error}", file=sys.stderr)
    raise SystemExit(1)


def to_queue(url: str | None) -> EventQueue:
    """Returns the queue of a command.

    Raises:
        click.UsageError: There is no URL, or the extra is not installed.
        InvalidSettingError: The URL is none of a queue.
    """
    url = url or os.environ.get("ROKT_QUEUE_URL")
    if not url:
        raise click.UsageError("which queue? Pass --queue redis://…, or set ROKT_QUEUE_URL")
    try:
        from rokt_events_async.relay import RedisQueue  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError as error:  # pragma: no cover -- a test runs it in a process without the extra
        raise click.UsageError(str(error)) from None
    return RedisQueue(url)
