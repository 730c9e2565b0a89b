"""Relays and their queue's server are killed for a while; `tests.fleet_kills` is the long form."""

from __future__ import annotations

from pathlib import Path

from tests import fleet_kills
from tests.servers import need_binary


def test_nothing_is_lost_when_relays_and_the_server_are_killed(tmp_path: Path) -> None:
    """And every duplicate was predicted."""
    need_binary("valkey")
    result = fleet_kills.play(
        "valkey", tmp_path, relays=6, servers=1, alive=3, longest=0.8, rate=800.0, seed=7
    )

    assert result.accepted > 100
    assert result.is_good, str(result)
