"""A tracker that lives as long as any ASGI application: Django, Quart, Litestar, and others.

The server has to run the lifespan: uvicorn, hypercorn and granian do; daphne does not. Applications that take
no lifespan themselves, such as Django's, need nothing.

Django, `asgi.py` of the project (a view that is no coroutine uses `track_threadsafe`):

```python
from django.core.asgi import get_asgi_application
from django.http import JsonResponse

from rokt_events_async import PartnerEvent, tracker_from_env
from rokt_events_async.integrations.asgi import get_tracker, with_tracker

application = with_tracker(get_asgi_application(), tracker_from_env)


async def viewed(request, session_id, guid):  # in views.py
    event = PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="order-4711")
    await get_tracker(request.scope).track(event)
    return JsonResponse({"tracked": guid})
```

Litestar:

```python
from litestar import Litestar, Request, post

from rokt_events_async import PartnerEvent, tracker_from_env
from rokt_events_async.integrations.asgi import get_tracker, with_tracker


@post("/checkout/{session_id:str}/viewed/{guid:str}", status_code=200)
async def viewed(request: Request, session_id: str, guid: str) -> dict[str, str]:
    event = PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="order-4711")
    await get_tracker(request.scope).track(event)
    return {"tracked": guid}


app = with_tracker(Litestar([viewed]), tracker_from_env)
```

Quart:

```python
from quart import Quart, request

from rokt_events_async import PartnerEvent, tracker_from_env
from rokt_events_async.integrations.asgi import get_tracker, with_tracker

quart = Quart(__name__)


@quart.post("/checkout/<session_id>/viewed/<guid>")
async def viewed(session_id, guid):
    event = PartnerEvent.viewed(session_id=session_id, parent_guid=guid, client_unique_id="order-4711")
    await get_tracker(request.scope).track(event)
    return {"tracked": guid}


app = with_tracker(quart, tracker_from_env)
```
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from rokt_events_async._making import MakeTracker, check_make, check_place, key_of, make_one, missing_tracker
from rokt_events_async.errors import InvalidSettingError
from rokt_events_async.tracker import Tracker

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI 3 application: called with scope, receive and send."""

_log: Final = logging.getLogger("rokt_events_async")


def with_tracker(app: ASGIApp, make: MakeTracker, *, name: str | None = None) -> ASGIApp:
    """Returns the application with a tracker, which is started with it and drained when it stops.

    The tracker begins before the application and ends after it. It is in the `state` of every scope;
    `get_tracker(scope)` returns it.

    Args:
        app: An ASGI 3 application, with or without a lifespan of its own.
        make: A factory, called each time the application starts: `Emitter`, `tracker_from_env`, or a
            function that calls one with settings.
        name: Tells this tracker from others of the application: one for each Rokt account.

    Raises:
        InvalidSettingError: `app` or `make` is not callable, or `name` is no identifier. When the application
            starts, the server is told what went wrong with the tracker.
    """
    if not callable(app):
        raise InvalidSettingError(f"app must be an ASGI application, got {app!r}")
    check_make(make)
    return _Tracked(app, make, name)


def get_tracker(scope: Scope, name: str | None = None) -> Tracker[Any]:
    """Returns the tracker of an application, from the scope of a request or a websocket.

    Raises:
        EmitterNotStartedError: The application was not wrapped by `with_tracker`, or the server has not run
            its lifespan.
    """
    tracker: Tracker[Any] | None = (scope.get("state") or {}).get(key_of(name))
    if tracker is None:
        raise missing_tracker(
            name, "wrap it by with_tracker(app, make), and serve it by a server that runs the lifespan"
        )
    return tracker


class _Tracked:
    """The application with its tracker."""

    def __init__(self, app: ASGIApp, make: MakeTracker, name: str | None) -> None:
        self._app, self._make, self._name = app, make, name
        self._key = key_of(name)
        self._tracker: Tracker[Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if self._tracker is not None:  # A server need not hand the lifespan's state on.
            scope.setdefault("state", {})[self._key] = self._tracker
        await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        state = scope.setdefault("state", {})
        try:
            check_place(state, self._name)
            tracker = make_one(self._make)
            await tracker.start()
        except Exception as error:  # noqa: BLE001 -- the server says it
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        self._tracker = state[self._key] = tracker
        inner = _Lifespan(self._app, scope)
        try:
            answer = await inner.say("startup")
            await send(answer)
            if answer["type"] == "lifespan.startup.complete":
                await receive()  # lifespan.shutdown
                answer = await inner.say("shutdown")
                await tracker.aclose()
                await send(answer)
        finally:
            await inner.end()
            self._tracker = None
            await tracker.aclose()


class _Lifespan:
    """The lifespan of the application inside, if it has one."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._is_absent = False
        self._task = asyncio.create_task(self._run(app, scope), name="rokt-events-lifespan")

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        await app(scope, self._said.get, self._answers.put)

    async def say(self, what: str) -> Message:
        """Returns the application's answer; of one that takes no lifespan, that it is complete."""
        complete = {"type": f"lifespan.{what}.complete"}
        if self._is_absent:
            return complete
        self._said.put_nowait({"type": f"lifespan.{what}"})
        answer = asyncio.create_task(self._answers.get())
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        error = self._task.exception()
        if what == "startup":
            self._is_absent = True
            if error is not None:  # The specification: an application that raises here supports no lifespan.
                _log.info("the application takes no lifespan: %s: %s", type(error).__name__, error)
        elif error is not None:
            return {"type": f"lifespan.{what}.failed", "message": f"{type(error).__name__}: {error}"}
        return complete

    async def end(self) -> None:
        """Ends the application's lifespan, if it goes on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task
