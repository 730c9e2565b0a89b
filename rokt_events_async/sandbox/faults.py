"""The faults between a client and the API, as data, and the plan that says which request meets which.

Faults come from a script first, in order. Then they are drawn from a seed, at their rates.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final

import attrs


class Act(Enum):
    """What happens to a request."""

    ANSWER = "answer"
    """The true answer, perhaps late, or with wrong counts."""

    STATUS = "status"
    """Another status, with a body or none."""

    SILENCE = "silence"
    """No answer at all; the connection stays open."""

    RESET_BEFORE = "reset-before"
    """The connection is reset when the head of the request has arrived."""

    RESET_DURING = "reset-during"
    """The connection is reset in the middle of the request's body."""

    RESET_AFTER = "reset-after"
    """The connection is reset when the request has arrived, and its events are processed."""

    GARBAGE = "garbage"
    """Bytes that are no HTTP, after the events are processed."""

    CUT = "cut"
    """The true answer, which ends in the middle of its body."""

    EMPTY = "empty"
    """The true status with an empty body."""

    HTML = "html"
    """The true status with an HTML page."""

    HUGE = "huge"
    """The true status with a huge body (64 MiB)."""

    COMPRESSED = "compressed"
    """The true answer behind 16 MiB of white space, compressed although the client refused that."""

    DRIP = "drip"
    """The true answer, a byte at a time."""

    NONSENSE = "nonsense"
    """The true status with a body that is neither JSON nor UTF-8."""


@attrs.frozen(kw_only=True)
class Fault:
    """The fault of one request.

    Args:
        act: What happens.
        status: The status, for `STATUS`.
        headers: Further headers, for `STATUS`; for example `Retry-After` or `Location`.
        body: The body, for `STATUS`.
        processed: For `STATUS` and `SILENCE`: True processes the events although the answer does not say so.
        count_offset: Added to `processedEventsCount`, for `ANSWER`.
        delay: Seconds to wait before the answer; for `DRIP`, between its bytes.
    """

    act: Act = Act.ANSWER
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    processed: bool = False
    count_offset: int = 0
    delay: float = 0.0

    @classmethod
    def of(cls, what: Fault | int | str | None) -> Fault:
        """Returns the fault of a name in `FAULTS`, a status, a `Fault` itself, or `None` (a normal answer).

        Raises:
            ValueError: It is none of these.
        """
        if what is None:
            return cls()
        if isinstance(what, Fault):
            return what
        if str(what) in FAULTS:
            return FAULTS[str(what)]
        if str(what).isdecimal() and 300 <= int(what) <= 599:
            return cls(act=Act.STATUS, status=int(what))
        raise ValueError(f"a fault must be a status 300..599 or one of {', '.join(FAULTS)}, got {what!r}")

    @classmethod
    def answer(cls, status: int, body: bytes = b"", *, processed: bool = False, **headers: str) -> Fault:
        """Returns a fault with this status; `retry_after="5"` becomes the header `Retry-After: 5`."""
        named = tuple((name.replace("_", "-").title(), value) for name, value in headers.items())
        return cls(act=Act.STATUS, status=status, body=body, processed=processed, headers=named)

    def processes_events(self) -> bool:
        """True if the events of the request are processed, whatever the answer says."""
        if self.act in (Act.STATUS, Act.SILENCE):
            return self.processed
        return self.act not in (Act.RESET_BEFORE, Act.RESET_DURING)

    def tells(self) -> bool:
        """True if the answer says what became of the events, however late or miscounted."""
        return self.act in (Act.ANSWER, Act.DRIP)

    def __str__(self) -> str:
        return _name_of(self)

    def _name(self) -> str:
        for name, fault in FAULTS.items():
            if fault == self:
                return name
        if self.act is Act.STATUS:
            return str(self.status)
        if self.act is Act.ANSWER:
            return "wrong-count" if self.count_offset else "slow" if self.delay else "none"
        return str(self.act.value)


@lru_cache(1024)
def _name_of(fault: Fault) -> str:
    return fault._name()


_PAGE: Final = b"<!DOCTYPE html><html><body><h1>503 Service Unavailable</h1></body></html>"

FAULTS: Final[dict[str, Fault]] = {
    "503-html": Fault.answer(503, _PAGE, content_type="text/html"),
    "503-retry-after": Fault.answer(503, retry_after="2"),
    "429-retry-after": Fault.answer(429, retry_after="2"),
    "504-processed": Fault.answer(504, processed=True),
    "redirect": Fault.answer(307, location="http://127.0.0.1:9/elsewhere"),
    "silence": Fault(act=Act.SILENCE),
    "silence-processed": Fault(act=Act.SILENCE, processed=True),
    "reset-before": Fault(act=Act.RESET_BEFORE),
    "reset-during": Fault(act=Act.RESET_DURING),
    "reset-after": Fault(act=Act.RESET_AFTER),
    "garbage": Fault(act=Act.GARBAGE),
    "cut": Fault(act=Act.CUT),
    "empty": Fault(act=Act.EMPTY),
    "html": Fault(act=Act.HTML),
    "huge": Fault(act=Act.HUGE),
    "compressed": Fault(act=Act.COMPRESSED),
    "drip": Fault(act=Act.DRIP, delay=1.0),
    "nonsense": Fault(act=Act.NONSENSE),
    "count-too-high": Fault(count_offset=1),
    "count-too-low": Fault(count_offset=-1),
    "slow": Fault(delay=1.0),
}
"""Faults by name. Any status from 300 to 599 is a fault too."""

