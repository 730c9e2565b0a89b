"""Shared by the integrations of web frameworks: factories of emitters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import InvalidSettingError

MakeEmitter = Callable[[], Emitter]
"""A factory, called each time an application starts: `Emitter` itself, or a function that calls it.

A factory, because an application can start more than once, and a closed emitter cannot be reopened.
"""


def check_make(make: Any) -> MakeEmitter:
    """Returns the factory.

    Raises:
        InvalidSettingError: It cannot be called.
    """
    if not callable(make):
        raise InvalidSettingError(
            f"make must be callable and return an Emitter, as Emitter itself or a lambda does, got {make!r}"
        )
    checked: MakeEmitter = make
    return checked


def make_one(make: MakeEmitter) -> Emitter:
    """Returns a new emitter of the factory.

    Raises:
        InvalidSettingError: The factory returned no emitter.
    """
    emitter: Any = make()
    if isinstance(emitter, Emitter):
        return emitter
    if inspect.iscoroutine(emitter):
        emitter.close()
    raise InvalidSettingError(
        f"make must return an Emitter, as Emitter itself or a lambda does, got a {type(emitter).__name__}"
    )
