"""Journal files looked at from outside: what they hold, whose they are, and how a person's events are erased.

A file whose owner is alive cannot be opened, because its owner has locked it. It is copied, and the copy is
read: a moment's view, which can lack the last commits.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import attrs

from rokt_events_async.errors import JournalError
from rokt_events_async.journal._database import Database, NewerVersionError, NotAJournalError, explain
from rokt_events_async.journal._depot import read_about
from rokt_events_async.journal._ownership import FileLock, is_owned, locked


@attrs.frozen
class JournalFile:
    """What one file holds.

    Attributes:
        path: The file.
        endpoint: Where its events are sent.
        tag_id: Whose events these are.
        is_owned: True if the process that owns it is alive.
        stored: How many events it holds.
        sent: How many of them were sent, and may have been accepted.
        oldest: When the oldest of them was stored, in UTC.
        deferred: How many of them found no room in the memory of the process that stored them.
        oldest_deferred: When the oldest of these was stored, in UTC.
        bad: How many events were put aside, because they cannot be sent.
        tally: How many events had which outcome.
        problem: Why it cannot be read; `None` if it can.
    """

    path: Path
    endpoint: str
    tag_id: str
    is_owned: bool
    stored: int = 0
    sent: int = 0
    oldest: datetime | None = None
    deferred: int = 0
    oldest_deferred: datetime | None = None
    bad: int = 0
    tally: dict[str, int] = attrs.Factory(dict)
    problem: str | None = None


def _paths(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise JournalError(f"there is no journal in {directory}: no such directory", path=str(directory))
    return sorted(directory.glob("*/*.journal"))


def list_files(directory: Path) -> list[JournalFile]:
    """Returns what the files of a journal hold.

    Raises:
        JournalError: There is no such directory.
    """
    return [_look(path) for path in _paths(directory)]


def _look(path: Path) -> JournalFile:
    about = read_about(path.with_name("about.json"))
    file = JournalFile(path, about.get("endpoint", "?"), about.get("tag_id", "?"), is_owned(path))
    try:
        with tempfile.TemporaryDirectory() as directory, _copy(path, Path(directory)) as database:
            deferred, oldest_deferred = database.deferred()
            return attrs.evolve(
                file,
                stored=database.stored(),
                sent=database.count_sent(),
                oldest=database.oldest,
                deferred=deferred,
                oldest_deferred=oldest_deferred,
                bad=database.count_bad(),
                tally=database.tally(),
            )
    except NewerVersionError:
        return attrs.evolve(file, problem="written by a newer version of the library")
    except NotAJournalError:
        return attrs.evolve(file, problem="damaged, or no journal")
    except (sqlite3.Error, OSError) as error:
        return attrs.evolve(file, problem=explain(error))


@contextlib.contextmanager
def _copy(path: Path, directory: Path) -> Iterator[Database]:
    copied = directory / path.name
    log = path.with_name(f"{path.name}-wal")
    shutil.copyfile(path, copied)
    if log.exists():
        shutil.copyfile(log, directory / log.name)
    with contextlib.closing(Database(copied, fsync=False)) as database:
        yield database


@attrs.frozen
class Erasure:
    """What became of an erasure.

    Attributes:
        erased: How many events were deleted.
        skipped: Files that could not be searched: their owner is alive, or they are damaged and put aside.
    """

    erased: int
    skipped: tuple[Path, ...]


def erase_session(directory: Path, session_id: str) -> Erasure:
    """Deletes all events of a session from the files whose owners have ended.

    Raises:
        JournalError: There is no such directory.
    """
    paths = _paths(directory)
    erased, skipped = 0, sorted(directory.glob("*/*.corrupt-*"))
    for path in paths:
        lock = FileLock(path.with_suffix(".lock"))
        with locked(path.parent):
            is_free = lock.acquire(wait=False)
        if not is_free:
            skipped.append(path)
            continue
        try:
            with contextlib.closing(Database(path, fsync=True)) as database:
                erased += database.erase(session_id)
        except (sqlite3.Error, OSError, NewerVersionError, NotAJournalError):
            skipped.append(path)
        finally:
            lock.release()
    return Erasure(erased, tuple(skipped))


def age(moment: datetime) -> float:
    """Returns for how long something has been stored, in seconds."""
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())
