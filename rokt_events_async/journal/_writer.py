"""The thread that writes: it runs jobs one after the other, and alone knows the open files.

The files live in the thread's locals, and nowhere else: in the child of a fork the thread does not exist, so
nothing there can close them. While a job runs no fork happens: SQLite's own locks would stay taken in the
child forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Final, TypeVar

from rokt_events_async.journal._database import Database

T = TypeVar("T")

Files = dict[Path, Database]
Job = Callable[[Files], T]

_IDLE: Final = 1.0
"""Seconds without a job after which the files are tidied."""


class Writer:
    """One thread, which ends with `stop`, or when this object is gone."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[Files], None] | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        """Held while a job runs."""
        self._thread = threading.Thread(
            target=_run, args=(self._jobs, self.lock), name="rokt-events-journal", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None).atexit = False
        _writers.add(self)

    def submit(self, job: Job[T], loop: asyncio.AbstractEventLoop, done: Callable[[T], None]) -> None:
        """Runs a job in the thread, and then calls `done` with its result on the loop.

        The job must not raise.
        """

        def run(files: Files) -> None:
            result = job(files)
            with contextlib.suppress(RuntimeError):  # The loop is closed: there is no caller any more.
                loop.call_soon_threadsafe(done, result, context=Context())

        self._jobs.put(run)

    def stop(self) -> None:
        """Ends the thread once the jobs before are done."""
        self._jobs.put(None)


def _run(jobs: queue.SimpleQueue[Callable[[Files], None] | None], lock: threading.Lock) -> None:
    files: Files = {}
    while True:
        is_dirty = any(database.is_dirty for database in files.values())
        try:
            job = jobs.get(timeout=_IDLE if is_dirty else None)
        except queue.Empty:
            with lock:
                _tidy(files)
            continue
        if job is None:
            break
        with lock:
            job(files)
        del job
    for database in files.values():
        database.close()


def _tidy(files: Files) -> None:
    for database in files.values():
        if database.is_dirty:
            try:
                database.tidy()
            except Exception:  # noqa: BLE001 -- a full disk, for example: the next write tells of it
                database.is_dirty = False


_writers: Final[weakref.WeakSet[Writer]] = weakref.WeakSet()
_taken: list[threading.Lock] = []


def _before_fork() -> None:
    for writer in sorted(_writers, key=id):
        writer.lock.acquire()
        _taken.append(writer.lock)


def _after_fork() -> None:
    while _taken:
        _taken.pop().release()


if sys.platform != "win32":
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
