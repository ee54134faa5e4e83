"""
The template of the route that answered: ``/items/{id}``, and never ``/items/17``.

A raw path is free text chosen by clients: it would leak ids into the ledger and make a
series of every request. So where no framework left a template, there is none, and the tag
is left out. The frameworks' shapes are private to them and change (FastAPI 0.137 did, and
instrumentations that trusted them answered 500): callers catch whatever goes wrong here.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

__all__ = ["asgi_route", "note_werkzeug"]


def asgi_route(scope: Mapping[str, Any]) -> str | None:
    """The template that the framework left in *scope*, after it ran; None if it left none."""
    template = scope.get("path_template")  # Litestar.
    if template is None:
        route: Any = scope.get("route")
        if route is None:
            return None
        # FastAPI from 0.137 on: `route` knows nothing of the prefixes of its routers.
        fastapi: Mapping[str, Any] = scope.get("fastapi") or {}
        context = fastapi.get("effective_route_context")
        if getattr(context, "original_route", None) is route:
            route = context
        template = getattr(route, "path_format", None)
        if isinstance(template, str) and scope.get("root_path") != scope.get("app_root_path"):
            template = _mounted(scope, template, hasattr(route, "routes"))
    return template if isinstance(template, str) else None


def _mounted(scope: Mapping[str, Any], template: str, is_mount: bool) -> str:
    """
    The template with those of the mounts that led to it.

    ``root_path`` would be the path of the mounts with their parameters filled in, so it is
    matched again. A mount that is not found that way is left out.
    """
    top = scope.get("app_root_path")
    if top is None:
        return template  # No mount on the way: the server's own root_path is not routing.
    rest = scope["root_path"][len(top) :]
    routes = getattr(scope.get("router"), "routes", ())
    prefix = ""
    while rest:
        for mount in routes:
            match = mount.path_regex.match(rest + "/") if hasattr(mount, "routes") else None
            if match:
                break
        else:
            return template
        prefix += mount.path_format.removesuffix("/{path}")
        rest = match["path"] and "/" + match["path"].rstrip("/")
        routes = mount.routes
    return prefix + ("/{path}" if is_mount else template)


def note_werkzeug(environ: MutableMapping[str, Any]) -> str | None:
    """
    The template that Werkzeug's request knows, and its parameters for `path_param`.

    Flask takes the request out of the environ when its context ends, and so before a response
    is complete: this has to be asked in `start_response`.
    """
    request = environ.get("werkzeug.request")
    rule = getattr(request, "url_rule", None)
    if rule is None:
        return None
    environ["tallybook.path_params"] = getattr(request, "view_args", None) or {}
    template = getattr(rule, "rule", None)
    return template if isinstance(template, str) else None
