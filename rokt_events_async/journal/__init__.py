"""The journal: accepted events on the local disk, so that they survive their process.

One file per process, in SQLite. Several emitters, in one process or many, may share a directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import attrs

from rokt_events_async._pipeline.recorder import OnError
from rokt_events_async._pipeline.store import Depot
from rokt_events_async.errors import InvalidSettingError
from rokt_events_async.settings import check_choice, check_count

__all__ = ["Journal", "choose_journal"]

_GIB: Final = 1024**3
_MIN_BYTES: Final = 16 * 1024**2


def _to_path(value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise InvalidSettingError(f"directory must be a non-empty path, got {value!r}")
    return Path(value).expanduser().absolute()


def _check_fsync(_instance: Any, _attribute: Any, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidSettingError(f"fsync must be True or False, got {value!r}")


@attrs.frozen
class Journal:
    """Where accepted events are kept until they are settled, and how.

    Events are in clear in the files, which their owner alone can read; no secret and no header is in them.
    Each is deleted once it is settled. The directory must be on a local disk.

    Args:
        directory: It is made if it does not exist. Several processes can share it.
        fsync: True to wait until an accepted event is on the disk itself, so that it survives a power cut.
            Without that it survives the process.
        max_bytes: The most bytes of the directory; beyond that the emitter does as its `when_full` says.
        on_error: What becomes of an event that cannot be stored: `"raise"` refuses it with a `JournalError`,
            `"memory"` accepts it into memory alone, if that has room.

    Raises:
        InvalidSettingError: A value is out of bounds, or the system is Windows.
    """

    directory: Path = attrs.field(converter=_to_path)
    fsync: bool = attrs.field(default=True, kw_only=True, validator=_check_fsync)
    max_bytes: int = attrs.field(
        default=_GIB, kw_only=True, validator=lambda _i, a, v: check_count(a.name, v, at_least=_MIN_BYTES)
    )
    on_error: OnError = attrs.field(
        default="raise",
        kw_only=True,
        validator=lambda _i, a, v: check_choice(a.name, v, ("raise", "memory")),
    )

    def __attrs_post_init__(self) -> None:
        if sys.platform == "win32":
            raise InvalidSettingError("a journal cannot be used on Windows: it has no flock")

    async def open(self, *, endpoint: str, tag_id: str, pub_id: str) -> Depot:
        """Opens the files of an endpoint and tag id. `Emitter.start` calls it.

        Raises:
            JournalError: The directory or the files cannot be used.
        """
        # Only here: not every Python has SQLite.
        from rokt_events_async.journal._depot import open_depot  # noqa: PLC0415

        return await open_depot(self, endpoint=endpoint, tag_id=tag_id, pub_id=pub_id)


def choose_journal(journal: Journal | str | os.PathLike[str] | None) -> Journal | None:
    """Returns the journal to use: the given one, or the one that `ROKT_JOURNAL` names, if any.

    Raises:
        InvalidSettingError: It is neither a `Journal` nor a path.
    """
    if isinstance(journal, Journal):
        return journal
    if journal is None:
        return Journal(Path(named)) if (named := os.environ.get("ROKT_JOURNAL")) else None
    if not isinstance(journal, (str, os.PathLike)):
        raise InvalidSettingError(f"journal must be a Journal or a path, got {journal!r}")
    return Journal(Path(journal) if os.fspath(journal) else journal)
