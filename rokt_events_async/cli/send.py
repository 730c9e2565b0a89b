"""`rokt-events send`: events from files of JSON lines."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import shlex
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Protocol

import attrs
import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rokt_events_async import (
    Cause,
    Delivery,
    DeliveryError,
    Emitter,
    EventRejectedError,
    InvalidEventError,
    InvalidSettingError,
    PartnerEvent,
    RetryPolicy,
)
from rokt_events_async.cli._help import Command, counted, refuse_disabled
from rokt_events_async.cli._progress import ProgressFile
from rokt_events_async.events import restore, time_problems

_DEADLINE: Final = 3 * 24 * 3600.0
"""A file can wait for the end of an outage; Ctrl-C ends it before."""

_WRITE_EVERY: Final = 0.01
"""Seconds in which outcomes gather before they are written."""

_SHOW_EVERY: Final = 2.0
_CLOSE_TIMEOUT: Final = 10.0
_NAMES: Final = frozenset(("eventTime", "eventType", "sessionId", "parentGuid", "clientUniqueId", "metadata"))
_MAX_SHOWN: Final = 20
"""How many lines that are no events are reported one by one."""


class Raw(Protocol):
    """What tells how far an input was read."""

    def tell(self) -> int: ...


@attrs.define
class Line:
    """A line of the input.

    Attributes:
        number: Its number in all inputs together, from 0.
        where: The file and the line, for people.
        text: The line, without its end.
    """

    number: int
    where: str
    text: bytes


def read_event(text: bytes) -> PartnerEvent:
    """Returns the event of a line: in the wire's names, or within `"event"` as `--undelivered` writes it.

    Raises:
        InvalidEventError: All problems of the event.
        ValueError: It is no JSON object.
    """
    data = orjson.loads(text)
    if isinstance(data, dict) and isinstance(data.get("event"), dict):
        data = data["event"]
    if not isinstance(data, dict):
        raise ValueError("must be a JSON object")  # noqa: TRY004 -- a text, not a call
    if data.keys() <= _NAMES and str(data.get("eventTime", "")).endswith("Z"):
        # The usual form, in a fraction of the time; what it refuses is reported by the other way.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return restore(data)
    with warnings.catch_warnings(action="ignore"):  # An unknown type is the file's, and no news.
        return PartnerEvent.from_dict(data)


@click.command(
    cls=Command,
    examples=(
        "rokt-events send --dry-run events.jsonl",
        "rokt-events send --undelivered left.jsonl events.jsonl.gz",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--dry-run", is_flag=True, help="Check every line, and send nothing.")
@click.option(
    "--undelivered", metavar="OUT", type=click.Path(path_type=Path), help="Write what was not delivered here."
)
@click.option("--resume", is_flag=True, help="Go on where an earlier run was killed or interrupted.")
@click.option(
    "--max-concurrency", type=int, default=16, show_default=True, help="The most requests in flight."
)
def send(
    files: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001 -- by click
    undelivered: Path | None,
    resume: bool,  # noqa: FBT001 -- by click
    max_concurrency: int,
) -> int:
    """Sends the events of files of JSON lines.

    - is the standard input, and .gz is read too.

    Credentials and endpoint come from ROKT_PUB_ID, ROKT_SECRET, ROKT_TAG_ID and ROKT_ENDPOINT. A line that is
    no event is reported, and written to OUT unchanged. A small file beside the input says how far it has
    come, until all is settled. The exit status is 0 if all was delivered, 1 if some was not, 2 for a wrong
    use.
    """
    inputs = _Inputs(files)
    if not dry_run:
        refuse_disabled()
    if resume and inputs.path is None:
        raise click.UsageError("--resume needs a single file, which can be read again")
    if dry_run:
        return _check(inputs)
    try:
        return asyncio.run(_send(inputs, undelivered, resume=resume, max_concurrency=max_concurrency))
    except InvalidSettingError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"{error.filename}: {error.strerror}") from None


class _Inputs:
    """The files, one after the other.

    Raises:
        click.UsageError: One of them cannot be read.
    """

    def __init__(self, files: tuple[str, ...]) -> None:
        self._files = files
        self.path = Path(files[0]) if len(files) == 1 and files[0] != "-" else None
        self.size = 0
        self._before = 0
        self._raw: Raw | None = None
        for name in files:
            if name != "-":
                try:
                    with Path(name).open("rb"):
                        self.size += Path(name).stat().st_size
                except OSError as error:
                    raise click.UsageError(f"cannot read {name}: {error.strerror}") from None

    @property
    def position(self) -> int:
        """How many bytes were read; of compressed files, as they are stored."""
        return self._before + (self._raw.tell() if self._raw is not None else 0)

    def identity(self) -> dict[str, Any]:
        """Returns what tells the input from others."""
        assert self.path is not None, "there is one file"
        with self.path.open("rb") as file:
            head = file.read(4096)
        return {"format": 1, "name": self.path.name, "size": self.size, "head": hash_of(head)}

    def lines(self) -> Iterator[Line]:
        """Yields the lines that are not empty."""
        number = 0
        for name in self._files:
            with _open(name) as (raw, file):
                self._raw = raw
                for count, text in enumerate(file, 1):
                    if stripped := text.strip():
                        yield Line(number, f"{name}:{count}", stripped)
                        number += 1
            self._raw = None
            self._before += Path(name).stat().st_size if name != "-" else 0


def hash_of(data: bytes) -> str:
    """Returns a short name of some bytes."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@contextlib.contextmanager
