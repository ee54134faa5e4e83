"""``tallybook usage``: the server's answer as a table or a file, and its refusals as sentences."""

from __future__ import annotations

import csv
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import duckdb
import httpx
import pytest

from tallybook_server.question import (
    AppliedRule,
    Explanation,
    Position,
    TagFilter,
    Usage,
    UsageQuery,
    UsageRow,
)
from tests.conftest import ServerProcess
from tests.ingest_server.conftest import Running, running
from tests.sdk.cli.conftest import NOWHERE, Command

EVENTS = [
    ("acme", "eu", "2026-10-25T00:30:00Z", "1"),
    ("acme", "us", "2026-10-25T01:30:00Z", "2.5"),
    ("globex", "eu", "2026-10-26T12:00:00Z", "4"),
]
OCTOBER_25 = 1_792_886_400_000_000  # 2026-10-25T00:00:00Z
HOUR = 3_600_000_000
PAGED = Usage(
    rows=[UsageRow(None, None, "calls", f"t{n}", {}, str(n), 1) for n in range(25)],
    position=Position(1, 0),
    complete=True,
    through=None,
    producers={},
    tzdata="2026.1",
    rules=[AppliedRule("calls", "call", "sum")],
    events=25,
)


@pytest.fixture(scope="module")
def endpoint(shared: ServerProcess) -> str:
    """A server that holds `EVENTS`."""
    events = [
        {
            "dimension": "calls",
            "tenant": tenant,
            "tags": {"region": region},
            "time": time,
            "value": value,
            "id": time,
            "source": "test",
        }
        for tenant, region, time, value in EVENTS
    ]
    httpx.post(f"{shared.url}/v1/events", json=events).raise_for_status()
    return shared.url


