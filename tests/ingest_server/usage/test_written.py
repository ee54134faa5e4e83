"""A question as a URL: how it is written, and what is refused by name."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

from tallybook_server.problems import Problem
from tallybook_server.question import Position, TagFilter, UsageQuery
from tallybook_server.usage.checks import query_of
from tallybook_server.usage.written import written_question

JANUARY = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
DAY = 86_400_000_000
ROWS_MAX = 100_000

WORDS = ["region", "region!", "a.b", "not.tag.a", "tag.", "größe", "a b", "%41"]
KEYS = [*WORDS, "a=b&c", "a+b", "a,b", "a\\,b", "a\\"]


def asked(query: str) -> UsageQuery:
    """The query that a URL asks."""
    return query_of(written_question(query.encode()))


def refused(query: str) -> str:
    """The slug of what is wrong with a URL, and the detail."""
    with pytest.raises(Problem) as caught:
        asked(query)
    return f"{caught.value.kind.slug}: {caught.value.detail}"


def test_a_bare_question_is_about_everything() -> None:
    """All tenants, all time, as the dimension declares."""
    assert asked("dimension=calls") == UsageQuery(("calls",), limit=ROWS_MAX)


def test_a_full_question_is_read() -> None:
    """Every parameter has its place."""
    query = asked(
        "dimension=calls,tokens&dimension=bytes&tenant=acme&tenant=zeta&tenant="
        "&from=2026-01-01T00:00:00Z&to=2026-01-02T01:00:00%2B01:00&window=month&month_day=15"
        "&time_zone=Europe/Berlin&fill=true&group_by=tenant,tag:region&group_by=tag:plan"
        "&tag.route=/v1/chat&aggregation=percentile&percentile=99.90&order=value&top=10"
        "&as_of=2.42&limit=500&explain=true"
    )
    assert query == UsageQuery(
        ("calls", "tokens", "bytes"),
        tenants=("acme", "zeta", None),
        start=JANUARY,
        end=JANUARY + DAY,
        window="month",
        month_day=15,
        time_zone="Europe/Berlin",
        fill=True,
        by_tenant=True,
        by_tags=("region", "plan"),
        filters=(TagFilter("route", "in", ("/v1/chat",)),),
        aggregation="percentile",
        percentile="99.9",
        order="value",
        top=10,
        as_of=Position(2, 42),
        limit=500,
        explain=True,
    )


def test_every_kind_of_filter_is_read() -> None:
    """Repetition gives one filter with several values."""
    query = asked(
        "dimension=a&tag.region=eu&tag.region=us&not.tag.plan=free&not.tag.plan="
        "&prefix.tag.route=/v1/&prefix.tag.route=/v2/&exists.tag.user=true&exists.tag.test=false"
    )
    assert query.filters == (
        TagFilter("region", "in", ("eu", "us")),
        TagFilter("plan", "not_in", ("free", "")),
        TagFilter("route", "prefix", ("/v1/", "/v2/")),
        TagFilter("user", "exists"),
        TagFilter("test", "absent"),
    )


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_filtered_by(key: str) -> None:
    """Behind the prefix everything is the key, whatever it looks like."""
    query = asked(
        "dimension=a&"
        + urlencode({f"tag.{key}": "x", f"not.tag.{key}": "y", f"prefix.tag.{key}": "z"})
        + "&"
        + urlencode({f"exists.tag.{key}": "true"})
    )
    assert query.filters == (
        TagFilter(key, "in", ("x",)),
        TagFilter(key, "not_in", ("y",)),
        TagFilter(key, "prefix", ("z",)),
        TagFilter(key, "exists"),
    )


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_grouped_by(key: str) -> None:
    """Beside others, in one parameter."""
    name = f"tag:{key}".replace("\\", "\\\\").replace(",", "\\,")
    query = asked("dimension=a&" + urlencode({"group_by": f"tenant,{name},tag:z"}))
    assert (query.by_tenant, query.by_tags) == (True, (key, "z"))


def test_an_empty_tenant_means_nobody() -> None:
    """Unattributed usage is asked for, not all usage."""
    assert asked("dimension=calls&tenant=").tenants == (None,)


def test_a_tag_that_is_called_tenant_can_be_grouped_by() -> None:
    """The prefix says that it is a tag."""
    query = asked("dimension=calls&group_by=tag:tenant")
    assert (query.by_tenant, query.by_tags) == (False, ("tenant",))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "parameter-missing: dimension is missing"),
        ("dimension=Calls", "parameter-invalid: dimension is 'Calls'"),
        ("dimension=a,", "parameter-invalid: dimension is ''"),
        ("dimension=a&windw=day", "Did you mean 'window'?"),
        ("dimension=a&timezone=UTC", "Did you mean 'time_zone'?"),
        ("dimension=a&without=eu", "not.tag.<key>, prefix.tag.<key>, exists.tag.<key>"),
        ("dimension=a&no.tag.region=eu", "Did you mean 'not.tag.region'"),
        ("dimension=a&tag.region!=eu", "to leave values out, write not.tag.region="),
        ("dimension=a&window=weeks", "Did you mean 'week'"),
        ("dimension=a&window=day&window=day", "window is given 2 times"),
        ("dimension=a&from=2026-01-01", "parameter-invalid: from: time is '2026-01-01'"),
        ("dimension=a&from=2026-01-01T00:00:00", "has no time zone"),
        ("dimension=a&from=2026-01-01T00:00:00+01:00", "in a URL a + is written %2B"),
        ("dimension=a&group_by=", "group_by has ''; expected tenant, or tag:<key>"),
        ("dimension=a&group_by=tag:", "group_by: tag key is empty"),
        ("dimension=a&group_by=region", "Did you mean 'tag:region'?"),
        ("dimension=a&group_by=tennant", "Did you mean 'tenant'"),
        ("dimension=a&tag.=x", "parameter-invalid: tag.: tag key is empty"),
        ("dimension=a&tag.a=%00", "tag.a: tag 'a' has a control character"),
        ("dimension=a&prefix.tag.a=", "write exists.tag.a=true"),
        ("dimension=a&exists.tag.a=yes", "exists.tag.a is 'yes'; expected one of true, false"),
        ("dimension=a&exists.tag.a=true&exists.tag.a=false", "exists.tag.a is given 2 times"),
        ("dimension=a&tenant=" + "x" * 256, "parameter-invalid: tenant"),
        ("dimension=a&tenant=%ff", "the query is not UTF-8"),
        ("dimension=a&aggregation=mean", "expected one of sum, count, min"),
        ("dimension=a&fill=1", "fill is '1'; expected one of true, false"),
        ("dimension=a&top=1.5", "top has '1.5'; expected a whole number"),
        ("dimension=a&limit=" + "9" * 5000, "limit has '999"),
        ("dimension=" + "a" * 20_000, "parameter-invalid: the query has"),
        (f"dimension=a&{'&'.join(f'group_by=tag:t{n}' for n in range(33))}", "33 tags"),
        (f"dimension=a&{'&'.join(f'tag.{n}=x' for n in range(65))}", "65 filters"),
        (f"dimension=a&{'&'.join(f'tag.a={n}' for n in range(1001))}", "tag.a has 1001 values"),
        (f"dimension={','.join(f'd{n}' for n in range(101))}", "dimension has 101 entries"),
        (f"dimension=a&{'&'.join(f'tenant={n}' for n in range(1001))}", "tenant has 1001 entries"),
    ],
)
def test_a_wrong_question_is_refused_by_name(query: str, said: str) -> None:
    """Nothing is passed over: the answer to another question would be sent as an invoice."""
    assert said in refused(query)
