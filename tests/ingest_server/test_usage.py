"""``GET /v1/usage``: how a question is read, and what an answer says."""

from __future__ import annotations

import pytest

from tallybook_server.ledger import UsageQuery
from tallybook_server.problems import Problem
from tallybook_server.question import TagFilter
from tallybook_server.usage import read_query
from tests.ingest_server.conftest import Running

JANUARY = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
DAY = 86_400_000_000

EVENTS = """[
    {"dimension": "calls", "source": "api", "id": "1", "value": 1.5, "tenant": "acme",
     "tags": {"region": "eu"}, "time": "2026-01-01T10:00:00Z"},
    {"dimension": "calls", "source": "api", "id": "2", "value": 2, "tenant": "acme",
     "tags": {"region": "us"}, "time": "2026-01-01T23:30:00Z"},
    {"dimension": "calls", "source": "api", "id": "3", "value": 4, "tenant": "zeta",
     "tags": {}, "time": "2026-01-02T00:00:00Z"},
    {"dimension": "calls", "source": "api", "id": "4", "value": 8, "time": "2026-01-02T10:00:00Z"}
]"""


def refused(query: str) -> str:
    """The slug of what is wrong with *query*, and the detail."""
    with pytest.raises(Problem) as caught:
        read_query(query.encode())
    return f"{caught.value.kind.slug}: {caught.value.detail}"


def test_a_bare_question_is_about_everything() -> None:
    """All tenants, all time, the sum."""
    assert read_query(b"dimension=calls") == UsageQuery(("calls",), aggregation="sum")


def test_a_full_question_is_read() -> None:
    """Every parameter has its place."""
    query = read_query(
        b"dimension=calls&tenant=acme&from=2026-01-01T00:00:00Z&to=2026-01-02T01:00:00%2B01:00"
        b"&window=hour&time_zone=Europe/Berlin&group_by=tenant,tag:region&group_by=plan"
        b"&tag.route=/v1/chat&aggregation=count"
    )
    assert query == UsageQuery(
        ("calls",),
        tenants=("acme",),
        start=JANUARY,
        end=JANUARY + DAY,
        window="hour",
        time_zone="Europe/Berlin",
        by_tenant=True,
        by_tags=("region", "plan"),
        filters=(TagFilter("route", "in", ("/v1/chat",)),),
        aggregation="count",
    )


def test_an_empty_tenant_means_nobody() -> None:
    """Unattributed usage is asked for, not all usage."""
    query = read_query(b"dimension=calls&tenant=")
    assert query.tenants == (None,)


def test_a_tag_that_is_called_tenant_can_be_grouped_by() -> None:
    """The prefix says that it is a tag."""
    query = read_query(b"dimension=calls&group_by=tag:tenant")
    assert (query.by_tenant, query.by_tags) == (False, ("tenant",))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "parameter-missing: dimension is missing"),
        ("dimension=Calls", "parameter-invalid: dimension is 'Calls'"),
        ("dimension=a&dimension=b", "parameter-invalid: dimension is given 2 times"),
        ("dimension=a&windw=day", "Did you mean 'window'?"),
        ("dimension=a&timezone=UTC", "Did you mean 'time_zone'?"),
        ("dimension=a&window=weeks", "expected one of none, hour, day"),
        ("dimension=a&window=day", "parameter-missing: window=day needs both from and to"),
        ("dimension=a&time_zone=Europe/Berln", "Did you mean 'Europe/Berlin'"),
        ("dimension=a&time_zone=../../etc/passwd", "time-zone-unknown"),
        ("dimension=a&from=2026-01-01", "parameter-invalid: from: time is '2026-01-01'"),
        ("dimension=a&from=2026-01-01T00:00:00", "has no time zone"),
        ("dimension=a&from=2026-01-01T00:00:00+01:00", "in a URL a + is written %2B"),
        ("dimension=a&from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "after from"),
        ("dimension=a&group_by=", "group_by has an empty name"),
        ("dimension=a&group_by=tag:", "group_by has an empty name"),
        ("dimension=a&tag.=x", "parameter-invalid: tag key is empty"),
        ("dimension=a&tag.a=x&tag.a=y", "tag.a is given 2 times"),
        ("dimension=a&tenant=" + "x" * 256, "parameter-invalid: tenant"),
        ("dimension=a&tenant=%ff", "the query is not UTF-8"),
        ("dimension=a&aggregation=avg", "expected one of sum, count"),
        ("dimension=" + "a" * 20_000, "parameter-invalid: the query has"),
        (f"dimension=a&{'&'.join(f'group_by=t{n}' for n in range(33))}", "33 tags"),
    ],
)
def test_a_wrong_question_is_refused_by_name(query: str, said: str) -> None:
    """Nothing is passed over: the answer to another question would be sent as an invoice."""
    assert said in refused(query)


def test_an_unknown_dimension_is_an_empty_answer(shared: Running) -> None:
    """Usage that nobody had is no fault."""
    answer = shared.http.get("/v1/usage?dimension=nothing.yet")
    assert (answer.status_code, answer.json()["data"]) == (200, [])


def test_an_answer_has_the_documented_fields(server: Running) -> None:
    """No more, no less, and in this order."""
    server.post(EVENTS)
    answer = server.http.get("/v1/usage?dimension=calls").json()
    assert list(answer) == [
        "dimension",
        "aggregation",
        "from",
        "to",
        "window",
        "time_zone",
        "position",
        "complete",
        "through",
        "producers",
        "tzdata",
        "data",
    ]
    assert answer["data"] == [
        {"from": None, "to": None, "tenant": None, "tags": {}, "value": "15.5", "events": 4}
    ]
    assert answer["position"] == str(server.ledger.position())


def test_windows_follow_the_time_zone(server: Running) -> None:
    """23:30 in London is the next day in Berlin; edges are named in UTC."""
    server.post(EVENTS)
    rows = server.http.get(
        "/v1/usage?dimension=calls&window=day&time_zone=Europe/Berlin"
        "&from=2025-12-31T23:00:00Z&to=2026-01-02T23:00:00Z"
    ).json()["data"]
    assert [(row["from"], row["value"]) for row in rows if row["events"]] == [
        ("2025-12-31T23:00:00Z", "1.5"),
        ("2026-01-01T23:00:00Z", "14"),
    ]


def test_groups_and_filters_reach_the_ledger(server: Running) -> None:
    """By tenant and tag, of one tenant, of one tag's value."""
    server.post(EVENTS)
    ask = server.http.get
    by_tenant = ask("/v1/usage?dimension=calls&group_by=tenant").json()["data"]
    assert {row["tenant"]: row["value"] for row in by_tenant} == {
        "acme": "3.5",
        "zeta": "4",
        None: "8",
    }
    by_region = ask("/v1/usage?dimension=calls&group_by=region&tenant=acme").json()["data"]
    assert {row["tags"]["region"]: row["value"] for row in by_region} == {"eu": "1.5", "us": "2"}
    assert server.usage(**{"tag.region": "eu"}) == "1.5"
    assert server.usage(tenant="") == "8"
    assert server.usage(aggregation="count") == "4"
