"""
The glance at new series, against the checks that it saves.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tallybook.errors import InvalidEvent
from tallybook.event import check_dimension, check_tags, check_tenant
from tallybook.frame import encode_series
from tallybook_server.intake import OfferedBlock, take_block
from tallybook_server.tail import Known, halve
from tests.ingest_server.ledger.conftest import block, event

TEXT = st.text(
    st.sampled_from("aZ0é漢\N{GRINNING FACE}\x00\x1f\x7f\x80\x9f\xa0°£ \t"), max_size=70
) | st.integers(0, 300).map("é".__mul__)


def fits(dimension: str, tenant: str | None, tags: dict[str, str]) -> bool:
    """What the checks of the SDK say."""
    try:
        check_dimension(dimension)
        check_tenant(tenant)
        check_tags(tags)
    except InvalidEvent:
        return False
    return True


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "a.b", "A", "", "x" * 128, "x" * 129, "é"]),
            st.none() | TEXT,
            st.dictionaries(TEXT, TEXT, max_size=3) | st.just({str(at): "" for at in range(33)}),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_server_rejects_exactly_what_the_checks_reject(
    series: list[tuple[str, str | None, dict[str, str]]],
) -> None:
    """However the series of a block are checked, the outcome is that of the checks."""
    events = [event(1, dimension=d, tenant=t, tags=tags) for d, t, tags in series]
    taken = take_block(block(1, *events), Known())
    assert isinstance(taken, OfferedBlock)
    assert {at for at, one in enumerate(series) if not fits(*one)} == set(taken.faults)


def test_series_that_is_no_series_is_rejected_alone() -> None:
    """Bytes that are not three values: the events of that series, and no others."""
    from tallybook.block import Columns, encode_block

    good = encode_series("a", None, {})
    columns = Columns(
        version=1,
        source=None,
        series=[good, b"\xc1", good + good],
        of=[0, 1, 2, 0],
        times=[0, 0, 0, 0],
        mantissas=[1, 1, 1, 1],
        scales=[],
        wides=[],
        keys=[],
        ids=[],
        given=[],
    )
    taken = take_block(encode_block(columns, producer=b"p" * 16, first=1), Known())
    assert isinstance(taken, OfferedBlock)
    assert {index: fault.reason for index, fault in taken.faults.items()} == {
        1: "series",
        2: "series",
    }


@given(
    st.lists(st.tuples(TEXT, st.none() | TEXT, st.dictionaries(TEXT, TEXT, max_size=3)), min_size=1)
)
def test_halves_of_a_series_are_its_bytes(
    series: list[tuple[str, str | None, dict[str, str]]],
) -> None:
    """Whatever the lengths, the cut is behind the tenant, and nothing is lost."""
    halves = halve([encode_series(*one) for one in series])
    assert halves.users == [encode_series(d, t, {})[:-1] for d, t, _ in series]
    whole = [user + tagset for user, tagset in zip(*halves, strict=True)]
    assert whole == [encode_series(*one) for one in series]


def test_series_with_unusual_headers_is_halved_as_the_sdk_writes_it() -> None:
    """Longer headers than needed are another encoder's right; beside them is a usual series."""
    usual = encode_series("a", "t", {"k": "v"})
    long_tenant = b"\xa1a" + b"\xda\0\1t" + usual[4:]
    long_dimension = b"\xda\0\1a" + usual[2:]
    assert halve([long_tenant, usual]) == halve([usual, usual])
    assert halve([usual, long_dimension]) == halve([usual, usual])


def test_series_that_cannot_be_read_has_empty_halves() -> None:
    """They are never taken for anybody's, and the series beside them are not disturbed."""
    usual = encode_series("a", None, {})
    for broken in (
        b"",
        b"\xc1",
        b"\xa5a",
        b"\xa1a",
        b"\xa1a\xd9",
        b"\xa1a\xda\0",
        b"\xa1a\x01\xc0",
    ):
        halves = halve([usual, broken])
        assert halves.users == [b"\xa1a\xc0", b""]
        assert halves.tagsets == [b"\xc0", b""]
