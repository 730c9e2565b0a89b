"""Factories of trackers, as the integrations and `ThreadedEmitter` take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import EmitterNotStartedError, InvalidSettingError
from rokt_events_async.tracker import Tracker

MakeTracker = Callable[[], Tracker[Any]]
"""A factory, called each time an application starts: `Emitter`, `tracker_from_env`, or a function.

A factory, because an application can start more than once, and a closed tracker cannot be reopened.
"""

_FACE: Final = ("start", "aclose", "track", "track_threadsafe", "flush", "__aenter__", "__aexit__")


def check_make(make: Any) -> MakeTracker:
    """Returns the factory.

    Raises:
        InvalidSettingError: It cannot be called.
    """
    if not callable(make):
        raise InvalidSettingError(
            "make must be callable and return a tracker (an Emitter, a Publisher), as Emitter itself or a "
            f"lambda does, got {make!r}"
        )
    checked: MakeTracker = make
    return checked


def make_one(make: MakeTracker) -> Tracker[Any]:
    """Returns a new tracker of the factory.

    Raises:
        InvalidSettingError: The factory returned no tracker.
    """
    tracker: Any = make()
    if not isinstance(tracker, type) and all(hasattr(tracker, name) for name in _FACE):
        made: Tracker[Any] = tracker
        return made
    if inspect.iscoroutine(tracker):
        tracker.close()
    raise InvalidSettingError(
        "make must return a tracker (an Emitter, a Publisher), as Emitter itself or a lambda does, got a "
        f"{type(tracker).__name__}"
    )


def check_is_emitter(tracker: Tracker[Any]) -> Emitter:
    """Returns an application's tracker if it is an emitter.

    Raises:
        EmitterNotStartedError: It is another one: code that needs outcomes cannot use it.
    """
    if isinstance(tracker, Emitter):
        return tracker
    raise EmitterNotStartedError(
        f"this application has a {type(tracker).__name__} and no emitter (is ROKT_QUEUE_URL set?): use "
        "RoktTracker or get_tracker, which take either"
    )
