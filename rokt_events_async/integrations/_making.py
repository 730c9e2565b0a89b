"""What the web frameworks' integrations share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import InvalidSettingError

MakeEmitter = Callable[[], Emitter]
"""What makes an emitter each time an application starts: `Emitter` itself, or a function that calls it.

Not an emitter: a closed one stays closed, and an application may be started more than once, by its tests
or in several processes.
"""


def check_make(make: Any) -> MakeEmitter:
    """What makes emitters, if it can be called.

    Raises:
        InvalidSettingError: It cannot.
    """
    if not callable(make):
        raise InvalidSettingError(
            f"make must be callable and return an Emitter, as Emitter itself or a lambda does, got {make!r}"
        )
    checked: MakeEmitter = make
    return checked


def make_one(make: MakeEmitter) -> Emitter:
    """The emitter of an application that starts.

    Raises:
        InvalidSettingError: What came back is none.
    """
    emitter: Any = make()
    if isinstance(emitter, Emitter):
        return emitter
    if inspect.iscoroutine(emitter):
        emitter.close()
    raise InvalidSettingError(
        f"make must return an Emitter, as Emitter itself or a lambda does, got a {type(emitter).__name__}"
    )
