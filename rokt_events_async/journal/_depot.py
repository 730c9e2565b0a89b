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

from rokt_events_async._pipeline.store import Done, Page, Query, Size, Step, Store, StoreFailure
from rokt_events_async._tracking.log import log, log_fault
from rokt_events_async.errors import JournalError
from rokt_events_async.journal._database import (
    RESCUED,
    Database,
    NewerVersionError,
    NotAJournalError,
    explain,
    finish_rescue,
    is_damage,
    open_private,
    rescue,
    size_of,
)
from rokt_events_async.journal._ownership import FileLock, locked, network_file_system
from rokt_events_async.journal._writer import Files, Writer

T = TypeVar("T")

_MEASURE: Final = 64
"""How often the directory is measured while it fills up."""


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

    def commit(self, step: Step, done: Done[Size | StoreFailure]) -> None:
        def job(files: Files) -> Size:
            self._depot.database(files, self.file).commit(step)
            return self._depot.measure(files, self.file, appended=sum(map(len, step.wires)))

        self._depot.submit(self.file, job, done)

    def load(self, query: Query, done: Done[Page | StoreFailure]) -> None:
        def job(files: Files) -> Page:
            database = self._depot.database(files, self.file)
            before = database.condemned
            page = database.load(query)
            if database.condemned > before:
                text = "%s: %d events were put aside, because too many processes have sent them"
                log(logging.ERROR, text, self.file, database.condemned - before)
            return page

        self._depot.submit(self.file, job, done)

    def make_findable(self, sessions: dict[int, str], done: Done[Size | StoreFailure]) -> None:
        def job(files: Files) -> Size:
            self._depot.database(files, self.file).commit(Step(deferred=sessions))
            return self._depot.measure(files, self.file, appended=0)

        self._depot.submit(self.file, job, done)

    def condemn(self, number: int, why: str, done: Done[Size | StoreFailure]) -> None:
        def job(files: Files) -> Size:
            self._depot.database(files, self.file).condemn(number, why)
            return self._depot.measure(files, self.file, appended=0)

        self._depot.submit(self.file, job, done)


