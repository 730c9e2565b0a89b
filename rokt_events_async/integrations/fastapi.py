"""A tracker that lives as long as a FastAPI application.

The README has an application with one. Two Rokt accounts:

```python
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from rokt_events_async import Credentials, Emitter, PartnerEvent, Tracker
from rokt_events_async.integrations.fastapi import RoktTracker, emitter_lifespan, tracker_named

EU = Credentials(pub_id="rpub-eu", secret="from-the-secret-store", tag_id="7")
EuTracker = Annotated[Tracker[Any], Depends(tracker_named("eu"))]
app = FastAPI(lifespan=emitter_lifespan(Emitter, emitter_lifespan(lambda: Emitter(EU), name="eu")))


@app.post("/viewed/{guid}")
async def viewed(guid: str, tracker: RoktTracker, eu: EuTracker) -> None:
    event = PartnerEvent.viewed(session_id="s-1", parent_guid=guid, client_unique_id="order-4711")
    await (eu if guid.startswith("eu-") else tracker).track(event)
```
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends

from rokt_events_async.emitter import Emitter
from rokt_events_async.integrations.starlette import (
    Lifespan,
    emitter_lifespan,
    get_emitter,
    get_tracker,
    health_endpoint,
    tracker_named,
)
from rokt_events_async.tracker import Tracker

RoktTracker = Annotated[Tracker[Any], Depends(get_tracker)]
"""The application's tracker, as a parameter of a handler, a dependency or a websocket's handler.

A plain `def` handler runs in a thread: there, use `track_threadsafe`.
"""

RoktEmitter = Annotated[Emitter, Depends(get_emitter)]
"""The same for handlers that need outcomes: it must be an emitter."""

__all__ = [
    "Lifespan",
    "RoktEmitter",
    "RoktTracker",
    "emitter_lifespan",
    "get_emitter",
    "get_tracker",
    "health_endpoint",
    "tracker_named",
]
