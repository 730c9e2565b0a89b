"""The files of one endpoint and tag id: which of them are this process's, and what is done to them.

```
DIRECTORY/<hash of endpoint and tag id>/
    lock                                 held while files are made, adopted or deleted; never deleted
    about.json                           endpoint, tag id and pub id, without the secret
    <uuid>.journal, <uuid>.journal-wal   one process's events
    <uuid>.lock                          held while that process is alive
    <uuid>.ballast                       room on the disk, which a full one gets
    <uuid>.corrupt-<time>                a damaged file, put aside
```

A start takes a free file as its own, or makes one. Other free files are adopted one after the other, drained
where they are, and deleted when they are empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import sqlite3
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, TypeVar

import attrs

from rokt_events_async._pipeline.log import log, log_fault
from rokt_events_async._pipeline.store import Done, Page, Size, Step, Store, StoreFailure
from rokt_events_async.errors import JournalError
from rokt_events_async.journal._database import (
    Database,
    NewerVersionError,
    NotAJournalError,
    explain,
    is_damage,
    open_private,
    rescue,
)
from rokt_events_async.journal._ownership import FileLock, locked, network_file_system
from rokt_events_async.journal._writer import Files, Writer

T = TypeVar("T")

_MEASURE: Final = 16
"""After how many commits the directory is measured."""


class DepotSettings(Protocol):
    """What `Journal` says."""

    @property
    def directory(self) -> Path: ...

    @property
    def fsync(self) -> bool: ...

    @property
    def max_bytes(self) -> int: ...


@attrs.frozen
class _Opened:
    """What is known of a file when it is opened."""

    path: Path
    last: int
    stored: int
    oldest: datetime | None


def directory_for(directory: Path, endpoint: str, tag_id: str) -> Path:
    """Returns the directory of the journal files of one endpoint and tag id."""
    return directory / hashlib.sha256(f"{endpoint}\n{tag_id}".encode()).hexdigest()[:16]


class StoreFile:
    """One open file. What is asked of it is done in the writer's thread."""

    def __init__(self, opened: _Opened, depot: FileDepot) -> None:
        self.path = str(opened.path)
        self.last = opened.last
        self.stored = opened.stored
        self.oldest = opened.oldest
        self.file = opened.path
        self._depot = depot
        self._commits = 0

    def commit(self, step: Step, done: Done[Size | StoreFailure]) -> None:
        def job(files: Files) -> Size:
            self._depot.database(files, self.file).commit(step)
            self._commits += 1
            return self._depot.measure(files, self.file, is_due=self._commits % _MEASURE == 0)

        self._depot.submit(self.file, job, done)

    def load(self, after: int, at_most: int, done: Done[Page | StoreFailure]) -> None:
        def job(files: Files) -> Page:
            events = self._depot.database(files, self.file).load(after, self.last, at_most)
            # Asked for again: reading can find that the file is damaged, and make another.
            return Page(events, self._depot.database(files, self.file).stored())

        self._depot.submit(self.file, job, done)

    def condemn(self, number: int, why: str, done: Done[Size | StoreFailure]) -> None:
        def job(files: Files) -> Size:
            self._depot.database(files, self.file).condemn(number, why)
            return self._depot.measure(files, self.file, is_due=False)

        self._depot.submit(self.file, job, done)


