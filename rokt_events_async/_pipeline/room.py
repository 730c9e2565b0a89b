"""Room for events: the bounds, each session's share of them, and the lines of callers that wait.

How it works
------------
Pending events take room, and their settling frees it. Both bounds count, events and bytes. One session may
hold its share of both only. Callers without room wait in FIFO order; new callers never overtake. There is
one line for all, and one for each session that is at its share: its callers wait there without blocking
others, and join the line for all when the session holds less.

Room that comes free is *granted* to the head of the line. The head holds that room from then on, but takes
it only when its task runs: a caller that is cancelled in between gives it back. While a caller waits or
holds a grant, new callers join the line.

A line is *jammed* from the moment at which a waiting caller times out until room comes free in it: callers
that arrive meanwhile would wait in vain, and do not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from rokt_events_async.errors import EmitterClosedError, QueueFullError
from rokt_events_async.settings import EmitterSettings

_LARGE_EVENT: Final = 4096
"""An event of so many bytes counts as several while it is being stored."""


class Holdings(Protocol):
    """What each session holds: read at the queue."""

    @property
    def heavy(self) -> Mapping[str, object]:
        """The sessions that may be at their share: all that hold at least half of it."""

    def held_by(self, session_id: str) -> tuple[int, int]:
        """Returns how many events and bytes a session holds."""


class _Waiter:
    """A caller that waits for room."""

    __slots__ = ("room", "session_id", "size")

    def __init__(self, session_id: str, size: int, room: asyncio.Future[None]) -> None:
        self.session_id = session_id
        self.size = size
        self.room = room


class _Line:
    """Callers that wait for the same room, in order."""

    __slots__ = ("is_jammed", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[_Waiter] = deque()
        self.is_jammed = False


def session_share(settings: EmitterSettings) -> tuple[int, int]:
    """Returns how many events and bytes one session may hold: at least one full batch."""
    events = max(settings.max_batch_size, int(settings.max_session_share * settings.max_pending))
    return min(settings.max_pending, events), int(settings.max_session_share * settings.max_pending_bytes)


class Room:
    """The room of one emitter.

    Args:
        settings: Has the bounds, and the part of them that one session may hold.
        holdings: What each session holds.
    """

    def __init__(self, settings: EmitterSettings, holdings: Holdings) -> None:
        self._holdings = holdings
        self._heavy = holdings.heavy
        self._max_events: Final = settings.max_pending
        self._max_bytes: Final = settings.max_pending_bytes
        self._share, self._share_bytes = session_share(settings)
        self._min_share: Final = settings.max_batch_size
        self._large: Final = self._share_bytes // 2
        self._many: Final = min(self._share // 2, self._share_bytes // 2 // _LARGE_EVENT)
        self._granted: dict[str, list[int]] = {}
        self._reserved: dict[str, list[int]] = {}
        self._reserved_events = 0
        self._granted_events = 0
        self._granted_bytes = 0
        self._line = _Line()
        self._session_lines: dict[str, _Line] = {}
        self._is_closed = False
        self.events = 0
        """Events that hold room: accepted and not settled."""
        self.bytes = 0
        """Their size as encoded."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the queue."""
        is_waited_for = self._line.is_jammed or bool(self._line.waiters)
        names = (("queue_full", is_waited_for), ("session_stalled", bool(self._session_lines)))
        return tuple([name for name, is_so in names if is_so])

    @property
    def is_full(self) -> bool:
        """True if no event of any session is accepted without waiting."""
        return self._line.is_jammed or bool(self._line.waiters) or not self._fits(1)

    # Without waiting.

    def check_size(self, size: int) -> None:
        """Refuses an event that could never fit.

        Raises:
            QueueFullError: The event alone is larger than the bound.
        """
        if size > self._max_bytes:
            raise QueueFullError(
                f"an event of {size} bytes can never fit: max_pending_bytes is {self._max_bytes}"
            )

    def full_error(self, session_id: str, size: int) -> QueueFullError:
        """Returns the error of an event that found no room; it names the bound that was hit."""
        return QueueFullError(self._describe(session_id, size))

    def _describe(self, session_id: str, size: int) -> str:
        if self._line.waiters or not self._fits(size):
            return (
                f"the queue is full: {self.events + self._granted_events} of {self._max_events} events "
                f"and {self.bytes + self._granted_bytes} of {self._max_bytes} bytes pending"
            )
        if session_id in self._granted:
            return "other callers of the event's session were granted room before it"
        events, held = self._holdings.held_by(session_id)
        return (
            f"the event's session holds its share of the queue: {events} of {self._share} events "
            f"and {held} of {self._share_bytes} bytes pending (max_session_share)"
        )

    def take_nowait(self, session_id: str, size: int) -> bool:
        """Takes room if there is some and no caller waits for it. Returns True if it did."""
        events, held = self.events + 1, self.bytes + size
        if (
            events > self._max_events
            or held > self._max_bytes
            or self._line.waiters
            or self._granted
            # Only a session that holds half of its share, or has a line, can be at its share;
            # unless what is being stored makes up the other half.
            or (
                (
                    self._heavy
                    or self._session_lines
                    or size > self._large
                    or self._reserved_events > self._many
                )
                and self._is_at_share(session_id, size)
            )
        ):
            return bool(self._granted) and self._take_beside_grants(session_id, size)
        self.events, self.bytes = events, held
        return True

    def _take_beside_grants(self, session_id: str, size: int) -> bool:
        """Takes room while callers of other sessions hold grants, if there is some beside theirs."""
        if (
            self._line.waiters
            or session_id in self._granted
            or not self._fits(size)
            or self._is_at_share(session_id, size)
        ):
            return False
        self._take(size)
        return True

    def _take(self, size: int) -> None:
        self.events += 1
        self.bytes += size

    def _fits(self, size: int) -> bool:
        return (
            self.events + self._granted_events < self._max_events
            and self.bytes + self._granted_bytes + size <= self._max_bytes
        )

    def _is_at_share(self, session_id: str, size: int) -> bool:
        """Returns True if the session may not hold another event of that size, or its callers wait."""
        if self._session_lines and session_id in self._session_lines:
            return True
        return not self.fits_share(session_id, size)

    def held_by(self, session_id: str) -> tuple[int, int]:
        """Returns how many events and bytes a session holds."""
        return self._holdings.held_by(session_id)

    def fits_share(self, session_id: str, size: int) -> bool:
        """Returns True if the session may hold another event of that size."""
        events, held = self._holdings.held_by(session_id)
        granted, granted_bytes = self._granted.get(session_id, (0, 0))
        if self._reserved:
            reserved, reserved_bytes = self._reserved.get(session_id, (0, 0))
            events, held = events + reserved, held + reserved_bytes
        if events + granted < self._min_share:
            return True
        return events + granted < self._share and held + granted_bytes + size <= self._share_bytes

    def take_recovered(self, size: int) -> bool:
        """Takes room for an event from the disk, if no caller needs it. Returns True if it did."""
        if self._line.waiters or not (self._fits(size) or self.events == 0):
            return False  # One that alone is too large goes alone.
        self._take(size)
        return True

    # Room of events that are being stored, and so are not in the queue yet.

    def reserve(self, session_id: str, size: int) -> None:
        """Counts room that was taken as its session's."""
        reserved = self._reserved.setdefault(session_id, [0, 0])
        self._reserved_events += size // _LARGE_EVENT + 1
        reserved[0] += 1
        reserved[1] += size

    def unreserve(self, session_id: str, size: int) -> None:
        """Ends that: the event is queued next, or its room is freed."""
        reserved = self._reserved[session_id]
        self._reserved_events -= size // _LARGE_EVENT + 1
        reserved[0] -= 1
        reserved[1] -= size
        if not reserved[0]:
            del self._reserved[session_id]

    # Waiting in line.

    def is_jammed(self, session_id: str) -> bool:
        """Returns True if waiting for room would be in vain: a caller before has timed out, and none came."""
        return self._session_lines.get(session_id, self._line).is_jammed

    def jam(self, session_id: str, size: int) -> None:
        """Notes that an event found no room in time."""
        if not self._fits(size):
            self._line.is_jammed = True
        elif not self.fits_share(session_id, size):
            self._session_lines.setdefault(session_id, _Line()).is_jammed = True

    async def wait(self, session_id: str, size: int, *, timeout: float | None) -> bool:
        """Waits in line. Returns True if the caller holds the room; it must call `take_granted` at once.

        Cancelling it leaves the line, or gives back room that was granted meanwhile.

        Args:
            timeout: Seconds to wait at most; `None` waits without bound.

        Raises:
            EmitterClosedError: The emitter was closed meanwhile.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(session_id, size, loop.create_future())
        self._line_for(session_id, size).waiters.append(waiter)
        self._grant()  # There may be room: a grant that is not used yet makes newcomers join the line.
        timer = None if timeout is None else loop.call_later(timeout, self._time_out, waiter)
        try:
            await waiter.room
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if waiter.room.cancelled():
                self._leave_line(waiter)
            elif waiter.room.exception() is None:
                self._give_back(waiter.session_id, waiter.size)
            self._grant()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if self._is_closed:
            self._give_back(session_id, size)
            raise closed_error()
        return True

    def _line_for(self, session_id: str, size: int) -> _Line:
        """Returns the line that an event joins: its session's only if the session alone is at its bound."""
        if self._fits(size) and self._is_at_share(session_id, size):
            return self._session_lines.setdefault(session_id, _Line())
        return self._session_lines.get(session_id, self._line)

    def _time_out(self, waiter: _Waiter) -> None:
        if waiter.room.done():
            return
        line = self._session_lines.get(waiter.session_id)
        line = line if line is not None and waiter in line.waiters else self._line
        line.is_jammed = True
        line.waiters.remove(waiter)
        waiter.room.set_exception(TimeoutError())

    def _leave_line(self, waiter: _Waiter) -> None:
        line = self._session_lines.get(waiter.session_id)
        if line is not None and waiter in line.waiters:
            line.waiters.remove(waiter)
            self._drop_line(waiter.session_id, line)
            return
        with contextlib.suppress(ValueError):  # `_grant` may have passed over it already.
            self._line.waiters.remove(waiter)

    def _drop_line(self, session_id: str, line: _Line) -> None:
        if not line.waiters and not line.is_jammed:
            del self._session_lines[session_id]

    def take_granted(self, session_id: str, size: int) -> None:
        """Takes the room that was granted."""
        self._give_back(session_id, size)
        self._take(size)

    def _grant(self) -> None:
        """Grants room to the heads of the line. A head whose session is at its share makes way."""
        waiters = self._line.waiters
        while waiters and (waiters[0].room.done() or self._fits(waiters[0].size)):
            waiter = waiters.popleft()
            if waiter.room.done():  # Cancelled, by a task that has not run yet.
                continue
            if not self.fits_share(waiter.session_id, waiter.size):
                # In front: the callers in that line came later.
                self._session_lines.setdefault(waiter.session_id, _Line()).waiters.appendleft(waiter)
                continue
            granted = self._granted.setdefault(waiter.session_id, [0, 0])
            granted[0] += 1
            granted[1] += waiter.size
            self._granted_events += 1
            self._granted_bytes += waiter.size
            waiter.room.set_result(None)

    def _give_back(self, session_id: str, size: int) -> None:
        granted = self._granted[session_id]
        granted[0] -= 1
        granted[1] -= size
        if not granted[0]:
            del self._granted[session_id]
        self._granted_events -= 1
        self._granted_bytes -= size

    # Room that comes free.

    def free(self, events: int, size: int) -> None:
        """Frees the room of settled events, for the head of the line if a caller waits."""
        self.events -= events
        self.bytes -= size
        self._line.is_jammed = False
        if self._line.waiters:
            self._grant()

    def on_released(self, session_id: str) -> None:
        """Lets callers of a session that holds less than before join the line for all."""
        line = self._session_lines.get(session_id)
        if line is None:
            return
        line.is_jammed = False
        while line.waiters:
            waiter = line.waiters[0]
            if not waiter.room.done() and not self.fits_share(session_id, waiter.size):
                break
            line.waiters.popleft()
            if not waiter.room.done():
                self._line.waiters.append(waiter)
        self._drop_line(session_id, line)
        self._grant()

    def close(self) -> None:
        """Refuses the callers in line."""
        self._is_closed = True
        for line in (self._line, *self._session_lines.values()):
            for waiter in line.waiters:
                if not waiter.room.done():
                    waiter.room.set_exception(closed_error())
        self._line = _Line()
        self._session_lines.clear()


def closed_error() -> EmitterClosedError:
    """Returns the error of a closed emitter, in its one wording."""
    return EmitterClosedError("the emitter is closing or closed: the event was not accepted")
