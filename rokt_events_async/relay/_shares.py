"""Which relay reads which partitions. Every relay computes it from the same list, without talking.

Rendezvous hashing: each partition ranks the relays by a hash of both, and takes the first. When a relay comes
or goes, few partitions change hands. Plain rendezvous hashing is uneven, so a relay takes at most its even
share, rounded up; a partition then takes the next in its rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable


def share_of(relay_id: str, relays: Iterable[str], partitions: int) -> tuple[int, ...]:
    """Returns the partitions that a relay reads, in order.

    Args:
        relay_id: The relay. It counts as alive.
        relays: The relays that are alive.
        partitions: How many partitions there are.
    """
    alive = sorted({*relays, relay_id})
    most = math.ceil(partitions / len(alive))
    taken = dict.fromkeys(alive, 0)
    share = []
    for partition in range(partitions):
        ranked = sorted(alive, key=lambda one, at=partition: _weight(one, at))  # type: ignore[misc]
        chosen = next(one for one in ranked if taken[one] < most)
        taken[chosen] += 1
        if chosen == relay_id:
            share.append(partition)
    return tuple(share)


def _weight(relay_id: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{partition}:{relay_id}".encode(), digest_size=8).digest()
