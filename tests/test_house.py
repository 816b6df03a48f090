"""The house stands as CONTRIBUTING.md says: floors, no circle, pure rooms, readable sizes, telling names.

Every rule is a function `House -> list of complaints`. Each is asked about src/headwater, and about a small house built
to break it, so that a rule which sees nothing is found out.
"""

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
ROOT = "headwater"

# Each room of the house (a top-level module or package) imports only rooms on lower floors, or on its own.
FLOORS = {
    9: ("cli", "demo", "testing"),
    8: ("server",),
    7: ("http",),
    6: ("runs", "sources", "relays", "client"),
    5: (
        "delivery",
        "reader",
        "fans",
        "outlet",
        "joining",
        "rounds",
        "slow",
        "following",
        "problems",
        "subscriptions",
        "visits",
    ),
    4: ("streams", "commits", "cursor", "forks", "lag", "leases", "lineage", "retention", "sweeper", "writer"),
    3: ("hub", "stores", "journal"),
    2: ("store", "decide", "positions", "wire", "formats", "counts"),
    1: ("errors", "model", "agui", "histogram"),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# headwater/__init__.py: above all that it re-exports, below the programs that use it. Its __version__ is for everyone.
FACE = 8.5

CLIENT_MAY_IMPORT = {"client", "wire", "errors", "model"}
NOBODY_IMPORTS = "testing"

# The lowest rooms are pure: they do no I/O and are told the time.
PURE = {room for floor in (1, 2) for room in FLOORS[floor]}
TIME = {"anyio", "asyncio", "concurrent", "multiprocessing", "queue", "signal", "subprocess", "threading", "time"}
WIRES = {"http.client", "http.server", "select", "selectors", "socket", "socketserver", "ssl", "urllib.request"}
DRIVERS = {"fastapi", "httpx", "openai", "sqlite3", "starlette", "uvicorn", "uvloop"}
IMPURE_MODULES = TIME | WIRES | DRIVERS
CLOCKS = {(kind, call) for kind in ("datetime", "date") for call in ("now", "utcnow", "today")}

EMPTY_NAMES = {"utils", "util", "base", "common", "manager", "helpers"}
LONGEST = {"file": 500, "class": 400, "function": 60}


@dataclass(frozen=True)
class Module:
    name: str  # dotted, "headwater.wire.sse"; a package stands for its __init__.py
    is_package: bool
    source: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The second part of the name: "wire" for headwater.wire.sse, "" for headwater itself."""
        return self.name.split(".")[1] if "." in self.name else ""


House = dict[str, Module]


def read_house(folder: Path) -> House:
    """Every module below `folder`/headwater, by dotted name."""
    house = {}
    for path in sorted((folder / ROOT).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        source = path.read_text(encoding="utf-8")
        house[name] = Module(name, is_package, source, ast.parse(source, str(path)))
    return house


def imported(module: Module) -> Iterator[tuple[str, str]]:
    """Every import anywhere in the file: ("a.b", "") for `import a.b`, ("a", "b") for `from a import b`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                here = module.name.split(".") + ([""] if module.is_package else [])
                origin = ".".join([*here[: -node.level], *filter(None, [origin])])
            yield from ((origin, alias.name) for alias in node.names)


def arrows(house: House) -> dict[str, set[str]]:
    """Which module of the house imports which, by file. A submodule imported from its package is the target itself."""
    graph: dict[str, set[str]] = {}
    for module in house.values():
        targets = graph[module.name] = set()
        for origin, name in imported(module):
            if f"{origin}.{name}" in house:
                targets.add(f"{origin}.{name}")
            elif origin.split(".")[0] == ROOT and (origin, name) != (ROOT, "__version__"):
                targets.add(origin)
    return graph


def floor_of(name: str) -> float:
    """The floor of a module, or of one that does not exist: then the ground, and the import itself fails."""
    return FLOOR_OF.get(name.split(".")[1], 0) if "." in name else FACE


def unknown_rooms(house: House) -> list[str]:
    rooms = {module.room for module in house.values()} - {""} - FLOOR_OF.keys()
    return [f"headwater.{room} has no floor: add it to FLOORS in tests/test_house.py" for room in sorted(rooms)]


def arrows_up(house: House) -> list[str]:
    return [
        f"{name} (floor {floor_of(name)}) imports {target} (floor {floor_of(target)})"
        for name, targets in arrows(house).items()
        for target in sorted(targets)
        if floor_of(target) > floor_of(name)
    ]


def circles(house: House) -> list[str]:
    try:
        graphlib.TopologicalSorter(arrows(house)).prepare()
    except graphlib.CycleError as error:
        return [f"circle: {' <- '.join(error.args[1])}"]
    return []


def wrong_guests(house: House) -> list[str]:
    complaints = []
    for name, targets in arrows(house).items():
        room = house[name].room
        guests = {(target, target.split(".")[1] if "." in target else "") for target in targets}
        for target, guest in sorted(guests):
            if room == "client" and guest not in CLIENT_MAY_IMPORT:
                complaints.append(f"{name} imports {target}: a client knows only {sorted(CLIENT_MAY_IMPORT)}")
            if room != NOBODY_IMPORTS and guest == NOBODY_IMPORTS:
                complaints.append(f"{name} imports {target}: only tests do")
    return complaints


def impurities(house: House) -> list[str]:
    complaints = []
    for module in house.values():
        if module.room not in PURE:
            continue
        for origin, name in imported(module):
            dotted = f"{origin}.{name}." if name else f"{origin}."
            if any(dotted.startswith(f"{impure}.") for impure in IMPURE_MODULES):
                complaints.append(f"{module.name} is pure, but imports {dotted[:-1]}")
        complaints += [f"{module.name} is pure, but reads a clock in line {line}" for line in clock_calls(module.tree)]
    return complaints


def clock_calls(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if (owner, node.attr) in CLOCKS:
                yield node.lineno


def oversized(house: House) -> list[str]:
    complaints = []
    for module in house.values():
        sizes = [("file", module.name, module.source.count("\n"))]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                sizes.append((kind, f"{module.name}.{node.name}", (node.end_lineno or 0) - node.lineno + 1))
        too_long = [size for size in sizes if size[2] > LONGEST[size[0]]]
        complaints += [f"{kind} {name}: {lines} lines, at most {LONGEST[kind]}" for kind, name, lines in too_long]
    return complaints


def empty_names(house: House) -> list[str]:
    return [f"{name} says nothing: name what it holds" for name in house if EMPTY_NAMES & set(name.split("."))]


def undocumented(house: House) -> list[str]:
    return [f"{module.name} has no docstring" for module in house.values() if not ast.get_docstring(module.tree)]


RULES = [unknown_rooms, arrows_up, circles, wrong_guests, impurities, oversized, empty_names, undocumented]


@pytest.fixture(scope="module")
def headwater() -> House:
    house = read_house(SOURCE)
    assert {"headwater", "headwater.errors", "headwater.testing.clock"} <= house.keys()
    return house


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_headwater_keeps(rule, headwater: House) -> None:
    complaints = rule(headwater)
    assert not complaints, "\n".join(complaints)


def build(folder: Path, files: dict[str, str]) -> House:
    """A small house of the given files, each with a docstring unless its text opens with a comment."""
    for name, text in {"__init__.py": "", **files}.items():
        path = folder / ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith("#") else f'"""A room."""\n{text}', encoding="utf-8")
    return read_house(folder)


SOUND = {
    "__init__.py": "__version__ = '1'\nfrom headwater.streams import Streams",
    "errors.py": "from http import HTTPStatus\nfrom datetime import datetime, timedelta",
    "model.py": "import headwater.errors",
    "wire/__init__.py": "from headwater.wire.sse import encode",
    "wire/sse.py": "from . import rules\nfrom ..errors import Lost",
    "wire/rules.py": "from headwater import errors",
    "streams.py": "import asyncio, time\nfrom headwater import __version__, model",
    "client.py": "from headwater.wire import encode",
    "testing/__init__.py": "from headwater import Streams",
}

BROKEN = [
    (unknown_rooms, {"extra.py": ""}, "headwater.extra has no floor"),
    (
        arrows_up,
        {"errors.py": "from headwater.model import Message", "wire/sse.py": "import headwater.streams"},
        "floor 4",
    ),
    (arrows_up, {"wire/sse.py": "from .. import streams"}, "headwater.wire.sse (floor 2) imports headwater.streams"),
    (arrows_up, {"model.py": "def late():\n    from headwater.streams import Streams"}, "headwater.streams (floor 4)"),
    (arrows_up, {"model.py": "if TYPE_CHECKING:\n    import headwater.streams"}, "headwater.streams (floor 4)"),
    (
        arrows_up,
        {"streams.py": "from headwater import Streams"},
        "headwater.streams (floor 4) imports headwater (floor 8.5)",
    ),
    (circles, {"errors.py": "import headwater.model"}, "headwater.model"),
    (circles, {"wire/rules.py": "from headwater.wire import encode"}, "headwater.wire.sse"),
    (circles, {"wire/rules.py": "from .sse import encode"}, "headwater.wire.sse"),
    (wrong_guests, {"client.py": "from headwater import streams"}, "headwater.client imports headwater.streams"),
    (wrong_guests, {"cli.py": "from headwater.testing import clock"}, "headwater.cli imports headwater.testing"),
    (impurities, {"model.py": "import time"}, "headwater.model is pure, but imports time"),
    (impurities, {"wire/sse.py": "def f():\n    from asyncio import sleep"}, "imports asyncio.sleep"),
    (impurities, {"errors.py": "from http import server"}, "imports http.server"),
    (impurities, {"errors.py": "from datetime import datetime\n\nnow = datetime.now()"}, "reads a clock in line 4"),
    (impurities, {"errors.py": "import datetime\nnow = datetime.datetime.utcnow"}, "reads a clock in line 3"),
    (oversized, {"model.py": "x = 1\n" * 500}, "file headwater.model: 501 lines"),
    (oversized, {"model.py": "class Big:\n" + "    x = 1\n" * 400}, "class headwater.model.Big: 401 lines"),
    (oversized, {"model.py": "async def big():\n" + "    x = 1\n" * 60}, "function headwater.model.big: 61 lines"),
    (empty_names, {"wire/utils.py": ""}, "headwater.wire.utils says nothing"),
    (empty_names, {"helpers/__init__.py": ""}, "headwater.helpers says nothing"),
    (undocumented, {"wire/__init__.py": "# no docstring"}, "headwater.wire has no docstring"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_house_passes(rule, tmp_path: Path) -> None:
    assert rule(build(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("rule", "files", "complaint"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_house_is_found_out(rule, files: dict[str, str], complaint: str, tmp_path: Path) -> None:
    complaints = rule(build(tmp_path, SOUND | files))
    assert len(complaints) == 1
    assert complaint in complaints[0]


def test_every_rule_is_seen_to_fail() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)
