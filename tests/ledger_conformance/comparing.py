"""
An answer beside the one that it should be: the oracle's, or itself as it was.
"""

from __future__ import annotations

from tallybook.errors import TallybookError
from tallybook_server.catalogue import RuleChanges, UnfitAggregation, UnknownDimension
from tallybook_server.question import UnanswerableQuestion, Usage, UsageQuery, UsageRow
from tests.ledger_conformance.facts import Facts
from tests.ledger_conformance.oracle import answer, refusals

REFUSALS = (UnknownDimension, UnfitAggregation, RuleChanges, UnanswerableQuestion)


def compare(facts: Facts, query: UsageQuery, found: Usage | type[TallybookError]) -> None:
    """
    The ledger's answer beside the oracle's.

    Raises:
        AssertionError: They differ.
    """
    refused = refusals(facts, query)
    if not isinstance(found, Usage):
        assert found in refused, f"{query} was met by {found}; expected one of {refused}"
        return
    assert not refused, f"{query} was answered; expected one of {refused}"
    expected = answer(facts, query)
    assert found.rows == expected.rows, (
        f"the answer to {query}\nshould be\n{listed(expected.rows)}\nand is\n{listed(found.rows)}"
    )
    assert found.rules == expected.rules, f"the rules of the answer to {query}"
    assert found.events == expected.events, f"the events of the answer to {query}"
    assert found.more == expected.more, f"whether there is more of the answer to {query}"
    if query.as_of is not None:
        assert found.position == query.as_of


def listed(rows: list[UsageRow]) -> str:
    """Rows, one a line."""
    return "\n".join(map(str, rows))


def said(usage: Usage) -> tuple[object, ...]:
    """What must be the same whenever it is said. (Of its producers, more is known later.)"""
    return usage.rows, usage.rules, usage.events, usage.more, usage.tzdata
