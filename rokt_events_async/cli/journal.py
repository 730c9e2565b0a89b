"""`rokt-events journal`: what a journal holds, erasing a person's events, and sending what is left."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from rokt_events_async import Emitter, InvalidSettingError, Journal, JournalError
from rokt_events_async.cli._help import Command, counted, plain_console, refuse_disabled
from rokt_events_async.journal._ownership import is_owned
from rokt_events_async.journal.files import JournalFile, age, erase_session, list_files


@click.command(
    cls=Command,
    examples=(
        "rokt-events journal rokt-journal",
        "rokt-events journal rokt-journal delete --session ID",
        "rokt-events journal rokt-journal adopt",
    ),
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("action", type=click.Choice(["show", "delete", "adopt"]), default="show")
@click.option("--json", "as_json", is_flag=True, help="With show: print JSON.")
@click.option("--session", "session_id", help="With delete: the session id.")
@click.option(
    "--timeout", type=float, default=60.0, show_default=True, help="With adopt: seconds to send for."
)
def journal(directory: Path, action: str, as_json: bool, session_id: str | None, timeout: float) -> int:  # noqa: FBT001 -- by click
    """Looks after the journal in DIRECTORY.

    `show`, the default, shows its files, their owners, and what they hold.

    `delete` deletes all events of a session, from the files whose owners have ended.

    `adopt` sends the events of the files whose owners have ended, with the credentials and the endpoint of
    the environment.
    """
    try:
        if action == "adopt":
            refuse_disabled()
            return adopt(directory, timeout)
        if action == "delete":
            return delete(directory, session_id)
        show(directory, as_json=as_json)
    except (InvalidSettingError, JournalError) as error:
        raise click.ClickException(str(error)) from None
    return 0


def show(directory: Path, *, as_json: bool) -> None:
    """Prints what the files hold."""
    files = list_files(directory)
    if as_json:
        print(json.dumps([_as_dict(file) for file in files], indent=2))
    else:
        _show(directory, files)


def _as_dict(file: JournalFile) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "endpoint": file.endpoint,
        "tag_id": file.tag_id,
        "owner": _owner(file),
        "stored": file.stored,
        "sent": file.sent,
        "oldest": file.oldest.isoformat() if file.oldest else None,
        "without_room": file.deferred,
        "oldest_without_room": file.oldest_deferred.isoformat() if file.oldest_deferred else None,
        "bad": file.bad,
        "tally": file.tally,
        "problem": file.problem,
    }


def _owner(file: JournalFile) -> str:
    return "alive" if file.is_owned else "ended"


def _show(directory: Path, files: list[JournalFile]) -> None:
    console = plain_console()
    table = Table("file", "tag id", "owner", "stored", "sent", "oldest", "bad", "outcomes")
    for file in files:
        outcomes = [f"{count} {name}" for name, count in sorted(file.tally.items()) if name != "accepted"]
        table.add_row(
            f"{file.path.parent.name[:6]}/{file.path.stem[:8]}",
            file.tag_id,
            _owner(file),
            str(file.stored),
            str(file.sent),
            f"{age(file.oldest):.0f} s" if file.oldest else "-",
            str(file.bad),
            file.problem or ", ".join(outcomes) or "-",
        )
    console.print(table)
    stored = sum([file.stored for file in files])
    console.print(f"{counted(stored, 'event')} in {counted(len(files), 'file')} in {directory}")
    oldest_deferred = [file.oldest_deferred for file in files if file.oldest_deferred is not None]
    if oldest_deferred:
        oldest, count = age(min(oldest_deferred)), sum([file.deferred for file in files])
        console.print(f"{count:,} of them found no room in memory, the oldest {oldest:.0f} s ago")


def delete(directory: Path, session_id: str | None) -> int:
    """Erases a person's events. Returns 1 if files could not be searched."""
    if not session_id:
        raise click.UsageError("delete needs --session ID")
    erasure = erase_session(directory, session_id)
    print(f"deleted {counted(erasure.erased, 'event')} of the session")
    for path in erasure.skipped:
        why = "its owner is alive: stop it first" if is_owned(path) else "it cannot be read"
        print(f"not searched, {why}: {path}", file=sys.stderr)
    return 1 if erasure.skipped else 0


def adopt(directory: Path, timeout: float) -> int:
    """Sends what processes that have ended have left. Returns 1 if not all that is there has an outcome."""
    if not directory.is_dir():
        raise JournalError(f"there is no journal in {directory}: no such directory")
    return asyncio.run(_send(directory, timeout))


async def _send(directory: Path, timeout: float) -> int:
    loop = asyncio.get_running_loop()
    async with Emitter(journal=Journal(directory)) as emitter:
        deadline, empty_since = loop.time() + timeout, loop.time()
        while loop.time() < deadline and loop.time() < empty_since + _ADOPTING:
            await asyncio.sleep(0.05)
            if _left(emitter):
                empty_since = loop.time()
        left, stats, endpoint = _left(emitter), emitter.stats, emitter.endpoint
        tag_id = emitter.credentials.tag_id if emitter.credentials else None
    print(
        f"{stats.delivered} delivered, {stats.rejected} rejected, {stats.expired} expired, "
        f"{stats.unconfirmed} unconfirmed, {stats.failed} failed, {left} left"
    )
    others: Counter[str] = Counter()
    for file in list_files(directory):
        if file.is_owned:
            others["in use: their owner is alive"] += file.stored
        elif (file.endpoint, file.tag_id) != (endpoint, tag_id):
            others[f"for another account: tag id {file.tag_id}, {file.endpoint}"] += file.stored
    for why, count in (+others).items():  # Without those of which there are none.
        print(f"{counted(count, 'event')} not sent, {why}", file=sys.stderr)
    return 1 if left or others.total() else 0


_ADOPTING: Final = 1.0
"""Seconds in which the next file is adopted, if there is one."""


def _left(emitter: Emitter) -> int:
    journal = emitter.stats.journal
    assert journal is not None, "the emitter has a journal"
    return journal.stored
