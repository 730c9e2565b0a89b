"""The journal: accepted events on the local disk, so that they survive their process.

One file per process, in SQLite. Several emitters, in one process or many, may share a directory.

**What it promises**

- What `await track()` has accepted is not lost by `kill -9`, an OOM kill or, with `fsync=True` (the
  default), a power cut. (`track_nowait` accepts in memory; the event is on disk milliseconds later.)
- An event whose request was under way when the process died is sent again, and its receipt says
  `maybe_duplicate`. With `RetryPolicy(retry_unconfirmed=False)` it ends as unconfirmed, without a request.
- Several workers share a directory. Each has a file of its own. Files of a worker that has ended are
  adopted by the next start, or by a sibling within 30 s.
- A close defers what is not settled: its delivery raises `DeliveryDeferredError`, which is no outcome, and
  the next start sends it. In an outage a SIGTERM takes no longer than the requests in flight.
- Credentials that Rokt refuses end no event: events wait for credentials that work, or until they are three
  days old.
- When memory has no room (`max_pending`), an event is stored all the same, and sent when there is room: see
  "An outage of a day".
- If the disk is full or fails, `track()` raises a `JournalError` and the event is not accepted;
  `Journal(on_error="memory")` accepts it into memory alone. `emitter.health.problems` then has
  `"journal_failed"`. Beyond `max_bytes` (1 GiB for the directory) `when_full` applies, and the health has
  `"journal_full"`.
- A damaged file is put aside, read as far as it can be, and replaced.

**What it does not**: it does not survive the loss of the disk. Network file systems (nfs, cifs, 9p, ceph,
fuse) are refused, because locks cannot be trusted there. An `emptyDir` in Kubernetes survives the
container, not the pod. There is no journal on Windows. Order within a session is not kept across processes.

**Customer data** is in the files in clear (never the secret), in a directory with mode 0700. An event is
deleted once it is settled. A damaged file that was put aside (`….corrupt-…`) keeps what it holds until you
delete it; `delete` names those files.

**An outage of a day.**

With a journal, memory's bound is not the end. Beyond `max_pending`, `track()` stores the event and returns
at once; it never waits for room. The event is *deferred*: on disk alone, with nothing of it in memory but
the number of its session. Its delivery raises `DeliveryDeferredError`, which is no outcome; the outcome
reaches observers and `on_undelivered` later.

- **Order holds**: once an event of a session is deferred, the next ones of that session queue behind it,
  and no others do. New events of other sessions are sent at once.
- **They come back as room comes free**, oldest first, in at most half of `max_pending`. A session whose
  requests keep failing is passed over, and holds up no other. `flush()` waits for deferred events too; a
  close sends them while requests succeed, and leaves the rest to the next start.
- **How long it lasts**: a day at 10 events of 300 bytes per second is about 400 MB. At `max_bytes` the
  queue is full, and `when_full` applies.
- **What you see**: `health.problems` has `"deferring"`, `health.deferred` and `health.oldest_deferred_age`
  say how many and how old; the log says so once, and after the outage how many come back per second;
  `rokt-events journal DIR` shows them too.
- An event that could neither be stored nor held in memory is refused: `track()` raises a `JournalError`,
  also with `on_error="memory"`.
- `await delivery` in a handler is only for those who can wait: in an outage it raises
  `DeliveryDeferredError` for what is deferred.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final, Literal

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


def choose_journal(journal: Journal | str | os.PathLike[str] | Literal[False] | None) -> Journal | None:
    """Returns the journal to use: the given one, or with `None` the one that `ROKT_JOURNAL` names, if any.

    `False` is none, whatever the environment says.

    Raises:
        InvalidSettingError: It is neither a `Journal` nor a path.
    """
    if journal is False:
        return None
    if isinstance(journal, Journal):
        return journal
    if journal is None:
        return Journal(Path(named)) if (named := os.environ.get("ROKT_JOURNAL")) else None
    if not isinstance(journal, (str, os.PathLike)):
        raise InvalidSettingError(f"journal must be a Journal, a path, or False for none, got {journal!r}")
    return Journal(Path(journal) if os.fspath(journal) else journal)
