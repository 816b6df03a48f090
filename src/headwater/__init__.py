"""Headwater streams what is still being made, and loses nothing."""

__version__ = "0.1.0"
