"""What the benchmarks send, and to whom."""

from __future__ import annotations

import asyncio

from benchmarks.sink import MARK
from rokt_events_async import Credentials, EventType, PartnerEvent
from rokt_events_async._pipeline.transport import Request
from rokt_events_async._protocol.replies import Reply

CREDENTIALS = Credentials(pub_id="rpub-bench", secret="rsec-bench", tag_id="1234567890")

OUTSTANDING = 4_000
"""Deliveries that the application holds before it awaits the oldest."""

PAGE = 25
"""How many it awaits, and then sends, at a time: what one page shows."""


def make(session: int, number: int, value: str = "ImpressionSlot") -> PartnerEvent:
    """An event of about 300 bytes."""
    return PartnerEvent(
        event_type=EventType.SIGNAL_IMPRESSION,
        session_id=f"aec20024-8d23-46be-95f3-{session:012x}",
        parent_guid=f"58bcbaa0-e13c-4a3d-84cd-{number:012x}",
        client_unique_id="10f7d87b-e879-47b2-9638-a667e63beae2",
        metadata={"AdditionalData": value},
    )


class NoServer:
    """A transport that answers, once its gate is open, that everything was processed.

    The loop turns, as for a socket.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def post(self, request: Request) -> Reply:
        await self.gate.wait()
        await asyncio.sleep(0)
        request.went_out = True
        count = request.body.count(MARK)
        answer = b'{"processedEventsCount":%d,"unprocessedEvents":[],"success":true}' % count
        return Reply(200, {}, answer)

    async def aclose(self) -> None:
        """Holds nothing."""
