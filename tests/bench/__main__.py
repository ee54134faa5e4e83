"""
tallybook, measured side by side with the alternatives on this machine.

    nox -s bench                        everything, about ten minutes
    nox -s bench -- record --quick      one benchmark, some seconds
    nox -s bench -- --json              one JSON document

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
from tests.bench.ingest import run as run_ingest
from tests.bench.latency import run as run_latency
from tests.bench.middleware import run as run_middleware
from tests.bench.pipeline import run as run_pipeline
from tests.bench.record import run as run_record
from tests.bench.stages import run_stages
from tests.bench.table import Table


class _Benchmark(Protocol):
    def __call__(self, *, quick: bool) -> Table: ...


_BENCHMARKS: Final[dict[str, _Benchmark]] = {
    "record": run_record,
    "latency": run_latency,
    "queue": run_queue,
    "middleware": run_middleware,
    "ingest": run_ingest,
    "stages": run_stages,
    "pipeline": run_pipeline,
}


def main() -> int:
    """Run what was asked for, and print each table when it is ready."""
    parser = argparse.ArgumentParser(
        prog="nox -s bench --",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(_BENCHMARKS)
    parser.add_argument("name", nargs="*", help=f"which: {names}; all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="shorter, and less to be trusted")
    parser.add_argument("--json", action="store_true", help="one document instead of tables")
    arguments = parser.parse_args()
    unknown = set(arguments.name) - set(_BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {names}")
    for variable in [name for name in os.environ if name.startswith("TALLYBOOK_")]:
        del os.environ[variable]
    tables = []
    for name in arguments.name or _BENCHMARKS:
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
