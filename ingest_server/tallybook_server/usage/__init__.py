"""
Usage over HTTP: who used how much of what, when.

A question comes as a URL or as JSON, and an answer goes out as JSON, CSV, NDJSON or
Parquet. Both ways of asking become one `UsageQuestion`, and one set of checks makes a
`UsageQuery` of it, so they cannot mean different things. Imports go one way:

    routes                        HTTP: reading, asking the ledger, refusing, answering
    answer  flat  parquet         an answer's bytes, by format
    asking                        the ledger, and what it refuses
    formats                       which format is asked for
    pages                         cursors: where the next page begins
    written                       a question as a URL
    checks                        a question that makes sense, as a `UsageQuery`
    asked                         a question, as it comes
"""

from tallybook_server.usage.answer import UsageAnswer, UsageAnswerRow
from tallybook_server.usage.asked import UsageQuestion
from tallybook_server.usage.routes import UsageRoutes

__all__ = ["UsageAnswer", "UsageAnswerRow", "UsageQuestion", "UsageRoutes"]
