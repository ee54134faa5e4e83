"""
Where a tenant, or a tag, is found in a request.

A resolver is any callable that takes the ASGI scope or the WSGI environ and returns text or
None. The three here know both shapes, so one line fits either middleware.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, cast

__all__ = ["Found", "Resolver", "Source", "header", "path_param", "state"]

# Any, because that is what the two protocols say: a scope and an environ hold anything.
Source = MutableMapping[str, Any]
"""An ASGI scope or a WSGI environ."""

Found = str | int | float | bool | None
"""What a resolver finds; None: nothing. A tenant is text."""

Resolver = Callable[[Any], Found | Awaitable[Found]]
"""A callable of the scope or environ; it may be async under ASGI."""


class header:
    """
    The value of a request header: ``tenant=header("x-tenant-id")``.

    Of several headers with this name it takes the first, as frameworks do. An empty value
    is no value. Whoever can send the header chooses the tenant: set it in a gateway that
    overwrites what clients send, or look an authenticated name up instead.

    Args:
        name: In any case.
    """

    __slots__ = ("_environ_name", "_name")

    def __init__(self, name: str) -> None:
        self._name = name.lower().encode("latin-1")
        variable = name.upper().replace("-", "_")
        plain = variable in ("CONTENT_TYPE", "CONTENT_LENGTH")
        self._environ_name = variable if plain else f"HTTP_{variable}"

    def __call__(self, source: Mapping[str, Any]) -> str | None:
        headers = source.get("headers")
        if headers is None:
            return cast(str, source.get(self._environ_name, "")) or None
        name = self._name
        for key, value in headers:
            if key == name:
                return cast(bytes, value).decode("latin-1") or None
        return None


class path_param:
    """
    A parameter of the route's path: ``tenant=path_param("org")`` for ``/orgs/{org}/items``.

    It is there where the framework leaves it: Starlette, FastAPI and Litestar in the scope,
    Flask by way of Werkzeug's request, others in ``wsgiorg.routing_args``.

    Args:
        name: As in the route.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, source: Mapping[str, Any]) -> str | None:
        params: Mapping[str, Any] | None = source.get("path_params")
        if params is None:
            params = source.get("tallybook.path_params")
        if params is None:
            params = source.get("wsgiorg.routing_args", ((), {}))[1]
        value = params.get(self._name) if params else None
        return None if value is None or value == "" else str(value)


class state:
    """
    What other code left on the request: ``tenant=state("tenant")``.

    Under ASGI that is ``request.state.tenant``, which lies in ``scope["state"]``; under WSGI
    it is ``environ["tenant"]``, so ``state("REMOTE_USER")`` works too.

    Args:
        name: The attribute's, or the environ's, name.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, source: Mapping[str, Any]) -> str | None:
        wsgi = "wsgi.version" in source
        values: Mapping[str, Any] = source if wsgi else source.get("state") or {}
        value = values.get(self._name)
        return None if value is None or value == "" else str(value)
