"""How facts look on a terminal: numbers with units, and texts that somebody else wrote. Pure.

Invariant: what `plain` gives moves no cursor, sets no colour and reorders no line, whatever was in it.
"""

from __future__ import annotations

from typing import Final

_SIZES: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_AGES: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def plain(text: str, most: int | None = None) -> str:
    """`text` on one line, at most so many characters of it: what does not print (controls, bidirectional marks, lone
    surrogates) is spelt out."""
    shown = text if most is None else text[: most + 1]
    spelt = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return spelt if most is None or len(spelt) <= most else f"{spelt[: most - 1]}…"


def size(n: float) -> str:
    """Of bytes."""
    for unit, word in _SIZES:
        if n >= unit:
            return f"{n / unit:.1f} {word}"
    return f"{n:.0f} B"


def number(n: float) -> str:
    """Whole where it is large or whole; else with one digit behind the point."""
    return f"{n:,.0f}" if n >= 100 or n == int(n) else f"{n:,.1f}"


def lasted(seconds: float) -> str:
    """How long something took, three digits of it at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 or seconds == 0 else f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def ago(milliseconds: float) -> str:
    """An age, in its largest unit."""
    seconds = max(0, int(milliseconds / 1000))
    for unit, word in _AGES:
        if seconds >= unit:
            return f"{seconds // unit} {word} ago"
    return f"{seconds} s ago"