@pytest.fixture(scope="module")
def _paged(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with running(tmp_path_factory.mktemp("paged")) as server:
        yield server


@pytest.fixture
def paged(_paged: Running) -> Running:
    """A server whose ledger answers every question with `PAGED`, and keeps the questions."""
    _paged.ledger.answer = PAGED
    _paged.ledger.queries = ()
    return _paged


@pytest.fixture
def ask(tallybook: Command, paged: Running) -> Command:
    """``tallybook usage`` of the `paged` server."""
    return lambda *arguments, **variables: tallybook(
        "usage", *arguments, "--endpoint", str(paged.http.base_url), **variables
    )


# -- tables --------------------------------------------------------------------------------


def test_answer_is_an_aligned_table(tallybook: Command, endpoint: str) -> None:
    """Numbers stand at the right under their heads; the rest is words on standard error."""
    ran = tallybook("usage", "calls", "--group-by", "tenant", "--endpoint", endpoint)

    assert ran.out.splitlines() == [
        "tenant  value  events",
        "acme      3.5       2",
        "globex      4       1",
    ]
    assert ran.words.startswith("position 1.")
    assert "complete" in ran.words


def test_several_groups_may_be_named_at_once(tallybook: Command, endpoint: str) -> None:
    """Commas and repetition mean the same, and each name is a column."""
    commas = tallybook("usage", "calls", "--group-by", "tenant,tag:region", "--endpoint", endpoint)
    twice = tallybook(
        *("usage", "calls", "--group-by", "tenant", "--group-by", "tag:region"),
        *("--endpoint", endpoint),
    )

    assert commas.out == twice.out
    assert commas.rows[:2] == [["tenant", "region", "value", "events"], ["acme", "eu", "1", "1"]]


def test_bare_date_is_midnight_in_the_time_zone(tallybook: Command, endpoint: str) -> None:
    """The day on which Berlin's clocks go back has 25 hours, and its edges carry their offsets."""
    ran = tallybook(
        *("usage", "calls", "--from", "2026-10-25", "--to", "2026-10-26", "--window", "day"),
        *("--time-zone", "Europe/Berlin", "--endpoint", endpoint),
    )

    assert ran.rows[1:] == [["2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", "3.5", "2"]]


def test_tag_leaves_only_events_with_it(tallybook: Command, endpoint: str) -> None:
    """``--tag`` is the server's ``tag.``."""
    ran = tallybook("usage", "calls", "--tag", "region=eu", "--endpoint", endpoint)

    assert ran.rows[1:] == [["5", "2"]]


def test_aggregation_and_tenant_are_passed_on(tallybook: Command, endpoint: str) -> None:
    """``count`` counts events, of the one tenant."""
    ran = tallybook(
        *("usage", "calls", "--aggregation", "count", "--tenant", "acme", "--endpoint", endpoint)
    )

    assert ran.rows[1:] == [["2", "2"]]


def test_columns_appear_with_what_is_there(ask: Command, paged: Running) -> None:
    """Several dimensions, units and adjustments each have theirs; what is missing is a dash."""
    paged.ledger.answer = replace(
        PAGED,
        rows=[
            UsageRow(OCTOBER_25, OCTOBER_25 + HOUR, "calls", None, {}, "-1.5", 2, 1),
            UsageRow(OCTOBER_25 + HOUR, OCTOBER_25 + 2 * HOUR, "calls", "a", {"k": ""}, "2", 1),
            UsageRow(OCTOBER_25, OCTOBER_25 + HOUR, "seats", "a", {"k": "x"}, None, 0),
        ],
        rules=[
            AppliedRule("calls", "call", "sum"),
            AppliedRule("calls", "kcall", "sum", start=OCTOBER_25 + HOUR),
            AppliedRule("seats", "seat", "max"),
        ],
    )

    ran = ask(
        *("calls", "seats", "--group-by", "tenant,tag:k", "--window", "hour"),
        *("--from", "2026-10-25", "--to", "2026-10-26"),
    )

    assert [line[52:].rstrip() for line in ran.out.splitlines()] == [
        "  dimension  tenant  k  value  unit   events  adjustments",
        "  calls      -       -   -1.5  call        2            1",
        "  calls      a              2  kcall       1            0",
        "  seats      a       x      -  seat        0            0",
    ]


def test_explanation_is_words(ask: Command, paged: Running) -> None:
    """What was read is no data."""
    paged.ledger.answer = replace(PAGED, explanation=Explanation(("a", "b"), 1, 9, 4, 2, 1, 0.25))

    ran = ask("calls", "--explain")

    assert ran.words.splitlines()[0] == (
        "read 2 segments of 9 rows and 4 rows that are not sealed; 1 segment left out; 2 voided, "
        "1 adjustment; 0.250 seconds"
    )


def test_incomplete_answer_says_why(ask: Command, paged: Running) -> None:
    """With what is known to be missing."""
    paged.ledger.answer = replace(PAGED, complete=False, producers={"silent": 2, "missing": 7})

    ran = ask("calls")

    assert "NOT complete: 2 producers silent, 7 events announced and missing" in ran.words


# -- questions -----------------------------------------------------------------------------


def test_every_option_reaches_the_ledger(ask: Command, paged: Running) -> None:
    """Under the name that it has on the server."""
    ask(
        *("calls", "tokens", "--tenant", "acme", "--tenant", "", "--from", "2026-10-25"),
        *("--to", "2026-10-26T00:00:00Z", "--window", "month", "--month-day", "15", "--fill"),
        *("--time-zone", "UTC", "--group-by", "tenant,tag:a\\,b", "--group-by", "tag:k"),
        *("--tag", "a\\=b=c=d", "--tag", "a\\=b=e", "--not-tag", "n=1", "--prefix-tag", "p=/v1/"),
        *("--exists-tag", "x=true", "--exists-tag", "y=false", "--aggregation", "percentile"),
        *("--percentile", "99.9", "--order", "value", "--top", "3", "--as-of", "1.42"),
        *("--limit", "7", "--explain"),
    )

    assert paged.ledger.queries == (
        UsageQuery(
            ("calls", "tokens"),
            tenants=("acme", None),
            start=OCTOBER_25,
            end=OCTOBER_25 + 24 * HOUR,
            window="month",
            month_day=15,
            fill=True,
            by_tenant=True,
            by_tags=("a,b", "k"),
            filters=(
                TagFilter("a=b", "in", ("c=d", "e")),
                TagFilter("n", "not_in", ("1",)),
                TagFilter("p", "prefix", ("/v1/",)),
                TagFilter("x", "exists"),
                TagFilter("y", "absent"),
            ),
            aggregation="percentile",
            percentile="99.9",
            order="value",
            top=3,
            as_of=Position(1, 42),
            limit=7,
            explain=True,
        ),
    )


def test_unique_and_falling_order_reach_the_ledger(ask: Command, paged: Running) -> None:
    """What begins with a dash is written behind an equals sign."""
    ask("calls", "--aggregation", "unique", "--unique-of", "tag:user", "--order=-value")

    assert (paged.ledger.queries[0].unique_of, paged.ledger.queries[0].order) == ("user", "-value")


def test_as_of_may_be_a_bare_date(ask: Command, paged: Running) -> None:
    """The beginning of that day in the time zone."""
    ask("calls", "--as-of", "2026-10-25", "--time-zone", "Europe/Berlin")

    assert paged.ledger.queries[0].as_of_time == OCTOBER_25 - 2 * HOUR


# -- pages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["--json", "--csv", "--ndjson"])
def test_all_pages_are_fetched(ask: Command, paged: Running, tmp_path: Path, form: str) -> None:
    """Also beyond what the server gives at once; heads are there once, and each row is."""
    rows = [UsageRow(None, None, "calls", None, {}, str(n), 1) for n in range(100_002)]
    paged.ledger.answer = replace(PAGED, rows=rows)

    ran = ask("calls", form, "--output", "out")

    text = (tmp_path / "out").read_text(encoding="utf-8")
    if form == "--json":
        values = [row["value"] for row in json.loads(text)["data"]]
    elif form == "--csv":
        values = [row["value"] for row in csv.DictReader(text.splitlines())]
    else:
        values = [json.loads(line)["value"] for line in text.splitlines()]
    assert values == [str(n) for n in range(100_002)]
    assert [query.skip for query in paged.ledger.queries] == [0, 100_000]
    assert "there is more" not in ran.words


def test_limit_stops_and_a_cursor_goes_on(ask: Command) -> None:
    """The cursor is named where there is more; the last part names none."""
    first = ask("calls", "--group-by", "tenant", "--limit", "20", "--ndjson")
    cursor = first.words.split("there is more: --cursor ")[1].strip()
    rest = ask("calls", "--group-by", "tenant", "--cursor", cursor, "--ndjson")

    lines = [*first.out.splitlines(), *rest.out.splitlines()]
    assert [json.loads(line)["tenant"] for line in lines] == [f"t{n}" for n in range(25)]
    assert len(first.out.splitlines()) == 20
    assert "there is more" not in rest.words


# -- formats -------------------------------------------------------------------------------


def test_json_is_the_document_of_the_server(tallybook: Command, endpoint: str) -> None:
    """Nothing is renamed on the way."""
    ran = tallybook("usage", "calls", "--json", "--endpoint", endpoint)

    assert ran.json == httpx.get(f"{endpoint}/v1/usage?dimension=calls").json()


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_table_formats_are_the_bytes_of_the_server(
    ask: Command, paged: Running, suffix: str
) -> None:
    """With the basis of the answer in words, as ever."""
    ran = ask("calls", "--group-by", "tenant", f"--{suffix}")

    answer = paged.http.get(f"/v1/usage.{suffix}?dimension=calls&group_by=tenant")
    assert ran.out == answer.text.replace("\r\n", "\n")
    assert ran.words.startswith(f"position {paged.ledger.position()}; complete")


def test_parquet_goes_into_a_file(ask: Command, tmp_path: Path) -> None:
    """One that other programs read."""
    ran = ask("calls", "--group-by", "tenant", "--parquet", "--output", "usage.parquet")

    with duckdb.connect(":memory:") as db:
        found = db.execute(f"SELECT value FROM '{tmp_path}/usage.parquet'").fetchall()
    assert found == [(str(n),) for n in range(25)]
    assert (ran.code, ran.out) == (0, "")


def test_table_goes_into_a_file_too(ask: Command, tmp_path: Path) -> None:
    """Whatever is printed can be kept."""
    printed = ask("calls", "--group-by", "tenant")
    ask("calls", "--group-by", "tenant", "--output", "usage.txt")

    assert (tmp_path / "usage.txt").read_text(encoding="utf-8") == printed.out


def test_file_appears_only_when_it_is_complete(ask: Command, tmp_path: Path) -> None:
    """A refusal leaves the one that was there before, and nothing beside it."""
    (tmp_path / "usage.csv").write_text("before", encoding="utf-8")

    ran = ask("calls", "--window", "weeks", "--csv", "--output", "usage.csv")

    assert ran.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["usage.csv"]
    assert (tmp_path / "usage.csv").read_text(encoding="utf-8") == "before"


def test_two_formats_are_refused(ask: Command) -> None:
    """Which one was meant cannot be known."""
    ran = ask("calls", "--json", "--csv")

    assert (ran.code, ran.out) == (2, "")
    assert ran.words == "tallybook: --json and --csv are two formats; expected one\n"


def test_incomplete_table_format_says_so(ask: Command, paged: Running) -> None:
    """And where to find out more."""
    paged.ledger.answer = replace(PAGED, complete=False)

    assert "NOT complete: --json says what is known to be missing" in ask("calls", "--csv").words


# -- refusals ------------------------------------------------------------------------------


def test_endpoint_comes_from_the_environment(tallybook: Command, endpoint: str) -> None:
    """TALLYBOOK_ENDPOINT is the default."""
    assert tallybook("usage", "calls", TALLYBOOK_ENDPOINT=endpoint).rows[1:] == [["7.5", "3"]]


def test_refusal_is_title_and_detail(tallybook: Command, endpoint: str) -> None:
    """A problem document becomes a sentence; exit 2, since the question has to change."""
    ran = tallybook("usage", "Calls", "--endpoint", endpoint)

    assert ran.code == 2
    assert ran.words.startswith("tallybook: A parameter has a value that it cannot have: ")
    assert "dimension is 'Calls'" in ran.words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--group-by", "region"), "Did you mean 'tag:region'?"),
        (("--group-by", ""), "group_by has ''"),
        (("--tag", "region"), "expected key=value"),
        (("--exists-tag", "region=yes"), "expected region=true, or region=false"),
        (("--window", "day"), "window=day needs both from and to"),
        (("--aggregation", "mean"), "expected one of sum, count, min"),
        (("--top", "0"), "expected 1 or more"),
        (("--cursor", "x"), "The cursor does not belong to this question"),
    ],
)
def test_wrong_option_is_a_sentence(ask: Command, arguments: tuple[str, str], said: str) -> None:
    """Whether the command or the server finds it."""
    ran = ask("calls", *arguments)

    assert (ran.code, ran.out) == (2, "")
    assert said in ran.words


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "Europe"])
def test_unknown_time_zone_is_a_sentence(tallybook: Command, endpoint: str, zone: str) -> None:
    """Also where the command itself has to read the zone, for a bare date."""
    ran = tallybook(
        "usage", "calls", "--from", "2026-10-25", "--time-zone", zone, "--endpoint", endpoint
    )

    assert ran.code == 2
    assert repr(zone) in ran.words
    assert "Traceback" not in ran.words


def test_day_that_does_not_exist_is_a_sentence(tallybook: Command, endpoint: str) -> None:
    """2026 is no leap year."""
    ran = tallybook("usage", "calls", "--from", "2026-02-29", "--endpoint", endpoint)

    assert ran.code == 2
    assert "there is no day 2026-02-29" in ran.words


def test_server_away_is_exit_3(tallybook: Command) -> None:
    """The endpoint is named, with how to start a server."""
    ran = tallybook("usage", "calls", "--endpoint", NOWHERE)

    assert ran.code == 3
    assert ran.words.startswith(f"tallybook: no answer from {NOWHERE}: ")
    assert ran.out == ""
