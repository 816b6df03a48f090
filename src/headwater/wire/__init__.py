"""Framing, pure: how messages look as bytes on the way to a client. No I/O, no clock; each submodule stands alone."""
