"""Finds the agents that a command line names: `module:attribute`, or `NAME=module:attribute`.

Imports the caller's modules, as `python -m` would from the same folder. Whatever goes wrong there is a BadRequest that
says which part was wrong.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from headwater.errors import BadRequest

MOST_NAMES = 8


def load(spec: str) -> tuple[str | None, object]:
    """The name it is to go by (None: its own), and the agent. Raises BadRequest."""
    name, _, target = spec.rpartition("=")
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise BadRequest(f"{spec!r} names no agent; write MODULE:ATTRIBUTE, like app.agents:assistant")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found: object = _module(module_name)
    for part in attribute.split("."):
        found = _attribute(found, part, target)
    return name or None, found


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise BadRequest(_no_module(name, missing)) from error
        raise BadRequest(_failed(name, error)) from error
    except (Exception, SystemExit) as error:
        raise BadRequest(_failed(name, error)) from error


def _no_module(name: str, missing: str) -> str:
    if name.endswith(".py"):
        return f"{name!r} is a file; name the module: {name.removesuffix('.py').replace('/', '.')}:…"
    beside = [path.stem for path in Path.cwd().glob("*.py")]
    hint = _meant(missing, beside) or "is its folder the current one, or its package installed?"
    return f"there is no module {missing!r}; {hint}"


def _failed(name: str, error: BaseException) -> str:
    """The module's own fault: what it is and where, without the traceback through our frames."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        at = f" ({error.filename}, line {error.lineno})"
        return f"the module {name!r} cannot be imported: SyntaxError: {error.msg}{at}"
    return f"the module {name!r} cannot be imported: {type(error).__name__}: {error}{at}"


def _attribute(owner: object, name: str, target: str) -> object:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        public = [known for known in dir(owner) if not known.startswith("_")]
        hint = _meant(name, public) or f"it has: {', '.join(public[:MOST_NAMES]) or 'nothing'}"
        kind = owner if isinstance(owner, type) else type(owner)
        whose = f"module {owner.__name__!r}" if isinstance(owner, ModuleType) else kind.__name__
        raise BadRequest(f"{target}: {whose} has no {name!r}; {hint}") from error


def _meant(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""
