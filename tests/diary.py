"""An observer that keeps what it is told."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rokt_events_async import (
    Delivery,
    DeliveryError,
    DrainReport,
    Observer,
    Receipt,
    RequestReport,
    RetryReport,
)


class Diary(Observer):
    """Writes down all it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def of(self, what: str) -> list[Any]:
        return [told for name, told in self.told if name == what]

    def on_accepted(self, delivery: Delivery) -> None:
        self.told.append(("accepted", delivery))

    def on_request(self, request: RequestReport) -> None:
        self.told.append(("request", request))

    def on_retry(self, retry: RetryReport) -> None:
        self.told.append(("retry", retry))

    def on_delivered(self, delivery: Delivery, receipt: Receipt) -> None:
        self.told.append(("delivered", (delivery, receipt)))

    def on_undelivered(self, delivery: Delivery, error: DeliveryError) -> None:
        self.told.append(("undelivered", (delivery, error)))

    def on_deferred(self, delivery: Delivery) -> None:
        self.told.append(("deferred", delivery))

    def on_returned(self, count: int, left: int, oldest: datetime | None) -> None:
        self.told.append(("returned", (count, left, oldest)))

    def on_recovered(self, count: int, oldest: datetime) -> None:
        self.told.append(("recovered", (count, oldest)))

    def on_closed(self, report: DrainReport) -> None:
        self.told.append(("closed", report))
