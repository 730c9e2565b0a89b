"""The entries of a queue: what travels between a publisher and a relay, in format 1.

| field | what it holds |
|---|---|
| `v` | the format, `1` |
| `i` | the publish id: the same on every try of a publication |
| `e` | the event as the wire's JSON, its time stamped at acceptance |
| `a` | present if this is not the first try: the number of the try |
| `t` | present if the publisher is traced: the W3C `traceparent` of the `track()` call |

Fields that a reader does not know are ignored. A reader of format N reads N - 1 too.
"""

from __future__ import annotations

import zlib
from typing import Final

import attrs

from rokt_events_async._protocol.encoding import decode
from rokt_events_async.errors import InvalidEventError, RoktEventsError
from rokt_events_async.events import PartnerEvent

FORMAT: Final = b"1"
"""The format that is written."""

_READABLE: Final = (FORMAT,)


class UnreadableEntryError(RoktEventsError):
    """An entry has another format, or is not what a publisher writes. It becomes a dead letter."""


@attrs.define(eq=False)
class NewEntry:
    """An event on its way into the queue.

    Attributes:
        partition: Where it belongs: all events of a session are in one partition.
        publish_id: Identifies the publication. It is the same on every try.
        wire: The event as JSON.
        trace_parent: The W3C `traceparent` that travels with it.
        tries: How often it was sent to the queue before.
    """

    partition: int
    publish_id: bytes
    wire: bytes
    trace_parent: str | None = None
    tries: int = 0

    def fields(self) -> tuple[bytes | str, ...]:
        """Returns names and values, alternating."""
        fields: tuple[bytes | str, ...] = (b"v", FORMAT, b"i", self.publish_id, b"e", self.wire)
        if self.tries:
            fields = (*fields, b"a", str(self.tries + 1))
        if self.trace_parent is not None:
            fields = (*fields, b"t", self.trace_parent)
        return fields


@attrs.frozen(eq=False)
class Entry:
    """An entry as a relay has read it. The queue keeps it until it is acknowledged.

    Attributes:
        partition: Where it was read.
        id: Its id in that partition. Ids grow in the order of publication.
        fields: Names and values, alternating.
        may_have_been_sent: True if a relay had marked it before, so that Rokt may have accepted its event.
    """

    partition: int
    id: bytes
    fields: tuple[bytes, ...]
    may_have_been_sent: bool = False


@attrs.define(eq=False)
class Held:
    """An entry in a relay's memory, with its event.

    Attributes:
        entry: The entry.
        event: Its event.
        publish_id: Identifies the publication.
        is_repeated: True if the publisher had sent it before and knew no answer.
        trace_parent: The W3C `traceparent` that came with it.
        size: Its size, in bytes.
        number: Its place in the order in which the relay's window took its entries.
    """

    entry: Entry
    event: PartnerEvent
    publish_id: bytes
    is_repeated: bool
    trace_parent: str | None
    size: int
    number: int = 0


def partition_of(session_id: str, partitions: int) -> int:
    """Returns the partition of a session."""
    return zlib.crc32(session_id.encode()) % partitions


def read_entry(entry: Entry) -> Held:
    """Returns an entry with its event.

    Raises:
        UnreadableEntryError: It has another format, or is not what a publisher writes.
    """
    flat = entry.fields
    if len(flat) == _USUAL and flat[::2] == (b"v", b"i", b"e") and flat[1] == FORMAT:
        # In half of the time: nearly all entries are of a first try, and not traced.
        return Held(entry, _event(flat[5]), flat[3], False, None, len(flat[5]))  # noqa: FBT003 -- as the class
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    version = fields.get(b"v")
    if version not in _READABLE:
        shown = "none" if version is None else repr(version[:_SHOWN].decode("ascii", "replace"))
        raise UnreadableEntryError(
            f"the entry's format must be {', '.join(one.decode() for one in _READABLE)}, got {shown}"
        )
    try:
        wire, publish_id = fields[b"e"], fields[b"i"]
    except KeyError as missing:
        raise UnreadableEntryError(f"the entry has no field {missing.args[0].decode()}") from None
    trace = fields.get(b"t")
    return Held(
        entry,
        _event(wire),
        publish_id,
        b"a" in fields,
        None if trace is None else trace[:_SHOWN].decode("ascii", "replace"),
        len(wire),
    )


def _event(wire: bytes) -> PartnerEvent:
    try:
        return decode(wire)
    except InvalidEventError as error:
        raise UnreadableEntryError(f"the entry's event cannot be read: {error}") from None


_USUAL: Final = 6
"""How many names and values an entry usually has."""

_SHOWN: Final = 64