def _open(name: str) -> Iterator[tuple[Raw | None, IO[bytes]]]:
    if name == "-":
        yield None, sys.stdin.buffer
        return
    with Path(name).open("rb") as raw:
        if name.endswith(".gz"):
            with gzip.open(raw) as file:
                yield raw, file  # type: ignore[misc]  # it is one, in all but its type
        else:
            yield raw, raw


# Checking.


def _problem(line: Line) -> str | None:
    """Returns what is wrong with a line, all at once; `None` if it can be sent."""
    try:
        event = read_event(line.text)
    except (ValueError, InvalidEventError) as error:
        return str(error)
    problems = time_problems(event.event_time, now=datetime.now(UTC)) if event.event_time else ()
    return "; ".join(map(str, problems)) or None


def _check(inputs: _Inputs) -> int:
    good = bad = 0
    for line in inputs.lines():
        if problem := _problem(line):
            bad += 1
            print(f"{line.where}: {_on_a_line(problem)}", file=sys.stderr)
        else:
            good += 1
    print(f"{counted(good, 'line')} can be sent, {bad:,} cannot")
    return 1 if bad else 0


def _on_a_line(text: str) -> str:
    return " ".join(text.encode("unicode_escape").decode("ascii").split())


# Sending.


@attrs.define
class _Counts:
    """What became of the lines."""

    delivered: int = 0
    undelivered: int = 0
    possible_duplicates: int = 0
    bad: int = 0
    skipped: int = 0
    left: int = 0
    causes: Counter[tuple[str, str]] = attrs.Factory(Counter)


