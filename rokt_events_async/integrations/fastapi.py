"""A tracker that lives as long as a FastAPI application.

```python
app = FastAPI(lifespan=emitter_lifespan(tracker_from_env))


@app.post("/viewed")
async def viewed(tracker: RoktTracker) -> None:
    await tracker.track(...)
```

Two Rokt accounts: `emitter_lifespan(make_us, emitter_lifespan(make_eu, name="eu"))`, and
`EuTracker = Annotated[Tracker[Any], Depends(tracker_named("eu"))]`.
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
