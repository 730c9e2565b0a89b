"""A deterministic world: the real emitter and the real aiohttp, on a loop and a network made of memory.

From a seed come the traffic, the settings, the faults and what the callers do; the same seed gives the
same trace. `python -m tests.simulation --help`.
"""
