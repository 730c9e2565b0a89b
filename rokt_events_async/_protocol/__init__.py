"""Bytes and meaning, both ways: how events are encoded, and what replies say. Pure."""
