"""An emitter that lives as long as an aiohttp application.

```python
app = web.Application()
app.cleanup_ctx.append(emitter_context(Emitter))


async def viewed(request: web.Request) -> web.Response:
    await request.config_dict[EMITTER].track(...)
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from rokt_events_async.emitter import Emitter
from rokt_events_async.integrations._making import MakeEmitter, check_make

EMITTER: Final = web.AppKey("EMITTER", Emitter)
"""Where the application keeps its emitter; `request.config_dict` finds it from its sub-applications too."""


def emitter_context(make: MakeEmitter) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context that starts an emitter with the application, and drains it at its cleanup.

    Args:
        make: Makes the emitter, each time an application is started: `Emitter`, or a function that calls
            it with the settings it is to have.

    Raises:
        InvalidSettingError: `make` is not callable.
    """
    check_make(make)

    async def context(app: web.Application) -> AsyncIterator[None]:
        async with make() as app[EMITTER]:
            yield

    return context
