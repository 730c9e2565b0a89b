"""The fleet: many processes publish events to one queue, and a few relays deliver them.

```python
publisher = Publisher(RedisQueue("rediss://…"))     # in web processes, where an Emitter was
relay = Relay(RedisQueue("rediss://…"), Emitter)    # or: rokt-events relay
```
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import RelayStoppedError
from rokt_events_async.outcomes import DeadLetter, PublisherStats, PublishReceipt, RelayHealth, RelayStats
from rokt_events_async.relay.publisher import Publisher
from rokt_events_async.relay.queue import EventQueue
from rokt_events_async.relay.relay import Relay

if TYPE_CHECKING:
    from rokt_events_async.relay.redis import RedisQueue

__all__ = [
    "DeadLetter",
    "EventQueue",
    "PublishReceipt",
    "Publisher",
    "PublisherStats",
    "RedisQueue",
    "Relay",
    "RelayHealth",
    "RelayStats",
    "RelayStoppedError",
    "tracker_from_env",
]


def tracker_from_env(**settings: Any) -> Emitter | Publisher:
    """Returns the tracker that the environment asks for.

    `ROKT_QUEUE_URL` set means a `Publisher` to that queue; otherwise an `Emitter` with the credentials of the
    environment. It is a factory for the integrations: `emitter_lifespan(tracker_from_env)`.

    Args:
        settings: Arguments of the tracker's constructor.

    Raises:
        InvalidSettingError: The variables do not fit, or credentials are missing.
        ModuleNotFoundError: The extra `[redis]` is not installed.
    """
    url = os.environ.get("ROKT_QUEUE_URL")
    if not url:
        return Emitter(**settings)
    from rokt_events_async.relay.redis import RedisQueue  # noqa: PLC0415 -- an extra

    return Publisher(RedisQueue(url), **settings)


def __getattr__(name: str) -> Any:
    """Returns `RedisQueue`, which needs the extra `[redis]`."""
    if name != "RedisQueue":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rokt_events_async.relay.redis import RedisQueue  # noqa: PLC0415 -- an extra

    return RedisQueue
