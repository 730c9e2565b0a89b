"""Which publications a relay has read lately, so that the second entry of one is recognised. Pure.

A publisher that got no answer sends an event again, with the same publish id. Usually both entries are in the
queue. But the server may have lost the first one since it was read: it came back as it was a moment before.
"""

from __future__ import annotations

from collections import OrderedDict

Place = tuple[int, bytes]
"""A partition, and the id of an entry in it."""


class Publications:
    """The places of the latest entries, by publish id.

    Args:
        at_most: How many are remembered.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._places: OrderedDict[bytes, Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def first_place(self, publish_id: bytes, place: Place) -> Place:
        """Returns where the publication was read first; notes this place if it is the first."""
        first = self._places.setdefault(publish_id, place)
        if len(self._places) > self._at_most:
            self._places.popitem(last=False)
        return first

    def forget(self, publish_id: bytes) -> None:
        """Forgets a publication whose first entry is gone, and was not sent."""
        self._places.pop(publish_id, None)
