"""An emitter that lives as long as a FastAPI application.

```python
app = FastAPI(lifespan=emitter_lifespan(Emitter))


@app.post("/viewed")
async def viewed(emitter: RoktEmitter) -> None:
    await emitter.track(...)
```
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from rokt_events_async.emitter import Emitter
from rokt_events_async.integrations.starlette import Lifespan, emitter_lifespan, get_emitter

RoktEmitter = Annotated[Emitter, Depends(get_emitter)]
"""The application's emitter, as a parameter of a handler, a dependency or a websocket's handler.

A plain `def` handler runs in a thread: there, use `track_threadsafe`.
"""

__all__ = ["Lifespan", "RoktEmitter", "emitter_lifespan", "get_emitter"]
