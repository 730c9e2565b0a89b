"""Factories of trackers, as the integrations and `ThreadedEmitter` take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
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


def key_of(name: str | None) -> str:
    """Returns under which key an application has its tracker of this name.

    Raises:
        InvalidSettingError: The name is no identifier.
    """
    if name is None:
        return "rokt_tracker"
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidSettingError(f"name must be an identifier, as in name='eu', got {name!r}")
    return f"rokt_tracker_{name}"


def check_place(taken: Iterable[str], name: str | None) -> None:
    """Checks that an application's handlers can tell this tracker from those that it has.

    Args:
        taken: The keys of the application's state.

    Raises:
        InvalidSettingError: They could not.
    """
    if key_of(name) in taken or (name is None and any(key.startswith("rokt_tracker") for key in taken)):
        raise InvalidSettingError(
            "an application must have one tracker, or several by name, got two that handlers could not tell "
            "apart: give the inner one a name, as in name='eu', and get it from tracker_named('eu')"
        )


def missing_tracker(name: str | None, hint: str) -> EmitterNotStartedError:
    """Returns what handlers are told that ask for a tracker that is not there."""
    which = "no tracker" if name is None else f"no tracker named {name!r}"
    return EmitterNotStartedError(f"this application has {which}: {hint}")


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
