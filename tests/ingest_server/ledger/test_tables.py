"""DuckDB, as the ledger opens it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from tallybook_server.tables import open_database
folder = Path(sys.argv[1])
database = open_database(folder, folder, memory_bytes=1 << 28)
print(database.execute("SELECT current_setting('enable_progress_bar')").fetchone())
"""


def test_no_progress_bar_is_drawn_on_stdout(tmp_path: Path) -> None:
    """DuckDB takes ``python -c`` for a person at a terminal; stdout is the application's."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "(False,)\n"