class _Run:
    """One run: reads, tracks, and writes what settles.

    Args:
        undelivered: Where to write what was not delivered.
        progress: The file beside the input, `None` if the input cannot be read again.
    """

    def __init__(
        self, inputs: _Inputs, emitter: Emitter, undelivered: IO[bytes] | None, progress: ProgressFile | None
    ) -> None:
        self._inputs = inputs
        self._emitter = emitter
        self._undelivered = undelivered
        self._progress = progress
        self._tracked: dict[Delivery, Line] = {}
        self._upcoming: Line | None = None
        self._lines = inputs.lines()
        self._unread: Line | None = None
        self._tracking: asyncio.Task[None] | None = None
        self.counts = _Counts()
        self.is_stopping = False

    async def run(self) -> None:
        """Sends all lines, until it is told to stop."""
        writing = asyncio.create_task(self._write_often())
        self._tracking = asyncio.create_task(self._track_all())
        try:
            await asyncio.wait([self._tracking])
            if not self.is_stopping:
                self._tracking.result()
                await self._settle()
            await self._emitter.aclose(_CLOSE_TIMEOUT)
            await asyncio.sleep(0)  # The last outcomes are told one turn later.
        finally:
            writing.cancel()
            await asyncio.wait([writing])
            self._write()
            if not writing.cancelled() and (error := writing.exception()) is not None:
                raise error

    def stop(self) -> None:
        """Ends the reading, also while it waits for room."""
        self.is_stopping = True
        if self._tracking is not None:
            self._tracking.cancel()

    async def _track_all(self) -> None:
        while await self._track():
            pass

    async def _settle(self) -> None:
        """Waits for the outcomes; a stop ends the waiting."""
        while self._tracked and not self.is_stopping:
            await self._emitter.flush(timeout=0.2)

    async def _track(self) -> bool:
        """Tracks the lines. Returns False at their end; True if one was refused, and others follow."""
        try:
            async for delivery in self._emitter.track_many(self._events()):
                assert self._upcoming is not None, "each delivery is of a line"
                self._tracked[delivery], self._upcoming = self._upcoming, None
                delivery.add_done_callback(self._on_outcome)
        except InvalidEventError as error:  # It became too old since it was checked.
            assert self._upcoming is not None, "an event was refused"
            self._report(self._upcoming, str(error))
            self._upcoming = None
            return True
        return False

    async def _events(self) -> AsyncIterator[PartnerEvent]:
        """Yields the events of the lines; reports those that are none."""
        for line in self._lines:
            if self.is_stopping:
                self._unread = line
                return
            if self._progress is not None:
                if line.number in self._progress.settled:
                    self.counts.skipped += 1
                    continue
                if line.number < self._progress.sent_before:
                    self.counts.possible_duplicates += 1
                self._progress.reserve(line.number)
            try:
                event = read_event(line.text)
            except (ValueError, InvalidEventError) as error:
                self._report(line, str(error))
                continue
            if event.event_time and (found := time_problems(event.event_time, now=datetime.now(UTC))):
                self._report(line, "; ".join(map(str, found)))
                continue
            self._upcoming = line
            yield event

    def _report(self, line: Line, problem: str) -> None:
        """Reports a line that is no event, and writes it through."""
        self.counts.bad += 1
        if self.counts.bad <= _MAX_SHOWN:
            more = "; further ones are counted" if self.counts.bad == _MAX_SHOWN else ""
            print(f"{line.where}: {_on_a_line(problem)}{more}", file=sys.stderr)
        if self._undelivered is not None:
            self._undelivered.write(line.text + b"\n")
        if self._progress is not None:
            self._progress.settle(line.number)

    def _on_outcome(self, delivery: asyncio.Future[Any]) -> None:
        assert isinstance(delivery, Delivery)
        line = self._tracked.pop(delivery)
        error = delivery.exception()
        if error is None:
            self.counts.delivered += 1
        else:
            assert isinstance(error, DeliveryError), "without a journal nothing is deferred"
            if error.cause is Cause.CLOSED and self._progress is not None:
                self.counts.left += 1  # The next run sends it.
                return
            self._note_undelivered(error)
        if self._progress is not None:
            self._progress.settle(line.number)

    def _note_undelivered(self, error: DeliveryError) -> None:
        if error.cause is Cause.CLOSED:
            self.counts.left += 1
        else:
            self.counts.undelivered += 1
            self.counts.causes[error.outcome, str(error.cause)] += 1
        if self._undelivered is not None:
            self._undelivered.write(_as_line(error))

    async def _write_often(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY)
            self._write()

    def _write(self) -> None:
        """Writes what has settled: first what is not delivered, then that it is settled."""
        if self._undelivered is not None:
            self._undelivered.flush()
        if self._progress is not None:
            self._progress.write()

    def rest(self) -> int:
        """Counts the lines that were not read; without a progress file they are written through."""
        count = 0
        for line in itertools.chain(filter(None, (self._upcoming, self._unread)), self._lines):
            count += 1
            if self._undelivered is not None and self._progress is None:
                self._undelivered.write(line.text + b"\n")
        return count


def _as_line(error: DeliveryError) -> bytes:
    """Returns an event that was not delivered, and why, as a line that `send` reads again."""
    errors = error.errors if isinstance(error, EventRejectedError) else ()
    return (
        orjson.dumps(
            {
                "event": error.event.to_dict(),
                "outcome": error.outcome,
                "cause": str(error.cause),
                "reason": error.reason,
                "status": error.status,
                "attempts": error.attempts,
                "errors": [{"code": one.code, "message": one.message} for one in errors],
            }
        )
        + b"\n"
    )


