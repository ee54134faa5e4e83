"""
What an event may be: the bounds of each field, checked in one place. Pure.

The SDK calls these checks when a series or a value is new to it, the server for
every series of every block, so both sides refuse the same things in the same words.

A value is a scaled integer: ``mantissa / 10**scale``, with ``0 <= scale <= 9`` and
no trailing zero behind the point, so that equal quantities are equal pairs. It is
never a binary float: a float that a caller passes is read by its shortest repr.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, cast

import msgspec

from tallybook.errors import InvalidEvent
from tallybook.limits import (
    DIMENSION_CHARS_MAX,
    KEY_BYTES_MAX,
    SOURCE_BYTES_MAX,
    TAG_KEY_BYTES_MAX,
    TAG_VALUE_BYTES_MAX,
    TAGS_MAX,
    TENANT_BYTES_MAX,
    VALUE_DECIMALS_MAX,
    VALUE_DIGITS_MAX,
)

__all__ = [
    "Event",
    "Value",
    "check_dimension",
    "check_key",
    "check_source",
    "check_tags",
    "check_tenant",
    "format_time",
    "format_value",
    "plain",
    "read_time",
    "read_value",
]

Value = int | float | Decimal
"""What a caller may pass as a value."""

INT64_MAX: Final = 2**63 - 1
TIME_MIN: Final = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z in microseconds
TIME_MAX: Final = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DIMENSION = re.compile(r"[a-z0-9_.\-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# No more digits than 38 on either side, so that nothing large is ever parsed: the
# integer of "1e3000000" takes minutes (measured: 285 s).
_VALUE = re.compile(r"(-?)([0-9]{1,76})(?:\.([0-9]{1,76}))?(?:[eE]([+-]?[0-9]{1,3}))?", re.ASCII)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """
    One fact: who used how much of what, when.

    Attributes:
        dimension: What was used: ``"http.requests"``.
        value: ``(mantissa, scale)``; the quantity is ``mantissa / 10**scale``.
        tenant: Who used it, or None: unattributed.
        time: Microseconds since 1970 UTC.
        tags: Free keys and values to slice by.
        key: The caller's idempotency key, or None.
        given: Whether the caller gave the time, rather than the clock.
        id: The id that the event brought from another format, or None.
    """

    dimension: str
    value: tuple[int, int]
    tenant: str | None
    time: int
    tags: dict[str, str]
    key: str | None = None
    given: bool = False
    id: str | None = None


def read_value(value: Value | str) -> tuple[int, int]:
    """
    The exact quantity as ``(mantissa, scale)``.

    Args:
        value: An int, a finite Decimal or float (by its shortest repr), or text
            such as ``"12.5"``; at most 38 digits, of which 9 behind the point.

    Raises:
        InvalidEvent: Not a number, not finite, negative, or too many digits.
    """
    if isinstance(value, bool):
        raise InvalidEvent("value", "type", f"value is {value}; expected a number, not a truth")
    if isinstance(value, int):
        if abs(value) >= 10**VALUE_DIGITS_MAX:
            raise InvalidEvent(
                "value",
                "too_many_digits",
                f"value has more than {VALUE_DIGITS_MAX} digits; expected at most that many",
            )
        if value < 0:
            raise _negative(value)
        return int(value), 0
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidEvent("value", "not_finite", f"value is {value}; expected a finite number")
        # Of the float itself: a subclass, such as numpy's, may write its name around it.
        return _read_text(float.__repr__(value))
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise InvalidEvent("value", "not_finite", f"value is {value}; expected a finite number")
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int) or abs(exponent) > 2 * VALUE_DIGITS_MAX:
            raise _digits(f"{value:.6e}")
        return _read_text(format(value, "f"))
    if isinstance(value, str):
        return _read_text(value)
    raise InvalidEvent(
        "value",
        "type",
        f"value is a {type(value).__name__}; expected int, Decimal or float",
    )


def _read_text(text: str) -> tuple[int, int]:
    match = _VALUE.fullmatch(text) if len(text) <= 2 * VALUE_DIGITS_MAX + 8 else None
    if match is None:
        shown = text if len(text) <= 60 else text[:57] + "..."
        if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text, re.ASCII):
            raise _digits(shown)
        raise InvalidEvent(
            "value",
            "not_a_number",
            f"value is {shown!r}; expected a decimal number such as 12.5",
        )
    sign, whole, fraction, exponent = match.groups()
    digits = whole + (fraction or "")
    scale = len(fraction or "") - int(exponent or 0)
    # Shift in text: a zero is dropped or added, nothing is multiplied.
    stripped = digits.lstrip("0")
    if not stripped:
        return 0, 0
    while scale > 0 and stripped.endswith("0"):
        stripped, scale = stripped[:-1], scale - 1
    if scale < 0:
        if len(stripped) - scale > VALUE_DIGITS_MAX:
            raise _digits(text)
        stripped, scale = stripped + "0" * -scale, 0
    if scale > VALUE_DECIMALS_MAX:
        raise InvalidEvent(
            "value",
            "too_many_decimals",
            f"value {text} has {scale} decimals; at most {VALUE_DECIMALS_MAX} are kept exactly: "
            f"pass round(value, {VALUE_DECIMALS_MAX}), or a smaller unit",
        )
    if len(stripped) > VALUE_DIGITS_MAX:
        raise _digits(text)
    if sign:
        raise _negative(text)
    return int(stripped), scale


def _digits(shown: object) -> InvalidEvent:
    return InvalidEvent(
        "value",
        "too_many_digits",
        f"value {shown} has too many digits; expected at most {VALUE_DIGITS_MAX}",
    )


def _negative(shown: object) -> InvalidEvent:
    return InvalidEvent(
        "value",
        "negative",
        f"value {shown} is negative; usage is not taken back by recording: make an adjustment",
    )


def format_value(mantissa: int, scale: int) -> str:
    """The quantity as plain decimal text: no exponent, no trailing zero behind the point."""
    if scale <= 0:
        return str(mantissa * 10**-scale)
    whole, rest = divmod(abs(mantissa), 10**scale)
    text = f"{whole}.{rest:0{scale}}".rstrip("0") if rest else str(whole)
    return text if mantissa >= 0 else f"-{text}"


def check_dimension(dimension: object) -> None:
    """Raise InvalidEvent unless *dimension* is 1 to 128 of ``a-z 0-9 _ . -``."""
    if not isinstance(dimension, str):
        raise InvalidEvent(
            "dimension",
            "type",
            f"dimension is a {type(dimension).__name__}; expected a str",
        )
    if len(dimension) > DIMENSION_CHARS_MAX:
        raise InvalidEvent(
            "dimension",
            "too_long",
            f"dimension {dimension[:40]!r}... has {len(dimension)} characters; "
            f"expected at most {DIMENSION_CHARS_MAX}",
        )
    if not _DIMENSION.fullmatch(dimension):
        raise InvalidEvent(
            "dimension",
            "characters",
            f"dimension is {dimension!r}; expected 1 to {DIMENSION_CHARS_MAX} of a-z 0-9 _ . -, "
            "such as 'tokens.output'",
        )


def _check_text(
    field: str, text: object, bytes_max: int, *, empty: bool = False, shown: str = ""
) -> None:
    name = shown or field
    if not isinstance(text, str):
        raise InvalidEvent(field, "type", f"{name} is a {type(text).__name__}; expected a str")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidEvent(
            field,
            "not_unicode",
            f"{name} {text!r} holds half a surrogate pair; expected text",
        ) from None
    if not size and not empty:
        raise InvalidEvent(field, "empty", f"{name} is empty; expected 1 to {bytes_max} bytes")
    if size > bytes_max:
        raise InvalidEvent(
            field,
            "too_long",
            f"{name} {text[:40]!r}... has {size} bytes; expected at most {bytes_max}",
        )


def check_tenant(tenant: object) -> None:
    """Raise InvalidEvent unless *tenant* is None or text of 1 to 255 bytes."""
    if tenant is not None:
        _check_text("tenant", tenant, TENANT_BYTES_MAX)


def check_key(key: object) -> None:
    """Raise InvalidEvent unless *key* is None or text of 1 to 255 bytes."""
    if key is not None:
        _check_text("key", key, KEY_BYTES_MAX)


def check_source(source: object) -> None:
    """Raise InvalidEvent unless *source* is None or text of 1 to 128 bytes."""
    if source is not None:
        _check_text("source", source, SOURCE_BYTES_MAX)


def check_tags(tags: object) -> dict[str, str]:
    """
    The tags as text, each checked.

    Args:
        tags: A mapping of at most 32; keys are text of 1 to 64 bytes, values are
            text of at most 256 bytes, or a number or a bool, which become text.

    Raises:
        InvalidEvent: A tag is outside its bounds; the message names it.
    """
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise InvalidEvent("tags", "type", f"tags is a {type(tags).__name__}; expected a mapping")
    given = cast(Mapping[object, object], tags)
    if len(given) > TAGS_MAX:
        raise InvalidEvent(
            "tags",
            "too_many",
            f"{len(given)} tags on one event; expected at most {TAGS_MAX}",
        )
    checked: dict[str, str] = {}
    for key, value in given.items():
        # At a glance: a character has four bytes at most, and what can be printed is no
        # control character and no half of a surrogate pair.
        if (
            type(key) is str
            and type(value) is str
            and 0 < len(key) <= TAG_KEY_BYTES_MAX // 4
            and len(value) <= TAG_VALUE_BYTES_MAX // 4
            and key.isprintable()
            and value.isprintable()
        ):
            checked[key] = value
        else:
            checked[check_tag_key(key)] = _tag_text(key, value)
    return checked


def check_tag_key(key: object) -> str:
    """The tag's key, or InvalidEvent."""
    _check_text("tags", key, TAG_KEY_BYTES_MAX, shown="tag key")
    if not isinstance(key, str) or _CONTROL.search(key):
        raise InvalidEvent("tags", "control", f"tag key {key!r} has a control character")
    return plain(key)


