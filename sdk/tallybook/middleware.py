"""One line that records each request of an application: the address of `tallybook_middleware`."""

from tallybook_middleware.asgi import UsageMiddleware
from tallybook_middleware.resolve import header, path_param, state
from tallybook_middleware.wsgi import UsageWSGIMiddleware

__all__ = ["UsageMiddleware", "UsageWSGIMiddleware", "header", "path_param", "state"]
