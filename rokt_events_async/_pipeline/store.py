"""The seam to a journal: what the engine asks of durable storage, and nothing of how that is done.

A `Store` is one file, a `Depot` the directory with the files of several processes. What is asked of them is
handed over, and `done` is called on the loop: with the result, or with a `StoreFailure`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol, TypeVar

import attrs

T_contra = TypeVar("T_contra", contravariant=True)

Done = Callable[[T_contra], None]


@attrs.frozen
class StoreFailure:
    """Something was not done, and nothing of it.

    Attributes:
        path: The file or directory.
        reason: The system's own words.
        is_certain: False if it may have been done, or may yet be.
    """

    path: str
    reason: str
    is_certain: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@attrs.define
class Step:
    """What one commit does: all of it, or nothing.

    Attributes:
        first: The number of the first event in `wires`; the others follow.
        wires: Events to append, encoded.
        sent: By the number of an event, how many processes have sent it and not learned what became of it.
        deferred: By the number of an event that is in no memory from now on, its session, to find it by.
        settled: The numbers of events that have their outcome.
        tally: How many events to count under which name.
    """

    first: int = 0
    wires: list[bytes] = attrs.Factory(list)
    sent: dict[int, int] = attrs.Factory(dict)
    deferred: dict[int, str] = attrs.Factory(dict)
    settled: list[int] = attrs.Factory(list)
    tally: dict[str, int] = attrs.Factory(dict)


@attrs.frozen
class StoredEvent:
    """An event as it was read back.

    Attributes:
        number: Its number in the file.
        wire: The event as encoded.
        sent: How many processes have sent it and not learned what became of it.
        at: When it was stored, in milliseconds since 1970.
        is_findable: True if it is found by its session.
    """

    number: int
    wire: bytes
    sent: int
    at: int
    is_findable: bool


@attrs.frozen
class Query:
    """Which events to read: the next ones of a range, in order.

    Attributes:
        after: The number in front of the range.
        until: The last number of the range.
        at_most: How many.
        only_deferred: True to leave out what was never deferred.
        session_id: Read the deferred events of this session only.
        without: Leave out what is known to be of these sessions.
    """

    after: int
    until: int
    at_most: int
    only_deferred: bool = False
    session_id: str | None = None
    without: tuple[str, ...] = ()


@attrs.frozen
class Page:
    """What was read.

    Attributes:
        events: The next events.
        read_to: The number up to which the range was read.
        stored: How many events the file holds.
    """

    events: list[StoredEvent]
    read_to: int
    stored: int


@attrs.frozen
class Size:
    """How much is stored.

    Attributes:
        stored: How many events the file holds.
        file_bytes: The bytes of all files; of this process's own as far as they hold events.
        is_full: True if that is more than the bound.
    """

    stored: int
    file_bytes: int
    is_full: bool


class Store(Protocol):
    """One file of a journal."""

    path: str
    last: int
    """The largest number in use when the file was opened."""
    stored: int
    """How many events it held then."""
    oldest: datetime | None
    """When the oldest of them was stored, in UTC."""

    def commit(self, step: Step, done: Done[Size | StoreFailure]) -> None:
        """Writes a step."""

    def load(self, query: Query, done: Done[Page | StoreFailure]) -> None:
        """Reads events."""

    def make_findable(self, sessions: dict[int, str], done: Done[Size | StoreFailure]) -> None:
        """Has events, by their number, found by their session from now on."""

    def condemn(self, number: int, why: str, done: Done[Size | StoreFailure]) -> None:
        """Puts an event that cannot be read aside."""


class Depot(Protocol):
    """The files of one endpoint and tag id, with the process's own among them."""

    directory: str
    own: Store
    size: Size
    """How much was stored when it was opened."""

    def adopt(self, done: Done[Store | StoreFailure | None]) -> None:
        """Takes over one file whose process has ended; `None` if there is none."""

    def release(self, store: Store, done: Done[StoreFailure | None]) -> None:
        """Deletes an adopted file, which is empty."""

    async def aclose(self) -> None:
        """Closes the files, once what was handed over is done."""
