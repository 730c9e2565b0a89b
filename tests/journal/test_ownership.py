"""Locks: whose a file is, forks included, and file systems on which they cannot be trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rokt_events_async.journal._ownership import FileLock, is_owned, locked, network_file_system


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.lock"


def test_a_second_lock_is_refused_until_the_first_is_released(path: Path) -> None:
    """In one process too."""
    first, second = FileLock(path), FileLock(path)
    assert first.acquire(wait=False)
    assert not second.acquire(wait=False)
    assert is_owned(path.with_suffix(".journal"))
    first.release()
    assert not is_owned(path.with_suffix(".journal"))
    assert second.acquire(wait=True)
    second.release()


def test_a_lock_file_is_private_under_any_umask(path: Path) -> None:
    """Its owner alone can read it."""
    before = os.umask(0)
    try:
        lock = FileLock(path)
        lock.acquire(wait=False)
        lock.release()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be_opened_raises(tmp_path: Path) -> None:
    """There is no such directory."""
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "none" / "one.lock").acquire(wait=False)


def test_an_error_of_the_lock_leaves_no_file_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, for example."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="not supported"):
        FileLock(path).acquire(wait=False)


def test_a_forked_child_does_not_hold_the_lock_and_does_not_release_it(path: Path) -> None:
    """Its copies are closed; the parent's lock stays."""
    lock = FileLock(path)
    assert lock.acquire(wait=False)
    child = os.fork()
    if child == 0:  # pragma: no cover -- another process
        lock.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert is_owned(path.with_suffix(".journal"))

    read, write = os.pipe()
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover -- another process
        os.close(write)
        os.write(tell, b"x")
        os.read(read, 1)
        os._exit(0)
    os.read(ready, 1)  # The child runs, and has closed its copies.
    lock.release()
    assert not is_owned(path.with_suffix(".journal"))
    for descriptor in (read, write, ready, tell):
        os.close(descriptor)
    os.waitpid(child, 0)


def test_a_directory_is_locked_while_it_is_changed(tmp_path: Path) -> None:
    """And no longer."""
    lock = FileLock(tmp_path / "lock")
    with locked(tmp_path):
        assert not lock.acquire(wait=False)
    assert lock.acquire(wait=False)
    lock.release()


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt rw - nfs4 server:/x rw
31 30 0:41 / /mnt/local rw - xfs /dev/sdb rw
32 22 0:42 / /a\\040b rw - fuse.sshfs host:/ rw
broken
"""


@pytest.mark.parametrize(
    ("directory", "expected"),
    [("/mnt/x", "nfs4"), ("/mnt/local/x", None), ("/mntx", None), ("/", None), ("/a b/c", "fuse.sshfs")],
)
def test_network_file_systems_are_told_by_their_mount(directory: str, expected: str | None) -> None:
    """The longest mount point that holds the directory counts."""
    assert network_file_system(Path(directory), MOUNTS) == expected


def test_nothing_is_refused_without_a_list_of_mounts() -> None:
    """On other systems than Linux."""
    assert network_file_system(Path("/mnt/x"), "") is None
