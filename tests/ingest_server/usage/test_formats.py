"""Which format is asked for. RFC 9110 section 12.5.1."""

from __future__ import annotations

import pytest

from tallybook_server.problems import Problem
from tallybook_server.usage.formats import FORMATS, Format, accepted, by_suffix

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "suffix"),
    [
        (None, "json"),
        ("*/*", "json"),
        (BROWSER, "json"),
        ("application/json", "json"),
        ("text/csv", "csv"),
        ("TEXT/CSV", "csv"),
        ("text/*", "csv"),
        ("application/x-ndjson", "ndjson"),
        ("application/vnd.apache.parquet", "parquet"),
        ("application/*", "json"),
        ("text/csv;q=0.5, application/x-ndjson;q=0.9", "ndjson"),
        ("text/csv; q=0.5 , application/x-ndjson ; Q=0.501", "ndjson"),
        ("application/json;q=0.5, */*;q=0.1", "json"),
        ("application/json;q=0.1, */*;q=0.5", "csv"),
        ("application/json;q=0, */*", "csv"),
        ("application/*;q=0.2, application/json;q=0.1, text/csv;q=0.15", "ndjson"),
        ("text/csv, application/json", "json"),
        ("text/csv; charset=utf-8", "csv"),
        ("nonsense, text/csv", "csv"),
        ("text/csv;q=high, application/json;q=0.1", "json"),
    ],
)
def test_the_most_welcome_format_is_taken(accept: str | None, suffix: str) -> None:
    """The most specific range decides; of equally welcome ones, JSON comes first."""
    assert accepted(accept).suffix == suffix


@pytest.mark.parametrize(
    "accept",
    ["text/html", "", "*/*;q=0", "text/csv;q=0", "text/csv;q=2", "text/xml, image/*"],
)
def test_what_is_not_there_is_refused_with_what_is(accept: str) -> None:
    """406, naming the media types."""
    with pytest.raises(Problem) as caught:
        accepted(accept)
    assert caught.value.kind.slug == "not-acceptable"
    assert caught.value.more == {"available": [one.media_type for one in FORMATS]}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_a_suffix(form: Format) -> None:
    """For a browser, and for whoever cannot set a header."""
    assert by_suffix(form.suffix) is form


def test_an_unknown_suffix_is_not_found() -> None:
    """The address is wrong, and the answer says which are right."""
    with pytest.raises(Problem, match="expected one of json, csv, ndjson, parquet"):
        by_suffix("xlsx")
