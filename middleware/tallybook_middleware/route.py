"""
The template of the route that answered: ``/items/{id}``, and never ``/items/17``.

A raw path is free text chosen by clients: it would leak ids into the ledger and make a
series of every request. So where no framework left a template, there is none, and the tag
is left out. The frameworks' shapes are private to them and change (FastAPI 0.137 did, and
instrumentations that trusted them answered 500): callers catch whatever goes wrong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["asgi_route", "wsgi_route"]


def asgi_route(scope: Mapping[str, Any]) -> str | None:
    """The template that the framework left in *scope*, after it ran; None if it left none."""
    fastapi = scope.get("fastapi")
    if fastapi:
        context = fastapi.get("effective_route_context")
        template = getattr(context, "path_format", None)
        if isinstance(template, str):
            return _prefix(scope) + template
    template = scope.get("path_template")  # Litestar.
    if template is None:
        route = scope.get("route")
        if route is None:
            return None
        template = getattr(route, "path_format", None)
        if isinstance(template, str):
            return _prefix(scope) + template
    return template if isinstance(template, str) else None


def _prefix(scope: Mapping[str, Any]) -> str:
    return ""


def wsgi_route(environ: Mapping[str, Any]) -> str | None:
    """
    The template that Werkzeug's request knows, while it lives; None elsewhere.

    Flask takes the request out of the environ when its context ends, so this has to be asked
    in `start_response`, which Flask calls before that.
    """
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    template = getattr(rule, "rule", None)
    return template if isinstance(template, str) else None
