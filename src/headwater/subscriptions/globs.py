"""Patterns of stream names: `*` is one segment of a path, `**` any number of them, none included (6.2). Pure.

Also whether a key's patterns, which are shell patterns, wholly cover such a pattern: sound, not complete. What is said
to be covered is; of what is not said to be covered, some might be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

ONE: Final = "*"
ANY: Final = "**"

MOST_ANY: Final = 6
"""`**` in one pattern: each doubles what `covered` has to look at."""

_FREE: Final = ""
"""Stands for text that may be anything, in a name that is looked at symbol by symbol."""


def matches(pattern: str, name: str) -> bool:
    """Whether `name` is one of those that `pattern` means. Takes time of the two lengths' product at most."""
    wanted, given = _segments(pattern), name.split("/")
    at = seen = 0
    resume: tuple[int, int] | None = None  # behind the last `**`, and how far it has reached
    while seen < len(given):
        if at < len(wanted) and wanted[at] == ANY:
            at += 1
            resume = (at, seen)
        elif at < len(wanted) and wanted[at] in (ONE, given[seen]):
            at, seen = at + 1, seen + 1
        elif resume is not None:
            # Only the last `**` needs to reach further: what an earlier one could add, that one can take as well.
            resume = (resume[0], resume[1] + 1)
            at, seen = resume
        else:
            return False
    return all(segment == ANY for segment in wanted[at:])


def prefix(pattern: str) -> str:
    """What all names begin with that `pattern` means."""
    plain: list[str] = []
    for segment in _segments(pattern):
        if segment == ANY:
            return "/".join(plain)  # without a slash: `a/**` means `a`, too
        if segment == ONE:
            return "".join(f"{one}/" for one in plain)
        plain.append(segment)
    return "/".join(plain)


def many(pattern: str) -> int:
    """How many `**` the pattern has."""
    return _segments(pattern).count(ANY)


def shapes(pattern: str) -> list[str]:
    """What names of the pattern can look like, a `*` in them being any text: with each `**` as nothing, and as some."""
    return ["/".join(segments) for segments in _shapes(_segments(pattern))]


def covered(pattern: str, shells: Iterable[str]) -> bool:
    """Whether every name that `pattern` means matches one of the shell patterns."""
    wanted = [_elements(shell) for shell in shells]
    return all(any(_absorbs(elements, _symbols(shape)) for elements in wanted) for shape in _shapes(_segments(pattern)))


def _segments(pattern: str) -> list[str]:
    """Without repeated `**`, which mean no more than one."""
    segments: list[str] = []
    for segment in pattern.split("/"):
        if segment != ANY or segments[-1:] != [ANY]:
            segments.append(segment)
    return segments


def _shapes(segments: list[str]) -> Iterator[list[str]]:
    if ANY not in segments:
        yield segments
        return
    first = segments.index(ANY)
    before, after = segments[:first], segments[first + 1 :]
    for shape in ([*before, *after], [*before, ONE, *after]):
        yield from _shapes(shape)


def _symbols(segments: Sequence[str]) -> list[str]:
    text: list[str] = []
    for number, segment in enumerate(segments):
        text += ["/"] if number else []
        text += [_FREE] if segment == ONE else segment
    return text


def _elements(shell: str) -> list[str]:
    """A shell pattern in pieces that stand for one character each, but for `*`."""
    elements, at = [], 0
    while at < len(shell):
        # A set runs to the next bracket that is not its first member; without one, it is a plain bracket.
        end = shell.find("]", at + (3 if shell[at + 1 : at + 2] == "!" else 2)) if shell[at] == "[" else -1
        elements.append(shell[at : end + 1] if end > 0 else shell[at])
        at += len(elements[-1])
    return elements


def _absorbs(elements: Sequence[str], text: Sequence[str]) -> bool:
    """Whether the shell pattern takes the text whatever its free stretches are: only a `*` can take one of those."""
    reached = _past_stars({0}, elements)  # numbers of elements that can have been used up
    for symbol in text:
        following = set()
        for number in reached:
            element = elements[number] if number < len(elements) else ""
            if element == ONE:
                following.add(number)
            elif element and symbol != _FREE and fnmatchcase(symbol, element):
                following.add(number + 1)
        reached = _past_stars(following, elements)
    return len(elements) in reached


def _past_stars(reached: set[int], elements: Sequence[str]) -> set[int]:
    """A `*` may take nothing at all."""
    for number, element in enumerate(elements):
        if element == ONE and number in reached:
            reached.add(number + 1)
    return reached
