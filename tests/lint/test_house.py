"""
The house rules that neither a type checker nor import-linter can see.

Time, chance, disk and network enter through constructor arguments. That is what lets one
seeded process play years of faults over the real code, and a single forgotten
`time.time()` would end it without a sound. So the installed source is read here, name by
name. What is checked is the installed packages, which under nox is the wheel.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGES = ("tallybook", "tallybook_middleware", "tallybook_server")

CLOCK = "clock"
CHANCE = "chance"
NETWORK = "network"
DISK = "disk"

# A name stands for itself and for whatever lies below it: `socket` covers `socket.socket`.
# Measuring a duration (`time.perf_counter`) and waiting are not here: they decide no count.
REACHES = {
    "time.time": CLOCK,
    "time.time_ns": CLOCK,
    "time.monotonic": CLOCK,
    "time.monotonic_ns": CLOCK,
    "datetime.datetime.now": CLOCK,
    "datetime.datetime.utcnow": CLOCK,
    "datetime.datetime.today": CLOCK,
    "datetime.date.today": CLOCK,
    "os.urandom": CHANCE,
    "os.getrandom": CHANCE,
    "random": CHANCE,
    "secrets": CHANCE,
    "uuid": CHANCE,
    "socket": NETWORK,
    "sqlite3.connect": DISK,
}


class Owner(NamedTuple):
    """What a module may reach for, and why it and no other."""

    of: frozenset[str]
    reason: str


# A package owns for the modules inside it.
OWNERS = {
    "tallybook.clock": Owner(
        frozenset({CLOCK, CHANCE}), "it is the clock and the id source that are handed in"
    ),
    "tallybook.queue": Owner(
        frozenset({DISK}), "one connection per queue file: two can corrupt a WAL database"
    ),
    "tallybook.transport": Owner(
        frozenset({NETWORK}), "it is the one seam between the SDK and the network"
    ),
    "tallybook_server.journal": Owner(
        frozenset({DISK}), "the ledger has one writer, and this is its connection"
    ),
    "tallybook_server.cli": Owner(frozenset({NETWORK}), "it opens the port that it serves"),
    "tallybook_server.demo": Owner(frozenset({NETWORK}), "it looks for a free port"),
}


class Reach(NamedTuple):
    """A name, written out in full, that hands out time, chance, disk or network."""

    line: int
    name: str
    kind: str


def reaches(source: str) -> list[Reach]:
    """
    Every place where *source* reaches for time, chance, disk or network.

    A mention counts, not only a call: `now=time.time` as a default is the same reach. Names
    are followed through `import ... as` and `from ... import`, not through assignments.
    """
    tree = ast.parse(source)
    mentions = [*_imported(tree)]
    full_names = {bound: full for _, bound, full in mentions}
    found = {(line, full) for line, _, full in mentions}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in full_names:
                found.add((node.lineno, full_names[first] + dot + rest))
    return sorted(Reach(line, name, kind) for line, name in found if (kind := _kind(name)))


def _imported(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Each imported name: its line, the name it is bound to, and its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield node.lineno, alias.asname or top, alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name, f"{node.module}.{alias.name}"


def _kind(name: str) -> str | None:
    """The kind of *name* or of the shortest prefix that is listed; None for a harmless one."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((REACHES[prefix] for prefix in prefixes if prefix in REACHES), None)


def trespasses(module: str, source: str) -> list[str]:
    """The reaches in *module* that it does not own, as sentences."""
    owned = {
        kind
        for name, owner in OWNERS.items()
        if module == name or module.startswith(f"{name}.")
        for kind in owner.of
    }
    return [
        f"{module}:{reach.line} reaches for {reach.name} ({reach.kind}); take it as an argument"
        for reach in reaches(source)
        if reach.kind not in owned
    ]


def installed_modules() -> Iterator[tuple[str, Path]]:
    """Every module of the three packages, with its file."""
    for package in PACKAGES:
        folder = package_folder(package)
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


