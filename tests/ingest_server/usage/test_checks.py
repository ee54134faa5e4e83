"""Whether a question makes sense: one set of checks for URLs and for JSON."""

from __future__ import annotations

from typing import Any

import pytest

from tallybook_server.problems import Problem
from tallybook_server.question import Position, UsageQuery
from tallybook_server.usage.asked import question_of
from tallybook_server.usage.checks import query_of

DAY = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}


def asked(**fields: object) -> UsageQuery:
    """The query of a question about ``calls``."""
    return query_of(question_of({"dimension": "calls"} | fields))


def refused(fields: dict[str, Any]) -> Problem:
    """What is wrong with a question about ``calls``."""
    with pytest.raises(Problem) as caught:
        asked(**fields)
    return caught.value


def test_top_means_the_largest() -> None:
    """Whoever asks for the first ten without an order means the top ten."""
    assert asked(top=10).order == "-value"


@pytest.mark.parametrize("order", ["group", "value"])
def test_an_order_that_is_given_stands(order: str) -> None:
    """Also together with a top."""
    assert asked(top=10, order=order).order == order


def test_rows_come_by_group_unless_asked() -> None:
    """Without a top, and without an order."""
    assert asked().order == "group"


def test_names_that_are_repeated_mean_the_same() -> None:
    """A list that was put together by a program may hold a name twice."""
    query = asked(dimension=["a", "b", "a"], tenant=["x", "x"], group_by=["tag:k", "tag:k"])
    assert (query.dimensions, query.tenants, query.by_tags) == (("a", "b"), ("x",), ("k",))


def test_as_of_is_a_position() -> None:
    """As an answer names it."""
    assert asked(as_of="2.42").as_of == Position(2, 42)


def test_as_of_is_a_time_of_recording() -> None:
    """RFC 3339, like the other times."""
    query = asked(as_of="2026-01-01T00:00:00Z")
    assert (query.as_of, query.as_of_time) == (None, 1_767_225_600_000_000)


@pytest.mark.parametrize(
    ("unique_of", "expected"), [("value", None), ("tag:user", "user"), ("tag:value", "value")]
)
def test_unique_is_of_the_value_or_of_a_tag(unique_of: str, expected: str | None) -> None:
    """A tag that is called value is one all the same."""
    assert asked(aggregation="unique", unique_of=unique_of).unique_of == expected


@pytest.mark.parametrize(
    ("given", "canonical"),
    [("99.90", "99.9"), ("100", "100"), ("050", "50"), ("0.000000001", "0.000000001")],
)
def test_a_percentile_is_exact_decimal_text(given: str, canonical: str) -> None:
    """Equal ones are the same question."""
    assert asked(aggregation="percentile", percentile=given).percentile == canonical


@pytest.mark.parametrize(
    ("fields", "missing", "said"),
    [
        ({"window": "day"}, "from", "window=day needs both from and to"),
        ({"window": "day", "from": DAY["from"]}, "to", "window=day needs both from and to"),
        ({"fill": True}, "window", "fill needs a window"),
        ({"aggregation": "percentile"}, "percentile", "percentile=99.9"),
        ({"percentile": "95"}, "aggregation", "percentile needs aggregation=percentile"),
        ({"aggregation": "unique"}, "unique_of", "unique_of=tag:user"),
        ({"unique_of": "value"}, "aggregation", "unique_of needs aggregation=unique"),
        ({"aggregation": "time_weighted"}, "to", "a level holds until something ends it"),
    ],
)
def test_what_needs_another_parameter_names_it(
    fields: dict[str, Any], missing: str, said: str
) -> None:
    """The problem's ``parameter`` is the one to add."""
    problem = refused(fields)
    assert (problem.kind.slug, problem.more) == ("parameter-missing", {"parameter": missing})
    assert said in problem.detail


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"aggregation": "sum", "percentile": "95"}, ["percentile", "aggregation"]),
        ({"aggregation": "sum", "unique_of": "value"}, ["unique_of", "aggregation"]),
        ({"window": "day", "month_day": 15} | DAY, ["month_day", "window"]),
        ({"month_day": 1}, ["month_day", "window"]),
        (
            {"filters": [{"tag": "a", "exists": False}, {"tag": "a", "in": "x"}]},
            ["exists.tag.a", "tag.a"],
        ),
        (
            {"filters": [{"tag": "a", "exists": False}, {"tag": "a", "prefix": "x"}]},
            ["exists.tag.a", "prefix.tag.a"],
        ),
        (
            {"filters": [{"tag": "a", "exists": False}, {"tag": "a", "exists": True}]},
            ["exists.tag.a", "exists.tag.a"],
        ),
        (
            {"filters": [{"tag": "a", "in": ["x", "y"]}, {"tag": "a", "not_in": ["y", "z"]}]},
            ["not.tag.a", "tag.a"],
        ),
    ],
)
def test_a_contradiction_names_both_parameters(
    fields: dict[str, Any], parameters: list[str]
) -> None:
    """An empty answer would hide that the question is wrong."""
    problem = refused(fields)
    assert (problem.kind.slug, problem.more) == ("parameters-conflict", {"parameters": parameters})


def test_filters_of_different_tags_do_not_contradict() -> None:
    """Nor does a refusal beside an absence, which says less."""
    filters = [
        {"tag": "a", "exists": False},
        {"tag": "b", "in": "x"},
        {"tag": "a", "not_in": "x"},
    ]
    assert len(asked(filters=filters).filters) == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"percentile": "0", "aggregation": "percentile"}, "above 0 and up to 100"),
        ({"percentile": "100.1", "aggregation": "percentile"}, "above 0 and up to 100"),
        ({"percentile": "9e1", "aggregation": "percentile"}, "above 0 and up to 100"),
        ({"unique_of": "user", "aggregation": "unique"}, "Did you mean 'tag:user'?"),
        ({"window": "month", "month_day": 32} | DAY, "month_day is 32; expected 1 to 31"),
        ({"window": "month", "month_day": 0} | DAY, "month_day is 0; expected 1 to 31"),
        ({"top": 0}, "top is 0; expected 1 to 100000"),
        ({"limit": 100_001}, "limit is 100001; expected 1 to 100000"),
        ({"as_of": "42"}, "as_of: time is '42'"),
        ({"as_of": "0.42"}, "a position, such as 1.42"),
        ({"order": "values"}, "Did you mean 'value'"),
        ({"from": DAY["to"], "to": DAY["from"]}, "after from"),
        ({"from": DAY["to"], "to": DAY["to"]}, "half-open"),
        ({"tenant": [""]}, "tenant is empty"),
    ],
)
def test_a_value_outside_its_bounds_is_refused(fields: dict[str, Any], said: str) -> None:
    """With the value that was seen, and what was expected."""
    problem = refused(fields)
    assert problem.kind.slug == "parameter-invalid"
    assert said in problem.detail


@pytest.mark.parametrize("zone", ["Europe/Berln", "../../etc/passwd", ""])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    """Without opening a file that its name leads to."""
    assert refused({"time_zone": zone}).kind.slug == "time-zone-unknown"
