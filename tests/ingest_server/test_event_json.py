"""JSON events, read exactly: the pure half of ingest."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.errors import InvalidEvent
from tallybook_server.event_json import read_event, read_events
from tallybook_server.json_cut import cut
from tallybook_server.ledger import OfferedEvent, RejectedEvent
from tallybook_server.problems import Problem
from tallybook_server.rfc3339 import read_rfc3339

NOW = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
_SPACE = st.text(" \t\r\n", max_size=3)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(_JSON, max_size=6), _SPACE, st.booleans())
def test_an_array_is_cut_into_the_bytes_of_its_elements(
    elements: list[object], space: str, ascii_only: bool
) -> None:
    """Whatever stands between them, and halves of surrogate pairs included."""
    texts = [json.dumps(element, ensure_ascii=ascii_only) for element in elements]
    body = space + "[" + space + f"{space},{space}".join(texts) + space + "]" + space
    pieces, alone = cut(body.encode("utf-8", "surrogatepass"), 10)
    assert pieces == [text.encode("utf-8", "surrogatepass") for text in texts]
    assert not alone


def test_an_element_with_half_a_pair_is_cut_like_any_other() -> None:
    """Also beside an escaped backslash, and beside a whole pair."""
    texts = [rb'"\ud800"', rb'"\\ud800"', rb'"\ud83d\ude00"', rb'"\udc00\ud800"', rb'"\\\ud800"']
    assert cut(b"[" + b" , ".join(texts) + b"]", 10) == (texts, False)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    """They are events, rejections or a problem; nothing else comes out."""
    for attempt in (body, b"[" + body + b"]", b'{"dimension":' + body + b"}"):
        try:
            events, _ = read_events(attempt, now=NOW)
        except Problem:
            continue
        assert all(isinstance(event, OfferedEvent | RejectedEvent) for event in events)


@given(
    st.decimals(min_value=0, max_value=Decimal(10) ** 28, places=9, allow_nan=False),
    st.sampled_from(["{:f}", "{:e}", '"{:f}"', '"{:e}"']),
)
def test_a_value_is_exact_in_every_notation(value: Decimal, notation: str) -> None:
    """As a number or as text, plain or with an exponent."""
    raw = f'{{"dimension": "a", "id": "1", "source": "s", "value": {notation.format(value)}}}'
    event = read_event(raw.encode(), now=NOW)
    assert isinstance(event, OfferedEvent)
    mantissa, scale = event.event.value
    assert Fraction(mantissa, 10**scale) == Fraction(value)


def test_a_tag_is_the_text_of_its_value() -> None:
    """Numbers as they are written, so that no digit is lost to a float."""
    raw = b'{"dimension": "a", "id": "1", "source": "s", "tags": {"n": 1.10, "b": true, "t": "x"}}'
    event = read_event(raw, now=NOW)
    assert isinstance(event, OfferedEvent)
    assert event.event.tags == {"n": "1.10", "b": "true", "t": "x"}


def test_a_time_that_is_absent_is_now_and_not_given() -> None:
    """So that a repetition a second later is the same event."""
    event = read_event(b'{"dimension": "a", "id": "1", "source": "s"}', now=NOW)
    assert isinstance(event, OfferedEvent)
    assert (event.event.time, event.event.given) == (NOW, False)


def test_a_time_in_microseconds_is_given() -> None:
    """An integer needs no zone."""
    event = read_event(b'{"dimension": "a", "id": "1", "source": "s", "time": 5}', now=NOW)
    assert isinstance(event, OfferedEvent)
    assert (event.event.time, event.event.given) == (5, True)


@pytest.mark.parametrize(("ahead", "kind"), [(300, OfferedEvent), (301, RejectedEvent)])
def test_the_future_begins_behind_its_limit(ahead: int, kind: type) -> None:
    """Clocks differ a little; five minutes are taken, a second more is kept for replay."""
    raw = f'{{"dimension": "a", "id": "1", "source": "s", "time": {NOW + ahead * 1_000_000}}}'
    assert isinstance(read_event(raw.encode(), now=NOW), kind)


def test_an_unknown_field_names_the_nearest() -> None:
    """A typing mistake is seen at once."""
    event = read_event(b'{"dimension": "a", "tenat": "x"}', now=NOW)
    assert isinstance(event, RejectedEvent)
    assert "Did you mean 'tenant'?" in event.detail


# -- RFC 3339 ------------------------------------------------------------------------------


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31)),  # noqa: DTZ001
    st.integers(-23 * 60, 23 * 60),
)
def test_a_time_is_exact_to_the_microsecond(moment: datetime, offset: int) -> None:
    """In any zone."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    expected = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert read_rfc3339(aware.isoformat()) == expected


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01 00:00:00-00:00", 0),
        ("1970-01-01T00:00:00.1Z", 100_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
    ],
)
def test_the_forms_of_the_rfc_are_read(text: str, microseconds: int) -> None:
    """Nanoseconds are cut, downwards, as the SDK cuts those of its clock."""
    assert read_rfc3339(text) == microseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-W01-1T00:00:00Z",
        "20260101T000000Z",
        "2026-13-01T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00,5Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+01:60",
        "2026-01-01T00:00:00+01",
        "0001-01-01T00:00:00+14:00",
        "٢٠٢٦-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z\n",
    ],
)
def test_anything_else_is_no_time(text: str) -> None:
    """Python's own parser takes several of these."""
    with pytest.raises(InvalidEvent):
        read_rfc3339(text)
