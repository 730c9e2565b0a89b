"""A tracker that lives as long as an aiohttp application.

`shop.py`, under `python shop.py`, `python -m aiohttp.web shop:make_app`, or gunicorn with aiohttp's workers:

```python
from aiohttp import web

from rokt_events_async import PartnerEvent, tracker_from_env
from rokt_events_async.integrations.aiohttp import emitter_context, get_tracker


async def viewed(request):
    event = PartnerEvent.viewed(client_unique_id="order-4711", **request.match_info)
    await get_tracker(request).track(event)  # the answer does not wait for Rokt
    return web.json_response({"tracked": event.parent_guid})


async def make_app(argv=None):
    app = web.Application()
    app.cleanup_ctx.append(emitter_context(tracker_from_env))
    app.router.add_post("/checkout/{session_id}/viewed/{parent_guid}", viewed)
    return app


if __name__ == "__main__":
    web.run_app(make_app())
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from aiohttp import web

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
from rokt_events_async.integrations._health import describe_health, health_status
from rokt_events_async.tracker import Tracker

TRACKER: Final[web.AppKey[Tracker[Any]]] = web.AppKey("TRACKER")
"""The application's key for its tracker, set while the application runs."""

EMITTER: Final = web.AppKey("EMITTER", Emitter)
"""The same, if the tracker is an emitter."""


_NAMED: Final[dict[str, web.AppKey[Tracker[Any]]]] = {}


def emitter_context(
    make: MakeTracker, *, name: str | None = None
) -> Callable[[web.Application], AsyncIterator[None]]:
    """Returns a cleanup context that starts a tracker with the application, and drains it at the end.

    Args:
        make: A factory, called each time an application starts: `Emitter`, `tracker_from_env`, or a function
            that calls one with settings.
        name: Tells this tracker from others of the application: one for each Rokt account. Handlers get it
            from `tracker_named(name)`.

    Raises:
        InvalidSettingError: `make` is not callable, or `name` no identifier; or, when the application starts,
            `make` returns no tracker, or the application has one and this one has no name, or the same.
    """
    check_make(make)
    key = _key(name)

    async def context(app: web.Application) -> AsyncIterator[None]:
        taken = [known for known in (TRACKER, *_NAMED.values()) if known in app]
        check_place([_place(known) for known in taken], name)
        async with make_one(make) as tracker:
            app[key] = tracker
            if name is None and isinstance(tracker, Emitter):
                app[EMITTER] = tracker
            yield

    return context


def get_tracker(request: web.Request) -> Tracker[Any]:
    """Returns the tracker of the application, or of the application that contains it.

    Raises:
        EmitterNotStartedError: No `emitter_context` was added to either.
    """
    return _find(request, None)


def tracker_named(name: str) -> Callable[[web.Request], Tracker[Any]]:
    """Returns a function that returns the application's tracker of this name: `tracker_named("eu")(request)`.

    Raises:
        InvalidSettingError: The name is no identifier.
    """
    key_of(name)

    def get_named_tracker(request: web.Request) -> Tracker[Any]:
        return _find(request, name)

    return get_named_tracker


def _find(request: web.Request, name: str | None) -> Tracker[Any]:
    try:
        return request.config_dict[_key(name)]
    except KeyError:
        named = f", name={name!r}" if name else ""
        raise missing_tracker(name, f"app.cleanup_ctx.append(emitter_context(Emitter{named}))") from None


def _key(name: str | None) -> web.AppKey[Tracker[Any]]:
    if name is None:
        return TRACKER
    return _NAMED.setdefault(key_of(name), web.AppKey(key_of(name)))


def _place(key: web.AppKey[Tracker[Any]]) -> str:
    return next((name for name, known in _NAMED.items() if known is key), key_of(None))


def get_emitter(request: web.Request) -> Emitter:
    """Returns the emitter of the application, or of the application that contains it.

    Raises:
        EmitterNotStartedError: No `emitter_context` was added to either, or its tracker is no emitter.
    """
    return check_is_emitter(get_tracker(request))


def health_endpoint(
    tracker: Tracker[Any] | None = None, *, strict: bool = False
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Returns a handler that tells a tracker's health.

    `app.router.add_get("/health/rokt", health_endpoint())`. It answers 200 in every
    state but new and closed, with the state in its body. It is for people and monitors: wire it to no
    readiness or liveness probe, because an outage of Rokt must not take the application out of its load
    balancer.

    Args:
        tracker: The tracker; `None` takes the application's.
        strict: True to answer 503 while Rokt cannot be reached or refuses the credentials, while the queue
            is full, or while the journal fails or is full.
    """

    async def health(request: web.Request) -> web.Response:
        found = (get_tracker(request) if tracker is None else tracker).health
        return web.json_response(describe_health(found), status=health_status(found, strict=strict))

    return health
