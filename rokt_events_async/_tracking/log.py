"""The library's logger. No record of it can raise, and no record shows a request's headers."""

from __future__ import annotations

import contextlib
import logging
import traceback
from typing import Final

_log: Final = logging.getLogger("rokt_events_async")


def log(level: int, text: str, *values: object) -> None:
    """Logs. Exceptions of the application's filters and handlers are dropped: no outcome depends on them."""
    with contextlib.suppress(Exception):
        _log.log(level, text, *values, stacklevel=2)


def log_raised(who: str, error: BaseException) -> None:
    """Logs an exception of the application's own code.

    The exception's context is left out: it may be any exception, one that carries headers included.
    """
    where = "".join(traceback.format_tb(error.__traceback__))
    what = "".join(traceback.format_exception_only(error)).strip()
    text = "%s raised, which is logged once and changes nothing about the events: %s\n%s"
    log(logging.ERROR, text, who, what, where)


def log_fault(fault: BaseException) -> None:
    """Logs a fault of the library: its type and place, but not its text, which may contain headers."""
    where = "".join(traceback.format_tb(fault.__traceback__))
    text = "a flush worker died of a fault, its events have been settled: %s\n%s"
    log(logging.ERROR, text, type(fault).__name__, where)
