"""The version of llueve."""

__version__ = "0.1.0"
