"""`rokt-events dead-letters`: what relays gave up, and publishing it again."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress
from rich.table import Table

from rokt_events_async import RoktEventsError
from rokt_events_async.cli._help import Group, plain_console
from rokt_events_async.cli._queues import fail, queue_option, to_queue
from rokt_events_async.outcomes import DeadLetter
from rokt_events_async.relay.letters import event_of, why_not_replay
from rokt_events_async.relay.queue import EventQueue

_PAGE: Final = 200
_OUTCOMES: Final = ("rejected", "expired", "failed", "unconfirmed", "unreadable")


@click.group("dead-letters", cls=Group, examples=("rokt-events dead-letters list",))
def dead_letters() -> None:
    """Looks at what relays gave up, and publishes it again."""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    session = click.option("--session", "session_id", help="Only events of this session.")
    outcome = click.option("--outcome", type=click.Choice(_OUTCOMES), help="Only letters with this outcome.")
    decorated: Callable[..., Any] = queue_option(session(outcome(command)))
    return decorated


@attrs.frozen
class _Choice:
    """Which letters a command is about."""

    ids: tuple[str, ...] = ()
    session_id: str | None = None
    outcome: str | None = None

    def fits(self, letter: DeadLetter) -> bool:
        if self.ids and letter.id not in self.ids:
            return False
        if self.outcome is not None and letter.outcome != self.outcome:
            return False
        if self.session_id is None:
            return True
        event = event_of(letter)
        return event is not None and event.session_id == self.session_id

    def why_not_replay(self, letter: DeadLetter) -> str | None:
        """Returns why a letter of this choice is not published again, `None` if it is."""
        if letter.outcome == "rejected" and not self.ids and self.outcome is None:
            return "Rokt has rejected it, and would again; its id or --outcome rejected insists"
        return why_not_replay(letter, now=datetime.now(UTC))


@dead_letters.command("list", examples=("rokt-events dead-letters list --outcome failed",))
@_options
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="The most that are shown."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line for each.")
def list_(
    queue: str | None,
    session_id: str | None,
    outcome: str | None,
    limit: int,
    as_json: bool,  # noqa: FBT001 -- by click
) -> int:
    """Lists dead letters, the oldest first."""

    async def look(source: EventQueue) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        async with aclosing(_walk(source, _Choice((), session_id, outcome))) as letters:
            async for letter in letters:
                found.append(letter)
                if len(found) == limit:
                    break
        return found

    letters = _run(queue, look)
    if as_json:
        for letter in letters:
            print(json.dumps(_as_dict(letter)))
        return 0
    table = Table("id", "when (UTC)", "outcome", "cause", "status", "event", "session", "reason")
    for letter in letters:
        event = event_of(letter)
        table.add_row(
            letter.id,
            f"{letter.at:%Y-%m-%d %H:%M:%S}",
            letter.outcome,
            letter.cause,
            str(letter.status or "-"),
            str(event.event_type) if event else "-",
            event.session_id if event else "-",
            ", ".join([error.code or error.message for error in letter.errors]) or letter.reason,
        )
    console = plain_console()
    console.print(table if letters else "no dead letters")
    if len(letters) == limit:
        console.print(f"the first {limit}; --limit shows more")
    return 0


@dead_letters.command(examples=("rokt-events dead-letters show 17-0",))
@click.argument("letter_id")
@queue_option
def show(letter_id: str, queue: str | None) -> int:
    """Prints one with its event and Rokt's reasons."""

    async def look(source: EventQueue) -> DeadLetter | None:
        async with aclosing(_walk(source, _Choice((letter_id,)))) as letters:
            return await anext(letters, None)

    letter = _run(queue, look)
    if letter is None:
        _say(f"rokt-events: there is no dead letter {letter_id}")
        return 1
    print(json.dumps(_as_dict(letter), indent=2, ensure_ascii=False))
    return 0


@dead_letters.command(examples=("rokt-events dead-letters replay --outcome failed",))
@click.argument("letter_ids", nargs=-1)
@_options
@click.option("--all", "everything", is_flag=True, help="All of them.")
def replay(
    letter_ids: tuple[str, ...],
    queue: str | None,
    session_id: str | None,
    outcome: str | None,
    everything: bool,  # noqa: FBT001 -- by click
) -> int:
    """Publishes dead letters again.

    Those with the given ids, of a session, of an outcome, or --all.

    Each is published and removed in one step: to call it twice publishes it once, and Ctrl-C leaves nothing
    half done. Expired and unreadable ones are refused, and rejected ones unless they are named by their id or
    by --outcome rejected: Rokt would reject them again. Unconfirmed ones may count twice. The exit status is
    1 if some were refused, or an id is unknown.
    """
    choice = _choose(letter_ids, session_id, outcome, everything=everything)
    done = _run(queue, lambda source: _replay(source, choice))
    _say(f"{done.replayed:,} published again")
    for reason, count in done.refused.items():
        _say(f"{count:,} refused: {reason}")
    for letter_id in sorted(set(letter_ids) - done.found):
        _say(f"rokt-events: there is no dead letter {letter_id}")
    return 1 if done.refused or set(letter_ids) - done.found else 0