async def _send(inputs: _Inputs, out: Path | None, *, resume: bool, max_concurrency: int) -> int:
    progress = _open_progress(inputs, resume=resume)
    with contextlib.ExitStack() as stack:
        undelivered = None
        if out is not None:
            undelivered = stack.enter_context(out.open("ab" if resume else "wb"))
        async with Emitter(
            max_concurrency=max_concurrency,
            max_wait=None,
            close_timeout=_CLOSE_TIMEOUT,
            retry=RetryPolicy(deadline=_DEADLINE),
            observers=[],
            journal=False,  # The file is durable.
        ) as emitter:
            if progress is not None:
                progress.open()
            run = _Run(inputs, emitter, undelivered, progress)
            return await _watch(run, inputs, emitter, progress, out)


def _open_progress(inputs: _Inputs, *, resume: bool) -> ProgressFile | None:
    if inputs.path is None:
        return None
    path = inputs.path.with_name(f"{inputs.path.name}.progress")
    progress = ProgressFile(path, inputs.identity())
    if not resume:
        if path.exists():
            raise click.UsageError(
                f"{path} says that an earlier run was not finished: go on with --resume, or delete it"
            )
        return progress
    try:
        if not progress.load():
            raise click.UsageError(f"there is nothing to resume: {path} does not exist")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return progress


async def _watch(
    run: _Run, inputs: _Inputs, emitter: Emitter, progress: ProgressFile | None, out: Path | None
) -> int:
    """Runs it with a display, and stops it at Ctrl-C."""
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(run.run())

    def interrupt() -> None:
        if run.is_stopping:  # A second time: the drain ends.
            running.cancel()
        run.stop()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, interrupt)
    showing = asyncio.create_task(_show(run, inputs, emitter))
    try:
        await asyncio.wait([running])
    finally:
        showing.cancel()
        await asyncio.wait([showing])
        is_whole = not run.is_stopping and not running.cancelled() and running.exception() is None
        if progress is not None:
            progress.close(is_done=is_whole)
    if running.cancelled():
        await emitter.aclose(0)
    else:
        running.result()
    return _conclude(run, inputs, out, is_whole=is_whole)


def _conclude(run: _Run, inputs: _Inputs, out: Path | None, *, is_whole: bool) -> int:
    counts = run.counts
    say = [f"{counts.delivered:,} delivered"]
    say += [f"{counts.undelivered:,} not delivered"] if counts.undelivered else []
    say += [f"{counted(counts.bad, 'line')} without an event"] if counts.bad else []
    say += [f"{counts.skipped:,} settled before"] if counts.skipped else []
    if counts.possible_duplicates:
        say.append(
            f"{counts.possible_duplicates:,} sent again that were under way before: possible duplicates"
        )
    print(", ".join(say), file=sys.stderr)
    for (outcome, cause), count in counts.causes.most_common():
        print(f"  {count:,} {outcome}: {cause}", file=sys.stderr)
    if is_whole:
        return 1 if counts.undelivered or counts.bad else 0
    rest = run.rest()
    print(f"stopped: {counts.left:,} under way, {rest:,} not read", file=sys.stderr)
    options = f"--undelivered {shlex.quote(str(out))} " if out is not None else ""
    if inputs.path is not None:
        print(
            f"go on with: rokt-events send --resume {options}{shlex.quote(str(inputs.path))}", file=sys.stderr
        )
    elif out is not None:
        print(f"go on with: rokt-events send {shlex.quote(str(out))}", file=sys.stderr)
    return 130


# Showing.


async def _show(run: _Run, inputs: _Inputs, emitter: Emitter) -> None:
    """Shows how it goes: a bar on a terminal, elsewhere a line every two seconds."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    began = time.monotonic()
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_SHOW_EVERY)
            console.print(f"  {_how(run, inputs, emitter, time.monotonic() - began)}")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task("", total=inputs.size or None)
        while True:
            text = _how(run, inputs, emitter, time.monotonic() - began)
            bar.update(task, completed=inputs.position, description=text)
            await asyncio.sleep(0.2)


def _how(run: _Run, inputs: _Inputs, emitter: Emitter, seconds: float) -> str:
    settled = run.counts.delivered + run.counts.undelivered
    share = f"{inputs.position / inputs.size:.0%} read, " if inputs.size else ""
    retries = emitter.stats.retries
    return f"{share}{settled:,} settled, {settled / max(seconds, 0.001):,.0f} per second, {retries:,} retries"
