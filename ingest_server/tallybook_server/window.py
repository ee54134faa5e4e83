"""
Windows of time: where the hours and days of a time zone begin. Pure.

A window is half-open, ``[start, end)``, in integer microseconds since 1970 UTC. Windows
tile the time that was asked for: no instant is in two of them, none in between.

The edges follow the clock on the wall. A day in autumn has 25 hours. An hour that the
wall clock shows twice is two windows. A local time that is skipped, as 02:30 in spring,
begins when the clock jumps, so a day whose midnight does not exist begins with its first
instant. The rules are zoneinfo's and nobody else's: DuckDB has its own zone tables, and
two tables are one too many for an invoice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Final, Literal
from zoneinfo import TZPATH, ZoneInfo

from tallybook.event import TIME_MAX, TIME_MIN

__all__ = ["Step", "edges", "tzdata_version"]

Step = Literal["hour", "day"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TWO_DAYS: Final = 2 * 86_400_000_000
_STEP: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


def edges(start: int, end: int, step: Step, time_zone: str, *, windows_max: int) -> list[int]:
    """
    The edges of the windows that tile ``[start, end)``: window *i* is ``[edges[i], edges[i+1])``.

    Args:
        start: Microseconds since 1970 UTC, within the years 1 to 9999.
        end: Likewise, later than *start*.
        step: How long a window is on the wall clock.
        time_zone: An IANA name.
        windows_max: More windows than this are an error.

    Returns:
        At least two edges, rising; the first is *start* and the last is *end*, so the
        outermost windows may be cut short.

    Raises:
        ValueError: *end* is not later than *start*, or there would be too many windows.
        ZoneInfoNotFoundError: No such time zone.
    """
    if end <= start:
        raise ValueError(f"a time from {start} to {end} is empty; expected an end after the start")
    # Counted before they are made: a window can be shorter than its step, but not by much.
    if (end - start) // (_STEP[step] // _MICROSECOND) > windows_max:
        raise ValueError(f"more than {windows_max} windows of one {step}; ask for less time")
    inner = {edge for edge in _wall_edges(start, end, step, ZoneInfo(time_zone))}
    return [start, *sorted(edge for edge in inner if start < edge < end), end]


def _wall_edges(start: int, end: int, step: Step, zone: ZoneInfo) -> Iterator[int]:
    """Every instant at which the wall clock begins an hour or a day, around [start, end)."""
    # The wall clock may have been set back in between by up to a day (Kwajalein 1969,
    # Manila 1844): beginning two days earlier and ending two days later misses nothing.
    wall = _floor(_wall(max(start - _TWO_DAYS, TIME_MIN), zone), step)
    last = _wall(min(end + _TWO_DAYS, TIME_MAX), zone)
    while wall <= last:
        yield from _instants(wall, step, zone)
        try:
            wall += _STEP[step]
        except OverflowError:
            return


def _instants(wall: datetime, step: Step, zone: ZoneInfo) -> Iterator[int]:
    """When the wall clock shows *wall*: once, twice, or never (then: when it jumps over it)."""
    early = _instant(wall, zone, fold=0)
    late = _instant(wall, zone, fold=1)
    if early == late:
        yield early
    elif early < late:
        # Shown twice. An hour begins twice; a day begins once, the first time.
        yield early
        if step == "hour":
            yield late
    else:
        yield _jump(late, early, zone)


def _jump(before: int, after: int, zone: ZoneInfo) -> int:
    """The instant in (before, after] at which the zone's offset changes."""
    offset = _offset(before, zone)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(middle, zone) == offset:
            before = middle
        else:
            after = middle
    return after


def _instant(wall: datetime, zone: ZoneInfo, *, fold: int) -> int:
    offset = wall.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta()
    return (wall.replace(tzinfo=UTC) - _EPOCH - offset) // _MICROSECOND


def _offset(instant: int, zone: ZoneInfo) -> timedelta:
    moment = (_EPOCH + instant * _MICROSECOND).astimezone(zone)
    return moment.utcoffset() or timedelta()


def _wall(instant: int, zone: ZoneInfo) -> datetime:
    """What the wall clock shows; at the ends of the calendar, UTC."""
    moment = _EPOCH + instant * _MICROSECOND
    try:
        moment = moment.astimezone(zone)
    except OverflowError:
        pass
    return moment.replace(tzinfo=None, fold=0)


def _floor(wall: datetime, step: Step) -> datetime:
    if step == "hour":
        return wall.replace(minute=0, second=0, microsecond=0)
    return wall.replace(hour=0, minute=0, second=0, microsecond=0)


@lru_cache(maxsize=1)
def tzdata_version() -> str:
    """
    The version of the time zone rules in use, such as ``"2026a"``.

    zoneinfo prefers the machine's files to the tzdata package, and so does this. It is
    ``"unknown"`` where the machine's files do not say what they are.
    """
    for folder in map(Path, TZPATH):
        if not (folder / "UTC").exists():
            continue
        for name in ("tzdata.zi", "+VERSION"):
            try:
                first = (folder / name).read_text(encoding="utf-8").split("\n", 1)[0]
            except OSError:
                continue
            return first.removeprefix("# version ").strip()
        return "unknown"
    try:
        return metadata.version("tzdata")
    except metadata.PackageNotFoundError:
        return "unknown"
