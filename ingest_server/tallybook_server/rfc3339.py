"""
Moments as people and programs write them. Pure. RFC 3339.

`datetime.fromisoformat` is not used alone: it takes week dates and naive times, and drops
digits behind the microsecond without a word.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from tallybook.errors import InvalidEvent
from tallybook.event import read_time

__all__ = ["read_rfc3339"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,30}))?"
    r"(?:([Zz])|([+-])(\d\d):(\d\d))?",
    re.ASCII,
)


def read_rfc3339(text: str) -> int:
    """
    Microseconds since 1970 UTC.

    Digits behind the microsecond are cut, as the SDK cuts the nanoseconds of its clock: a
    ledger's unit of time is the microsecond.

    Raises:
        InvalidEvent: Not RFC 3339, without a zone, or no such day or hour.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        # In a URL an unescaped plus sign is a space: the commonest way to get here.
        hint = "; in a URL a + is written %2B" if re.search(r"\d \d\d:\d\d$", text) else ""
        raise InvalidEvent(
            "time",
            "format",
            f"time is {_shown(text)}; expected RFC 3339 such as 2026-11-21T09:30:00Z{hint}",
        )
    year, month, day, hour, minute, second, fraction, utc, sign, zone_hour, zone_minute = (
        match.groups()
    )
    if utc is None and sign is None:
        raise InvalidEvent(
            "time",
            "naive",
            f"time {_shown(text)} has no time zone; expected a Z or an offset such as +01:00",
        )
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC
        )
        offset = timedelta()
        if sign is not None:
            if int(zone_minute) > 59:
                raise ValueError("minutes of an offset go to 59")
            offset = timedelta(hours=int(zone_hour), minutes=int(zone_minute))
            timezone(offset)  # Refuses an offset of a day or more.
    except ValueError as error:
        raise InvalidEvent(
            "time", "range", f"time {_shown(text)} does not exist: {error}"
        ) from None
    microseconds = int((fraction or "0")[:6].ljust(6, "0"))
    since = (moment - _EPOCH) + (offset if sign == "-" else -offset)
    return read_time(since // _MICROSECOND + microseconds)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
