"""Shared by all trackers: where one lives, whom it tells, and calls from other threads."""
