"""The fleet: many processes publish events to one queue, and a few relays deliver them.

```python
from rokt_events_async import Emitter, NotAcceptedError, PartnerEvent
from rokt_events_async.relay import Publisher, RedisQueue, Relay


async def sell(url: str) -> None:  # in web processes, in place of an Emitter
    async with Publisher(RedisQueue(url)) as publisher:
        event = PartnerEvent.viewed(session_id="s-1", parent_guid="c-1", client_unique_id="order-4711")
        try:
            await publisher.track(event)  # returns once the event is in the queue
        except NotAcceptedError as error:
            print(f"the checkout goes on without its event: {error}")


async def relay(url: str) -> None:  # or: rokt-events relay
    await Relay(RedisQueue(url), Emitter).run()
```

**What it promises**, measured with 450 kills of relays and 32 of the server, Valkey and Redis, `appendfsync
always`, 387,000 events: 0 lost (`python -m tests.fleet_kills --relays 60 --servers 4`).

- An entry stays in the queue until its event has an outcome. A relay that is killed is replaced by the
  others after `heartbeat_timeout` (15 s).
- Duplicates come only from a relay that ended, or stood still for longer than `heartbeat_timeout`, between
  sending and acknowledging, and from lost answers of Rokt. A relay marks an entry in the queue before its
  event may be sent, so that `redelivered` counts only what may have been sent: in the campaign 1.6 times as
  many as were found twice, and each that was found was among them.
- Order within a session holds while the set of relays does not change.
- In an outage of Rokt, events wait in the queue and in the relays; no living relay is robbed. A session
  that fails holds its share of a relay's window, and no other session waits for it.
- If the queue is away, `track()` raises within `publish_timeout` (5 s): `QueueUnavailableError` means that
  the event is not in it, `PublishUnconfirmedError` that it may be, `QueueFullError` that there is no room.
  All are `NotAcceptedError`. What was sent and not answered is sent again with the same publish id, by
  which a relay recognises it. A handler catches `NotAcceptedError`, and goes on; keeping the event is up to it.
  `Publisher(queue, publish_timeout=1)` waits less.
- A queue that is away at the start is waited for; one that refuses (password, permissions, another number of
  partitions) fails the start.

**Relays.** `rokt-events relay` takes the queue from `ROKT_QUEUE_URL` and the credentials from
`ROKT_PUB_ID`, `ROKT_SECRET` and `ROKT_TAG_ID`. Two are enough for most shops: one delivers 20,000 events
per second here. In Python: `await Relay(RedisQueue(url), Emitter).run()`.

```console
rokt-events relay --metrics-port 9090                       # /metrics for Prometheus, /healthz, /readyz
rokt-events queue status                                    # what waits, and who is alive; --json
rokt-events dead-letters list --outcome rejected            # what was given up; show ID, replay, delete
rokt-events dead-letters replay --session ID                # publishes again, each once
```

Ready means that the queue can be reached, never that Rokt can. SIGTERM stops reading, drains for at most
`--close-timeout`, and leaves the rest to the others. The exit status is 1 if the relay had to stop (Rokt
refuses the credentials, or the queue refuses the relay), 2 for a wrong use. What cannot be delivered
(refused by Rokt, older than three days, unconfirmed after 100 attempts, unreadable) becomes a dead letter,
with the reason; the oldest are dropped after 30 days, or beyond 100,000. A second SIGTERM or Ctrl-C ends the
drain at once: another relay then sends again what was in flight.

**The server** must be set to `maxmemory-policy noeviction` (any other drops events silently, and is
refused) and `appendonly yes` (without it there is a warning, or a refusal with `require_durable=True`);
with `appendfsync everysec` a crash of the server can lose the last second. Users and their permissions,
tested; at the prompt of `valkey-cli` or `redis-cli`, followed by `ACL SAVE` or a line in the server's
configuration each (the user `default` stays open until you close it):

```text
ACL SETUSER shop on >password resetkeys ~{rokt}:events:* ~{rokt}:meta -@all +select +xadd +info +hmget +hsetnx
ACL SETUSER relay on >password resetkeys ~{rokt}:* -@all +select +xadd +xreadgroup +xclaim +xpending +xack +xdel +xlen +xrange +xtrim +xinfo|groups +xinfo|stream +xgroup|create +xgroup|delconsumer +eval +info +hmget +hsetnx +hget +hincrby +smembers +sadd +srem +get +set +mget +del +exists
```

Two queues on one server, or another number of partitions (16), which all publishers and relays of a queue
must agree on: `redis://host?namespace=shop&partitions=32`. To change the number: stop the publishers, wait
until `rokt-events queue status` says that nothing waits, stop the relays, `DEL {rokt}:meta` at the server's
prompt, and start all with the new one. A process with another number is refused. If the server loses its
data, relays set it up again; what it had not handed out is lost with it, and what relays held and had not
sent too, which they log. TLS: `rediss://…`, with a private authority
`rediss://host:6380?ssl_ca_certs=/etc/ssl/queue.pem`. The password is in no log, error or repr. A cluster
and Sentinel are not promised yet.

**Kubernetes**: a deployment of its own, beside the web processes that have `ROKT_QUEUE_URL` alone.

```yaml
apiVersion: apps/v1
kind: Deployment
metadata: {name: rokt-relay}
spec:
  replicas: 2
  selector: {matchLabels: {app: rokt-relay}}
  template:
    metadata: {labels: {app: rokt-relay}}
    spec:
      terminationGracePeriodSeconds: 45   # longer than --close-timeout and the last exchanges with the queue
      containers:
        - name: relay
          image: shop                     # with rokt_events_async[cli,redis]
          args: [rokt-events, relay, --metrics-port, "9090", --metrics-host, 0.0.0.0, --close-timeout, "30"]
          envFrom: [{secretRef: {name: rokt-relay}}]   # ROKT_QUEUE_URL, ROKT_PUB_ID, ROKT_SECRET, ROKT_TAG_ID
          readinessProbe: {httpGet: {path: /readyz, port: 9090}}
          livenessProbe: {httpGet: {path: /healthz, port: 9090}}
```

**Docker compose**:

```yaml
services:
  queue:
    image: valkey/valkey:8
    command: valkey-server --appendonly yes --appendfsync always --maxmemory-policy noeviction
    volumes: [queue:/data]
  web:
    image: shop
    environment: {ROKT_QUEUE_URL: "redis://queue:6379"}
  relay:
    image: shop
    command: rokt-events relay
    environment: {ROKT_QUEUE_URL: "redis://queue:6379"}
    env_file: rokt.env                  # ROKT_PUB_ID, ROKT_SECRET, ROKT_TAG_ID
    stop_grace_period: 45s
    deploy: {replicas: 2}
volumes: {queue: {}}
```
"""  # noqa: E501 -- a command is one line

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

