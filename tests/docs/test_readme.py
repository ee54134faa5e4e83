"""The README's first screen works as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from tests.conftest import ServerProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def first_block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    if found is None:
        raise RuntimeError(f"no block of {language} in the README")
    return found.group(1)


def shown_answer() -> str:
    """What the README says that `tallybook usage` prints."""
    lines = README.split("$ tallybook usage http.requests --group-by tenant\n")[1].splitlines()
    return "\n".join(line.strip() for line in lines[:2])


def test_the_first_screen_ends_in_the_answer_that_it_shows(
    tmp_path: Path, server: ServerProcess
) -> None:
    """The application of the README, one request, and the answer is the one that is printed."""
    (tmp_path / "app.py").write_text(first_block("python"), encoding="utf-8")
    environment = os.environ | {
        "TALLYBOOK_ENDPOINT": server.url,
        "TALLYBOOK_DIRECTORY": str(tmp_path / "queue"),
    }
    application = subprocess.Popen(
        (sys.executable, "-m", "uvicorn", "app:app", "--port", "0", "--app-dir", str(tmp_path)),
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if application.stderr is None:
            raise RuntimeError("no stderr")
        url = next(
            found.group(1)
            for line in application.stderr
            if (found := re.search(r"running on (http://\S+)", line))
        )
        assert httpx.get(f"{url}/hello", headers={"x-tenant-id": "acme"}).text == "hello"
    finally:
        application.terminate()  # Its shutdown flushes.
        application.communicate(timeout=30)
    answer = subprocess.run(
        (sys.executable, "-m", "tallybook.cli", "usage", "http.requests", "--group-by", "tenant"),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == shown_answer()


def test_the_two_commands_are_the_ones_that_ci_runs() -> None:
    """The README's test command is the one in .ci/run, and the demo's extra exists."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    test, demo = "python3 -m venv .venv-test", "python3 -m venv .venv &&"
    (test_command,) = [line.strip() for line in README.splitlines() if test in line]
    (demo_command,) = [line.strip() for line in README.splitlines() if demo in line]
    assert test_command in ci
    assert demo_command.endswith(".venv/bin/tallybook demo")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "server" in extras["optional-dependencies"]