class FileDepot:
    """The files of one endpoint and tag id, for one emitter.

    Construct it by `open_depot`.
    """

    own: Store
    size: Size

    def __init__(self, settings: DepotSettings, where: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = str(settings.directory)
        self._settings = settings
        self._where = where
        self._loop = loop
        self._writer = Writer()
        self._damaged: set[Path] = set()
        self._passed_over: set[Path] = set()
        self._used = 0
        self._appended = 0
        """How many bytes were appended since the directory was measured."""

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
            self._damaged.add(path)
            return job(files)
        except (sqlite3.Error, OSError) as error:
            named = getattr(error, "filename", None) or path
            return StoreFailure(str(named), explain(error))
        except Exception as fault:  # noqa: BLE001 -- the thread must go on; the failure is told
            log_fault(fault)
            return StoreFailure(str(path), f"a fault in the library: {type(fault).__name__}")

    def _rescue(self, path: Path) -> Database:
        database, aside, count = rescue(path, fsync=self._settings.fsync)
        text = "the journal file %s is damaged: it was put aside as %s, and %d events could be read from it"
        log(logging.ERROR, text, path, aside, count)
        return database

    def database(self, files: Files, path: Path) -> Database:
        """Returns an open file, rescued if it was found damaged. Called in the writer's thread."""
        if path not in files:
            raise FileNotFoundError(2, "the file is closed")
        if path in self._damaged:
            before = files[path]
            before.disconnect()
            rescued = self._rescue(path)
            rescued.lock = before.lock
            files[path] = rescued
            self._damaged.discard(path)
        return files[path]

    def measure(self, files: Files, path: Path, *, appended: int) -> Size:
        """Returns how much is stored, after so many bytes. Called in the writer's thread."""
        self._appended += appended
        is_due = self._appended > self._settings.max_bytes // _MEASURE
        if is_due or not self._used or self._used > self._settings.max_bytes:
            self._appended = 0
            used = sum([database.used_bytes() for database in files.values()])
            known = {f"{path.name}{end}" for path in files for end in ("", "-wal")}
            for other in self._settings.directory.glob("*/*.*"):
                if other.name not in known and other.suffix != ".ballast":
                    used += size_of(other)
            self._used = used
        return Size(files[path].stored(), self._used, is_full=self._used > self._settings.max_bytes)

    # Opening, adopting, deleting.

    def open_own(self, files: Files) -> _Opened:
        """Takes a free file, or makes one. Called in the writer's thread."""
        with locked(self._where):
            for made in self._where.glob(f"*{RESCUED}"):
                lock = FileLock(made.with_suffix(".lock"))
                if lock.acquire(wait=False):  # Otherwise its owner is in the middle of it.
                    finish_rescue(made)
                    lock.release()
            for path in sorted(self._where.glob("*.journal")):
                if (opened := self._try_to_take(path, files)) is not None:
                    return opened
            path = self._where / f"{uuid.uuid4()}.journal"
            open_private(path).close()
            opened = self._take(path, files)
            assert opened is not None, "the name is new"
            return opened

    def _try_to_take(self, path: Path, files: Files) -> _Opened | None:
        """Opens a file if it is free and can be opened; otherwise passes it over, with a warning."""
        if path in files or path in self._passed_over:
            return None
        try:
            return self._take(path, files)
        except NewerVersionError:
            why = "it was written by a newer version of the library"
        except (sqlite3.Error, OSError) as error:
            why = explain(error)
        self._passed_over.add(path)
        log(logging.WARNING, "the journal file %s is left alone: %s", path, why)
        return None

    def _take(self, path: Path, files: Files) -> _Opened | None:
        """Opens a file if it is free."""
        lock = FileLock(path.with_suffix(".lock"))
        if not lock.acquire(wait=False):
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(lock.release)
            try:
                database, opened = _open(path, fsync=self._settings.fsync)
            except (NotAJournalError, sqlite3.DatabaseError) as error:
                if not is_damage(error):
                    raise
                database = self._rescue(path)
                opened = _describe(database)
            stack.pop_all()
        database.lock = lock
        files[path] = database
        return opened

    def adopt(self, done: Done[Store | StoreFailure | None]) -> None:
        def job(files: Files) -> _Opened | None:
            with locked(self._where):
                for path in sorted(self._where.glob("*.journal")):
                    opened = self._try_to_take(path, files)
                    if opened is None:
                        continue
                    if opened.oldest is not None:
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
        database = files.pop(path)
        own = files.get(Path(self.own.path))
        if own is None or database.count_bad() or database.stored():
            self._passed_over.add(path)
            database.close()
        else:
            own.fold(database.tally())
            database.delete()

    async def aclose(self) -> None:
        """Closes the files, once what was handed over is done."""
        closed: asyncio.Future[None] = self._loop.create_future()

        def job(files: Files) -> None:
            for database in files.values():
                database.close()
            files.clear()

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
        opened = depot.open_own(files)
        depot.size = depot.measure(files, opened.path, appended=0)
        return opened

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


def _open(path: Path, *, fsync: bool) -> tuple[Database, _Opened]:
    """Opens a file, and reads what is known of it."""
    database = Database(path, fsync=fsync)
    try:
        return database, _describe(database)
    except BaseException:
        database.close()
        raise


def _describe(database: Database) -> _Opened:
    return _Opened(database.path, database.last, database.stored(), database.oldest)


def _prepare(directory: Path, where: Path, about: dict[str, str]) -> None:
    """Makes the directories, and writes down whose events they hold."""
    for made in (*reversed(directory.parents), directory, where):
        if not made.is_dir():
            made.mkdir(mode=0o700)
    if kind := network_file_system(where, _read_mounts()):
        raise OSError(95, f"locks cannot be trusted on a network file system ({kind}): use a local disk")
    path = where / "about.json"
    before = read_about(path)
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
    if path.parent == where:
        return False
    with contextlib.ExitStack() as stack:
        for lock in (FileLock(path.with_name("lock")), FileLock(path.with_suffix(".lock"))):
            if not lock.acquire(wait=False):
                return False
            stack.callback(lock.release)
        try:
            database = stack.enter_context(contextlib.closing(Database(path, fsync=False)))
            oldest = database.oldest
        except (sqlite3.Error, OSError, NotAJournalError, NewerVersionError):
            return False
        return oldest is not None


def read_about(path: Path) -> dict[str, str]:
    """Returns whose events a directory holds; empty if that cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _read_mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:  # pragma: no cover -- another system than Linux
        return ""