class FileDepot:
    """The files of one endpoint and tag id, for one emitter.

    Construct it by `open_depot`.
    """

    own: Store

    def __init__(self, settings: DepotSettings, where: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = str(settings.directory)
        self._settings = settings
        self._where = where
        self._loop = loop
        self._writer = Writer()
        self._locks: dict[Path, FileLock] = {}  # Of the open files.
        self._passed_over: set[Path] = set()
        self._used = 0

    def submit(self, path: Path, job: Callable[[Files], T], done: Callable[[T | StoreFailure], None]) -> None:
        """Runs a job in the writer's thread. What it raises is handed to `done` as a failure."""
        self._writer.submit(lambda files: self._try(path, job, files), self._loop, done)

    def _try(self, path: Path, job: Callable[[Files], T], files: Files) -> T | StoreFailure:
        try:
            try:
                return job(files)
            except (sqlite3.DatabaseError, NotAJournalError) as error:
                if not is_damage(error) or path not in files:
                    raise
            files.pop(path).close()
            files[path] = self._rescue(path)
            return job(files)
        except (sqlite3.Error, OSError) as error:
            return StoreFailure(str(path), explain(error))
        except Exception as fault:  # noqa: BLE001 -- the thread must go on; the failure is told
            log_fault(fault)
            return StoreFailure(str(path), f"a fault in the library: {type(fault).__name__}")

    def _rescue(self, path: Path) -> Database:
        database, aside, count = rescue(path, fsync=self._settings.fsync)
        text = "the journal file %s is damaged: it was put aside as %s, and %d events could be read from it"
        log(logging.ERROR, text, path, aside, count)
        return database

    def database(self, files: Files, path: Path) -> Database:
        """Returns an open file. Called in the writer's thread."""
        if path not in files:
            raise FileNotFoundError(2, "the file is closed")
        return files[path]

    def measure(self, files: Files, path: Path, *, is_due: bool) -> Size:
        """Returns how much is stored. Called in the writer's thread."""
        if is_due or not self._used:
            used = sum([database.used_bytes() for database in files.values()])
            for other in self._settings.directory.glob("*/*.journal*"):
                if other.with_suffix(".journal") not in files:
                    used += _size_of(other)
            self._used = used
        return Size(files[path].stored(), self._used, is_full=self._used > self._settings.max_bytes)

    # Opening, adopting, deleting.

    def open_own(self, files: Files) -> _Opened:
        """Takes a free file, or makes one. Called in the writer's thread."""
        with locked(self._where):
            for path in sorted(self._where.glob("*.journal")):
                if (opened := self._take(path, files)) is not None:
                    return opened
            path = self._where / f"{uuid.uuid4()}.journal"
            open_private(path).close()
            opened = self._take(path, files)
            assert opened is not None, "the name is new"
            return opened

    def _take(self, path: Path, files: Files) -> _Opened | None:
        """Opens a file if it is free and can be read."""
        lock = FileLock(path.with_suffix(".lock"))
        if path in files or path in self._passed_over or not lock.acquire(wait=False):
            return None
        try:
            try:
                database = Database(path, fsync=self._settings.fsync)
            except NotAJournalError:
                database = self._rescue(path)
        except NewerVersionError:
            lock.release()
            self._passed_over.add(path)
            log(
                logging.WARNING,
                "the journal file %s was written by a newer version of the library and is left alone",
                path,
            )
            return None
        except BaseException:
            lock.release()
            raise
        files[path], self._locks[path] = database, lock
        return _Opened(path, database.last, database.stored(), database.oldest)

    def adopt(self, done: Done[Store | StoreFailure | None]) -> None:
        def job(files: Files) -> _Opened | None:
            with locked(self._where):
                for path in sorted(self._where.glob("*.journal")):
                    opened = self._take(path, files)
                    if opened is None:
                        continue
                    if opened.stored:
                        return opened
                    self._delete(files, opened.path)
            return None

        def tell(result: _Opened | StoreFailure | None) -> None:
            done(StoreFile(result, self) if isinstance(result, _Opened) else result)

        self.submit(self._where, job, tell)

    def release(self, store: Store, done: Done[StoreFailure | None]) -> None:
        path = Path(store.path)

        def job(files: Files) -> None:
            with locked(self._where):
                self._delete(files, path)

        self.submit(path, job, done)

    def _delete(self, files: Files, path: Path) -> None:
        """Deletes an empty file, but for events that were put aside. What it counted is kept."""
        database, lock = files.pop(path), self._locks.pop(path)
        own = files.get(Path(self.own.path))
        if own is None or database.count_bad():
            self._passed_over.add(path)
            database.close()
        else:
            own.fold(database.tally())
            database.delete()
            lock.path.unlink(missing_ok=True)
        lock.release()

    async def aclose(self) -> None:
        """Closes the files, once what was handed over is done."""
        closed: asyncio.Future[None] = self._loop.create_future()

        def job(files: Files) -> None:
            for database in files.values():
                database.close()
            files.clear()
            for lock in self._locks.values():
                lock.release()
            self._locks.clear()

        def done(_: StoreFailure | None) -> None:
            if not closed.done():
                closed.set_result(None)

        self.submit(self._where, job, done)
        self._writer.stop()
        await closed


async def open_depot(settings: DepotSettings, *, endpoint: str, tag_id: str, pub_id: str) -> FileDepot:
    """Opens the journal of an endpoint and tag id.

    Raises:
        JournalError: The directory or the files cannot be used; the message has the path and the reason.
    """
    loop = asyncio.get_running_loop()
    depot = FileDepot(settings, directory_for(settings.directory, endpoint, tag_id), loop)
    about = {"endpoint": endpoint, "tag_id": tag_id, "pub_id": pub_id}
    opened: asyncio.Future[_Opened | StoreFailure] = loop.create_future()

    def job(files: Files) -> _Opened:
        _prepare(settings.directory, depot._where, about)
        return depot.open_own(files)

    def done(result: _Opened | StoreFailure) -> None:
        if not opened.done():
            opened.set_result(result)

    depot.submit(depot._where, job, done)
    try:
        result = await opened
    except BaseException:
        depot._writer.stop()
        raise
    if isinstance(result, StoreFailure):
        depot._writer.stop()
        raise JournalError(f"the journal cannot be opened: {result}", path=result.path, reason=result.reason)
    depot.own = StoreFile(result, depot)
    return depot


def _prepare(directory: Path, where: Path, about: dict[str, str]) -> None:
    """Makes the directories, and writes down whose events they hold."""
    for made in (directory, where):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    if kind := network_file_system(where, _read_mounts()):
        raise OSError(95, f"locks cannot be trusted on a network file system ({kind}): use a local disk")
    path = where / "about.json"
    before = _read_about(path)
    if before != about:
        if before.get("pub_id", about["pub_id"]) != about["pub_id"]:
            text = "the journal in %s was written for pub_id %r, and is now sent with %r"
            log(logging.WARNING, text, where, before["pub_id"], about["pub_id"])
        with open_private(path) as file:
            file.truncate()
            file.write(json.dumps(about).encode())
    left = sorted({path.parent.name for path in directory.glob("*/*.journal") if _is_left(path, where)})
    if left:
        text = "%s holds events of other endpoints or tag ids, which this emitter does not send: in %s"
        log(logging.WARNING, text, directory, ", ".join(left))


def _is_left(path: Path, where: Path) -> bool:
    """Returns True if a file in another directory holds events, and no process that is alive owns it."""
    lock = FileLock(path.with_suffix(".lock"))
    if path.parent == where or not lock.acquire(wait=False):
        return False
    try:
        with contextlib.closing(Database(path, fsync=False)) as database:
            return database.stored() > 0
    except (sqlite3.Error, NotAJournalError, NewerVersionError):
        return False
    finally:
        lock.release()


def _read_about(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _read_mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return ""  # Another system than Linux.


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
