"""One line that records each request of an application: the address of `tallybook_middleware`."""

from tallybook_middleware import (
    UsageMiddleware,
    UsageWSGIMiddleware,
    header,
    path_param,
    state,
)

__all__ = ["UsageMiddleware", "UsageWSGIMiddleware", "header", "path_param", "state"]
