"""
Middleware that records each request: raw ASGI and WSGI. Import it as `tallybook.middleware`.

It records on a Meter and imports nothing else of the SDK than that, its clock and its
tenant; no framework is imported at all. It is not the place where usage is priced or
filtered: what a request was is written down, who pays for it is decided later.

Who imports whom, from the top::

    asgi   wsgi        the two protocols: when a response is complete
    recorder           one request's events onto the Meter, behind a firewall
    route   resolve    the route's template; header("x-tenant-id") and friends
    measure            a request and its response as numbers and tags: pure

The rule that both protocols keep: a request is recorded before the message that completes
its response is handed on. Who has the answer is in the spool.
"""