def _tag_text(key: object, value: object) -> str:
    field = f"tag {key!r}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidEvent("tags", "not_finite", f"{field} is {value}; expected a number")
        return float.__repr__(value)
    if isinstance(value, int | Decimal):
        try:
            value = int.__repr__(value) if isinstance(value, int) else str(value)
        except ValueError:  # CPython refuses to print an int of more than 4,300 digits.
            raise InvalidEvent("tags", "too_long", f"{field} is too large a number") from None
    if not isinstance(value, str):
        raise InvalidEvent(
            "tags",
            "type",
            f"{field} is a {type(value).__name__}; expected text, a number or a bool: "
            "leave the tag out, or pass str(value)",
        )
    _check_text("tags", value, TAG_VALUE_BYTES_MAX, empty=True, shown=field)
    if _CONTROL.search(value):
        raise InvalidEvent("tags", "control", f"{field} has a control character: {value!r}")
    return plain(value)


def plain(text: str) -> str:
    """The text itself: a subclass, such as an enum's member, may show itself otherwise."""
    return str.__str__(text)


def read_time(time: object) -> int:
    """
    Microseconds since 1970 UTC.

    Args:
        time: An aware datetime, or an int that already is in microseconds.

    Raises:
        InvalidEvent: A naive datetime, another type, or a year outside 1 to 9999.
    """
    if isinstance(time, datetime):
        if time.utcoffset() is None:
            raise InvalidEvent(
                "time",
                "naive",
                f"time {time.isoformat()} has no time zone; pass an aware datetime, "
                "such as datetime.now(UTC)",
            )
        # Beyond year 1 or 9999 it can be in UTC, and is then refused like any other.
        time = (time - _EPOCH) // _MICROSECOND
    if isinstance(time, bool) or not isinstance(time, int):
        raise InvalidEvent(
            "time",
            "type",
            f"time is a {type(time).__name__}; expected an aware datetime or int microseconds",
        )
    if not TIME_MIN <= time <= TIME_MAX:
        raise InvalidEvent(
            "time",
            "range",
            "time is outside the years 1 to 9999 in UTC, in microseconds since 1970",
        )
    return int(time)


def format_time(time: int) -> str:
    """RFC 3339 in UTC, with microseconds only where there are any."""
    moment = _EPOCH + time * _MICROSECOND
    return moment.isoformat().replace("+00:00", "Z")
