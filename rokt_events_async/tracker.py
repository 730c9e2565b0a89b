"""The protocol of everything that accepts events."""

from __future__ import annotations

import concurrent.futures
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rokt_events_async.events import PartnerEvent
from rokt_events_async.outcomes import Health

T_co = TypeVar("T_co", covariant=True)


class TrackerStats(Protocol):
    """What every tracker counts."""

    @property
    def accepted(self) -> int:
        """Events that `track()` has accepted."""

    @property
    def pending(self) -> int:
        """Events accepted and not settled."""


class Tracker(Protocol[T_co]):
    """Accepts events. Code that only tracks can take any tracker.

    An `Emitter` is a `Tracker[Delivery]`, a `relay.Publisher` a `Tracker[PublishReceipt]`.
    """

    async def start(self) -> None:
        """Opens the tracker in the running loop."""

    async def aclose(self, timeout: float | None = None) -> object:
        """Stops intake and drains, for at most `timeout` seconds."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def track(self, event: PartnerEvent) -> T_co:
        """Accepts one event."""

    def track_threadsafe(self, event: PartnerEvent) -> concurrent.futures.Future[Any]:
        """Accepts one event from any thread."""

    async def flush(self, timeout: float | None = None) -> bool:
        """Sends every queued event now, and waits for their outcomes. Returns False if that takes longer."""

    @property
    def health(self) -> Health:
        """How the tracker is doing at this moment."""

    @property
    def stats(self) -> TrackerStats:
        """A snapshot of the account."""
