"""Calls observers so that nothing they do reaches the tracker.

A `Hook` holds, for one thing that can happen, the observers' methods that want to know. A hook without
any is empty and false: the engine asks `if hooks.accepted:` before it prepares what it would pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context

from rokt_events_async._tracking.log import log_raised
from rokt_events_async.errors import InvalidSettingError
from rokt_events_async.observers import Observer

Method = Callable[..., object]


class _Guard:
    """What all hooks of one tracker share: which observers have raised, and whether one wants to exit."""

    def __init__(self) -> None:
        self._blamed: set[int] = set()
        self._is_exiting = False

    def blame(self, observer: Observer, method: Method, error: BaseException) -> None:
        """Logs the first exception of an observer."""
        if id(observer) not in self._blamed:
            self._blamed.add(id(observer))
            log_raised(f"{type(observer).__name__}.{getattr(method, '__name__', '?')}", error)

    def exit_later(self, error: BaseException) -> None:
        """Ends the program, as an observer wants it: from the loop, once, when the account is in order.

        The exit then cancels all tasks. Observers hear of that too, and must not end it again.
        """
        if not self._is_exiting:
            self._is_exiting = True
            with contextlib.suppress(RuntimeError):  # No loop runs: the program is ending already.
                asyncio.get_running_loop().call_soon(_raise, error)


class Hook(tuple[tuple[Observer, Method], ...]):
    """The observers' methods for one thing that can happen. Calling the hook calls them all, in order.

    They run in an empty context, wherever the hook is called: what a tracker does belongs to no request.
    """

    guard: _Guard

    def __call__(self, *values: object) -> None:
        if self:
            Context().run(self.call_here, *values)

    def call_here(self, *values: object) -> None:
        """Calls them in the caller's context."""
        for observer, method in self:
            try:
                method(*values)
            except (KeyboardInterrupt, SystemExit) as error:
                self.guard.exit_later(error)
            except BaseException as error:  # noqa: BLE001 -- an observer may raise anything, `pytest.fail()` too
                self.guard.blame(observer, method, error)


class _HookOfCaller(Hook):
    """A hook that runs in the context of the `track()` call."""

    def __call__(self, *values: object) -> None:
        self.call_here(*values)


class Hooks:
    """All hooks of one tracker.

    Args:
        dead_letters: Told after the observers.

    Raises:
        InvalidSettingError: An observer is no `Observer`, or one of its methods is a coroutine function or
            takes other arguments.
    """

    def __init__(self, observers: Iterable[Observer] = (), dead_letters: Observer | None = None) -> None:
        self._guard = _Guard()
        checked = _check_observers(observers) + ((dead_letters,) if dead_letters else ())
        self.accepted: Hook = _HookOfCaller(self._hook(checked, "on_accepted"))
        self.accepted.guard = self._guard
        self.request = self._hook(checked, "on_request")
        self.retry = self._hook(checked, "on_retry")
        self.delivered = self._hook(checked, "on_delivered")
        self.undelivered = self._hook(checked, "on_undelivered")
        self.deferred = self._hook(checked, "on_deferred")
        self.returned = self._hook(checked, "on_returned")
        self.recovered = self._hook(checked, "on_recovered")
        self.health = self._hook(checked, "on_health")
        self.closed = self._hook(checked, "on_closed")
        self.published = self._hook(checked, "on_published")
        self.unpublished = self._hook(checked, "on_unpublished")
        self.relay = self._hook(checked, "on_relay")
        self.dead_letter = self._hook(checked, "on_dead_letter")
        self._tracing = [one for one in checked if type(one).trace_parent is not Observer.trace_parent]

    @property
    def has_traces(self) -> bool:
        """Returns True if an observer traces."""
        return bool(self._tracing)

    def trace_parent(self) -> str | None:
        """Returns the W3C `traceparent` of the caller's context, from the first observer that has one."""
        for observer in self._tracing:
            try:
                if found := observer.trace_parent():
                    return found
            except Exception as error:  # noqa: BLE001 -- an observer may raise anything
                self._guard.blame(observer, observer.trace_parent, error)
        return None

    def in_trace(self, trace_parent: str) -> Context | None:
        """Returns a context in which the trace of a `traceparent` goes on."""
        for observer in self._tracing:
            try:
                if found := observer.in_trace(trace_parent):
                    return found
            except Exception as error:  # noqa: BLE001 -- an observer may raise anything
                self._guard.blame(observer, observer.in_trace, error)
        return None

    def _hook(self, observers: tuple[Observer, ...], name: str) -> Hook:
        hook = Hook(_overridden(observers, name))
        hook.guard = self._guard
        return hook


def _check_observers(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    if isinstance(observers, (str, bytes)) or not isinstance(observers, Iterable):
        raise InvalidSettingError(f"observers must be a list of Observer objects, got {observers!r}")
    checked = tuple(observers)
    for observer in checked:
        if not isinstance(observer, Observer):
            shown = repr(observer) if isinstance(observer, type) else f"a {type(observer).__name__}"
            raise InvalidSettingError(f"observers must be a list of Observer objects, got {shown} in it")
        _check_names(observer)
    return checked


def _check_names(observer: Observer) -> None:
    """Refuses a method `on_…` that nothing calls."""
    known = [name for name in dir(Observer) if name.startswith("on_")]
    for name in dir(type(observer)):
        if name.startswith("on_") and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
            raise InvalidSettingError(f"{type(observer).__name__}.{name} is no method of an Observer{hint}")


def _overridden(observers: Iterable[Observer], name: str) -> Iterable[tuple[Observer, Method]]:
    """Returns the methods of that name that do something, checked."""
    default = getattr(Observer, name)
    found = [(observer, getattr(observer, name)) for observer in observers]
    for observer, method in found:
        who = f"{type(observer).__name__}.{name}"
        if inspect.iscoroutinefunction(method):
            raise InvalidSettingError(f"{who} must be a plain method, got a coroutine")
        check_takes(who, method, list(inspect.signature(default).parameters)[1:])
    return [
        (observer, method) for observer, method in found if getattr(method, "__func__", None) is not default
    ]


def check_takes(who: str, call: Method, wanted: Sequence[str]) -> None:
    """Checks that `call` takes as many arguments as `wanted` names, as far as its signature tells.

    Raises:
        InvalidSettingError: It takes others.
    """
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*wanted)
    except TypeError:
        got = ", ".join(signature.parameters)
        raise InvalidSettingError(
            f"{who} must take ({', '.join(wanted)}), got one that takes ({got})"
        ) from None


def _raise(error: BaseException) -> None:
    raise error
