"""The command `headwater`. This module knows only how to start it: where its packages are missing, it says so."""

from __future__ import annotations

import sys

from headwater.errors import MissingExtra

__all__ = ["main"]


def main() -> None:
    """Run the command that `sys.argv` names, and end the process with its status."""
    try:
        from headwater.cli.app import app
    except MissingExtra as error:
        sys.exit(f"headwater: {error}")
    app()
