"""A tracker that lives as long as a Starlette application; FastAPI's module builds on this one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse

from rokt_events_async._making import (
    MakeTracker,
    check_is_emitter,
    check_make,
    check_place,
    key_of,
    make_one,
    missing_tracker,
)
from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import InvalidSettingError
from rokt_events_async.integrations._health import describe_health, health_status
from rokt_events_async.tracker import Tracker

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
"""The type of a framework's `lifespan=`, with or without a state of its own."""


def emitter_lifespan(
    make: MakeTracker, inner: Lifespan | None = None, *, name: str | None = None
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """Returns a lifespan that starts a tracker with the application, and drains it when it stops.

    `Starlette(lifespan=emitter_lifespan(tracker_from_env))`. Handlers get it from `get_tracker`.

    Args:
        make: A factory, called each time the application starts: `Emitter`, `tracker_from_env`, or a
            function that calls one with settings.
        inner: The application's own lifespan. It begins after the tracker and ends before it, so that it
            can track through `app.state.rokt_tracker`, which `app.state.rokt_emitter` is too. Its state is
            kept.
        name: Tells this tracker from others of the application: one for each Rokt account. Handlers get it
            from `tracker_named(name)`; it is in `app.state.rokt_tracker_NAME`.

    Raises:
        InvalidSettingError: `make` is not callable, `inner` is no lifespan, or `name` no identifier; or, when
            the application starts, `make` returns no tracker, or a lifespan around this one has made one and
            this one has no name, or the same.
    """
    check_make(make)
    _check_inner(inner)
    key = key_of(name)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        taken: tuple[str, ...] = getattr(app.state, "rokt_trackers", ())
        check_place(taken, name)
        async with make_one(make) as tracker:
            app.state.rokt_trackers = (*taken, key)
            names = [key] if name else [key, "rokt_emitter"]
            for attribute in names:
                setattr(app.state, attribute, tracker)
            state: dict[str, Any] = {key: tracker}
            try:
                if inner is None:
                    yield state
                    return
                async with inner(app) as own:
                    yield {**(own or {}), **state}
            finally:
                for attribute in names:
                    delattr(app.state, attribute)
                app.state.rokt_trackers = taken

    return lifespan


def _check_inner(inner: Any) -> None:
    call = inner.func if isinstance(inner, functools.partial) else getattr(inner, "__call__", None)  # noqa: B004
    if inspect.isasyncgenfunction(inner) or inspect.isasyncgenfunction(call):
        name = getattr(inner, "__name__", repr(inner))
        raise InvalidSettingError(f"inner must be a lifespan: is @asynccontextmanager missing before {name}?")
    if inner is not None and not callable(inner):
        raise InvalidSettingError(f"inner must be a lifespan, called with the application, got {inner!r}")


def get_tracker(connection: HTTPConnection) -> Tracker[Any]:
    """Returns the application's tracker, from a request or a websocket.

    Raises:
        EmitterNotStartedError: The application was not started with `emitter_lifespan`.
    """
    return _find(connection, None)


def tracker_named(name: str) -> Callable[[HTTPConnection], Tracker[Any]]:
    """Returns the dependency that returns the application's tracker of this name.

    With FastAPI: `EuTracker = Annotated[Tracker, Depends(tracker_named("eu"))]`. The name is fixed here,
    because a parameter of the dependency itself would be one that a customer can set in the query.

    Raises:
        InvalidSettingError: The name is no identifier.
    """
    key_of(name)

    def get_named_tracker(connection: HTTPConnection) -> Tracker[Any]:
        return _find(connection, name)

    return get_named_tracker


def _find(connection: HTTPConnection, name: str | None) -> Tracker[Any]:
    tracker: Tracker[Any] | None = (connection.scope.get("state") or {}).get(key_of(name))
    if tracker is None:
        named = f", name={name!r}" if name else ""
        raise missing_tracker(
            name,
            f"give it lifespan=emitter_lifespan(Emitter{named}), and see that its lifespan runs; a test does "
            "that by `with TestClient(app) as client:`",
        )
    return tracker


def health_endpoint(
    tracker: Tracker[Any] | None = None, *, strict: bool = False
) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Returns an endpoint that tells a tracker's health.

    `app.add_route("/health/rokt", health_endpoint())`. It answers 200 in every state but new and closed, with
    the state in its body. It is for people and monitors: wire it to no readiness or liveness probe, because
    an outage of Rokt must not take the application out of its load balancer.

    Args:
        tracker: The tracker; `None` takes the application's.
        strict: True to answer 503 while Rokt cannot be reached or refuses the credentials, while the queue
            is full, or while the journal fails or is full.
    """

    async def health(request: Request) -> JSONResponse:
        found = (get_tracker(request) if tracker is None else tracker).health
        return JSONResponse(describe_health(found), status_code=health_status(found, strict=strict))

    return health


def get_emitter(connection: HTTPConnection) -> Emitter:
    """Returns the application's emitter, from a request or a websocket.

    Raises:
        EmitterNotStartedError: The application was not started with `emitter_lifespan`, or its tracker is no
            emitter.
    """
    return check_is_emitter(get_tracker(connection))
