"""Whose a journal file is: a lock on a file beside it says that its owner is alive.

The locks are `flock`'s: the system releases them when the process ends, however it ends, and no process id is
needed. `lock` in the directory is held while files are made, adopted or deleted.

A lock belongs to the open file, which a forked child inherits: the child closes its copies, and the parent's
lock stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

_held: Final[set[int]] = set()
"""The descriptors of all locks that this process holds."""

_PATIENCE: Final = 5.0
"""Seconds to wait for the lock of a directory."""

_NETWORKED: Final = ("nfs", "cifs", "smb", "9p", "ceph", "fuse", "glusterfs", "lustre", "afs", "ncpfs")
"""What the names of file systems begin with on which locks cannot be trusted."""


def _after_fork() -> None:  # pragma: no cover -- another process
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


class FileLock:
    """A lock on a file, which exists from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Takes the lock. Returns False if another process, or another lock of this one, holds it.

        Raises:
            OSError: The file cannot be opened.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        _held.add(descriptor)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Gives the lock back. It must be held."""
        assert self._descriptor is not None, "the lock is held"
        if self._descriptor in _held:  # pragma: no branch -- but in the child of a fork
            _held.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory.

    Raises:
        OSError: Another process has held it for 5 seconds: it may be stopped.
    """
    lock = FileLock(directory / "lock")
    until = time.monotonic() + _PATIENCE
    while not lock.acquire(wait=False):
        if time.monotonic() >= until:
            raise OSError(errno.EBUSY, f"another process has held {lock.path} for {_PATIENCE:g} s")
        time.sleep(0.005)
    try:
        yield
    finally:
        lock.release()


def is_owned(path: Path) -> bool:
    """Returns True if the owner of a journal file is alive."""
    lock = FileLock(path.with_suffix(".lock"))
    if not lock.acquire(wait=False):
        return True
    lock.release()
    return False


def network_file_system(directory: Path, mounts: str) -> str | None:
    """Returns the type of the directory's file system if locks cannot be trusted on it.

    Args:
        mounts: The text of `/proc/self/mountinfo`.
    """
    found = ("", "")
    where = str(directory.resolve())
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        is_above = where == point or where.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(found[0]):
            found = point, kind
    return found[1] if found[1].startswith(_NETWORKED) else None
