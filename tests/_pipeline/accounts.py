"""An account with its room, and sessions that hold what a test says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from rokt_events_async import Delivery, QueueFullError
from rokt_events_async._pipeline.ledger import Ledger
from rokt_events_async._pipeline.room import Room
from rokt_events_async._tracking.hooks import Hooks
from tests.samples import SETTINGS


class Held:
    """What sessions hold."""

    def __init__(self, events: Mapping[str, int]) -> None:
        self._events = events

    @property
    def heavy(self) -> Mapping[str, object]:
        return self._events

    def held_by(self, session_id: str) -> tuple[int, int]:
        return self._events.get(session_id, 0), 0


class Account:
    """A ledger and its room, as the intake uses them.

    Args:
        held: How many events each session holds.
        settings: Bounds that differ from the samples'.
    """

    def __init__(self, held: Mapping[str, int] | None = None, **settings: Any) -> None:
        self.room = Room(attrs.evolve(SETTINGS, **settings), Held({} if held is None else held))
        self.ledger = Ledger(self.room, Hooks())

    def admit_nowait(self, of: Delivery, *, now: float = 0.0) -> bool:
        if not self.room.take_nowait(of.event.session_id, len(of.wire)):
            return False
        self.ledger.admit(of, now=now)
        return True

    async def wait_for_room(self, of: Delivery, *, timeout: float | None) -> bool:
        return await self.room.wait(of.event.session_id, len(of.wire), timeout=timeout)

    async def admit(self, of: Delivery) -> Delivery:
        assert await self.wait_for_room(of, timeout=None)
        self.room.take_granted(of.event.session_id, len(of.wire))
        self.ledger.admit(of, now=0.0)
        return of

    def full_error(self, of: Delivery) -> QueueFullError:
        return self.room.full_error(of.event.session_id, len(of.wire))

    def jam(self, of: Delivery) -> None:
        self.room.jam(of.event.session_id, len(of.wire))

    def settle(self, *deliveries: Delivery) -> None:
        self.ledger.settle_delivered(deliveries, attempts=1, maybe_duplicate=False, now=0.0)

    def close(self) -> None:
        self.room.close()
        self.ledger.close()
