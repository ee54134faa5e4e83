"""What the pages say about asking for usage is what the server and the command take."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tallybook.cli.program import build_parser
from tallybook.cli.usage_question import question_of as cli_question
from tallybook_server.question import Position, Usage, UsageQuery, UsageRow
from tallybook_server.tag_filters import PREFIXES
from tallybook_server.usage.asked import question_of, read_question
from tallybook_server.usage.checks import query_of
from tallybook_server.usage.written import PARAMETERS, written_question
from tests.ingest_server.conftest import running

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO = (DOCS / "how-to" / "ask-for-usage.md").read_text(encoding="utf-8")
HTTP = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in HOW_TO.split("\n## ")[1:]}
LOOP = "More rows than fit"


def commands_in(text: str, program: str) -> list[list[str]]:
    """The arguments of each call of *program* in the blocks of *text*."""
    blocks = "".join(re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL))
    lines = blocks.replace("\\\n", " ").replace("\n  ", "  ").splitlines()
    words = [shlex.split(line.removeprefix("$ ")) for line in lines if program in line]
    return [found[1:] for found in words if found[0] == program]


def of_curl(arguments: list[str]) -> UsageQuery:
    """The question that curl asks with *arguments*."""
    url = next(word for word in arguments if word.startswith("http://"))
    if url.endswith("/query"):
        return query_of(read_question(arguments[arguments.index("-d") + 1].encode()))
    places = [at + 1 for at, word in enumerate(arguments) if word == "--data-urlencode"]
    query_string = url.partition("?")[2]
    if places:
        pairs = [arguments[at].partition("=") for at in places]
        query_string = urlencode([(name, value) for name, _, value in pairs])
    return query_of(written_question(query_string.encode()))


def of_command(arguments: list[str]) -> UsageQuery:
    """The question that ``tallybook`` asks with *arguments*."""
    return query_of(question_of(cli_question(build_parser().parse_args(arguments))))


@pytest.mark.parametrize("title", [title for title in SECTIONS if "$ tallybook" in SECTIONS[title]])
def test_commands_and_urls_of_a_section_mean_the_same(title: str) -> None:
    """Each is read by what reads it in earnest; `as_of` is what the first answer named."""
    section = SECTIONS[title]
    commands = [of_command(words) for words in commands_in(section, "tallybook")]
    urls = [replace(of_curl(words), as_of=None) for words in commands_in(section, "curl")]
    assert commands
    assert set(map(repr, commands)) == set(map(repr, urls))


def test_every_question_of_the_reference_is_one() -> None:
    """By URL and as JSON."""
    questions = [words for words in commands_in(HTTP, "curl") if "/v1/usage" in " ".join(words)]
    assert len(questions) == 2
    for words in questions:
        assert of_curl(words).dimensions


def test_every_parameter_is_documented() -> None:
    """In the table of the reference."""
    section = HTTP.split("## GET /v1/usage\n")[1].split("### POST")[0]
    for name in (*PARAMETERS, *(f"{prefix}<key>" for prefix in PREFIXES)):
        assert f"`{name}`" in section, name


def test_the_loop_fetches_every_page(tmp_path: Path) -> None:
    """As it is printed, but for the port and the size of a page."""
    (loop,) = re.findall(r"```bash\n(.*?)```", SECTIONS[LOOP], re.DOTALL)
    rows = [UsageRow(None, None, "http.requests", f"t{n}", {}, "1", 1) for n in range(7)]
    with running(tmp_path / "data") as server:
        server.ledger.answer = Usage(rows, Position(1, 0), True, None, {}, "2026.1")
        address = str(server.http.base_url).rstrip("/")
        script = loop.replace("http://127.0.0.1:8255", address).replace("limit=10000", "limit=3")
        ran = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r'"tenant":"(t\d)"', ran.stdout) == [f"t{n}" for n in range(7)]


def test_the_python_of_the_page_runs() -> None:
    """And prints what it was told."""
    (program,) = re.findall(r"```python\n(.*?)```", HOW_TO, re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ran.stderr, ran.stdout.split()[:2]) == ("", ["acme", "1532"])
