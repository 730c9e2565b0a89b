"""The version of the library, which requests and metrics name."""

__version__ = "0.2.0"
