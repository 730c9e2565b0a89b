"""The engine of one emitter: from admission to the outcome of every event."""
