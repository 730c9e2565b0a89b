"""`python -m rokt_events_async`: the same as `rokt-events`."""

from rokt_events_async.cli import main

main()