@attrs.define
class _Done:
    """What became of a replay: how many, why not, and which of the ids there were."""

    replayed: int = 0
    refused: Counter[str] = attrs.field(factory=Counter)
    found: set[str] = attrs.field(factory=set)
    unconfirmed: int = 0


async def _replay(source: EventQueue, choice: _Choice) -> _Done:
    done = _Done()
    total = (await source.backlog()).dead_letters  # What becomes a dead letter again comes behind these.
    with _progress(total) as advance:
        async with aclosing(_pages(source, choice)) as pages:
            async for page, looked_at in pages:
                good = []
                for letter in page:
                    done.found.add(letter.id)
                    if why := choice.why_not_replay(letter):
                        done.refused[why] += 1
                    else:
                        good.append(letter)
                        done.unconfirmed += letter.outcome == "unconfirmed"
                if good:
                    done.replayed += await source.replay(good)
                advance(looked_at)
                total -= looked_at
                if total <= 0:
                    break
    if done.unconfirmed:
        _say(
            f"{done.unconfirmed:,} of them unconfirmed: Rokt may have counted them before, and does it twice"
        )
    return done


@dead_letters.command(examples=("rokt-events dead-letters delete --session ID",))
@click.argument("letter_ids", nargs=-1)
@_options
@click.option("--all", "everything", is_flag=True, help="All of them.")
def delete(
    letter_ids: tuple[str, ...],
    queue: str | None,
    session_id: str | None,
    outcome: str | None,
    everything: bool,  # noqa: FBT001 -- by click
) -> int:
    """Deletes dead letters.

    Those with the given ids, of a session, of an outcome, or --all.
    """
    choice = _choose(letter_ids, session_id, outcome, everything=everything)

    async def run(source: EventQueue) -> int:
        deleted = 0
        async with aclosing(_pages(source, choice)) as pages:
            async for page, _ in pages:
                if page:
                    deleted += await source.delete(page)
        return deleted

    print(f"{_run(queue, run)} deleted")
    return 0


def _choose(
    ids: tuple[str, ...], session_id: str | None, outcome: str | None, *, everything: bool
) -> _Choice:
    if not (ids or session_id or outcome or everything):
        raise click.UsageError("which? Give ids, --session ID, --outcome NAME, or --all")
    return _Choice(ids, session_id, outcome)


def _run(url: str | None, call: Callable[[EventQueue], Any]) -> Any:
    async def run() -> Any:
        source = to_queue(url)
        try:
            return await call(source)
        finally:
            await source.aclose()

    try:
        return asyncio.run(run())
    except RoktEventsError as error:
        fail(error)


async def _pages(source: EventQueue, choice: _Choice) -> AsyncGenerator[tuple[list[DeadLetter], int], None]:
    """Yields the letters of a choice, and how many were looked at for them, page by page."""
    after = ""
    while letters := await source.dead_letters(after=after, count=_PAGE):
        after = letters[-1].id
        yield [letter for letter in letters if choice.fits(letter)], len(letters)


async def _walk(source: EventQueue, choice: _Choice) -> AsyncGenerator[DeadLetter, None]:
    async with aclosing(_pages(source, choice)) as pages:
        async for page, _ in pages:
            for letter in page:
                yield letter


def _as_dict(letter: DeadLetter) -> dict[str, Any]:
    event = event_of(letter)
    return {
        "id": letter.id,
        "at": letter.at.isoformat(),
        "outcome": letter.outcome,
        "cause": letter.cause,
        "reason": letter.reason,
        "status": letter.status,
        "errors": [{"code": error.code, "message": error.message} for error in letter.errors],
        "attempts": letter.attempts,
        "relay_id": letter.relay_id,
        "partition": letter.partition,
        "event": event.to_dict() if event else None,
        "fields": None if event else [field.decode("utf-8", "backslashreplace") for field in letter.fields],
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal."""
    console = Console(stderr=True)
    with Progress(BarColumn(), MofNCompleteColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