def package_folder(package: str) -> Path:
    """Where *package* is installed, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"{package} is not installed: pip install '.[server,test]'")
    return Path(spec.submodule_search_locations[0])


def test_only_owners_reach_for_time_chance_disk_and_network() -> None:
    """No module outside `OWNERS` reads a clock, draws at random, or opens a socket or database."""
    found = [
        trespass
        for module, path in installed_modules()
        for trespass in trespasses(module, path.read_text(encoding="utf-8"))
    ]

    assert found == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import time\nnow = time.time()", "time.time"),
        ("import time as t\nnow = t.time_ns()", "time.time_ns"),
        ("import time\ndef wait(clock=time.monotonic): ...", "time.monotonic"),
        ("from time import monotonic as m", "time.monotonic"),
        ("def late():\n    import time\n    return time.time()", "time.time"),
        ("from datetime import UTC, datetime\nnow = datetime.now(UTC)", "datetime.datetime.now"),
        ("import datetime as d\nnow = d.datetime.now(d.UTC)", "datetime.datetime.now"),
        ("import os.path\nid = os.urandom(16)", "os.urandom"),
        ("import secrets", "secrets"),
        ("from uuid import uuid4", "uuid.uuid4"),
        ("import random", "random"),
        ("import socket", "socket"),
        ("import sqlite3\ndb = sqlite3.connect('x')", "sqlite3.connect"),
        ("from sqlite3 import connect", "sqlite3.connect"),
    ],
)
def test_a_planted_reach_is_found(source: str, name: str) -> None:
    """Each listed name is found, however it was imported."""
    assert name in [reach.name for reach in reaches(source)]


@pytest.mark.parametrize(
    "source",
    [
        "import time\nstarted = time.perf_counter()",
        "import sqlite3\nrow: sqlite3.Row",
        "import os\nos.fsync(3)",
        "def record(value, *, time=None):\n    return time.time",
        "from datetime import UTC, datetime\nthen = datetime.fromtimestamp(0, UTC)",
        "from .random import choose",
        "text = 'time.time()'  # time.time()",
    ],
)
def test_a_harmless_mention_is_not_found(source: str) -> None:
    """A duration, a type, an argument of that name, or a text is no reach."""
    assert reaches(source) == []


def test_a_planted_reach_outside_its_owner_is_a_trespass() -> None:
    """The same line is fine in the module that owns it and refused everywhere else."""
    source = "import sqlite3\ndb = sqlite3.connect('x')"

    assert trespasses("tallybook.queue", source) == []
    assert trespasses("tallybook.meter", source) == [
        "tallybook.meter:2 reaches for sqlite3.connect (disk); take it as an argument"
    ]


def test_an_owner_owns_only_its_kind() -> None:
    """The queue may open its database, but the time is handed to it like to all others."""
    assert trespasses("tallybook.queue", "from time import time") == [
        "tallybook.queue:1 reaches for time.time (clock); take it as an argument"
    ]


@pytest.mark.parametrize("heavy", ["asyncio", "dataclasses", "duckdb", "httpx", "starlette"])
def test_import_tallybook_does_not_load(heavy: str, tmp_path: Path) -> None:
    """`import tallybook` stays quick: httpx alone costs 100 ms, so what is heavy waits for use."""
    program = (
        "import sys; before = set(sys.modules); import tallybook; "
        "print(*sorted(set(sys.modules) - before))"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()

    assert "tallybook" in loaded
    assert heavy not in loaded


@pytest.mark.parametrize("package", PACKAGES)
def test_package_ships_its_types(package: str) -> None:
    """Each package carries `py.typed`, without which type checkers ignore what it says."""
    assert (package_folder(package) / "py.typed").is_file()


def test_light_install_requires_three_libraries() -> None:
    """Outside the extras, the distribution requires httpx, msgspec, backports.zstd; no more."""
    required = importlib.metadata.requires("tallybook") or []
    light = {
        re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()
        for requirement in required
        if "extra ==" not in requirement
    }

    assert light == {"backports-zstd", "httpx", "msgspec"}
