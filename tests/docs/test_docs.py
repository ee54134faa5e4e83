"""The documentation is true: pages made from the source are fresh, and every name is there."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from starlette.routing import Route

import tallybook
from tallybook.meter import Meter
from tallybook_server.app import create_app
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.problem_types import EVENT_PROBLEMS, REQUEST_PROBLEMS
from tallybook_server.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


def load_generated() -> ModuleType:
    path = Path(__file__).with_name("generated.py")
    spec = importlib.util.spec_from_file_location("generated", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generated = load_generated()


@pytest.mark.parametrize("name", sorted(generated.PAGES))
def test_a_page_made_from_the_source_is_fresh(name: str) -> None:
    """The page is what the source says; `python tests/docs/generated.py` writes it anew."""
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == generated.PAGES[name]()


def test_every_option_of_a_meter_is_documented() -> None:
    """Each parameter of Meter, and its variable, is on the SDK's page."""
    page = (DOCS / "reference" / "sdk.md").read_text(encoding="utf-8")
    for name in inspect.signature(Meter).parameters:
        assert f"`{name}`" in page, name
        if name not in ("transport", "clock", "ids", "threads"):
            assert f"`TALLYBOOK_{name.upper()}`" in page, name


def test_every_public_name_is_documented() -> None:
    """What `tallybook` exports is on a page of the reference, and is really there."""
    pages = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "reference").glob("*.md"))
    for name in tallybook.__all__:
        assert hasattr(tallybook, name)
        if not name.startswith("__"):
            assert re.search(rf"\b{name}\b", pages), name


def test_every_route_and_problem_is_documented(tmp_path: Path) -> None:
    """Each route of the server, and each type of problem, is on the HTTP page."""
    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    ledger = EmbeddedLedger(tmp_path, threads=False)
    try:
        routes = create_app(ledger, Settings(directory=tmp_path)).routes
    finally:
        ledger.close()
    for route in routes:
        assert isinstance(route, Route)
        assert f" {route.path}`" in page, route.path
    for problem in (*REQUEST_PROBLEMS, *EVENT_PROBLEMS):
        assert f"`{problem.slug}`" in page, problem.slug


@pytest.mark.parametrize(
    "name", ["reference/sdk.md", "reference/middleware.md", "explanation/windows.md"]
)
def test_every_example_of_a_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page, one after another, as they are printed."""
    monkeypatch.setenv("TALLYBOOK_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("TALLYBOOK_CLOSE_SECONDS", "0")
    page = (DOCS / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    subprocess.run([sys.executable, "-c", "".join(blocks)], check=True, timeout=60)


def test_every_link_between_pages_leads_somewhere() -> None:
    """A relative link in the README or in docs names a file that is there."""
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
