"""
Middleware that records each request: raw ASGI and WSGI. Import it as `tallybook.middleware`.

It records on a Meter, and imports no framework. It is not the place where usage is priced or
filtered: what a request was is written down, who pays for it is decided later.

Who imports whom, from the top::

    asgi                   wsgi                     the two classes
    websocket  exchange    response  request_body  files    when a response is complete
    recorder               the options, checked and obeyed
    writer                 events onto the Meter, behind a firewall
    route  resolve         the route's template; header("x-tenant-id") and friends
    measure  faults        a request as numbers and tags; a rare line in the log

The rule that both protocols keep: a request is recorded before the message that completes
its response is handed on. Whoever has the answer has been recorded.
"""

from tallybook_middleware.asgi import UsageMiddleware
from tallybook_middleware.resolve import header, path_param, state
from tallybook_middleware.wsgi import UsageWSGIMiddleware

__all__ = ["UsageMiddleware", "UsageWSGIMiddleware", "header", "path_param", "state"]
