"""The ledger is asked, and what it refuses becomes a problem."""

from __future__ import annotations

from typing import Final

from tallybook_server.catalogue import OVERRIDES, RuleChanges, UnfitAggregation, UnknownDimension
from tallybook_server.ledger import Ledger, PositionUnknown, TooManyRows
from tallybook_server.problems import Problem, unknown_dimension
from tallybook_server.question import Aggregation, UnanswerableQuestion, Usage, UsageQuery
from tallybook_server.usage.answer import shown_time
from tallybook_server.usage.pages import Page

__all__ = ["ask_ledger"]

_PARAMETER_OF: Final = {"start": "from", "end": "to"}


def ask_ledger(ledger: Ledger, page: Page) -> Usage:
    """
    The answer to one page of a question. Blocks for as long as the ledger takes.

    Raises:
        Problem: The ledger refuses, or nobody asked for pages and there are further ones.
    """
    query = page.query
    usage = _aggregate(ledger, query)
    if usage.more and page.is_whole:
        raise Problem(
            "too-many-rows",
            f"the answer has more than {query.limit} rows, and an answer is never cut unasked; "
            "for pages, set limit",
            more={"rows_max": query.limit},
        )
    return usage


def _aggregate(ledger: Ledger, query: UsageQuery) -> Usage:
    """The ledger's answer, or its refusal as a problem."""
    try:
        return ledger.aggregate(query)
    except TooManyRows as error:
        raise Problem("too-many-rows", str(error), more={"rows_max": query.limit}) from None
    except UnknownDimension as error:
        raise unknown_dimension(error) from None
    except UnfitAggregation as error:
        raise Problem(
            "aggregation-unfit",
            str(error),
            more={
                "parameter": "aggregation",
                "dimension": error.dimension,
                "declared": error.declared,
                "available": _fitting(error.declared),
            },
        ) from None
    except RuleChanges as error:
        raise Problem(
            "rule-changes",
            str(error),
            more={"dimension": error.dimension, "moment": shown_time(error.moment)},
        ) from None
    except PositionUnknown as error:
        raise Problem(
            "position-unknown", str(error), more={"parameter": "as_of", "head": str(error.head)}
        ) from None
    except UnanswerableQuestion as error:
        # What the question says itself was checked; this is what a declaration needs besides.
        name = _PARAMETER_OF.get(error.field, error.field)
        raise Problem("parameter-missing", f"{name}: {error}", more={"parameter": name}) from None


def _fitting(declared: str) -> list[Aggregation]:
    """What may be asked of a dimension that is declared so."""
    return [one for name, fitting in OVERRIDES.items() if name == declared for one in fitting]
