"""The thread that writes: what it does in idle times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rokt_events_async.journal._writer import _tidy


class File:
    def __init__(self, error: Exception | None = None, *, is_dirty: bool = True) -> None:
        self.is_dirty = is_dirty
        self._error = error
        self.calls = 0

    def tidy(self) -> None:
        self.calls += 1
        if self._error is not None:
            raise self._error


def test_dirty_files_are_tidied_and_an_error_ends_that() -> None:
    """The next write tells of a full disk."""
    files: Any = {
        Path("clean"): File(is_dirty=False),
        Path("full"): File(OSError(28, "No space")),
        Path("dirty"): File(),
    }
    _tidy(files)
    assert [file.calls for file in files.values()] == [0, 1, 1]
    assert [file.is_dirty for file in files.values()] == [False, False, True]
