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
        settled: The numbers of events that have their outcome.
        tally: How many events to count under which name.
    """

    first: int = 0
    wires: list[bytes] = attrs.Factory(list)
    sent: dict[int, int] = attrs.Factory(dict)
    settled: list[int] = attrs.Factory(list)
    tally: dict[str, int] = attrs.Factory(dict)


@attrs.frozen
class StoredEvent:
    """An event as it was read back.

    Attributes:
        number: Its number in the file.
        wire: The event as encoded.
        sent: How many processes have sent it and not learned what became of it.
    """

    number: int
    wire: bytes
    sent: int


@attrs.frozen
class Page:
    """What was read.

    Attributes:
        events: The next events; empty at the end.
        stored: How many events the file holds.
    """

    events: list[StoredEvent]
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

    def load(self, after: int, at_most: int, done: Done[Page | StoreFailure]) -> None:
        """Reads the next events behind that number, of those that it held when it was opened."""

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
