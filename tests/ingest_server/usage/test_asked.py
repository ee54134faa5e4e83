"""A question as JSON: strict types, no unknown field, and the same as a URL."""

from __future__ import annotations

import json

import pytest

from tallybook_server.problems import Problem
from tallybook_server.question import UsageQuery
from tallybook_server.usage.asked import UsageQuestion, read_question
from tallybook_server.usage.checks import query_of
from tallybook_server.usage.written import PARAMETERS, written_question


def asked(body: str) -> UsageQuery:
    """The query that a JSON body asks."""
    return query_of(read_question(body.encode()))


def refused(body: bytes) -> str:
    """The slug of what is wrong with a body, and the detail."""
    with pytest.raises(Problem) as caught:
        read_question(body).tag_filters()
    return f"{caught.value.kind.slug}: {caught.value.detail}"


def test_json_and_url_are_one_question() -> None:
    """Every field, written in both ways, is the same query."""
    body = """{
        "dimension": ["calls", "tokens"], "tenant": ["acme", null],
        "from": "2026-01-01T00:00:00Z", "to": "2026-03-01T00:00:00Z",
        "window": "month", "month_day": 15, "time_zone": "Europe/Berlin", "fill": true,
        "group_by": ["tenant", "tag:a,b"],
        "filters": [
            {"tag": "region", "in": ["eu", "us"]}, {"tag": "plan", "not_in": ["free"]},
            {"tag": "route", "prefix": ["/v1/"]}, {"tag": "user", "exists": true}],
        "aggregation": "percentile", "percentile": "99.9", "order": "value", "top": 3,
        "as_of": "1.7", "limit": 10, "explain": true}"""
    url = (
        b"dimension=calls,tokens&tenant=acme&tenant=&from=2026-01-01T00:00:00Z"
        b"&to=2026-03-01T00:00:00Z&window=month&month_day=15&time_zone=Europe/Berlin&fill=true"
        b"&group_by=tenant,tag:a%5C,b&tag.region=eu&tag.region=us&not.tag.plan=free"
        b"&prefix.tag.route=/v1/&exists.tag.user=true&aggregation=percentile&percentile=99.9"
        b"&order=value&top=3&as_of=1.7&limit=10&explain=true"
    )
    assert asked(body) == query_of(written_question(url))


def test_both_ways_have_the_same_names() -> None:
    """But for the filters, which a URL writes with prefixes."""
    names = {field.alias or name for name, field in UsageQuestion.model_fields.items()}
    assert names == {*PARAMETERS, "filters"}


def test_one_name_is_as_good_as_a_list_of_one() -> None:
    """For people who write JSON by hand."""
    one = asked('{"dimension": "a", "tenant": "x", "filters": [{"tag": "k", "in": "v"}]}')
    many = asked('{"dimension": ["a"], "tenant": ["x"], "filters": [{"tag": "k", "in": ["v"]}]}')
    assert one == many


def test_a_whole_percentile_may_be_a_number() -> None:
    """It is exact as it stands."""
    body = '{"dimension": "a", "aggregation": "percentile", "percentile": 95}'
    assert asked(body).percentile == "95"


def test_null_is_as_good_as_nothing() -> None:
    """As programs write what is not set; the tenant is the exception."""
    assert asked('{"dimension": "a", "from": null, "window": null}') == asked('{"dimension": "a"}')


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[]", "not-json: the body is []; expected a JSON object"),
        ("calls", "not-json: the body is not JSON"),
        ('{"dimension": NaN}', "not-json: the body is not JSON: NaN is not JSON"),
        ("[" * 100_000, "nested-too-deeply"),
        ('{"limit": ' + "9" * 5000 + "}", "not-json"),
        ("{}", "parameter-missing: dimension is missing"),
        ('{"dimension": []}', "parameter-invalid: dimension is an empty list"),
        ('{"dimension": "a", "dimension": "b"}', "parameter-invalid: dimension is there twice"),
        ('{"dimension": 5}', "parameter-invalid: dimension is 5; expected a valid list"),
        ('{"dimension": ["a", 5]}', "parameter-invalid: dimension[1] is 5; expected a valid str"),
        ('{"dimension": "a", "windw": "day"}', "Did you mean 'window'?"),
        ('{"dimension": "a", "start": "x"}', "parameter-unknown: there is no parameter 'start'"),
        ('{"dimension": "a", "tenant": null}', "tenant is null; leave it out for all tenants"),
        ('{"dimension": "a", "tenant": []}', "parameter-invalid: tenant is an empty list"),
        ('{"dimension": "a", "limit": "10"}', 'limit is "10"; expected a valid integer'),
        ('{"dimension": "a", "limit": 10.0}', "limit is 10.0; expected a valid integer"),
        ('{"dimension": "a", "limit": true}', "limit is true; expected a valid integer"),
        ('{"dimension": "a", "fill": "true"}', 'fill is "true"; expected a valid boolean'),
        ('{"dimension": "a", "percentile": 99.9}', 'expected text, such as "99.9", which is exact'),
        ('{"dimension": "a", "percentile": true}', "percentile is true; expected a valid string"),
        ('{"dimension": "a", "tenant": "\\ud800"}', "surrogates not allowed"),
        ('{"dimension": "a", "\\ud800": 1}', "surrogates not allowed"),
        ('{"dimension": "a", "filters": [{"in": ["x"]}]}', "filters[0].tag is missing"),
        ('{"dimension": "a", "filters": [{"tag": "k"}]}', "filters[0] has 0 tests of the tag 'k'"),
        ('{"dimension": "a", "filters": [{"tag": "k", "in": []}]}', "filters[0] compares with no"),
        (
            '{"dimension": "a", "filters": [{"tag": "k", "in": ["x"], "exists": true}]}',
            "filters[0] has 2 tests",
        ),
        (
            '{"dimension": "a", "filters": [{"tag": "k", "notin": ["x"]}]}',
            "there is no parameter 'filters[0].notin'. Did you mean 'not_in'",
        ),
    ],
)
def test_a_wrong_body_is_refused_by_name(body: str, said: str) -> None:
    """The name is the path in the document."""
    assert said in refused(body.encode())


def test_a_body_that_is_not_utf8_is_no_json() -> None:
    """JSON is UTF-8; other encodings are not guessed."""
    assert refused('{"dimension": "a"}'.encode("utf-16")).startswith("not-json")


def test_a_long_value_is_cut_in_the_refusal() -> None:
    """The answer does not send a megabyte back."""
    assert len(refused(json.dumps({"dimension": "a", "top": "x" * 100_000}).encode())) < 300
