"""The engine of one emitter, from admission to outcome."""