FAULT_NOTES: Final[dict[str, tuple[str, str]]] = {
    "500": ("Error status", "Internal Server Error, empty body"),
    "503": ("Error status", "Service Unavailable, empty body"),
    "503-html": ("Error status", "A proxy's HTML page instead of JSON"),
    "503-retry-after": ("Error status", "Asks to wait 2 seconds (Retry-After)"),
    "429-retry-after": ("Error status", "Too Many Requests, asks to wait 2 seconds"),
    "504-processed": ("Error status", "Gateway Timeout, though the events were taken"),
    "redirect": ("Error status", "307 to another address, which must not be followed"),
    "silence": ("No answer", "Never answers; the connection stays open"),
    "silence-processed": ("No answer", "Takes the events, then never answers"),
    "reset-before": ("No answer", "Connection reset before the body is read"),
    "reset-during": ("No answer", "Connection reset in the middle of the body"),
    "reset-after": ("No answer", "Takes the events, then resets the connection"),
    "garbage": ("No answer", "Takes the events, answers bytes that are not HTTP"),
    "cut": ("Spoilt answer", "The answer ends in the middle of its body"),
    "empty": ("Spoilt answer", "The right status with an empty body"),
    "html": ("Spoilt answer", "The right status with an HTML page"),
    "nonsense": ("Spoilt answer", "A body that is neither JSON nor UTF-8"),
    "huge": ("Spoilt answer", "A body of 64 MiB"),
    "compressed": ("Spoilt answer", "16 MiB of white space, gzipped though that was refused"),
    "count-too-high": ("Wrong or late", "processedEventsCount is one too many"),
    "count-too-low": ("Wrong or late", "processedEventsCount is one too few"),
    "slow": ("Wrong or late", "The true answer, one second late"),
    "drip": ("Wrong or late", "The true answer, one byte a second"),
}
"""The group of each fault, and what it does, for a person who chooses one."""


class FaultPlan:
    """Says which fault the next request meets.

    Args:
        script: The faults of the first requests, in order.
        rates: The faults of later requests, each with its rate from 0 to 1.
        latency: Seconds before every answer, drawn evenly between the two.
    """

    def __init__(
        self,
        *,
        script: Iterable[Fault | int | str | None],
        rates: Mapping[Any, float],
        latency: tuple[float, float],
        random_: random.Random,
    ) -> None:
        self._script = deque(Fault.of(what) for what in script)
        self._rates: list[tuple[Fault, float]] = []
        self._latency = (0.0, 0.0)
        self._random = random_
        self.set_rates(rates)
        self.set_latency(latency)

    @property
    def script(self) -> tuple[Fault, ...]:
        """The faults of the next requests, in order."""
        return tuple(self._script)

    @property
    def rates(self) -> tuple[tuple[Fault, float], ...]:
        """The faults of all other requests, each with its rate."""
        return tuple(self._rates)

    @property
    def latency(self) -> tuple[float, float]:
        """The bounds of the latency in seconds."""
        return self._latency

    def set_script(self, faults: Iterable[Fault | int | str | None]) -> None:
        """Replaces the script."""
        self._script = deque([Fault.of(what) for what in faults])

    def set_rates(self, rates: Mapping[Any, float]) -> None:
        """Replaces the rates.

        Raises:
            ValueError: There is no such fault, or the rates are not 0 to 1, or add up to more than 1.
        """
        checked = [(Fault.of(what), _check_rate(what, rate)) for what, rate in rates.items()]
        if math.fsum(rate for _, rate in checked) > 1 + 1e-9:
            shown = {str(fault): rate for fault, rate in checked}
            raise ValueError(f"fault rates must add up to at most 1, got {shown}")
        self._rates = checked

    def set_latency(self, latency: tuple[float, float]) -> None:
        """Replaces the bounds of the latency, in seconds.

        Raises:
            ValueError: They are negative, or in the wrong order.
        """
        if not 0 <= latency[0] <= latency[1]:
            raise ValueError(f"latency must be 0 <= shortest <= longest seconds, got {latency!r}")
        self._latency = latency

    def append(self, faults: Iterable[Fault | int | str | None]) -> None:
        """Appends to the script."""
        self._script.extend([Fault.of(what) for what in faults])

    def next(self) -> Fault:
        """Returns the fault of the next request."""
        if self._script:
            return self._script.popleft()
        drawn = self._random.random()
        for fault, rate in self._rates:
            drawn -= rate
            if drawn < 0:
                return fault
        return Fault()

    def next_latency(self) -> float:
        """Returns the latency of the next answer in seconds, without a fault's own delay."""
        return self._random.uniform(*self._latency)


def _check_rate(what: object, rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of fault {what} must be 0..1, got {rate!r}")
    return rate