from rokt_events_async.emitter import Emitter
from rokt_events_async.errors import InvalidSettingError, RelayStoppedError
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
        InvalidSettingError: The variables do not fit, credentials are missing, or the tracker that they ask
            for has no such setting.
        ModuleNotFoundError: The extra `[redis]` is not installed.
    """
    url = os.environ.get("ROKT_QUEUE_URL")
    if not url:
        _check_known(settings, Emitter, "without ROKT_QUEUE_URL it is an Emitter")
        return Emitter(**settings)
    from rokt_events_async.relay.redis import RedisQueue  # noqa: PLC0415 -- an extra

    _check_known(settings, Publisher, "with ROKT_QUEUE_URL it is a Publisher")
    return Publisher(RedisQueue(url), **settings)


def _check_known(settings: dict[str, Any], tracker: type, why: str) -> None:
    known = inspect.signature(tracker).parameters
    if unknown := [name for name in settings if name not in known]:
        raise InvalidSettingError(
            f"tracker_from_env has no setting {', '.join(unknown)} here: {why}, which takes "
            f"{', '.join(name for name in list(known)[1:] if not name.startswith('_'))}"
        )


if not TYPE_CHECKING:  # A type checker would take any name for one of this module.

    def __getattr__(name: str) -> Any:
        """Returns `RedisQueue`, which needs the extra `[redis]`."""
        if name != "RedisQueue":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from rokt_events_async.relay.redis import RedisQueue  # noqa: PLC0415 -- an extra

        return RedisQueue
