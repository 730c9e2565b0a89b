"""An emitter that lives as long as an aiohttp application.

```python
app = web.Application()
app.cleanup_ctx.append(emitter_context(Emitter))


async def viewed(request: web.Request) -> web.Response:
    await get_emitter(request).track(...)
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import EmitterNotStartedError
from rokt_events_async.integrations._making import MakeEmitter, check_make, make_one

EMITTER: Final = web.AppKey("EMITTER", Emitter)
"""The application's key for its emitter, set while the application runs."""


def emitter_context(make: MakeEmitter) -> Callable[[web.Application], AsyncIterator[None]]:
    """Returns a cleanup context that starts an emitter with the application, and drains it at the end.

    Args:
        make: A factory, called each time an application starts: `Emitter`, or a function that calls it
            with settings.

    Raises:
        InvalidSettingError: `make` is not callable; or, when the application starts, returns no emitter.
    """
    check_make(make)

    async def context(app: web.Application) -> AsyncIterator[None]:
        async with make_one(make) as app[EMITTER]:
            yield

    return context


def get_emitter(request: web.Request) -> Emitter:
    """Returns the emitter of the application, or of the application that contains it.

    Raises:
        EmitterNotStartedError: No `emitter_context` was added to either.
    """
    try:
        return request.config_dict[EMITTER]
    except KeyError:
        raise EmitterNotStartedError(
            "this application has no emitter: app.cleanup_ctx.append(emitter_context(Emitter))"
        ) from None
