"""
tallybook, measured side by side with the alternatives on this machine.

    nox -s bench                              everything, about an hour
    nox -s bench -- record --quick            one benchmark, some seconds
    nox -s bench -- growth --events 20000000  another size than its own
    nox -s bench -- --json                    one JSON document

The exit code is 1 when a count was not exact, whatever the figures are: speed is judged by
a reader, counting by the program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Final, Protocol

# This folder is on the path, since it is run by its name; its modules are `tests.bench.*`.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.flat_out import run as run_queue
from tests.bench.growth import run as run_growth
from tests.bench.ingest import run as run_ingest
from tests.bench.latency import run as run_latency
from tests.bench.middleware import run as run_middleware
from tests.bench.mixed import run as run_mixed
from tests.bench.pipeline import run as run_pipeline
from tests.bench.query import run as run_query
from tests.bench.record import run as run_record
from tests.bench.stages import run_stages
from tests.bench.storage import run as run_storage
from tests.bench.table import Table
from tests.bench.verify import run as run_verify


class _Benchmark(Protocol):
    def __call__(self, *, quick: bool) -> Table: ...


class _Sized(Protocol):
    """One that takes a number of events."""

    def __call__(self, *, quick: bool, events: int | None = None) -> Table: ...


_BENCHMARKS: Final[dict[str, _Benchmark]] = {
    "record": run_record,
    "latency": run_latency,
    "queue": run_queue,
    "middleware": run_middleware,
    "ingest": run_ingest,
    "stages": run_stages,
    "pipeline": run_pipeline,
    "storage": run_storage,
    "mixed": run_mixed,
}
_SIZED: Final[dict[str, _Sized]] = {
    "query": run_query,
    "growth": run_growth,
    "verify": run_verify,
}
_EVENTS_MIN: Final = 10_000
_NAMES: Final = (*_BENCHMARKS, *_SIZED)


def main() -> int:
    """Run what was asked for, and print each table when it is ready."""
    parser = argparse.ArgumentParser(
        prog="nox -s bench --",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(_NAMES)
    parser.add_argument("name", nargs="*", help=f"which: {names}; all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="shorter, and less to be trusted")
    parser.add_argument("--events", type=int, help=f"how many, with {', '.join(_SIZED)}")
    parser.add_argument("--json", action="store_true", help="one document instead of tables")
    arguments = parser.parse_args()
    unknown = set(arguments.name) - set(_NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {names}")
    chosen: list[str] = arguments.name or list(_NAMES)
    if arguments.events is not None:
        if arguments.events < _EVENTS_MIN:
            parser.error(f"--events is {arguments.events}; expected at least {_EVENTS_MIN}")
        if unsized := sorted(set(chosen) - set(_SIZED)):
            parser.error(f"--events means nothing to {', '.join(unsized)}; name others")
    for variable in [name for name in os.environ if name.startswith("TALLYBOOK_")]:
        del os.environ[variable]
    tables = []
    for name in chosen:
        if name in _SIZED:
            table = _SIZED[name](quick=arguments.quick, events=arguments.events)
        else:
            table = _BENCHMARKS[name](quick=arguments.quick)
        tables.append(table)
        if not arguments.json:
            print(table.text(), end="\n\n", flush=True)
    if arguments.json:
        machine = {"python": platform.python_version(), "cores": os.cpu_count()}
        print(json.dumps(machine | {"tables": [table.document() for table in tables]}, indent=2))
    return 0 if all(row.correct for table in tables for row in table.rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
