"""`python -m rokt_events_async.cli`: the same as `rokt-events`."""

from rokt_events_async.cli import main

main()
