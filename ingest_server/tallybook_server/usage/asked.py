"""
A question as it comes: its fields, their types, and how many of each there may be.

``POST /v1/usage/query`` takes it as JSON, and a URL is turned into the same. Whether it
makes sense is said in `tallybook_server.usage.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from tallybook_server.json_body import read_object, shown
from tallybook_server.limits import DIMENSIONS_MAX, TENANTS_MAX
from tallybook_server.parameters import invalid
from tallybook_server.problems import Problem, nearest
from tallybook_server.question import TagFilter, TagTest

__all__ = ["AskedFilter", "UsageQuestion", "question_of", "read_question"]

_SHOWN_CHARS: Final = 60
_EXAMPLES: Final = {"dimension": "http.requests", "tag": "region"}


def _listed(value: object) -> object:
    """One name alone is as good as a list of one."""
    return [value] if isinstance(value, str) else value


def _named_tenants(value: object) -> object:
    if value is None:
        # It could mean all tenants or none, and either guess would be wrong half the time.
        raise ValueError(
            "tenant is null; leave it out for all tenants, or write [null] for unattributed events"
        )
    return _listed(value)


def _decimal(value: object) -> object:
    if isinstance(value, float):
        raise ValueError(
            f'percentile is the number {value!r}; expected text, such as "99.9", which is exact'
        )
    # The truth values are integers to Python, and no percentages.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_Names = Annotated[list[str], BeforeValidator(_listed)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AskedFilter(_Strict):
    """
    A filter on one tag; exactly one of the tests.

    Attributes:
        tag: The tag's key.
        one_of: Its value is one of these. Called ``in``.
        not_in: It is none of these, or is not there.
        prefix: It begins with one of these.
        exists: Whether the tag is there.
    """

    tag: str
    one_of: _Names | None = Field(None, alias="in")
    not_in: _Names | None = None
    prefix: _Names | None = None
    exists: bool | None = None


class UsageQuestion(_Strict):
    """
    A question about usage.

    Attributes:
        dimension: What was used.
        tenant: Only these; null among them is "unattributed". Left out: all.
        start: RFC 3339, or none: from the beginning. Called ``from``.
        end: The first moment that no longer counts, or none. Called ``to``.
        window: Split the answer where a new one begins.
        month_day: The day on which a month begins, with ``month``.
        time_zone: An IANA name.
        fill: A row also for windows without events.
        group_by: ``tenant`` and ``tag:<key>``.
        filters: Only events that pass every one of them.
        aggregation: Another one than what the dimension declares.
        unique_of: With ``unique``: ``value``, or ``tag:<key>``.
        percentile: With ``percentile``: decimal text.
        order: ``group``, ``value`` or ``-value``.
        top: Only the first so many rows of each window and dimension.
        as_of: A position, or an RFC 3339 time of recording.
        limit: Rows on a page.
        cursor: Where the page begins.
        explain: Say what was read.
    """

    dimension: Annotated[_Names, Field(min_length=1, max_length=DIMENSIONS_MAX)]
    tenant: Annotated[
        list[str | None],
        Field(min_length=1, max_length=TENANTS_MAX),
        BeforeValidator(_named_tenants),
    ] = Field(default_factory=list[str | None])
    start: str | None = Field(None, alias="from")
    end: str | None = Field(None, alias="to")
    window: str | None = None
    month_day: int | None = None
    time_zone: str | None = None
    fill: bool | None = None
    group_by: _Names | None = None
    filters: list[AskedFilter] = Field(default_factory=list[AskedFilter])
    aggregation: str | None = None
    unique_of: str | None = None
    percentile: Annotated[str | None, BeforeValidator(_decimal)] = None
    order: str | None = None
    top: int | None = None
    as_of: str | None = None
    limit: int | None = None
    cursor: str | None = None
    explain: bool | None = None

    def tag_filters(self) -> list[TagFilter]:
        """
        The filters as the ledger knows them.

        Raises:
            Problem: One of them has no test, or two.
        """
        return [_tag_filter(f"filters[{at}]", one) for at, one in enumerate(self.filters)]


def _tag_filter(name: str, asked: AskedFilter) -> TagFilter:
    compared: tuple[tuple[TagTest, list[str] | None], ...] = (
        ("in", asked.one_of),
        ("not_in", asked.not_in),
        ("prefix", asked.prefix),
    )
    tests = [
        TagFilter(asked.tag, test, tuple(dict.fromkeys(values)))
        for test, values in compared
        if values is not None
    ]
    if asked.exists is not None:
        tests.append(TagFilter(asked.tag, "exists" if asked.exists else "absent"))
    if len(tests) != 1:
        raise invalid(
            name,
            f"{name} has {len(tests)} tests of the tag {asked.tag[:_SHOWN_CHARS]!r}; expected one "
            "of in, not_in, prefix and exists",
        )
    if tests[0].test not in ("exists", "absent") and not tests[0].values:
        raise invalid(name, f"{name} compares with no value at all; expected at least one")
    return tests[0]


# -- reading -------------------------------------------------------------------------------


def read_question(body: bytes) -> UsageQuestion:
    """
    The question that a JSON body asks.

    Raises:
        Problem: It is no JSON object, or a field is unknown, missing, there twice, or of
            another type.
    """
    return question_of(read_object(body, invalid))


def question_of(fields: Mapping[str, object]) -> UsageQuestion:
    """
    The question with these fields.

    Raises:
        Problem: ``parameter-unknown``, ``parameter-missing`` or ``parameter-invalid``.
    """
    try:
        return UsageQuestion.model_validate(dict(fields))
    except ValidationError as error:
        raise _problem(error.errors(include_url=False)[0]) from None


def _problem(error: ErrorDetails) -> Problem:
    """The first thing that is wrong, in the words of the other problems."""
    name, last = _path(error["loc"]), str([*error["loc"]][-1])
    context = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return Problem(
                "parameter-missing",
                f"{name} is missing; expected, for example, {_EXAMPLES[last]!r}",
                more={"parameter": name},
            )
        case "extra_forbidden":
            model = AskedFilter if len(error["loc"]) > 1 else UsageQuestion
            known = [field.alias or name for name, field in model.model_fields.items()]
            hint = nearest(last, known) or f" There are: {', '.join(sorted(known))}."
            return Problem(
                "parameter-unknown",
                f"there is no parameter {name[:_SHOWN_CHARS]!r}.{hint}",
                more={"parameter": name[:_SHOWN_CHARS]},
            )
        case "value_error":
            return invalid(name, str(context["error"]))
        case "too_long":
            counts = f"{context['actual_length']} entries; expected at most {context['max_length']}"
            return invalid(name, f"{name} has {counts}")
        case "too_short":
            return invalid(name, f"{name} is an empty list; expected at least one entry")
        case _:
            expected = error["msg"].replace("Input should be", "expected")
            return invalid(name, f"{name} is {shown(error['input'])}; {expected}")


def _path(place: tuple[int | str, ...]) -> str:
    """``filters[0].in``."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path.removeprefix(".")
