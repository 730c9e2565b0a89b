"""The version of the library, which requests and metrics name."""

__version__ = "0.1.0"
