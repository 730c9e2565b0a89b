"""Bytes to meaning and back: events as bytes, replies as verdicts. Pure: no I/O, no loop, no clock."""
